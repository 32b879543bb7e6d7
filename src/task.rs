//! Tasks with a name and an owner.
//!
//! A task ends with its [`Task`], unless it is [detached](Task::detach). A panic in one is caught
//! by the runtime, logged with the task's name, and ends nothing else.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

thread_local! {
    /// How often tasks of this thread were polled.
    static POLLS: Cell<u64> = const { Cell::new(0) };
    /// Who waits for that.
    static WATCHER: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

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

    /// Aborts the task, and waits until it has dropped all that it held.
    pub async fn end(mut self) {
        if let Some(handle) = &mut self.0 {
            handle.abort();
            let _ = handle.await;
        }
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
/// Outside of a `LocalRuntime` or a `LocalSet`.
pub fn spawn_local(name: &'static str, work: impl Future<Output = ()> + 'static) -> Task {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that spawns"
    )]
    Task(Some(tokio::task::spawn_local(watched(name, work, true))))
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
    Task(Some(tokio::spawn(watched(name, work, true))))
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

/// The signals by which a program is told to end: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

/// Takes the signals that tell a program to end, from here on.
///
/// # Errors
///
/// The system refused a handler.
///
/// # Panics
///
/// Outside of a runtime.
pub fn ends() -> io::Result<Ends> {
    Ok(Ends {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    })
}

impl Ends {
    /// Waits for the next of them. Those that came before count, several of a kind as one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How often tasks of this thread have been polled: work that came up.
#[must_use]
pub fn polls() -> u64 {
    POLLS.get()
}

/// Waits until a task of this thread has been polled. One task of a thread may wait; it must have
/// been spawned by [`spawn_watcher`], or it waits for itself.
pub async fn polled() {
    let before = polls();
    std::future::poll_fn(|cx| {
        if polls() != before {
            return Poll::Ready(());
        }
        WATCHER.set(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// Lets all that is ready on this thread run, and what the kernel has ready besides.
pub async fn yield_now() {
    tokio::task::yield_now().await;
}

/// As [`spawn_local`], for the one task that looks at the others: it does not count as work.
///
/// # Panics
///
/// As [`spawn_local`].
pub fn spawn_watcher(name: &'static str, work: impl Future<Output = ()> + 'static) -> Task {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that spawns"
    )]
    Task(Some(tokio::task::spawn_local(watched(name, work, false))))
}

fn watched<F>(name: &'static str, work: F, counts: bool) -> Watched<F> {
    Watched { work, name, counts }
}

pin_project! {
    /// A task's work, in the place where the task has it: no copy of it is kept on the way there.
    struct Watched<F> {
        #[pin]
        work: F,
        name: &'static str,
        counts: bool,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if *this.counts {
            POLLS.set(POLLS.get() + 1);
            if let Some(watcher) = WATCHER.take() {
                watcher.wake();
            }
        }
        // The state a panicking task leaves behind is its own; what it shares is cells and maps
        // whose operations do not unwind half-way.
        let polled = panic::catch_unwind(AssertUnwindSafe(|| this.work.poll(cx)));
        polled.unwrap_or_else(|_| {
            tracing::error!(task = this.name, "task panicked");
            Poll::Ready(())
        })
    }
}
