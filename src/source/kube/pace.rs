//! When to ask again. Pure: time and chance are arguments.
//!
//! ```text
//! failure:  0.2 s, 0.4 s, … 15 s, each shortened by up to half by chance, so that a thousand
//!           nodes do not come back at once; never sooner than the server asked for
//! success:  begins at 0.2 s again
//! ```

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(15);
/// The longest that a server may make us wait.
const PATIENCE: Duration = Duration::from_secs(120);

/// The waits between attempts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    failures: u32,
}

impl Pace {
    /// How often in a row it has failed.
    pub(super) fn failures(self) -> u32 {
        self.failures
    }

    /// An attempt went well.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// An attempt failed: how long to wait. `asked` is what the server asked for, `chance` are 64
    /// random bits.
    pub(super) fn failed(&mut self, asked: Option<Duration>, chance: u64) -> Duration {
        let step = FIRST.saturating_mul(1 << self.failures.min(16)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        let share = (chance >> 40) as f64 / (1u64 << 24) as f64;
        let wait = step.mul_f64(1.0 - share / 2.0);
        match asked {
            // All who are asked to wait are asked for the same time.
            Some(asked) => asked.min(PATIENCE) + wait.min(Duration::from_secs(1)),
            None => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_begin_anew() {
        let mut pace = Pace::default();
        let waits: Vec<_> = (0..10).map(|_| pace.failed(None, 0).as_millis()).collect();
        assert_eq!(waits[..4], [200, 400, 800, 1600]);
        assert_eq!(waits[9], 15_000);
        assert_eq!(pace.failures(), 10);
        pace.succeeded();
        assert_eq!(pace.failed(None, u64::MAX).as_millis(), 100);
    }

    #[test]
    fn a_server_is_not_asked_sooner_than_it_wants() {
        let mut pace = Pace::default();
        let asked = Some(Duration::from_secs(7));
        assert!(pace.failed(asked, 0) >= Duration::from_secs(7));
        let asked = Some(Duration::from_secs(86_400));
        assert!(pace.failed(asked, 0) < Duration::from_secs(130));
    }
}
