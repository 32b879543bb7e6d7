//! When to ask for the next certificate. Pure: time and chance are arguments.
//!
//! A certificate is renewed around half its life, so that an authority may be away for the other
//! half. What fails is tried again, later each time, and the closer a certificate is to its end the
//! less the pause may be. Chance spreads nodes that were started together.

use std::time::{Duration, SystemTime};

/// The first pause after a failure.
pub const FIRST_RETRY: Duration = Duration::from_millis(500);
/// No pause between two attempts is longer.
pub const LONGEST_RETRY: Duration = Duration::from_secs(150);
/// Nor longer than this while no certificate is in force: connections fail meanwhile.
pub const LONGEST_WITHOUT: Duration = Duration::from_secs(15);
/// Before a certificate ends, attempts come closer together, but not closer than this.
const SHORTEST_LAST_RETRY: Duration = Duration::from_secs(1);

/// The part of a certificate's life that counts here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// When it was issued by our clock.
    pub issued: SystemTime,
    /// When it stops being valid.
    pub not_after: SystemTime,
}

/// When to renew: at half the life, give or take a tenth of that half. `draw` is any random number.
#[must_use]
pub fn renewal(life: Lifetime, draw: u64) -> SystemTime {
    let whole = life
        .not_after
        .duration_since(life.issued)
        .unwrap_or_default();
    life.issued + spread(whole / 2, 10, draw)
}

/// When to try again after the `failures`th failure in a row, counted from 1.
///
/// The pause doubles from [`FIRST_RETRY`] to [`LONGEST_RETRY`], give or take a fifth. While a
/// certificate is in force (`not_after` is its end), no more than half of what is left of it passes;
/// while none is, no more than [`LONGEST_WITHOUT`].
#[must_use]
pub fn retry(
    failures: u32,
    now: SystemTime,
    not_after: Option<SystemTime>,
    draw: u64,
) -> SystemTime {
    let left = not_after.and_then(|end| end.duration_since(now).ok());
    let left = left.filter(|left| !left.is_zero());
    let longest = match left {
        Some(_) => LONGEST_RETRY,
        None => LONGEST_WITHOUT,
    };
    let doublings = failures.saturating_sub(1).min(16);
    // Capped before it is spread, so that nodes that all wait the longest do not come at once.
    let pause = (FIRST_RETRY * (1 << doublings)).min(longest - longest / 6);
    let pause = spread(pause, 5, draw);
    now + match left {
        Some(left) => pause.min((left / 2).max(SHORTEST_LAST_RETRY).min(left)),
        None => pause,
    }
}

/// `mean` give or take up to its `part`th part, chosen evenly by `draw`.
fn spread(mean: Duration, part: u32, draw: u64) -> Duration {
    // 32 bits of chance are enough, and their product with nanoseconds fits.
    let chance = f64::from((draw >> 32) as u32) / f64::from(u32::MAX);
    mean - mean / part + (mean / part).mul_f64(2.0 * chance)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn renewal_is_around_half_life() {
        let life = Lifetime {
            issued: START,
            not_after: START + DAY,
        };
        let check = |draw, expect| {
            let at = renewal(life, draw).duration_since(START).unwrap();
            assert_eq!(at.as_secs(), expect, "draw {draw}");
        };
        check(0, 38_880); // 45 %
        check(u64::MAX, 47_520); // 55 %
        check(u64::MAX / 2, 43_199); // 50 %, less a rounding
    }

    #[test]
    fn a_certificate_that_is_over_is_renewed_at_once() {
        let life = Lifetime {
            issued: START + secs(10),
            not_after: START,
        };
        assert_eq!(renewal(life, 7), START + secs(10));
    }

    #[test]
    fn pauses_double_to_the_cap() {
        let check = |failures, draw, without: u128, with: u128| {
            for (not_after, millis) in [(None, without), (Some(START + DAY), with)] {
                let at = retry(failures, START, not_after, draw);
                let pause = at.duration_since(START).unwrap().as_millis();
                assert!(
                    pause.abs_diff(millis) <= 1,
                    "{failures} failures, {not_after:?}: {pause} ms"
                );
            }
        };
        let middle = u64::MAX / 2;
        check(0, middle, 500, 500);
        check(1, middle, 500, 500);
        check(2, middle, 1_000, 1_000);
        check(5, middle, 8_000, 8_000);
        check(6, middle, 12_500, 16_000);
        check(9, middle, 12_500, 125_000);
        check(u32::MAX, middle, 12_500, 125_000);
        // No draw leads past the cap, and none to where others are.
        check(u32::MAX, 0, 10_000, 100_000);
        check(u32::MAX, u64::MAX, 15_000, 150_000);
    }

    #[test]
    fn the_end_draws_attempts_closer() {
        let check = |left: u64, expect: u64| {
            let at = retry(20, START, Some(START + secs(left)), u64::MAX);
            assert_eq!(at, START + secs(expect), "{left} s left");
        };
        check(10_000, 150);
        check(200, 100);
        check(30, 15);
        check(2, 1);
        check(1, 1);
        // It is over: connections wait.
        check(0, 15);
    }

    /// Runs a year of one certificate against an authority that fails as told.
    fn live(validity: Duration, outcomes: &[bool], draws: &[u64]) {
        let mut life = Lifetime {
            issued: START,
            not_after: START + validity,
        };
        let mut now = START;
        let mut failures = 0;
        for (outcome, draw) in outcomes.iter().zip(draws) {
            let valid = now < life.not_after;
            let next = match failures {
                0 => renewal(life, *draw),
                n => retry(n, now, valid.then_some(life.not_after), *draw),
            };
            assert!(next > now, "time goes on");
            assert!(
                !valid || next <= life.not_after,
                "never past the end of a valid one"
            );
            if failures == 0 {
                let at = next.duration_since(life.issued).unwrap();
                assert!(
                    at >= validity.mul_f64(0.44) && at <= validity.mul_f64(0.56),
                    "renewal at {at:?} of {validity:?}"
                );
            } else {
                let longest = if valid {
                    LONGEST_RETRY
                } else {
                    LONGEST_WITHOUT
                };
                assert!(next.duration_since(now).unwrap() <= longest);
            }
            now = next;
            if *outcome {
                failures = 0;
                life = Lifetime {
                    issued: now,
                    not_after: now + validity,
                };
            } else {
                failures += 1;
            }
        }
    }

    proptest! {
        #[test]
        fn no_schedule_outlives_its_certificate(
            validity in 1_u64..1_000_000,
            steps in prop::collection::vec((any::<bool>(), any::<u64>()), 1..60),
        ) {
            let (outcomes, draws): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
            live(secs(validity), &outcomes, &draws);
        }
    }
}
