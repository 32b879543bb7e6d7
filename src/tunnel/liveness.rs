//! When a silent tunnel is asked whether it lives, and when it is given up.
//!
//! Pure. Any byte from the peer proves life: a PING goes out only after a time without one, and
//! the tunnel is dead only when that PING, too, was followed by nothing. A daemon that was itself
//! stopped for a while therefore asks again before it gives up.

use std::time::Duration;

use tokio::time::Instant;

/// The state of one tunnel.
#[derive(Debug)]
pub(crate) struct Liveness {
    quiet: Duration,
    dead: Duration,
    asked: Option<Instant>,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing before this time.
    Wait(Instant),
    /// Send a PING, and come back at this time.
    Ask(Instant),
    /// Give the tunnel up.
    Dead,
}

impl Liveness {
    /// Asks after `quiet` without a byte, gives up after `dead` without one.
    pub(crate) fn new(quiet: Duration, dead: Duration) -> Self {
        Self {
            quiet,
            dead: dead.max(quiet),
            asked: None,
        }
    }

    /// Decides, given when the last byte came.
    pub(crate) fn beat(&mut self, now: Instant, last_received: Instant) -> Beat {
        if self.asked.is_some_and(|asked| last_received > asked) {
            self.asked = None;
        }
        let patience = self.dead - self.quiet;
        match self.asked {
            Some(asked) if now >= asked + patience => Beat::Dead,
            Some(asked) => Beat::Wait(asked + patience),
            None if now >= last_received + self.quiet => {
                self.asked = Some(now);
                Beat::Ask(now + patience)
            }
            None => Beat::Wait(last_received + self.quiet),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes at these seconds, and what is done at these seconds.
    fn check(received: &[u64], expect: &[(u64, &str)]) {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut liveness = Liveness::new(Duration::from_secs(10), Duration::from_secs(20));
        for (second, expect) in expect {
            let last = received
                .iter()
                .rev()
                .find(|r| *r <= second)
                .copied()
                .unwrap_or(0);
            let did = match liveness.beat(at(*second), at(last)) {
                Beat::Wait(until) => format!("wait {}", (until - start).as_secs()),
                Beat::Ask(until) => format!("ask {}", (until - start).as_secs()),
                Beat::Dead => "dead".to_owned(),
            };
            assert_eq!(did, *expect, "at second {second}");
        }
    }

    #[test]
    fn traffic_needs_no_ping() {
        check(
            &[0, 5, 12, 21],
            &[(5, "wait 15"), (15, "wait 22"), (22, "wait 31")],
        );
    }

    #[test]
    fn silence_is_asked_once_and_then_given_up() {
        check(&[0], &[(10, "ask 20"), (15, "wait 20"), (20, "dead")]);
    }

    #[test]
    fn an_answer_saves_it() {
        check(
            &[0, 11],
            &[
                (10, "ask 20"),
                (20, "wait 21"),
                (21, "ask 31"),
                (31, "dead"),
            ],
        );
    }

    #[test]
    fn a_stopped_daemon_asks_before_it_gives_up() {
        check(&[0], &[(500, "ask 510"), (510, "dead")]);
    }
}
