//! The control thread: reads sources, publishes the world, captures pods, ends in order.
//!
//! One loop owns all of the node's slow state and is the only one to change it. What takes time
//! (reading files, talking to the kernel) runs beside it and comes back as an [`Event`]. Workers
//! learn of changes through the world they read and the [`Command`]s they are sent.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::api;
use crate::authorize;
use crate::capture::WorkerListeners;
use crate::identify::Index;
use crate::mesh::policy::PolicyName;
use crate::mesh::{Phase, Workload};
use crate::node::admin::Board;
use crate::node::config::Config;
use crate::node::enrol::{Checked, Enrolled, Enroller, Held};
use crate::node::listing;
use crate::node::pod::Pod;
use crate::node::pods::{Action, Outcome, Pods, Wanted};
use crate::node::worker::{Command, Shared};
use crate::node::world::World;
use crate::source::{Change, Files, Kind, Object, Poll};
use crate::sys::netns::Netns;
use crate::task;
use crate::telemetry::metrics::{Daemon, Member, Reason, State};

/// How often the files are looked at: a change takes effect within a second.
const POLL: Duration = Duration::from_millis(250);
/// How often captured pods are compared with the kernel: a loss is mended within ten seconds.
const CHECK: Duration = Duration::from_secs(4);
/// How often the counters of what is gone are looked for.
const EXPIRE: Duration = Duration::from_secs(30);
/// How often waiting steps (retries, drains) are looked at.
const TICK: Duration = Duration::from_millis(200);

/// What happened beside the loop.
enum Event {
    /// The files were looked at.
    Polled(Files, Poll),
    /// An enrolment ended.
    Enrolled(Wanted, Result<Enrolled, String>),
    /// A drain began or a release ended.
    Left(Arc<str>, Outcome),
    /// Captured pods were compared with the kernel.
    Checked(HashMap<Arc<str>, Checked>),
    /// A draining pod has that many live connections.
    Live(Arc<str>, usize),
    /// The last connection has ended, or the time to drain is over.
    Drained,
}

/// What the control thread owns.
pub(crate) struct Control {
    config: Config,
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    index: Index,
    policies: authorize::Store,
    enroller: Enroller,
    pods: Pods,
    held: HashMap<Arc<str>, Arc<Held>>,
    /// Pods outside the mesh that were searched for what a dead daemon left.
    searched: HashSet<(Arc<str>, Arc<str>)>,
    reports: Reports,
    checking: bool,
    /// Set once the daemon was told to end.
    ending: Option<Ending>,
    board: Arc<ArcSwap<Board>>,
    events: mpsc::UnboundedSender<Event>,
    received: mpsc::UnboundedReceiver<Event>,
}

/// What the sources said, for people.
#[derive(Default)]
struct Reports {
    read_once: bool,
    sources: api::Sources,
}

