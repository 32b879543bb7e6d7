//! Captures pods, compares them with the kernel, and leaves them.
//!
//! What to do is decided by [`Pods`](crate::node::pods::Pods); doing it takes time, so each step
//! runs beside the loop and comes back as an [`Event`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::capture::WorkerListeners;
use crate::mesh::{Phase, Workload};
use crate::node::control::{Control, Event, is_wanted};
use crate::node::enrol::{Checked, Enrolled, Held, NOT_FOUND, Stop};
use crate::node::pod::Pod;
use crate::node::pods::{Action, Outcome, Place, Wanted};
use crate::node::worker::Command;
use crate::sys::netns::Netns;
use crate::task;
use crate::telemetry::metrics::Reason;

impl Control {
    /// Starts whatever is due for the pods; nothing while the daemon ends, or before they are its own.
    /// Of those that it has handed over it only follows the end.
    pub(super) fn act(&mut self) {
        let acts = self.in_charge() || self.has_handed();
        if self.ending.is_some() || !acts {
            return;
        }
        let due = self.pods.due(Instant::now());
        let leaves = |action: &Action| matches!(action, Action::Release(_) | Action::Abandon(_));
        let left = due.iter().any(leaves);
        let mut sought = Vec::new();
        for action in due {
            match action {
                Action::Enrol(_) if self.has_handed() => {}
                Action::Enrol(pod)
                    if pod.place == Place::Search && !self.held.contains_key(&pod.uid) =>
                {
                    sought.push(pod);
                }
                Action::Enrol(pod) => self.enrol(pod),
                Action::GiveUp(uid) => {
                    if let Some(stop) = self.under_way.get(&uid) {
                        stop.stop();
                    }
                }
                Action::Drain(uid) => self.drain_pod(uid),
                Action::Release(uid) => self.leave(uid, "pod released"),
                Action::Abandon(uid) => self.leave(uid, "pod's namespace abandoned"),
            }
        }
        if !sought.is_empty() {
            self.search(sought);
        }
        if left {
            // Its tunnel port is nobody's from now on: neighbours are not to dial it in clear.
            self.publish();
        }
    }

    fn enrol(&mut self, pod: Wanted) {
        let stop = self.begin(&pod);
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let held = self.held.get(&pod.uid).cloned();
        let fresh = self.plugged.is_fresh(&pod);
        let enrol = async move {
            let result = match held {
                Some(held) => enroller.resume(held).await,
                None => enroller.enrol(pod.clone(), None, fresh, stop).await,
            };
            let _ = events.send(Event::Enrolled(pod, result));
        };
        task::spawn("enrol", enrol).detach();
    }

    fn begin(&mut self, pod: &Wanted) -> Stop {
        let stop = Stop::default();
        self.under_way.insert(pod.uid.clone(), stop.clone());
        stop
    }

    /// Looks for the namespaces of these pods, and captures those that are found.
    fn search(&mut self, pods: Vec<Wanted>) {
        let stops: Vec<_> = pods.iter().map(|pod| self.begin(pod)).collect();
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let cookie = |(uid, held): (&Arc<str>, &Arc<Held>)| (held.netns.cookie(), uid.clone());
        let owners: HashMap<_, _> = self.held.iter().map(cookie).collect();
        let search = async move {
            let mut found = enroller.find(&pods).await;
            for (pod, stop) in pods.into_iter().zip(stops) {
                let netns = found
                    .remove(&pod.uid)
                    .unwrap_or_else(|| Err("looking for it panicked: see the log".to_owned()));
                let netns = netns.and_then(|netns| match owners.get(&netns.cookie()) {
                    Some(owner) => Err(format!("its network namespace is that of pod {owner}")),
                    None => Ok(netns),
                });
                let (enroller, events) = (enroller.clone(), events.clone());
                let enrol = async move {
                    let result = match netns {
                        Ok(netns) => enroller.enrol(pod.clone(), Some(netns), false, stop).await,
                        Err(why) => Err(why),
                    };
                    let _ = events.send(Event::Enrolled(pod, result));
                };
                task::spawn("enrol", enrol).detach();
            }
        };
        task::spawn("search", search).detach();
    }

