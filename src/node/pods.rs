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

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::sys::netns::Netns;

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
    wanted: Wanted,
    state: State,
    still_wanted: bool,
    /// When the next step is due: a retry when pending, the deadline when draining.
    due: Option<Instant>,
    failures: u32,
    last_error: Option<String>,
    /// Abandon before enrolling again, because the namespace is another one now.
    moved: bool,
    /// What is under way was told that it is of no more use.
    given_up: bool,
    /// Its sandbox went, and until then nobody waits for another.
    without_sandbox: Option<Instant>,
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

enum Step {
    Stay,
    Forget,
}

impl Entry {
    fn new(wanted: Wanted, now: Instant) -> Self {
        Self {
            wanted,
            state: State::Pending,
            still_wanted: true,
            due: Some(now),
            failures: 0,
            last_error: None,
            moved: false,
            given_up: false,
            without_sandbox: None,
        }
    }

    fn want(&mut self, wanted: Wanted, now: Instant) {
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
        self.wanted = wanted;
    }

    fn step(&mut self, now: Instant, actions: &mut Vec<Action>) -> Step {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, netns: &str) -> Wanted {
        Wanted {
            uid: uid.into(),
            name: format!("ns/{uid}").into(),
            place: Place::Path(netns.into()),
            ips: SmallVec::from_slice(&["10.0.0.1".parse().unwrap()]),
        }
    }

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_wanted_pod_is_enrolled_once() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        assert_eq!(pods.waiting().count(), 1);
        assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
        assert!(pods.due(t).is_empty(), "one action at a time");
        pods.done("a", Outcome::Enrolled, t);
        pods.want(vec![pod("a", "/a")], t);
        assert!(pods.due(at(t, 60_000)).is_empty());
        assert_eq!(pods.waiting().count(), 0);
    }

    #[test]
    fn a_failure_is_retried_with_growing_waits_and_holds_no_other_up() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a"), pod("b", "/b")], t);
        assert_eq!(pods.due(t).len(), 2);
        pods.done("b", Outcome::Enrolled, t);
        let mut now = t;
        let mut waits = Vec::new();
        for _ in 0..8 {
            pods.done("a", Outcome::Failed("port taken".into()), now);
            let waiting: Vec<_> = pods.waiting().map(|entry| &*entry.wanted().uid).collect();
            assert_eq!(waiting, ["a"]);
            let from = now;
            while pods.due(now).is_empty() {
                now += Duration::from_millis(250);
            }
            waits.push((now - from).as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    }

    #[test]
    fn a_pod_no_longer_wanted_drains_and_is_released() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        pods.due(t);
        pods.done("a", Outcome::Enrolled, t);
        pods.want(vec![], t);
        assert_eq!(pods.due(t), vec![Action::Drain("a".into())]);
        pods.done("a", Outcome::Draining, t);
        assert!(pods.due(at(t, 29_999)).is_empty());
        assert_eq!(pods.due(at(t, 30_000)), vec![Action::Release("a".into())]);
        pods.done("a", Outcome::Released, at(t, 30_000));
        assert_eq!(pods.entries().count(), 0);
    }

    #[test]
    fn an_inherited_pod_is_left_alone_while_it_is_wanted_where_it_is() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        for uid in ["a", "b", "c"] {
            pods.inherit(pod(uid, "/x"), t);
        }
        pods.want(vec![pod("a", "/x"), pod("b", "/y")], t);
        let actions = pods.due(t);
        assert_eq!(
            actions,
            vec![Action::Abandon("b".into()), Action::Drain("c".into())]
        );
        assert!(!pods.is_idle());
        pods.done("b", Outcome::Released, t);
        pods.done("c", Outcome::Draining, t);
        assert!(pods.is_idle());
        pods.begin_anew(t);
        let actions = pods.due(t);
        let expected = [pod("a", "/x"), pod("b", "/y")].map(Action::Enrol);
        assert_eq!(actions, expected, "and c drains on");
    }

    #[test]
    fn an_idle_pod_is_released_before_the_deadline() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        pods.due(t);
        pods.done("a", Outcome::Enrolled, t);
        pods.want(vec![], t);
        pods.due(t);
        pods.done("a", Outcome::Draining, t);
        pods.idle("a", at(t, 100));
        assert_eq!(pods.due(at(t, 100)), vec![Action::Release("a".into())]);
    }

    #[test]
    fn a_pod_wanted_again_while_it_drains_is_enrolled_anew() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        pods.due(t);
        pods.done("a", Outcome::Enrolled, t);
        pods.want(vec![], t);
        pods.due(t);
        pods.want(vec![pod("a", "/a")], t);
        assert!(pods.due(t).is_empty(), "the drain is still under way");
        pods.done("a", Outcome::Draining, t);
        assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
    }

    #[test]
    fn a_replaced_namespace_is_abandoned_then_enrolled() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        pods.due(t);
        pods.done("a", Outcome::Enrolled, t);
        pods.drifted("a", "another namespace stands at its path", t);
        assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
        pods.done("a", Outcome::Released, t);
        assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
        pods.done("a", Outcome::Enrolled, t);
        pods.want(vec![pod("a", "/elsewhere")], t);
        assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
        pods.done("a", Outcome::Released, t);
        assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/elsewhere"))]);
    }

    #[test]
    fn a_pod_removed_while_it_enrols_is_drained_when_done_and_forgotten_when_failed() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a"), pod("b", "/b")], t);
        pods.due(t);
        pods.want(vec![], t);
        let given_up = ["a", "b"].map(|uid| Action::GiveUp(uid.into()));
        assert_eq!(pods.due(t), given_up);
        assert!(pods.due(t).is_empty(), "it is told once");
        pods.done("a", Outcome::Enrolled, t);
        pods.done("b", Outcome::Failed("gone".into()), t);
        assert_eq!(pods.due(t), vec![Action::Drain("a".into())]);
        assert_eq!(pods.entries().count(), 1);
    }

    #[test]
    fn a_place_that_changes_while_the_pod_enrols_is_followed() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/old")], t);
        pods.due(t);
        pods.want(vec![pod("a", "/new")], t);
        assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
        pods.done("a", Outcome::Enrolled, t);
        assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
        pods.done("a", Outcome::Released, t);
        assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/new"))]);
        pods.want(vec![pod("a", "/newer")], t);
        assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
        pods.done("a", Outcome::Failed("given up".into()), t);
        assert_eq!(pods.waiting().next().unwrap().last_error(), None);
        let at_once = vec![Action::Enrol(pod("a", "/newer"))];
        assert_eq!(pods.due(t), at_once, "what failed was for another place");
        pods.done("a", Outcome::Failed("port taken".into()), t);
        assert!(pods.due(t).is_empty(), "this one is its own");
    }

    #[test]
    fn a_pod_wanted_again_while_it_is_given_up_is_enrolled_at_once() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        pods.due(t);
        pods.want(vec![], t);
        assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
        pods.want(vec![pod("a", "/a")], t);
        assert!(pods.due(t).is_empty());
        pods.done("a", Outcome::Failed("given up".into()), t);
        assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
    }

    #[test]
    fn a_sandbox_that_goes_while_its_pod_enrols_is_given_up() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        pods.due(t);
        pods.without_sandbox("a", t);
        assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
        pods.done("a", Outcome::Failed("given up".into()), t);
        assert!(pods.due(at(t, 9_999)).is_empty());
        assert_eq!(pods.due(at(t, 10_000)).len(), 1);
    }

    #[test]
    fn a_pod_whose_sandbox_went_is_given_up_and_looked_for_later() {
        let t = Instant::now();
        let mut pods = Pods::new(Duration::from_secs(30));
        pods.want(vec![pod("a", "/a")], t);
        pods.due(t);
        pods.done("a", Outcome::Enrolled, t);
        pods.without_sandbox("a", t);
        let sought = Wanted {
            place: Place::Search,
            ..pod("a", "")
        };
        pods.want(vec![sought.clone()], t);
        assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
        pods.done("a", Outcome::Released, t);
        assert_eq!(pods.waiting().count(), 0, "nobody waits for what is going");
        assert!(pods.due(at(t, 9_999)).is_empty());
        assert_eq!(pods.due(at(t, 10_000)), vec![Action::Enrol(sought)]);
        pods.done("a", Outcome::Failed("no process".into()), t);
        assert_eq!(pods.waiting().count(), 1, "it is still said to run");
        pods.want(vec![pod("a", "/b")], t);
        assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/b"))]);
    }
}
