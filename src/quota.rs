//! Who may have one more of something that comes to an end: descriptors, connections, places.
//!
//! Pure. Nobody has a fixed share, because who is alone may have nearly all, and nobody can take all:
//! each may hold so many times what is *free*, and the more is taken, the less that is. Whoever has
//! little is always let in. (Choudhury and Hahne, "Dynamic queue length thresholds", 1998, for the
//! memory of a switch.)

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Whether one that holds `own`, while `used` of `most` are taken, may have one more, where each may
/// hold `times` what is free. One alone gets `times / (times + 1)` of all.
#[must_use]
pub fn admits(most: usize, used: usize, own: usize, times: usize) -> bool {
    own < most.saturating_sub(used).saturating_mul(times)
}

/// How long a complaint is not repeated.
const QUIET: Duration = Duration::from_secs(10);

/// A complaint that may come up a million times a second, and is told now and then.
#[derive(Debug, Default)]
pub struct Seldom {
    /// The millisecond behind which it is due again.
    due: AtomicU64,
    untold: AtomicU64,
}

impl Seldom {
    /// Whether to complain `now` (since any fixed moment), and of how many times: this one, and those
    /// since the last complaint.
    pub fn complain(&self, now: Duration) -> Option<u64> {
        let untold = self.untold.fetch_add(1, Ordering::Relaxed) + 1;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (now, due) = (millis(now), self.due.load(Ordering::Relaxed));
        let next = now.saturating_add(millis(QUIET));
        let relaxed = Ordering::Relaxed;
        let ours = now >= due && {
            let won = self.due.compare_exchange(due, next, relaxed, relaxed);
            won.is_ok()
        };
        ours.then(|| {
            self.untold.fetch_sub(untold, relaxed);
            untold
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What users get who take all they can, in turn.
    fn fill(most: usize, times: usize, users: usize) -> Vec<usize> {
        let mut own = vec![0; users];
        loop {
            let before = own.clone();
            for user in 0..users {
                let used = own.iter().sum();
                own[user] += usize::from(admits(most, used, own[user], times));
            }
            if own == before {
                return own;
            }
        }
    }

    #[test]
    fn one_alone_has_nearly_all_and_many_leave_something_to_the_next() {
        assert_eq!(fill(900, 8, 1), [800]);
        assert_eq!(fill(900, 2, 1), [600]);
        for users in [2, 5, 50] {
            let own = fill(9000, 8, users);
            let (least, most) = (own.iter().min().unwrap(), own.iter().max().unwrap());
            assert!(most - least <= 8, "{own:?}");
            let used = own.iter().sum();
            assert!(admits(9000, used, 0, 8), "{users} users take all of it");
        }
        assert!(!admits(10, 10, 0, 8));
        assert!(!admits(10, 11, 0, 8));
    }

    #[test]
    fn a_flood_is_told_once_in_a_while_and_counted_whole() {
        let seldom = Seldom::default();
        let at = |millis| seldom.complain(Duration::from_millis(millis));
        assert_eq!(at(0), Some(1));
        assert_eq!([at(1), at(5000), at(9999)], [None; 3]);
        assert_eq!(at(10_000), Some(4));
        assert_eq!(at(10_001), None);
    }
}
