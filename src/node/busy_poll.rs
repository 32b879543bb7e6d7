//! Waiting awake for what comes next, when it comes at once.
//!
//! To wake a processor that sleeps takes tens of microseconds on a virtual machine, more than all
//! that a message costs here otherwise, and a request with its answer wakes each daemon twice. So a
//! worker that has nothing more to do looks for events some microseconds longer before it sleeps
//! (the field knows this from the kernel as busy polling: `net.core.busy_poll`).
//!
//! What this may cost is bounded in four ways: it looks no longer than the configured time; not at
//! all while what it waited for did not come ([`Worth`]); it gives the processor to whoever else
//! wants it between two looks; and of all workers of a node one at a time does it, so it is one
//! processor's idle time at most. `adit_busy_poll_seconds_total` says how much it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::node::worker::Shared;
use crate::task;

/// Pauses that are slept through after looking in vain, at most.
const MOST_SLEPT: u32 = 63;

/// What the workers of a daemon share: that only one of them looks.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// How long to look; zero for never.
    time: Duration,
    taken: AtomicBool,
}

impl BusyPoll {
    /// For a daemon whose workers look for at most `time`; zero for never.
    pub(crate) fn new(time: Duration) -> Self {
        Self {
            time,
            taken: AtomicBool::new(false),
        }
    }

    fn take(&self) -> Option<Turn<'_>> {
        let free = !self.taken.swap(true, Ordering::Relaxed);
        free.then_some(Turn(&self.taken))
    }
}

/// The right to look, given back when dropped.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Keeps this worker awake for as long as that pays. Runs as a task beside the worker's others.
pub(crate) async fn run(shared: Arc<Shared>) {
    let busy_poll = &shared.busy_poll;
    if busy_poll.time.is_zero() {
        return;
    }
    let mut worth = Worth::default();
    loop {
        task::polled().await;
        if !worth.ask() {
            continue;
        }
        let Some(turn) = busy_poll.take() else {
            continue;
        };
        let mut spent = Duration::ZERO;
        while let Some(waited) = look(busy_poll.time).await {
            worth.learn(true);
            spent += waited;
        }
        drop(turn);
        worth.learn(false);
        shared
            .metrics
            .daemon
            .busy_poll
            .inc_by((spent + busy_poll.time).as_secs_f64());
    }
}

/// Looks until a task of this thread was polled, or in vain for `time`. How long it waited.
async fn look(time: Duration) -> Option<Duration> {
    // Twice: tasks that are ready already are not what is waited for.
    task::yield_now().await;
    let before = task::polls();
    let since = Instant::now();
    loop {
        // The runtime asks the kernel for events before it comes back here.
        task::yield_now().await;
        if task::polls() != before {
            return Some(since.elapsed());
        }
        if since.elapsed() >= time {
            return None;
        }
        thread::yield_now();
    }
}

/// Whether the next pause is worth being waited out awake: as long as that brings something. After
/// a look in vain, one more pause than before is slept through, twice as many each time.
#[derive(Debug, Default)]
struct Worth {
    skip: u32,
    backoff: u32,
}

impl Worth {
    fn ask(&mut self) -> bool {
        let now = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        now
    }

    fn learn(&mut self, came: bool) {
        if came {
            self.backoff = 0;
        } else {
            self.skip = self.backoff;
            self.backoff = (2 * self.backoff + 1).min(MOST_SLEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_in_vain_becomes_rare_and_success_makes_it_the_rule_again() {
        let mut worth = Worth::default();
        let mut looks = 0;
        for _ in 0..10_000 {
            if worth.ask() {
                looks += 1;
                worth.learn(false);
            }
        }
        assert!(looks < 200, "{looks} of 10,000 pauses");
        while !worth.ask() {}
        worth.learn(true);
        // A look goes on while events come, and ends in vain.
        worth.learn(false);
        assert!(worth.ask(), "the next pause is waited out awake");
    }

    #[test]
    fn one_worker_at_a_time() {
        let busy_poll = BusyPoll::new(Duration::from_micros(50));
        let turn = busy_poll.take();
        assert!(turn.is_some());
        assert!(busy_poll.take().is_none());
        drop(turn);
        assert!(busy_poll.take().is_some());
    }
}