    pub(super) fn enrolled(&mut self, pod: &Wanted, result: Result<Enrolled, String>) {
        let now = Instant::now();
        let given_up = self
            .under_way
            .remove(&pod.uid)
            .is_some_and(|stop| stop.is_stopped());
        match result {
            // It was for a place that is not the pod's any more.
            Err(why) if given_up && !self.held.contains_key(&pod.uid) => {
                tracing::info!(pod = %pod.name, reason = %why, "pod's enrolment given up");
                self.answer_enrolling(pod, Err(&why));
                self.pods.done(&pod.uid, Outcome::Failed(why), now);
            }
            Err(why) => {
                let reason = match pod.place {
                    Place::Search if why.starts_with(NOT_FOUND) => "namespace_not_found",
                    _ => "enrolment_failed",
                };
                tracing::warn!(pod = %pod.name, reason = %why, "pod not captured, will try again");
                self.shared
                    .metrics
                    .daemon
                    .enrol_failures
                    .get_or_create(&Reason { reason })
                    .inc();
                if self.held.contains_key(&pod.uid) {
                    // It drained, and cannot be resumed: what stands there is given up first, or
                    // nobody ever would.
                    self.pods.done(&pod.uid, Outcome::Enrolled, now);
                    self.pods.drifted(&pod.uid, &why, now);
                } else {
                    self.answer_enrolling(pod, Err(&why));
                    self.pods.done(&pod.uid, Outcome::Failed(why), now);
                }
            }
            Ok(Enrolled { held, listeners }) => {
                tracing::info!(
                    pod = %pod.name,
                    netns.cookie = held.netns.cookie(),
                    connections.kept = held.kept(),
                    connections.reset = held.reset,
                    "pod captured",
                );
                self.shared.metrics.daemon.enrolments.inc();
                let reset = held.reset.try_into().unwrap_or(u64::MAX);
                self.shared.metrics.daemon.connections_reset.inc_by(reset);
                let netns = held.netns.clone();
                self.held.insert(pod.uid.clone(), held);
                self.pods.done(&pod.uid, Outcome::Enrolled, now);
                // Connections wait in the listeners' queues until the world knows the pod.
                self.publish();
                self.serve(&pod.uid, &pod.name, &netns, listeners);
                self.answer_enrolling(pod, Ok(&netns));
            }
        }
    }

    pub(super) fn serve(
        &self,
        uid: &Arc<str>,
        name: &Arc<str>,
        netns: &Netns,
        all: Vec<WorkerListeners>,
    ) {
        let share = self.shared.places.share(uid);
        for (worker, listeners) in self.workers.iter().zip(all) {
            let pod = Pod {
                uid: uid.clone(),
                name: name.clone(),
                netns: netns.clone(),
                share: share.clone(),
            };
            let _ = worker.send(Command::Serve(pod, listeners));
        }
    }

    /// Hands listeners that had to be made anew to the workers.
    pub(super) fn serve_anew(&self, uid: &Arc<str>, listeners: Vec<WorkerListeners>) {
        let Some(held) = self.held.get(uid) else {
            return;
        };
        let entry = self.pods.entries().find(|entry| entry.wanted().uid == *uid);
        if let Some(entry) = entry.filter(|_| !listeners.is_empty()) {
            self.serve(uid, &entry.wanted().name, &held.netns, listeners);
        }
    }

    fn drain_pod(&self, uid: Arc<str>) {
        let Some(held) = self.held.get(&uid).cloned() else {
            return;
        };
        if self.pods.is_over(&uid) {
            // The index knows it no more, so that whatever still comes is refused.
            let _ = self.events.send(Event::Left(uid, Outcome::Draining));
            return;
        }
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let drain = async move {
            if let Err(why) = enroller.stop_new(held).await {
                // Releasing comes next and removes everything at once.
                tracing::warn!(pod.uid = %uid, reason = %why, "pod not drained");
            }
            let _ = events.send(Event::Left(uid, Outcome::Draining));
        };
        task::spawn("drain", drain).detach();
    }

