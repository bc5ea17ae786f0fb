//! The ring under a real glommio executor and a real kernel.

#![allow(clippy::disallowed_methods, reason = "these tests wait on real time")]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chronik_ring::{Interest, Notifier, guest, notified, readiness, sleep, spawn, yield_now};
use glommio::io::{DmaFile, OpenOptions};
use glommio::{LocalExecutorBuilder, Placement};

fn on_a_core<T: Send + 'static, Fut: Future<Output = T> + 'static>(
    notifier: Notifier,
    body: impl FnOnce() -> Fut + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::Builder::new()
        .spawn(move || {
            let executor = LocalExecutorBuilder::new(Placement::Unbound)
                .io_memory(1 << 20)
                .make()
                .expect("an executor");
            executor.run(async move { chronik_ring::run(notifier, body()).await.expect("a ring") })
        })
        .expect("a thread")
}

fn run<T: Send + 'static, Fut: Future<Output = T> + 'static>(
    body: impl FnOnce() -> Fut + Send + 'static,
) -> T {
    on_a_core(Notifier::new().expect("an eventfd"), body).join().expect("the test's body")
}

fn pair() -> (Rc<OwnedFd>, Rc<OwnedFd>) {
    let (left, right) = UnixStream::pair().expect("a socket pair");
    (Rc::new(left.into()), Rc::new(right.into()))
}

#[test]
fn given_several_timers_when_they_fire_then_it_is_in_the_order_of_their_times() {
    let order = run(|| async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [30u64, 10, 20]
            .into_iter()
            .map(|ms| {
                let order = Rc::clone(&order);
                spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    order.borrow_mut().push(ms);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        order.take()
    });
    assert_eq!(order, [10, 20, 30]);
}

#[test]
fn given_a_timer_that_was_dropped_when_time_passes_then_others_fire() {
    run(|| async {
        let dropped = spawn(sleep(Duration::from_millis(1)));
        yield_now().await;
        drop(dropped);
        sleep(Duration::from_millis(5)).await;
    });
}

#[test]
fn given_a_socket_when_its_peer_sends_then_it_is_readable_and_not_before() {
    run(|| async {
        let (left, right) = pair();
        let seen = Rc::new(Cell::new(false));
        let waiting = spawn({
            let seen = Rc::clone(&seen);
            async move {
                readiness(&left, Interest::Readable).await.expect("a poll");
                seen.set(true);
            }
        });
        sleep(Duration::from_millis(5)).await;
        assert!(!seen.get(), "nothing was sent");
        rustix::io::write(&*right, b"x").expect("a byte");
        waiting.await;
        assert!(seen.get());
        readiness(&right, Interest::Writable).await.expect("a poll");
    });
}

#[test]
fn given_a_wait_that_was_given_up_when_its_descriptor_closes_then_the_peer_sees_the_end() {
    run(|| async {
        let (left, right) = pair();
        let waiting = spawn({
            let left = Rc::clone(&left);
            async move { readiness(&left, Interest::Readable).await }
        });
        sleep(Duration::from_millis(2)).await;
        drop(waiting);
        drop(left);
        readiness(&right, Interest::Readable).await.expect("a poll");
        assert_eq!(rustix::io::read(&*right, &mut [0; 1]).expect("the end"), 0);
    });
}

#[test]
fn given_two_cores_when_they_wake_each_other_then_no_notification_is_lost() {
    const ROUNDS: u64 = 50_000;
    let notifiers = [Notifier::new().expect("eventfd"), Notifier::new().expect("eventfd")];
    let turn = Arc::new(AtomicU64::new(0));
    let cores: Vec<_> = (0..2u64)
        .map(|me| {
            let turn = Arc::clone(&turn);
            let mine = notifiers[usize::from(me == 1)].clone();
            let other = notifiers[usize::from(me == 0)].clone();
            on_a_core(mine, move || async move {
                loop {
                    let now = turn.load(Ordering::SeqCst);
                    if now >= ROUNDS {
                        other.notify();
                        return;
                    }
                    if now % 2 == me {
                        turn.store(now + 1, Ordering::SeqCst);
                        other.notify();
                    } else {
                        notified().await;
                    }
                }
            })
        })
        .collect();
    for core in cores {
        core.join().expect("both end");
    }
    assert!(turn.load(Ordering::SeqCst) >= ROUNDS);
}

#[test]
fn given_a_core_that_sleeps_when_another_thread_notifies_then_it_wakes_long_before_its_longest_sleep()
 {
    let notifier = Notifier::new().expect("an eventfd");
    let (told, heard) = std::sync::mpsc::channel();
    let core = on_a_core(notifier.clone(), move || async move {
        for _ in 0..20 {
            notified().await;
            told.send(()).expect("the test listens");
        }
    });
    let begun = Instant::now();
    for _ in 0..20 {
        std::thread::yield_now();
        notifier.notify();
        heard.recv().expect("a wake-up");
    }
    assert!(begun.elapsed() < chronik_ring::SLEEP_MAX * 10, "wake-ups waited for the timer");
    core.join().expect("an end");
}

#[test]
fn given_a_file_when_it_is_written_and_synced_then_glommio_reads_it_as_a_guest() {
    let dir =
        tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = dir.path().join("file");
    std::fs::write(&path, [0; 16384]).expect("a file");
    run(move || async move {
        let file: DmaFile =
            guest(OpenOptions::new().read(true).write(true).dma_open(&path)).await.expect("open");
        let direct = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
            .open(&path)
            .expect("open");
        let fd = Rc::new(OwnedFd::from(direct));
        for round in 0..50u8 {
            let mut buf = file.alloc_dma_buffer(8192);
            buf.as_bytes_mut().fill(round);
            let written = chronik_ring::write_at(&fd, Rc::new(buf), 4096).await.expect("a write");
            assert_eq!(written, 8192);
            chronik_ring::sync_data(&fd).await.expect("a sync");
            let read = guest(file.read_at_aligned(4096, 8192)).await.expect("a read");
            assert!(read.iter().all(|byte| *byte == round));
        }
        guest(file.close()).await.expect("close");
    });
}

#[test]
fn given_a_write_whose_future_is_dropped_when_the_core_goes_on_then_its_bytes_arrive_whole() {
    let dir =
        tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = dir.path().join("file");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a file");
    let written = path.clone();
    run(move || async move {
        let probe: DmaFile =
            guest(OpenOptions::new().read(true).dma_open(&written)).await.expect("open");
        let file = std::fs::OpenOptions::new().write(true).open(&written).expect("open");
        let fd = Rc::new(OwnedFd::from(file));
        for at in 0..256u64 {
            let mut buf = probe.alloc_dma_buffer(4096);
            buf.as_bytes_mut().fill(7);
            drop(chronik_ring::write_at(&fd, Rc::new(buf), at * 4096));
        }
        guest(probe.close()).await.expect("close");
    });
    let content = std::fs::read(&path).expect("the file");
    assert!(content.iter().all(|byte| *byte == 7));
}

#[test]
fn given_tasks_that_never_wait_when_a_timer_is_due_then_it_fires() {
    run(|| async {
        let busy = spawn(async {
            loop {
                yield_now().await;
            }
        });
        sleep(Duration::from_millis(10)).await;
        drop(busy);
    });
}

#[test]
fn given_a_failing_operation_when_it_ends_then_the_error_is_the_kernels() {
    run(|| async {
        let (left, _right) = pair();
        let error = chronik_ring::sync_data(&left).await.expect_err("sockets cannot be synced");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::INVAL.raw_os_error()));
    });
}

