//! What is wanted, what is in flight and what is due. Pure: time and chance are arguments.
//!
//! An identity that is wanted is in one of these states; [`Certificates`](crate::pki::Certificates)
//! does what the ledger says and tells it what came of it.
//!
//! ```text
//!            want             start              finish: issued
//!   (absent) ────▶ due now ──────────▶ in flight ──────────────▶ valid, due at half-life ─┐
//!       ▲              ▲                  │  ▲                                            │
//!       │ unwanted     └── due later ◀────┘  └────────────────────── start ◀──────────────┘
//!                          finish: failed
//! ```
//!
//! A certificate stays valid to its end whatever attempts do. What is dropped while in flight is in
//! flight still: it is not asked for twice, and its answer is used if it is wanted again by then.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use crate::mesh::Identity;
use crate::pki::rotate::{Lifetime, renewal, retry};

/// One wanted identity.
#[derive(Clone, Copy, Debug)]
pub(in crate::pki) struct Entry {
    /// That of its certificate, while it has one.
    pub(in crate::pki) lifetime: Option<Lifetime>,
    /// Attempts that failed since the last that did not.
    pub(in crate::pki) failures: u32,
    /// The time of the next attempt.
    pub(in crate::pki) due: SystemTime,
}

/// The state of all identities.
#[derive(Debug)]
pub(in crate::pki) struct Ledger {
    entries: HashMap<Identity, Entry>,
    in_flight: HashSet<Identity>,
    /// How many may be in flight at a time.
    limit: usize,
}