/// Waits for the last connection while it lives.
struct Ending(#[expect(dead_code, reason = "dropping it would end the wait")] task::Task);

impl Control {
    /// A control loop over these workers; nothing runs yet.
    pub(crate) fn new(
        config: Config,
        shared: Arc<Shared>,
        workers: Vec<mpsc::UnboundedSender<Command>>,
        index: Index,
        policies: authorize::Store,
        enroller: Enroller,
        board: Arc<ArcSwap<Board>>,
    ) -> Self {
        let (events, received) = mpsc::unbounded_channel();
        let pods = Pods::new(config.drain);
        Self {
            config,
            shared,
            workers,
            index,
            policies,
            enroller,
            pods,
            held: HashMap::new(),
            searched: HashSet::new(),
            reports: Reports::default(),
            checking: false,
            ending: None,
            board,
            events,
            received,
        }
    }

    /// Runs until the daemon is told to end and has drained.
    pub(crate) async fn run(mut self, files: Files, mut signals: mpsc::UnboundedReceiver<()>) {
        self.poll(files, Duration::ZERO);
        let mut tick = tokio::time::interval(TICK);
        let mut check = tokio::time::interval(CHECK);
        let mut expire = tokio::time::interval(EXPIRE);
        loop {
            tokio::select! {
                biased;
                Some(()) = signals.recv() => {
                    if self.ending.is_some() {
                        tracing::warn!("told twice to end, cutting what is left");
                        return;
                    }
                    self.ending = Some(self.drain_all());
                    self.show();
                }
                Some(event) = self.received.recv() => {
                    if self.take(event).is_break() {
                        return;
                    }
                }
                _ = tick.tick() => self.tick(),
                _ = check.tick() => self.check(),
                _ = expire.tick() => self.expire(),
            }
        }
    }

    fn take(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            // A daemon that ends serves what it knows.
            Event::Polled(..) if self.ending.is_some() => {}
            Event::Polled(files, poll) => {
                self.sources(poll);
                self.poll(files, POLL);
            }
            Event::Drained => {
                tracing::info!("drained");
                return ControlFlow::Break(());
            }
            Event::Enrolled(pod, result) => self.enrolled(&pod, result),
            Event::Left(uid, outcome) => self.left(&uid, outcome),
            Event::Checked(found) => self.checked(found),
            Event::Live(uid, 0) => self.pods.idle(&uid, Instant::now()),
            Event::Live(..) => {}
        }
        if self.ending.is_none() {
            self.act();
        }
        self.show();
        ControlFlow::Continue(())
    }

    /// Looks at the files again after `wait`.
    fn poll(&self, mut files: Files, wait: Duration) {
        let events = self.events.clone();
        let poll = async move {
            tokio::time::sleep(wait).await;
            let read = task::blocking("read sources", move || {
                let poll = files.poll();
                (files, poll)
            });
            if let Some((files, poll)) = read.await {
                let _ = events.send(Event::Polled(files, poll));
            }
        };
        task::spawn("poll", poll).detach();
    }

    /// Takes what the sources say: whole, or not at all.
    fn sources(&mut self, poll: Poll) {
        let first = !std::mem::replace(&mut self.reports.read_once, true);
        self.report(&poll);
        if poll.changes.is_empty() && !first {
            return;
        }
        let daemon = &self.shared.metrics.daemon;
        daemon.source_loads.inc();
        daemon.source_changes.inc_by(poll.changes.len() as u64);
        tracing::info!(changes = poll.changes.len(), "sources read");
        for rejected in self.index.apply(&poll.changes) {
            tracing::error!(object = %rejected.object, reason = %rejected.cause, "object not taken");
        }
        for change in poll.changes.into_iter().filter_map(policy_change) {
            self.policies.apply(change);
        }
        self.publish();
    }

    /// Tells about problems when they appear and when they go.
    fn report(&mut self, poll: &Poll) {
        let problems: Vec<_> = poll.problems.iter().map(listing::problem).collect();
        let before = std::mem::take(&mut self.reports.sources.problems);
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::error!(
                file = %problem.file,
                line = problem.line,
                object = %problem.object,
                reason = %problem.message,
                "source has a problem, the last good state stays",
            );
        }
        for problem in before.iter().filter(|problem| !problems.contains(problem)) {
            tracing::info!(file = %problem.file, object = %problem.object, "source problem is gone");
        }
        let mut by_file = BTreeMap::<String, usize>::new();
        for problem in &problems {
            *by_file.entry(problem.file.clone()).or_default() += 1;
        }
        self.shared.metrics.daemon.set_source_problems(by_file);
        self.reports.sources = api::Sources {
            files: self.config.source.paths(),
            problems,
            notes: std::mem::take(&mut self.reports.sources.notes),
        };
        self.reports
            .sources
            .notes
            .extend(poll.notes.iter().cloned());
    }

    /// Makes the world of this moment and lets everybody see it.
    fn publish(&mut self) {
        let now = Instant::now();
        let snapshot = self.index.snapshot();
        let ours: Vec<Arc<Workload>> = snapshot.on_node(&self.shared.node).cloned().collect();
        let wanted = ours
            .iter()
            .filter(|pod| is_wanted(pod))
            .map(wanted)
            .collect();
        self.pods.want(wanted, now);
        self.search_leftovers(&ours);

        let held = self.pods.held();
        let served = |uid: &Arc<str>| self.held.contains_key(uid);
        let pods: Vec<_> = ours
            .into_iter()
            .filter(|pod| is_wanted(pod) || held.contains(&pod.uid))
            .map(|pod| (pod.clone(), served(&pod.uid)))
            .collect();
        let identities = pods.iter().map(|(pod, _)| pod.identity.clone()).collect();
        let before = self.shared.world.load();
        let policies = self.policies.policies();
        let world = World::new(snapshot, policies, pods, Some(&**before));
        self.shared.world.store(Arc::new(world));
        self.shared.certificates.want(identities);
        self.tell(|| Command::WorldChanged);
        self.act();
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker is gone only when the process ends.
            let _ = worker.send(command());
        }
    }

    /// Starts whatever is due for the pods.
    fn act(&mut self) {
        for action in self.pods.due(Instant::now()) {
            match action {
                Action::Enrol(pod) => self.enrol(pod),
                Action::Drain(uid) => self.drain_pod(uid),
                Action::Release(uid) => self.leave(uid, "pod released"),
                Action::Abandon(uid) => self.leave(uid, "pod's namespace abandoned"),
            }
        }
    }

    fn enrol(&self, pod: Wanted) {
        let (enroller, events) = (self.enroller.clone(), self.events.clone());
        let held = self.held.get(&pod.uid).cloned();
        let enrol = async move {
            let result = match held {
                Some(held) => enroller.resume(held).await,
                None => enroller.enrol(pod.clone()).await,
            };
            let _ = events.send(Event::Enrolled(pod, result));
        };
        task::spawn("enrol", enrol).detach();
    }

    fn enrolled(&mut self, pod: &Wanted, result: Result<Enrolled, String>) {
        let now = Instant::now();
        match result {
            Err(why) => {
                tracing::warn!(pod = %pod.name, reason = %why, "pod not captured, will try again");
                self.shared
                    .metrics
                    .daemon
                    .enrol_failures
                    .get_or_create(&Reason {
                        reason: "enrolment_failed",
                    })
                    .inc();
                self.pods.done(&pod.uid, Outcome::Failed(why), now);
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
            }
        }
    }

    fn serve(&self, uid: &Arc<str>, name: &Arc<str>, netns: &Netns, all: Vec<WorkerListeners>) {
        for (worker, listeners) in self.workers.iter().zip(all) {
            let pod = Pod {
                uid: uid.clone(),
                name: name.clone(),
                netns: netns.clone(),
            };
            let _ = worker.send(Command::Serve(pod, listeners));
        }
    }

    fn drain_pod(&self, uid: Arc<str>) {
        let Some(held) = self.held.get(&uid).cloned() else {
            return;
        };
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
        let release = async move {
            for stopped in stopped {
                let _ = stopped.await;
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

    fn left(&mut self, uid: &Arc<str>, outcome: Outcome) {
        let released = outcome == Outcome::Released;
        self.pods.done(uid, outcome, Instant::now());
        if released {
            self.publish();
        }
    }

    /// Compares captured pods with the kernel.
    fn check(&mut self) {
        if self.checking || self.ending.is_some() {
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

    fn checked(&mut self, found: HashMap<Arc<str>, Checked>) {
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
                    self.pods.drifted(&uid, &why, Instant::now());
                }
            }
        }
    }

    /// Accepts nothing more in any pod, and says when the last connection has ended. Rules stay:
    /// the pods fail closed until the next daemon takes them over.
    fn drain_all(&mut self) -> Ending {
        tracing::info!(
            drain = ?self.config.drain,
            "ending: captured pods fail closed until a daemon runs again",
        );
        self.held.clear();
        let drained: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let (answer, drained) = oneshot::channel();
                let _ = worker.send(Command::Drain(answer));
                drained
            })
            .collect();
        let (events, limit) = (self.events.clone(), self.config.drain);
        let wait = async move {
            let all = async {
                for worker in drained {
                    let _ = worker.await;
                }
            };
            if tokio::time::timeout(limit, all).await.is_err() {
                tracing::warn!("the time to drain is over, cutting what is left");
            }
            let _ = events.send(Event::Drained);
        };
        Ending(task::spawn("drain all", wait))
    }

    /// Ends the counters of what is gone.
    fn expire(&self) {
        let world = self.shared.world.load();
        let snapshot = &world.snapshot;
        let owners = OnceCell::new();
        let owners = || {
            owners.get_or_init(|| {
                let named =
                    |pod: &'_ Arc<Workload>| (pod.namespace.clone(), pod.owner.name.clone());
                snapshot.workloads().map(named).collect::<HashSet<_>>()
            })
        };
        self.shared
            .metrics
            .traffic
            .expire(Instant::now(), |member| match member {
                Member::Workload { namespace, name } => {
                    owners().contains(&(namespace.into(), name.into()))
                }
                Member::Service { namespace, name } => snapshot.service(namespace, name).is_some(),
            });
    }

    /// Shows people where things stand.
    fn show(&self) {
        let world = self.shared.world.load();
        let pods: Vec<_> = self
            .pods
            .entries()
            .map(|entry| {
                let held = self.held.get(&entry.wanted().uid);
                listing::pod(entry, held.map(|held| &**held), &world)
            })
            .collect();
        gauges(&self.shared.metrics.daemon, &pods);
        let board = Board {
            pods,
            sources: self.reports.sources.clone(),
            waiting: self.waiting(),
        };
        self.board.store(Arc::new(board));
    }

    fn waiting(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        if self.ending.is_some() {
            waiting.push("the daemon is ending".to_owned());
        }
        if !self.reports.read_once {
            waiting.push("the sources have not been read yet".to_owned());
        }
        let pods = self.pods.waiting().into_iter();
        waiting.extend(pods.map(|name| format!("pod {name} is not captured yet")));
        waiting
    }

    /// Hands listeners that had to be made anew to the workers.
    fn serve_anew(&self, uid: &Arc<str>, listeners: Vec<WorkerListeners>) {
        let Some(held) = self.held.get(uid) else {
            return;
        };
        let entry = self.pods.entries().find(|entry| entry.wanted().uid == *uid);
        if let Some(entry) = entry.filter(|_| !listeners.is_empty()) {
            self.serve(uid, &entry.wanted().name, &held.netns, listeners);
        }
    }

    fn tick(&mut self) {
        if self.ending.is_some() {
            return;
        }
        for uid in self.pods.draining() {
            let counts: Vec<_> = self
                .workers
                .iter()
                .map(|worker| {
                    let (answer, count) = oneshot::channel();
                    let _ = worker.send(Command::CountLive(uid.clone(), answer));
                    count
                })
                .collect();
            let events = self.events.clone();
            let count = async move {
                let mut live = 0;
                for count in counts {
                    live += count.await.unwrap_or(0);
                }
                let _ = events.send(Event::Live(uid, live));
            };
            task::spawn("count", count).detach();
        }
        self.act();
    }

    /// Looks once into each pod of this node outside the mesh for what a dead daemon left there.
    fn search_leftovers(&mut self, ours: &[Arc<Workload>]) {
        let held = self.pods.held();
        let mut paths = Vec::new();
        let mut seen = HashSet::new();
        for pod in ours
            .iter()
            .filter(|pod| !is_wanted(pod) && !held.contains(&pod.uid))
        {
            let Some(path) = &pod.netns else { continue };
            let key = (pod.uid.clone(), path.clone());
            if !self.searched.contains(&key) {
                paths.push(path.clone());
            }
            seen.insert(key);
        }
        self.searched = seen;
        if paths.is_empty() {
            return;
        }
        let enroller = self.enroller.clone();
        let clean = async move {
            let cleaned = enroller.clean(paths).await;
            if cleaned > 0 {
                tracing::info!(pods = cleaned, "removed what an earlier daemon left behind");
            }
        };
        task::spawn("clean", clean).detach();
    }
}