#[test]
fn given_tasks_that_never_wait_when_a_guest_is_under_way_then_it_is_served_within_milliseconds() {
    let took = run(|| async {
        let busy = spawn(async {
            loop {
                yield_now().await;
            }
        });
        yield_now().await;
        let begun = Instant::now();
        for _ in 0..5 {
            guest(glommio::executor().spawn_blocking(|| ())).await;
        }
        drop(busy);
        begun.elapsed()
    });
    assert!(took < Duration::from_millis(50), "guests of a busy core waited {took:?}");
}

#[test]
fn given_a_task_that_waits_when_it_is_cancelled_then_the_canceller_goes_on_at_once() {
    let took = run(|| async {
        let begun = Instant::now();
        for _ in 0..10 {
            let waiting = spawn(std::future::pending::<()>());
            yield_now().await;
            waiting.cancel().await;
        }
        begun.elapsed()
    });
    assert!(took < chronik_ring::SLEEP_MAX, "cancellations waited for the timer: {took:?}");
}

#[test]
fn given_tasks_that_go_on_when_the_main_future_ends_then_what_they_begin_never_resolves() {
    let begun = Arc::new(AtomicU64::new(0));
    run({
        let begun = Arc::clone(&begun);
        || async move {
            let (left, _right) = pair();
            for at in 0..3 {
                let (begun, left) = (Arc::clone(&begun), Rc::clone(&left));
                spawn(async move {
                    for _ in 0..2 {
                        yield_now().await; // the main future ends meanwhile
                    }
                    begun.fetch_add(1, Ordering::SeqCst);
                    match at {
                        0 => sleep(Duration::ZERO).await,
                        1 => _ = readiness(&left, Interest::Writable).await,
                        _ => notified().await,
                    }
                    unreachable!("the core has ended");
                })
                .detach();
            }
            yield_now().await;
        }
    });
    assert_eq!(begun.load(Ordering::SeqCst), 3, "they went on after the main future");
}

#[test]
fn given_more_answers_than_the_ring_holds_when_they_come_at_once_then_none_is_lost() {
    const WAITS: usize = 12_000;
    run(|| async {
        let (left, right) = pair();
        let waits: Vec<_> = (0..WAITS)
            .map(|_| {
                let left = Rc::clone(&left);
                spawn(async move { readiness(&left, Interest::Readable).await.expect("a poll") })
            })
            .collect();
        sleep(Duration::from_millis(5)).await;
        rustix::io::write(&*right, b"x").expect("a byte");
        for wait in waits {
            wait.await;
        }
        // The notifier's poll may have ended with the overflow: it is armed again.
        sleep(Duration::from_millis(1)).await;
    });
}
