//! Tasks with a name and an owner.
//!
//! Everything on a worker is `!Send` and runs on that worker's `LocalSet`. A task ends when its
//! [`Task`] is dropped, unless it was let go with [`Task::detach`]: so nothing outlives its owner
//! by oversight.

use std::future::Future;

use tokio::task::AbortHandle;
use tracing::Instrument;

/// A running task; dropping this ends it at its next waiting point.
#[derive(Debug)]
#[must_use = "the task ends when this is dropped"]
pub struct Task(Option<AbortHandle>);

/// Starts `work` on the current thread's `LocalSet`, under a span of this name.
///
/// # Panics
///
/// When called outside a `LocalSet`.
pub fn spawn_local(name: &'static str, work: impl Future<Output = ()> + 'static) -> Task {
    let span = tracing::trace_span!("task", task.name = name);
    let running = tokio::task::spawn_local(work.instrument(span));
    Task(Some(running.abort_handle()))
}

impl Task {
    /// Lets the task run to its own end.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}
