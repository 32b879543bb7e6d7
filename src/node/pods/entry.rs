//! One pod's part of the state machine: its state, and the step from it that is due.

use std::time::Instant;

use crate::node::pods::{Action, Wanted};

/// A pod's state, as reported to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Waiting for its first attempt, or for the next after a failure.
    Pending,
    /// An enrolment is under way.
    Enrolling,
    /// Captured.
    Captured,
    /// Not wanted any more; live connections run out.
    Draining,
    /// Being left.
    Releasing,
}

/// One pod.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) wanted: Wanted,
    pub(super) state: State,
    pub(super) still_wanted: bool,
    /// It was captured when its object went, and not opened since.
    pub(super) over: bool,
    /// When the next step is due: a retry when pending, the deadline when draining.
    pub(super) due: Option<Instant>,
    pub(super) failures: u32,
    pub(super) last_error: Option<String>,
    /// Abandon before enrolling again, because the namespace is another one now.
    pub(super) moved: bool,
    /// What is under way was told that it is of no more use.
    pub(super) given_up: bool,
    /// Its sandbox went, and until then nobody waits for another.
    pub(super) without_sandbox: Option<Instant>,
}

impl Entry {
    pub(crate) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Whether it is captured where it is now.
    pub(crate) fn is_settled(&self) -> bool {
        self.state == State::Captured && !self.moved
    }

    /// How many attempts in a row have failed.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Why the last attempt failed, until one succeeds.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

/// What becomes of an entry after a step.
pub(super) enum Step {
    Stay,
    Forget,
}

impl Entry {
    /// A pod that has just been wanted.
    pub(super) fn new(wanted: Wanted, now: Instant) -> Self {
        Self {
            wanted,
            state: State::Pending,
            still_wanted: true,
            over: false,
            due: Some(now),
            failures: 0,
            last_error: None,
            moved: false,
            given_up: false,
            without_sandbox: None,
        }
    }

    /// Takes in what the index says now.
    pub(super) fn want(&mut self, wanted: Wanted, now: Instant) {
        let back = !self.still_wanted;
        let changed = self.wanted != wanted;
        // What is under way is for the place that was; what comes of it is given up.
        if changed && self.state != State::Pending {
            self.moved = true;
        }
        if back || changed {
            self.due = Some(now);
            self.failures = 0;
            self.without_sandbox = None;
        }
        self.still_wanted = true;
        self.over = false;
        self.wanted = wanted;
    }

    /// Goes on by what is due, at most one action at a time.
    pub(super) fn step(&mut self, now: Instant, actions: &mut Vec<Action>) -> Step {
        let due = self.due.is_some_and(|due| due <= now);
        let uid = self.wanted.uid.clone();
        match (&self.state, self.still_wanted) {
            (State::Pending, false) => return Step::Forget,
            (State::Pending, true) if due => {
                actions.push(Action::Enrol(self.wanted.clone()));
                self.state = State::Enrolling;
            }
            (State::Captured | State::Draining, _) if self.moved => {
                actions.push(Action::Abandon(uid));
                self.moved = false;
                self.state = State::Releasing;
            }
            (State::Captured, false) => {
                actions.push(Action::Drain(uid));
                self.state = State::Releasing;
            }
            // The pod is gone, or elsewhere: what is under way may have long to wait for.
            (State::Enrolling, wanted) if !self.given_up && (self.moved || !wanted) => {
                actions.push(Action::GiveUp(uid));
                self.given_up = true;
            }
            // Wanted again while it drains: enrolling anew replaces the rules in one step.
            (State::Draining, true) => {
                actions.push(Action::Enrol(self.wanted.clone()));
                self.state = State::Enrolling;
            }
            (State::Draining, false) if due => {
                actions.push(Action::Release(uid));
                self.state = State::Releasing;
            }
            _ => {}
        }
        Step::Stay
    }
}
