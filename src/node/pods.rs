//! Which pods are captured, which should be, and what to do next: a state machine without I/O.
//!
//! ```text
//!              want                    enrolled
//!  (unknown) ───────▶ Pending ─▶ Busy ──────────▶ Captured ◀─┐ verified
//!                        ▲         │ failed, given up│ │     │
//!                        └─ wait ──┘                 │ └─────┘
//!                                        not wanted  ▼
//!                     (unknown) ◀── Busy ◀───── Draining ──▶ wanted again: Pending (enrol anew)
//!                               released
//! ```
//!
//! Inputs are what the index wants ([`Pods::want`]), what came of an action ([`Pods::done`]), what
//! the kernel says ([`Pods::drifted`]) and the clock ([`Pods::due`]); outputs are [`Action`]s. At
//! most one action per pod is under way. A failure of one pod delays that pod alone, with a
//! back-off from half a second to thirty.
//!
//! Not every pod that is not wanted any more is to be let out: of some only the object went
//! ([`Pods::end`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::sys::netns::Netns;

mod entry;

use entry::Step;
pub(crate) use entry::{Entry, State};

/// First wait after a failed enrolment; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest wait between two attempts.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long a pod whose sandbox went is not looked for: mostly the pod goes as well, or gets
/// another sandbox, of which the runtime tells.
const WITHOUT_SANDBOX: Duration = Duration::from_secs(10);

/// Where a pod's network namespace is to be had from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path names it.
    Path(Arc<str>),
    /// The CNI plugin has handed it over.
    Held(Netns),
    /// Nobody has told: it is where the pod's processes are.
    Search,
}

impl fmt::Display for Place {
    /// The path, or nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Held(_) | Self::Search => Ok(()),
        }
    }
}

/// What the index says of a pod of this node that is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The pod's UID, by which everything here is keyed.
    pub(crate) uid: Arc<str>,
    /// `namespace/name`, for people.
    pub(crate) name: Arc<str>,
    /// Where its network namespace is to be had from.
    pub(crate) place: Place,
    /// Its addresses.
    pub(crate) ips: SmallVec<[IpAddr; 2]>,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Capture the pod: listeners, then rules.
    Enrol(Wanted),
    /// What is under way to capture the pod is of no more use. It is answered as it would have
    /// been, only sooner; not by this.
    GiveUp(Arc<str>),
    /// Capture nothing new, let live connections run.
    Drain(Arc<str>),
    /// Leave the namespace as it was found.
    Release(Arc<str>),
    /// The namespace is gone or not the pod's any more: end what was served there.
    Abandon(Arc<str>),
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod is captured.
    Enrolled,
    /// It could not be captured; the text is for people.
    Failed(String),
    /// New connections are left alone, live ones run on.
    Draining,
    /// Nothing of ours is left in the namespace.
    Released,
}

/// All pods of this node that are captured or should be.
#[derive(Debug)]
pub(crate) struct Pods {
    entries: BTreeMap<Arc<str>, Entry>,
    drain: Duration,
}

impl Pods {
    /// No pods yet. Un-enrolment drains live connections for at most `drain`.
    pub(crate) fn new(drain: Duration) -> Self {
        Self {
            entries: BTreeMap::new(),
            drain,
        }
    }

    /// Takes the whole set that the index wants now.
    pub(crate) fn want(&mut self, pods: Vec<Wanted>, now: Instant) {
        let wanted: HashMap<_, _> = pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        for (uid, entry) in &mut self.entries {
            if !wanted.contains_key(uid) && entry.still_wanted {
                entry.still_wanted = false;
                entry.due = Some(now);
            }
        }
        for (uid, pod) in wanted {
            match self.entries.get_mut(&uid) {
                Some(entry) => entry.want(pod, now),
                None => {
                    self.entries.insert(uid, Entry::new(pod, now));
                }
            }
        }
    }

    /// Tells of the pods that are not wanted any more which are over, rather than outside of the mesh:
    /// the API server has forgotten them (`kubectl delete --force`, a node that was given up) or calls
    /// them finished. What still runs there, for as long as kubelet lets it, must not get out, and
    /// nobody must get in.
    pub(crate) fn end(&mut self, is_over: impl Fn(&str) -> bool) {
        let open = |entry: &Entry| matches!(entry.state, State::Draining | State::Releasing);
        for (uid, entry) in &mut self.entries {
            if !entry.still_wanted && !open(entry) {
                entry.over = is_over(uid);
            }
        }
    }

    /// Whether a pod is over: its rules stay, and go with its namespace.
    pub(crate) fn is_over(&self, uid: &str) -> bool {
        self.entries.get(uid).is_some_and(|entry| entry.over)
    }

