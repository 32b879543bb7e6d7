//! Bounded waits. Nothing in the tests sleeps for a fixed time in the hope that it is enough.

use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at again.
const STEP: Duration = Duration::from_millis(20);

/// Asks until `ask` gives a value, at most `deadline` long.
pub(crate) fn poll<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = ask() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(STEP);
    }
}

/// Asks until `ask` gives `Ok`; panics with what was wanted and the last answer after `deadline`.
#[track_caller]
pub(crate) fn within<T, E: Debug>(
    deadline: Duration,
    wanted: &str,
    mut ask: impl FnMut() -> Result<T, E>,
) -> T {
    let mut last = None;
    let found = poll(deadline, || match ask() {
        Ok(value) => Some(value),
        Err(answer) => {
            last = Some(answer);
            None
        }
    });
    match found {
        Some(value) => value,
        None => panic!("not within {deadline:?}: {wanted}; last seen: {last:?}"),
    }
}

/// Waits until `holds`; panics with what was wanted after `deadline`.
#[track_caller]
pub(crate) fn eventually(deadline: Duration, wanted: &str, mut holds: impl FnMut() -> bool) {
    within(deadline, wanted, || {
        if holds() {
            Ok(())
        } else {
            Err("it does not hold")
        }
    });
}

/// Panics as soon as `holds` fails within `time`; for claims that something does not happen.
#[track_caller]
pub(crate) fn holds_for(time: Duration, wanted: &str, mut holds: impl FnMut() -> bool) {
    let broken = poll(time, || (!holds()).then_some(()));
    assert!(broken.is_none(), "it stopped to hold: {wanted}");
}
