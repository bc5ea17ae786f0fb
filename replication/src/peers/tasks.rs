//! Tasks that end together: each by itself, or all when their owner closes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use chronik_ring::Task;

/// The tasks of one owner. Those that hold their owner keep it alive until [`Tasks::close`].
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: RefCell<BTreeMap<u64, Task<()>>>,
    next_id: Cell<u64>,
    is_closed: Cell<bool>,
}

impl Tasks {
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Runs a task until it ends or all are closed.
    pub(super) fn spawn(self: &Rc<Self>, future: impl Future<Output = ()> + 'static) {
        if self.is_closed() {
            return;
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        let tasks = Rc::clone(self);
        // It begins to run after this function, so it finds itself among those that run.
        let task = chronik_ring::spawn(async move {
            future.await;
            if let Some(task) = tasks.running.borrow_mut().remove(&id) {
                task.detach();
            }
        });
        self.running.borrow_mut().insert(id, task);
    }

    /// Starts no more, and gives back those that run: dropped, they are cancelled.
    pub(super) fn close(&self) -> Vec<Task<()>> {
        self.is_closed.set(true);
        std::mem::take(&mut *self.running.borrow_mut()).into_values().collect()
    }
}
