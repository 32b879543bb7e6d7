//! How much anybody may ask for. Pure: the time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

/// Most callers that are kept in mind; beyond that, those who have not asked lately are forgotten.
const CALLERS: usize = 20_000;

/// Token buckets, one per caller: `burst` requests at once, `rate` more per second.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: f64,
    burst: f64,
    callers: HashMap<K, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Full buckets.
    pub(crate) fn new(rate: f64, burst: f64) -> Self {
        Self {
            rate,
            burst,
            callers: HashMap::new(),
        }
    }

    /// Takes a request out of a caller's bucket; false when it is empty.
    pub(crate) fn take(&mut self, caller: K, now: Instant) -> bool {
        let (rate, burst) = (self.rate, self.burst);
        let level = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + rate * passed).min(burst)
        };
        if self.callers.len() >= CALLERS && !self.callers.contains_key(&caller) {
            // A full bucket remembers nothing.
            self.callers.retain(|_, bucket| level(bucket) < burst);
            if self.callers.len() >= CALLERS {
                return false;
            }
        }
        let bucket = self.callers.entry(caller).or_insert(Bucket {
            left: burst,
            at: now,
        });
        bucket.left = level(bucket);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut buckets = Buckets::new(2.0, 3.0);
        let mut taken =
            |caller, after: f64| buckets.take(caller, start + Duration::from_secs_f64(after));
        for _ in 0..3 {
            assert!(taken("a", 0.0));
        }
        assert!(!taken("a", 0.0));
        assert!(taken("b", 0.0), "one caller's haste is not another's");
        assert!(!taken("a", 0.4));
        assert!(taken("a", 0.6));
        assert!(!taken("a", 0.6));
        for _ in 0..3 {
            assert!(taken("a", 60.0), "no more than a burst is saved");
        }
        assert!(!taken("a", 60.0));
        assert!(!taken("a", 59.0), "time that runs back gives nothing");
    }

    #[test]
    fn callers_are_bounded() {
        let start = Instant::now();
        let mut buckets = Buckets::new(1.0, 1.0);
        for caller in 0..CALLERS {
            assert!(buckets.take(caller, start));
        }
        assert!(!buckets.take(CALLERS, start));
        assert!(buckets.take(CALLERS, start + Duration::from_secs(2)));
        assert_eq!(buckets.callers.len(), 1);
    }
}