    /// Takes note of a pod that another daemon had captured.
    pub(crate) fn inherit(&mut self, pod: Wanted, now: Instant) {
        let mut entry = Entry::new(pod, now);
        entry.state = State::Captured;
        entry.due = None;
        self.entries.insert(entry.wanted.uid.clone(), entry);
    }

    /// Nothing is captured by us any more, but what runs out: the rest is to be captured anew.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        self.entries
            .retain(|_, entry| entry.still_wanted || entry.state == State::Draining);
        for entry in self.entries.values_mut() {
            if entry.state != State::Draining {
                *entry = Entry::new(entry.wanted.clone(), now);
            }
        }
    }

    /// Whether no action is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let acts = |entry: &Entry| matches!(entry.state, State::Enrolling | State::Releasing);
        !self.entries.values().any(acts)
    }

    /// The kernel's state of a captured pod is not what it should be and was not mended: its
    /// namespace was replaced or is gone.
    pub(crate) fn drifted(&mut self, uid: &str, why: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(uid)
            && matches!(entry.state, State::Captured | State::Draining)
        {
            entry.moved = true;
            entry.last_error = Some(why.to_owned());
            entry.due = Some(now);
        }
    }

    /// The runtime has removed the pod's sandbox: what is held of it is given up at once, and another
    /// is looked for after a while, or as soon as somebody tells of one.
    pub(crate) fn without_sandbox(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(uid) {
            let until = now + WITHOUT_SANDBOX;
            entry.wanted.place = Place::Search;
            entry.without_sandbox = Some(until);
            entry.last_error = None;
            match entry.state {
                State::Pending => entry.due = Some(until),
                _ => {
                    entry.moved = true;
                    entry.due = Some(now);
                }
            }
        }
    }

    /// Live connections of a draining pod have all ended.
    pub(crate) fn idle(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(uid)
            && entry.state == State::Draining
        {
            entry.due = Some(now);
        }
    }

    /// Takes what came of the action that was under way.
    pub(crate) fn done(&mut self, uid: &str, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        match outcome {
            Outcome::Enrolled => {
                entry.state = State::Captured;
                entry.failures = 0;
                entry.last_error = None;
                entry.due = None;
                if !entry.moved {
                    entry.without_sandbox = None;
                }
            }
            // It was for something else than what is wanted now, and says nothing of that.
            Outcome::Failed(_) if entry.moved || entry.given_up => {
                entry.moved = false;
                entry.state = State::Pending;
                entry.due = Some(entry.without_sandbox.unwrap_or(now));
            }
            Outcome::Failed(why) => {
                entry.without_sandbox = None;
                let wait = FIRST_RETRY * 2_u32.saturating_pow(entry.failures.min(10));
                entry.state = State::Pending;
                entry.failures += 1;
                entry.last_error = Some(why);
                entry.due = Some(now + wait.min(LAST_RETRY));
            }
            Outcome::Draining => {
                entry.state = State::Draining;
                entry.due = Some(now + self.drain);
            }
            Outcome::Released => {
                entry.moved = false;
                entry.state = State::Pending;
                entry.due = Some(entry.without_sandbox.unwrap_or(now));
            }
        }
        entry.given_up = false;
        if !entry.still_wanted && entry.state == State::Pending {
            self.entries.remove(uid);
        }
    }

    /// What is to be done now. Each action but [`Action::GiveUp`] must be answered by
    /// [`Pods::done`].
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut forgotten = Vec::new();
        for (uid, entry) in &mut self.entries {
            match entry.step(now, &mut actions) {
                Step::Stay => {}
                Step::Forget => forgotten.push(uid.clone()),
            }
        }
        for uid in forgotten {
            self.entries.remove(&uid);
        }
        actions
    }

    /// All pods, by UID.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One pod.
    pub(crate) fn entry(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    /// The pods whose kernel state is to be checked.
    pub(crate) fn captured(&self) -> impl Iterator<Item = &Wanted> {
        self.entries
            .values()
            .filter(|entry| matches!(entry.state, State::Captured))
            .map(|entry| &entry.wanted)
    }

    /// The pods whose live connections run out.
    pub(crate) fn draining(&self) -> Vec<Arc<str>> {
        let draining = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.state == State::Draining);
        draining.map(|(uid, _)| uid.clone()).collect()
    }

    /// UIDs of everything that holds a namespace, wanted or not.
    pub(crate) fn held(&self) -> HashSet<Arc<str>> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.state != State::Pending)
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// The wanted pods that are not captured: what readiness waits for.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Entry> {
        let waits = |entry: &&Entry| {
            entry.still_wanted && entry.state != State::Captured && entry.without_sandbox.is_none()
        };
        self.entries.values().filter(waits)
    }
}

#[cfg(test)]
mod tests;