/// What a change means for the policies, if it is about one.
fn policy_change(change: Change) -> Option<authorize::Change> {
    match change {
        Change::Upsert(Object::AuthorizationPolicy(policy)) => {
            Some(authorize::Change::Authorization(*policy))
        }
        Change::Upsert(Object::PeerAuthentication(policy)) => {
            Some(authorize::Change::PeerAuthentication(*policy))
        }
        Change::Upsert(_) => None,
        Change::Remove(key) => {
            let name = PolicyName::new(&key.namespace, &key.name);
            match key.kind {
                Kind::AuthorizationPolicy => Some(authorize::Change::AuthorizationGone(name)),
                Kind::PeerAuthentication => Some(authorize::Change::PeerAuthenticationGone(name)),
                _ => None,
            }
        }
    }
}

/// Sets the gauges that follow from the pods.
fn gauges(daemon: &Daemon, pods: &[api::Pod]) {
    for state in [
        api::PodState::Pending,
        api::PodState::Enrolled,
        api::PodState::Failed,
        api::PodState::Draining,
    ] {
        let count = pods.iter().filter(|pod| pod.state == state).count();
        let labels = State {
            state: state.as_str(),
        };
        daemon
            .pods
            .get_or_create(&labels)
            .set(count.try_into().unwrap_or(i64::MAX));
    }
    let kept: usize = pods.iter().map(|pod| pod.connections_kept).sum();
    daemon
        .connections_kept
        .set(kept.try_into().unwrap_or(i64::MAX));
}

/// Whether this pod of our node is to be captured.
fn is_wanted(pod: &Workload) -> bool {
    pod.enrolled() && pod.phase != Phase::Finished
}

fn wanted(pod: &Arc<Workload>) -> Wanted {
    Wanted {
        uid: pod.uid.clone(),
        name: format!("{}/{}", pod.namespace, pod.name).into(),
        netns: pod.netns.clone(),
        ips: pod.ips.clone(),
    }
}