    /// Ends a pod's connections and leaves its namespace.
    fn leave(&mut self, uid: Arc<str>, message: &'static str) {
        let Some(held) = self.held.remove(&uid) else {
            let _ = self.events.send(Event::Left(uid, Outcome::Released));
            return;
        };
        let stopped: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let (answer, stopped) = oneshot::channel();
                let _ = worker.send(Command::Release(uid.clone(), answer));
                stopped
            })
            .collect();
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let over = self.pods.is_over(&uid);
        let release = async move {
            for stopped in stopped {
                let _ = stopped.await;
            }
            if over {
                held.give_up();
                tracing::info!(pod.uid = %uid, "pod is over, its rules go with its namespace");
                let _ = events.send(Event::Left(uid, Outcome::Released));
                return;
            }
            match enroller.release(held).await {
                Ok(()) => tracing::info!(pod.uid = %uid, "{message}"),
                // The namespace may be gone with its pod; then nothing of ours is left either.
                Err(why) => {
                    tracing::info!(pod.uid = %uid, reason = %why, "pod's namespace not cleaned")
                }
            }
            let _ = events.send(Event::Left(uid, Outcome::Released));
        };
        task::spawn("release", release).detach();
    }

    pub(super) fn left(&mut self, uid: &Arc<str>, outcome: Outcome) {
        let released = outcome == Outcome::Released;
        self.pods.done(uid, outcome, Instant::now());
        if released {
            self.publish();
        }
    }

    /// Compares captured pods with the kernel.
    pub(super) fn check(&mut self) {
        if self.checking || self.ending.is_some() || !self.in_charge() {
            return;
        }
        let pods: Vec<_> = self
            .pods
            .captured()
            .filter_map(|pod| Some((pod.clone(), self.held.get(&pod.uid)?.clone())))
            .collect();
        if pods.is_empty() {
            return;
        }
        self.checking = true;
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let check = async move {
            let _ = events.send(Event::Checked(enroller.check(pods).await));
        };
        task::spawn("check", check).detach();
    }

    pub(super) fn checked(&mut self, found: HashMap<Arc<str>, Checked>) {
        self.checking = false;
        for (uid, checked) in found {
            match checked {
                Checked::Sound => {}
                Checked::Mended(drift, listeners) => {
                    tracing::warn!(pod.uid = %uid, drift = %drift, "capture was damaged and is mended");
                    self.shared.metrics.daemon.capture_repairs.inc();
                    self.serve_anew(&uid, listeners);
                }
                Checked::Lost(why) => {
                    tracing::warn!(pod.uid = %uid, reason = %why, "pod is not captured any more");
                    if let Some(held) = self.held.get(&uid) {
                        self.plugged.forget(&held.netns);
                    }
                    self.pods.drifted(&uid, &why, Instant::now());
                }
            }
        }
    }

    /// Looks once into each pod of this node outside the mesh for what a dead daemon left there.
    pub(super) fn search_leftovers(&mut self, ours: &[Arc<Workload>]) {
        let first = !std::mem::replace(&mut self.reports.looked_for_leftovers, true);
        let held = self.pods.held();
        let mut places = Vec::new();
        let mut seen = HashSet::new();
        for pod in ours
            .iter()
            .filter(|pod| !is_wanted(pod) && !held.contains(&pod.uid))
            .filter(|pod| pod.phase != Phase::Finished || !self.is_told_of_ends())
        {
            let place = self.plugged.place(pod);
            let key = (pod.uid.clone(), place.place.to_string());
            // What must be looked for among all processes is so once: a pod that comes later has
            // seen no daemon but this.
            let worth = match place.place {
                Place::Search => first && !pod.host_network,
                Place::Path(_) | Place::Held(_) => !self.searched.contains(&key),
            };
            if worth {
                places.push(place);
            }
            seen.insert(key);
        }
        self.searched = seen;
        if places.is_empty() {
            return;
        }
        let enroller = self.enroller.clone();
        let clean = async move {
            let cleaned = enroller.clean(places).await;
            if cleaned > 0 {
                tracing::info!(pods = cleaned, "removed what an earlier daemon left behind");
            }
        };
        task::spawn("clean", clean).detach();
    }
}