impl Ledger {
    pub(in crate::pki) fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            in_flight: HashSet::new(),
            limit,
        }
    }

    /// Replaces what is wanted. New ones are due now; returns what is dropped.
    pub(in crate::pki) fn want(
        &mut self,
        wanted: HashSet<Identity>,
        now: SystemTime,
    ) -> Vec<Identity> {
        let dropped = self.entries.keys().filter(|known| !wanted.contains(*known));
        let dropped: Vec<_> = dropped.cloned().collect();
        for identity in &dropped {
            self.entries.remove(identity);
        }
        for identity in wanted {
            self.entries.entry(identity).or_insert(Entry {
                lifetime: None,
                failures: 0,
                due: now,
            });
        }
        dropped
    }

    /// Takes what is due into flight, as far as there is room; those without a certificate first,
    /// because somebody may wait for them.
    pub(in crate::pki) fn start(&mut self, now: SystemTime) -> Vec<Identity> {
        let room = self.limit.saturating_sub(self.in_flight.len());
        let mut due: Vec<_> = self
            .entries
            .iter()
            .filter(|(identity, entry)| entry.due <= now && !self.in_flight.contains(*identity))
            .map(|(identity, entry)| (entry.lifetime.is_some(), entry.due, identity))
            .collect();
        due.sort_unstable();
        let taken = due.into_iter().take(room);
        let taken: Vec<_> = taken.map(|(_, _, identity)| identity.clone()).collect();
        self.in_flight.extend(taken.iter().cloned());
        taken
    }

    /// Books an attempt's end: `Some` with the new certificate's life, or `None` if it failed.
    /// Returns the entry as it is now, or `None` if the identity is no longer wanted.
    pub(in crate::pki) fn finish(
        &mut self,
        identity: &Identity,
        outcome: Option<Lifetime>,
        now: SystemTime,
        draw: u64,
    ) -> Option<Entry> {
        self.in_flight.remove(identity);
        let entry = self.entries.get_mut(identity)?;
        match outcome {
            Some(lifetime) => {
                *entry = Entry {
                    lifetime: Some(lifetime),
                    failures: 0,
                    due: renewal(lifetime, draw),
                };
            }
            None => {
                entry.failures = entry.failures.saturating_add(1);
                let not_after = entry.lifetime.map(|life| life.not_after);
                entry.due = retry(entry.failures, now, not_after, draw);
            }
        }
        Some(*entry)
    }

    /// Takes the certificates that have ended, and returns whose they were. They are due at once: a
    /// clock that was set, or a machine that slept, may have passed over attempts.
    pub(in crate::pki) fn expire(&mut self, now: SystemTime) -> Vec<Identity> {
        let mut expired = Vec::new();
        for (identity, entry) in &mut self.entries {
            if entry.lifetime.is_some_and(|life| life.not_after <= now) {
                entry.lifetime = None;
                entry.due = entry.due.min(now);
                expired.push(identity.clone());
            }
        }
        expired
    }

    /// When there is something to do next, if nothing comes back before.
    pub(in crate::pki) fn next(&self) -> Option<SystemTime> {
        let room = self.in_flight.len() < self.limit;
        let moments = self.entries.iter().flat_map(|(identity, entry)| {
            let due = room && !self.in_flight.contains(identity);
            let end = entry.lifetime.map(|life| life.not_after);
            [due.then_some(entry.due), end].into_iter().flatten()
        });
        moments.min()
    }

    /// Forgets attempts whose end nobody will tell, as when the loop was stopped.
    pub(in crate::pki) fn land(&mut self) {
        self.in_flight.clear();
    }

    pub(in crate::pki) fn entry(&self, identity: &Identity) -> Option<Entry> {
        self.entries.get(identity).copied()
    }

    pub(in crate::pki) fn entries(&self) -> impl Iterator<Item = (&Identity, &Entry)> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::mesh::TrustDomain;

    const START: SystemTime = SystemTime::UNIX_EPOCH;
    const DAY: Duration = Duration::from_secs(86_400);

    fn named(number: u32) -> Identity {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        Identity::new(&domain, "ns", &format!("sa{number}")).unwrap()
    }

    fn set(numbers: impl IntoIterator<Item = u32>) -> HashSet<Identity> {
        numbers.into_iter().map(named).collect()
    }

    fn life(now: SystemTime) -> Lifetime {
        Lifetime {
            issued: now,
            not_after: now + DAY,
        }
    }

    #[test]
    fn eight_at_a_time_and_none_twice() {
        let mut ledger = Ledger::new(8);
        ledger.want(set(0..20), START);
        let first = ledger.start(START);
        assert_eq!(first.len(), 8);
        assert_eq!(ledger.start(START), [], "no room");
        assert_eq!(ledger.next(), None, "only a return can change anything");
        for identity in &first {
            ledger.finish(identity, Some(life(START)), START, 0);
        }
        let second = ledger.start(START);
        assert_eq!(second.len(), 8);
        assert!(second.iter().all(|identity| !first.contains(identity)));
        ledger.finish(&second[0], Some(life(START)), START, 0);
        assert_eq!(ledger.start(START).len(), 1);
    }

    #[test]
    fn who_has_none_goes_first() {
        let mut ledger = Ledger::new(1);
        ledger.want(set([1]), START);
        ledger.start(START);
        ledger.finish(&named(1), Some(life(START)), START, 0);
        let later = START + DAY * 3 / 4;
        ledger.want(set([1, 2]), later);
        assert_eq!(
            ledger.start(later),
            [named(2)],
            "although 1 is due for longer"
        );
    }

    #[test]
    fn what_is_unwanted_is_dropped_and_may_come_back() {
        let mut ledger = Ledger::new(8);
        ledger.want(set([1, 2]), START);
        ledger.start(START);
        assert_eq!(ledger.want(set([1]), START), [named(2)]);
        assert!(
            ledger
                .finish(&named(2), Some(life(START)), START, 0)
                .is_none()
        );

        assert_eq!(ledger.want(set([]), START), [named(1)]);
        ledger.want(set([1]), START);
        assert_eq!(ledger.start(START), [], "it is in flight still");
        let entry = ledger.finish(&named(1), Some(life(START)), START, 0);
        assert!(entry.unwrap().lifetime.is_some());
    }

    #[test]
    fn a_failed_renewal_keeps_what_is_valid_to_its_end() {
        let mut ledger = Ledger::new(8);
        ledger.want(set([1]), START);
        ledger.start(START);
        ledger.finish(&named(1), Some(life(START)), START, u64::MAX / 2);
        let mut now = ledger.next().unwrap();
        let mut attempts = 0;
        while now < START + DAY {
            assert_eq!(ledger.expire(now), []);
            assert_eq!(ledger.start(now), [named(1)]);
            let entry = ledger.finish(&named(1), None, now, u64::MAX / 2).unwrap();
            attempts += 1;
            assert_eq!(
                (entry.lifetime, entry.failures),
                (Some(life(START)), attempts)
            );
            now = ledger.next().unwrap();
        }
        assert_eq!(now, START + DAY, "the end itself is a moment to act");
        assert_eq!(ledger.expire(now), [named(1)]);
        assert!(attempts > 280, "twelve hours of attempts: {attempts}");
    }

    proptest! {
        /// Whatever is wanted, dropped, answered or not: never more than the limit in flight,
        /// nothing in flight twice, and with time everybody gets an attempt.
        #[test]
        fn the_ledger_holds(steps in prop::collection::vec((0_u8..4, 0_u32..12, any::<u64>()), 1..200)) {
            let mut ledger = Ledger::new(3);
            let mut now = START;
            let mut flying: Vec<Identity> = Vec::new();
            for (step, number, draw) in steps {
                match step {
                    0 => { ledger.want(set((0..12).filter(|n| draw >> n & 1 == 1)), now); }
                    1 => if let Some(next) = ledger.next() { now = now.max(next); },
                    _ if flying.is_empty() => {}
                    _ => {
                        let identity = flying.remove(number as usize % flying.len());
                        let outcome = (step == 2).then(|| life(now));
                        ledger.finish(&identity, outcome, now, draw);
                    }
                }
                ledger.expire(now);
                for identity in ledger.start(now) {
                    prop_assert!(!flying.contains(&identity));
                    flying.push(identity);
                }
                prop_assert!(flying.len() <= 3);
                let wants = ledger.entries().any(|(identity, _)| !flying.contains(identity));
                prop_assert!(!wants || flying.len() == 3 || ledger.next().is_some());
            }
        }
    }
}
