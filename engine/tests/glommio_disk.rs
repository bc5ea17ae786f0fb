//! The production disk on real files. Scratch files lie under the build directory, as tmpfs would hide alignment
//! errors: glommio turns direct I/O off there.
#![cfg(feature = "glommio")]
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::path::Path;

use chronik_engine::disk::{DISK_ALIGN, Disk, DiskFile};
use chronik_engine::disk_glommio::GlommioDisk;
use chronik_engine::limits::DISK_IO_BYTES_MAX;
use futures_util::future::try_join_all;
use glommio::{LocalExecutorBuilder, Placement};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn on_executor<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let builder = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20);
    builder.spawn(move || in_ring(test())).unwrap().join().unwrap();
}

async fn in_ring(test: impl Future<Output = ()>) {
    chronik_ring::run(chronik_ring::Notifier::new().unwrap(), test).await.unwrap();
}

async fn write_filled(file: &impl DiskFile, byte: u8, len: usize, position: u64) {
    let mut buf = file.alloc(len);
    buf.as_mut().fill(byte);
    file.write_at(buf, position).await.unwrap();
}

#[test]
fn given_new_executor_when_first_files_are_empty_then_reads_work_after_probe() {
    let dir = scratch();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let path = path.join("not/there/yet");
        let disk = GlommioDisk::new(&path).await.unwrap();
        assert!(disk.list(&path).await.unwrap().is_empty(), "the probe is not listed");
        disk.create(&path.join("empty"), 0).await.unwrap();
        let file = disk.create(&path.join("f"), 1 << 16).await.unwrap();
        write_filled(&file, 7, DISK_ALIGN, 8192).await;
        file.sync_data().await.unwrap();
        let content = file.read_at(4096, 3 * DISK_ALIGN).await.unwrap();
        assert_eq!((content[0], content[4095]), (0, 0));
        assert_eq!((content[4096], content[8191], content[8192]), (7, 7, 0));
    });
}

#[test]
fn given_several_executors_when_they_probe_one_directory_then_all_can_read() {
    let dir = scratch();
    let threads: Vec<_> = (0..3)
        .map(|at| {
            let path = dir.path().to_path_buf();
            let builder = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20);
            let run = move || async move {
                let disk = GlommioDisk::new(&path).await.unwrap();
                let file = disk.create(&path.join(format!("f{at}")), 4096).await.unwrap();
                write_filled(&file, at, 4096, 0).await;
                assert_eq!(file.read_at(0, 4096).await.unwrap()[..], [at; 4096]);
            };
            builder.spawn(move || in_ring(run())).unwrap()
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn given_large_block_when_written_in_parallel_parts_then_one_read_gives_it_back() {
    let dir = scratch();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let disk = GlommioDisk::new(&path).await.unwrap();
        let file = disk.create(&path.join("f"), 4 * DISK_IO_BYTES_MAX as u64).await.unwrap();
        let part = |at: u8| {
            let mut buf = file.alloc(DISK_IO_BYTES_MAX);
            buf.as_mut().fill(at + 1);
            file.write_at(buf, u64::from(at) * DISK_IO_BYTES_MAX as u64)
        };
        try_join_all((0..3).map(part)).await.unwrap();
        file.sync_data().await.unwrap();
        let content = file.read_at(0, 4 * DISK_IO_BYTES_MAX).await.unwrap();
        for at in 0..3u8 {
            let start = usize::from(at) * DISK_IO_BYTES_MAX;
            assert!(content[start..start + DISK_IO_BYTES_MAX].iter().all(|b| *b == at + 1));
        }
        assert!(content[3 * DISK_IO_BYTES_MAX..].iter().all(|b| *b == 0));
    });
}

#[test]
fn given_names_when_changed_then_listing_and_errors_are_those_of_the_seam() {
    let dir = scratch();
    let root = dir.path().to_path_buf();
    on_executor(move || async move {
        let disk = GlommioDisk::new(&root).await.unwrap();
        let dir = root.join("a/b");
        disk.create_dir_all(&dir).await.unwrap();
        disk.create(&dir.join("f"), 8192).await.unwrap();
        let kind = |result: std::io::Result<_>| result.map(|_| ()).unwrap_err().kind();
        assert_eq!(kind(disk.create(&dir.join("f"), 0).await), ErrorKind::AlreadyExists);
        assert_eq!(kind(disk.open(&dir.join("g")).await), ErrorKind::NotFound);
        let full = kind(disk.create(&dir.join("big"), 1 << 52).await);
        assert!(matches!(full, ErrorKind::StorageFull | ErrorKind::FileTooLarge), "{full}");
        disk.rename(&dir.join("f"), &dir.join("g")).await.unwrap();
        disk.sync_dir(&dir).await.unwrap();
        let listed = disk.list(&dir).await.unwrap();
        assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].len), (1, "g", 8192));
        let file = disk.open(&dir.join("g")).await.unwrap();
        assert_eq!(file.len(), 8192);
        let eof = file.read_at(8192, 4096).await.unwrap_err();
        assert_eq!(eof.kind(), ErrorKind::UnexpectedEof);
        let beyond = file.write_at(file.alloc(4096), 8192).await.unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::InvalidInput);
        disk.remove(&dir.join("g")).await.unwrap();
        assert!(disk.list(&dir).await.unwrap().is_empty());
        assert!(disk.list(Path::new("/no/such/directory")).await.is_err());
    });
}

/// How many descriptors of this process are of the file.
fn descriptors_of(path: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target == path)
        .count()
}

#[test]
fn given_a_file_that_is_only_read_from_now_on_when_open_then_it_has_one_descriptor() {
    let dir = scratch();
    let path = dir.path().to_path_buf();
    on_executor(move || async move {
        let disk = GlommioDisk::new(&path).await.unwrap();
        let path = path.canonicalize().unwrap().join("sealed");
        let file = disk.create(&path, 1 << 16).await.unwrap();
        write_filled(&file, 7, DISK_ALIGN, 0).await;
        file.sync_data().await.unwrap();
        assert_eq!(descriptors_of(&path), 3);
        file.end_writes();
        assert_eq!(descriptors_of(&path), 1);
        assert_eq!(file.read_at(0, DISK_ALIGN).await.unwrap()[0], 7);
        let refused = file.write_at(file.alloc(DISK_ALIGN), 0).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
    });
}
