//! When a root may be exchanged. Pure: what is known and the time are arguments.
//!
//! ```text
//!  steady ── stage ──▶ staged ── promote ──▶ retiring ── retire ──▶ steady
//!           new root            new root            old root
//!           is trusted          signs               is forgotten
//! ```
//!
//! Nobody is cut off when two things hold, and each step is refused until its own does:
//!
//! - **promote**: whoever is shown a certificate of the new root trusts it. A workload trusts the
//!   roots that came with its own certificate, and every certificate that was signed since the root
//!   was staged came with it. So the last certificate without it must have ended: one longest life
//!   after staging. The daemons, which trust the published bundle when they ask for certificates,
//!   must have had the time to see it.
//! - **retire**: no certificate of the old root is in use. The last one must have ended: one
//!   longest life after promoting.
//!
//! Every replica works with a state that is at most [`LAG`] old, which is added to each wait.

use std::time::{Duration, SystemTime};

/// No replica signs with a state that is older.
pub(crate) const FRESH: Duration = Duration::from_secs(60);
/// How far behind a replica, a mounted file and a clock may be together: [`FRESH`], the minutes that
/// the kubelet takes for a ConfigMap, and clocks.
pub(crate) const LAG: Duration = Duration::from_secs(6 * 60);

/// How the roots stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Since when a new root is trusted beside the one that signs.
    pub(crate) staged: Option<SystemTime>,
    /// Since when that new root is in the published bundle.
    pub(crate) published: Option<SystemTime>,
    /// The end of that new root.
    pub(crate) staged_ends: Option<SystemTime>,
    /// Since when an old root signs no more, and is still trusted.
    pub(crate) retiring: Option<SystemTime>,
    /// The longest life that any certificate was given.
    pub(crate) longest: Duration,
}

/// Why a step is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// One new root at a time.
    #[error("a new root is staged already: promote it with `adit ca promote`")]
    Staged,
    /// One old root at a time.
    #[error("the old root is not retired yet: retire it with `adit ca retire`")]
    Retiring,
    /// There is no new root.
    #[error("no new root is staged: begin with `adit ca stage`")]
    NotStaged,
    /// Nodes could not see the new root.
    #[error(
        "the staged root is not in the published bundle: see that adit control runs and may write \
         its ConfigMap, then wait"
    )]
    Unpublished,
    /// Workloads that do not know the new root may still live.
    #[error("too early: a workload may not know the new root yet")]
    Unknown {
        /// When the last of them has ended.
        until: SystemTime,
    },
    /// There is no old root.
    #[error("there is no old root to retire")]
    NotRetiring,
    /// Certificates of the old root may still be in use.
    #[error("too early: certificates of the old root may still be in use")]
    InUse {
        /// When the last of them has ended.
        until: SystemTime,
    },
    /// The new root would end before it could be exchanged again.
    #[error("the staged root is over or ends too soon: retire nothing, and stage another")]
    Ending,
}

impl Standing {
    /// Whether a new root may come to be trusted.
    pub(crate) fn stage(&self) -> Result<(), Refusal> {
        if self.staged.is_some() {
            return Err(Refusal::Staged);
        }
        if self.retiring.is_some() {
            return Err(Refusal::Retiring);
        }
        Ok(())
    }

    /// Whether the new root may sign.
    pub(crate) fn promote(&self, now: SystemTime) -> Result<(), Refusal> {
        let staged = self.staged.ok_or(Refusal::NotStaged)?;
        if self.retiring.is_some() {
            return Err(Refusal::Retiring);
        }
        let published = self.published.ok_or(Refusal::Unpublished)?;
        let until = (staged + self.longest + LAG).max(published + LAG);
        if now < until {
            return Err(Refusal::Unknown { until });
        }
        if self
            .staged_ends
            .is_some_and(|ends| ends < now + 4 * self.longest)
        {
            return Err(Refusal::Ending);
        }
        Ok(())
    }

    /// Whether the old root may be forgotten.
    pub(crate) fn retire(&self, now: SystemTime) -> Result<(), Refusal> {
        let retiring = self.retiring.ok_or(Refusal::NotRetiring)?;
        let until = retiring + self.longest + LAG;
        if now < until {
            return Err(Refusal::InUse { until });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(days: f64) -> SystemTime {
        START + DAY.mul_f64(days)
    }

    fn steady() -> Standing {
        Standing {
            staged: None,
            published: None,
            staged_ends: None,
            retiring: None,
            longest: DAY,
        }
    }

    fn staged() -> Standing {
        Standing {
            staged: Some(START),
            published: Some(START),
            staged_ends: Some(at(3650.0)),
            ..steady()
        }
    }

    fn retiring() -> Standing {
        Standing {
            retiring: Some(START),
            ..steady()
        }
    }

    #[test]
    fn one_root_is_exchanged_at_a_time() {
        let check = |standing: Standing, expect| assert_eq!(standing.stage(), expect);
        check(steady(), Ok(()));
        check(staged(), Err(Refusal::Staged));
        check(retiring(), Err(Refusal::Retiring));
    }

    #[test]
    fn nobody_is_shown_a_root_that_he_does_not_know() {
        let check = |standing: Standing, now, expect| assert_eq!(standing.promote(now), expect);
        let until = START + DAY + LAG;
        let early = Err(Refusal::Unknown { until });
        check(steady(), at(9.0), Err(Refusal::NotStaged));
        check(retiring(), at(9.0), Err(Refusal::NotStaged));
        check(staged(), START, early.clone());
        check(staged(), at(1.0), early.clone());
        check(staged(), until - Duration::from_secs(1), early);
        check(staged(), until, Ok(()));
        // A replica that could not publish for two days.
        let late = Standing {
            published: Some(at(2.0)),
            ..staged()
        };
        let until = at(2.0) + LAG;
        check(late.clone(), at(2.0), Err(Refusal::Unknown { until }));
        check(late, until, Ok(()));
        let unpublished = Standing {
            published: None,
            ..staged()
        };
        check(unpublished, at(9.0), Err(Refusal::Unpublished));
        let both = Standing {
            retiring: Some(START),
            ..staged()
        };
        check(both, at(9.0), Err(Refusal::Retiring));
        let over = Standing {
            staged_ends: Some(at(10.0)),
            ..staged()
        };
        check(over, at(9.0), Err(Refusal::Ending));
        // A clock that was set back does not shorten the wait.
        check(
            staged(),
            START - DAY,
            Err(Refusal::Unknown {
                until: START + DAY + LAG,
            }),
        );
    }

    #[test]
    fn no_certificate_in_use_loses_its_root() {
        let check = |standing: Standing, now, expect| assert_eq!(standing.retire(now), expect);
        let until = START + DAY + LAG;
        check(steady(), at(9.0), Err(Refusal::NotRetiring));
        check(staged(), at(9.0), Err(Refusal::NotRetiring));
        check(retiring(), START, Err(Refusal::InUse { until }));
        check(retiring(), at(1.0), Err(Refusal::InUse { until }));
        check(retiring(), until, Ok(()));
        let long = Standing {
            longest: 30 * DAY,
            ..retiring()
        };
        let until = START + 30 * DAY + LAG;
        check(long, at(29.0), Err(Refusal::InUse { until }));
    }
}
