//! Ctrl-C and SIGTERM while brokers of ours run: they are killed and what was written is removed before this program ends.
//!
//! - I1: a process is killed only while its owner has not yet waited for it, so its id cannot be somebody else's.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// What a shell expects of a program that a signal ended.
const EXIT_CODE: i32 = 130;

/// What is cleared away when a signal comes.
#[derive(Debug)]
struct Held {
    children: Vec<Pid>,
    dir: PathBuf,
}

/// Watches for signals as long as it lives.
#[derive(Debug)]
pub struct Watch {
    held: Arc<Mutex<Held>>,
    handle: Handle,
}

impl Watch {
    /// Will remove `dir` when a signal comes.
    pub fn over(dir: PathBuf) -> Result<Watch> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("watching for signals")?;
        let handle = signals.handle();
        let held = Arc::new(Mutex::new(Held { children: Vec::new(), dir }));
        let seen = Arc::clone(&held);
        let watcher = std::thread::Builder::new().name("signals".to_owned());
        let watching = watcher.spawn(move || {
            if signals.forever().next().is_some() {
                clear_away(&lock(&seen));
                std::process::exit(EXIT_CODE);
            }
        });
        watching.context("starting a thread")?;
        Ok(Watch { held, handle })
    }

    /// Names a child that a signal ends, too.
    pub fn hold(&self, child: u32) {
        lock(&self.held).children.extend(pid_of(child));
    }

    /// Forgets a child, which its owner is about to wait for.
    pub fn release(&self, child: u32) {
        lock(&self.held).children.retain(|held| Some(*held) != pid_of(child));
    }
}

fn pid_of(child: u32) -> Option<Pid> {
    i32::try_from(child).ok().and_then(Pid::from_raw)
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clear_away(held: &Held) {
    for child in &held.children {
        // It may be gone already: a terminal sends Ctrl-C to all of them.
        let _killed = kill_process(*child, Signal::KILL);
    }
    // A child that is still ending may add a file to what is being removed.
    for _ in 0..3 {
        if std::fs::remove_dir_all(&held.dir).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    eprintln!("{} could not be removed", held.dir.display());
}
