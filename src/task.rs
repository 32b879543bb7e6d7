//! Tasks with a name and an owner.
//!
//! A task ends with its [`Task`], unless it is [detached](Task::detach). A panic in one is caught
//! by the runtime, logged with the task's name, and ends nothing else.

use std::future::Future;

use futures_util::FutureExt;
use tokio::task::JoinHandle;

/// A running task. Dropping it aborts the task.
#[derive(Debug)]
#[must_use = "dropping a task aborts it"]
pub struct Task(Option<JoinHandle<()>>);

impl Task {
    /// Whether it has come to its own end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the task run on to its own end.
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

/// Spawns a task on this thread's runtime.
///
/// # Panics
///
/// Outside of a `LocalSet`.
pub fn spawn_local(name: &'static str, work: impl Future<Output = ()> + 'static) -> Task {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that spawns"
    )]
    Task(Some(tokio::task::spawn_local(watched(name, work))))
}

/// Spawns a task that may move between threads.
///
/// # Panics
///
/// Outside of a runtime.
pub fn spawn(name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Task {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that spawns"
    )]
    Task(Some(tokio::spawn(watched(name, work))))
}

/// Runs blocking work beside the runtime; `None` when it panicked, which is logged.
pub async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that spawns"
    )]
    let done = tokio::task::spawn_blocking(work).await;
    if done.is_err() {
        tracing::error!(task = name, "task panicked");
    }
    done.ok()
}

/// Combinators and not an `async fn`, which would have room for `work` twice.
fn watched(name: &'static str, work: impl Future<Output = ()>) -> impl Future<Output = ()> {
    // The state a panicking task leaves behind is its own; what it shares is cells and maps whose
    // operations do not unwind half-way.
    let work = std::panic::AssertUnwindSafe(work);
    work.catch_unwind().map(move |done| {
        if done.is_err() {
            tracing::error!(task = name, "task panicked");
        }
    })
}
