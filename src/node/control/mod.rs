//! The control thread: reads sources, publishes the world, captures pods, ends in order.
//!
//! One loop owns all of the node's slow state and is the only one to change it. What takes time
//! (reading files, talking to the kernel) runs beside it and comes back as an [`Event`]. Workers
//! learn of changes through the world they read and the [`Command`]s they are sent.

mod advising;
mod capturing;
mod feed;
mod handing;
mod leaving;
mod marking;
mod plugging;
mod showing;
mod taking;
mod watching;

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use crate::api;
use crate::authorize;
use crate::capture::WorkerListeners;
use crate::cluster::Clients;
use crate::identify::Index;
use crate::mesh::policy::PolicyName;
use crate::mesh::{Phase, Workload};
use crate::node::admin::Board;
use crate::node::config::{Config, Source};
use crate::node::control::feed::Feed;
use crate::node::control::handing::{Charge, Successor, ask, tell_last};
use crate::node::control::leaving::Leaving;
use crate::node::control::plugging::Plugged;
use crate::node::control::taking::{Before, Legacy};
use crate::node::doors::{Callers, Doors};
use crate::node::enrol::{Checked, Enrolled, Enroller, Held, Stop};
use crate::node::handover::{self, Arrived, Lock};
use crate::node::mark::{ApiScribe, Marks, Note, Scribe, Unwritten};
use crate::node::plugin::Left;
use crate::node::pods::{Outcome, Pods, Wanted};
use crate::node::worker::{Command, Shared};
use crate::node::world::World;
use crate::source::kube::{Health, Update};
use crate::source::{Change, Kind, Object};
use crate::task;

/// How often captured pods are compared with the kernel: a loss is mended within ten seconds.
const CHECK: Duration = Duration::from_secs(6);
/// How often the counters of what is gone are looked for.
const EXPIRE: Duration = Duration::from_secs(10);
/// How often waiting steps (retries, drains) are looked at.
const TICK: Duration = Duration::from_millis(200);

/// What happened beside the loop.
enum Event {
    /// An enrolment ended.
    Enrolled(Wanted, Result<Enrolled, String>),
    /// A drain began or a release ended.
    Left(Arc<str>, Outcome),
    /// Captured pods were compared with the kernel.
    Checked(HashMap<Arc<str>, Checked>),
    /// The API server was told something of a pod, or not.
    Marked(Note, Result<(), Unwritten>),
    /// A draining pod has that many live connections.
    Live(Arc<str>, usize),
    /// Whether kubelet is known.
    Kubelet(bool),
    /// The last connection has ended, or the time to drain is over.
    Drained,
    /// The daemon before this one has handed over, or is gone.
    Inherited(Box<Legacy>),
    /// It goes on, and this one cannot.
    NotInherited(handover::Error),
    /// It has ended after it had handed over.
    PredecessorGone,
    /// An inherited capture is as this daemon wants it; listeners that had to be made.
    Settled(Arc<str>, Result<Vec<WorkerListeners>, String>),
    /// The daemon that had taken over is gone, and nobody is in its place: this one holds the lock.
    Alone(Lock),
}

/// What a control loop is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Vec<mpsc::UnboundedSender<Command>>,
    pub(crate) index: Index,
    pub(crate) policies: authorize::Store,
    pub(crate) enroller: Enroller,
    pub(crate) board: Arc<ArcSwap<Board>>,
    pub(crate) doors: Doors,
    /// Tells the doors when the mesh is over.
    pub(crate) over: watch::Sender<bool>,
}

/// What the control thread owns.
pub(crate) struct Control {
    config: Config,
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    index: Index,
    policies: authorize::Store,
    feed: Feed,
    enroller: Enroller,
    pods: Pods,
    held: HashMap<Arc<str>, Arc<Held>>,
    /// How to give up each enrolment that is under way.
    under_way: HashMap<Arc<str>, Stop>,
    /// Pods outside the mesh that were searched for what a dead daemon left.
    searched: HashSet<(Arc<str>, String)>,
    reports: Reports,
    plugged: Plugged,
    marks: Marks,
    /// Who writes the marks; nobody where there is no API server.
    scribe: Option<Arc<dyn Scribe>>,
    checking: bool,
    /// Whose the pods are.
    charge: Charge,
    /// Held while they are this daemon's.
    lock: Option<Lock>,
    /// The daemon before this one, while it lives.
    before: Option<Before>,
    /// The next daemon, once it has said hello.
    successor: Option<Successor>,
    doors: Doors,
    /// When the daemon was told to end, if it waits for the next one.
    told_to_end: Option<Instant>,
    /// Set once the daemon ends.
    ending: Option<Ending>,
    /// Whether the mesh is over and this node is being left.
    leaving: Leaving,
    board: Arc<ArcSwap<Board>>,
    events: mpsc::UnboundedSender<Event>,
    received: mpsc::UnboundedReceiver<Event>,
}

/// What the sources said, for people.
#[derive(Default)]
struct Reports {
    /// Whether everything has been read at least once; before, nothing is published.
    read_once: bool,
    looked_for_leftovers: bool,
    /// Whether kubelet was known when last told.
    kubelet: Option<bool>,
    /// How the watches were when last counted.
    health: Vec<Health>,
    /// Addresses that two pods claim, when last told.
    contested: usize,
    sources: api::Sources,
    advised: advising::Advised,
}

/// Waits for the last connection while it lives.
struct Ending(#[expect(dead_code, reason = "dropping it would end the wait")] task::Task);

impl Control {
    /// A control loop over these workers. Only the reading of the sources begins, and the talk with
    /// the daemon that runs, if one does.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub(crate) fn new(parts: Parts, arrived: Arrived) -> io::Result<Self> {
        let Parts {
            config,
            shared,
            workers,
            index,
            policies,
            enroller,
            board,
            doors,
            over,
        } = parts;
        let (events, received) = mpsc::unbounded_channel();
        let pods = Pods::new(config.drain);
        let plugged = Plugged::new(Left::new(&config.run_dir));
        let scribe = match &config.source {
            Source::Files(_) => None,
            Source::Kube { access, .. } => {
                let clients = Clients::new(access.clone());
                Some(Arc::new(ApiScribe::new(clients, shared.node.clone())) as Arc<dyn Scribe>)
            }
        };
        let mut control = Self {
            feed: Feed::start(&config.source)?,
            config,
            shared,
            workers,
            index,
            policies,
            enroller,
            pods,
            held: HashMap::new(),
            under_way: HashMap::new(),
            searched: HashSet::new(),
            reports: Reports::default(),
            plugged,
            marks: Marks::default(),
            scribe,
            checking: false,
            charge: Charge::Own,
            lock: None,
            before: None,
            successor: None,
            doors,
            told_to_end: None,
            ending: None,
            leaving: Leaving::new(over),
            board,
            events,
            received,
        };
        match arrived {
            Arrived::Alone(lock) => control.lock = Some(lock),
            Arrived::After(predecessor) => control.await_predecessor(predecessor),
        }
        Ok(control)
    }

    /// Runs until the daemon is told to end and has drained.
    ///
    /// # Errors
    ///
    /// Another daemon runs, and goes on; this one has touched nothing.
    pub(crate) async fn run(
        &mut self,
        mut signals: task::Ends,
        mut callers: Callers,
    ) -> Result<(), handover::Error> {
        let mut tick = tokio::time::interval(TICK);
        let mut check = tokio::time::interval(CHECK);
        let mut expire = tokio::time::interval(EXPIRE);
        loop {
            tokio::select! {
                biased;
                () = signals.next() => {
                    if self.ending.is_some() || self.leaving.is_told() {
                        tracing::warn!("told twice to end, cutting what is left");
                        return Ok(());
                    }
                    self.told_to_end();
                    self.show();
                }
                Some(event) = self.received.recv() => {
                    if let ControlFlow::Break(end) = self.take(event) {
                        return end;
                    }
                }
                Some(wish) = callers.successor.recv() => {
                    self.wished(wish);
                    self.show();
                }
                // While pods are handed over, questions wait for who will have them.
                Some(asked) = callers.plugin.recv(), if !self.is_handing() => {
                    self.asked(asked);
                    self.act();
                    self.show();
                }
                _ = tick.tick() => {
                    self.tick();
                    if self.has_left() {
                        return Ok(());
                    }
                }
                _ = check.tick() => self.check(),
                _ = expire.tick() => {
                    self.expire();
                    self.refresh_kubelet();
                    self.prune_sandboxes();
                    self.show();
                }
                // Last, since a cluster that comes in for the first time keeps it busy.
                // Also while the daemon ends: a policy that changes cuts what still drains.
                Some(update) = self.feed.next() => {
                    self.sources(update);
                    self.settle();
                    self.act();
                    self.show();
                }
            }
        }
    }

    fn take(&mut self, event: Event) -> ControlFlow<Result<(), handover::Error>> {
        match event {
            Event::Drained => {
                tracing::info!("drained");
                return ControlFlow::Break(Ok(()));
            }
            // Nobody would serve it. Its rules stay, as everybody's do.
            Event::Enrolled(..) | Event::Inherited(_) if self.ending.is_some() => {}
            Event::Enrolled(..) if self.has_handed() => {}
            Event::Inherited(legacy) => self.inherited(*legacy),
            Event::NotInherited(_) if self.ending.is_some() => {}
            Event::NotInherited(error) => return ControlFlow::Break(Err(error)),
            Event::PredecessorGone => self.predecessor_gone(),
            Event::Settled(uid, settled) => self.settled_in(&uid, settled),
            Event::Alone(lock) => self.take_back(lock),
            Event::Enrolled(pod, result) => self.enrolled(&pod, result),
            Event::Left(uid, outcome) => self.left(&uid, outcome),
            Event::Kubelet(known) => self.report_kubelet(known),
            Event::Marked(note, written) => self.marked(&note, &written),
            Event::Checked(found) => self.checked(found),
            Event::Live(uid, 0) => self.pods.idle(&uid, Instant::now()),
            Event::Live(..) => {}
        }
        self.list_estates();
        self.settle();
        self.act();
        self.show();
        ControlFlow::Continue(())
    }

    /// Looks where kubelet is, so that its probes are known.
    fn refresh_kubelet(&self) {
        let (kubelet, events) = (self.shared.kubelet.clone(), self.events.clone());
        let refresh = async move {
            let known = task::blocking("kubelet", move || kubelet.refresh()).await;
            let _ = events.send(Event::Kubelet(known.flatten().is_some()));
        };
        task::spawn("kubelet", refresh).detach();
    }

    /// Takes what the sources say. Nothing is published before they have been read to their end: a
    /// pod would be served without the policies that bind it.
    fn sources(&mut self, update: Update) {
        let Update { poll, synced } = update;
        self.report(&poll);
        let first = synced && !self.reports.read_once;
        if poll.changes.is_empty() && !first {
            return;
        }
        let daemon = &self.shared.metrics.daemon;
        daemon.source_changes.inc_by(poll.changes.len() as u64);
        let changes = poll.changes.len();
        let (policies, objects): (Vec<_>, Vec<_>) = poll.changes.into_iter().partition(is_policy);
        for change in policies.into_iter().filter_map(policy_change) {
            self.policies.apply(change);
        }
        // Given away, so that a first load does not hold everything twice.
        for rejected in self.index.apply(objects) {
            tracing::error!(object = %rejected.object, reason = %rejected.cause, "object not taken");
        }
        if self.index.is_over() {
            self.leaving.begin();
        }
        if !synced {
            return;
        }
        self.reports.read_once = true;
        daemon.source_loads.inc();
        match self.feed {
            // A cluster changes all the time.
            Feed::Kube(_) if !first => tracing::debug!(changes, "sources read"),
            _ => tracing::info!(changes, "sources read"),
        }
        self.plugged.changed();
        self.publish();
        if first && self.in_charge() {
            self.say_namespaces();
        }
        self.take_when_ready();
    }

    /// Makes the world of this moment and lets everybody see it.
    fn publish(&mut self) {
        let now = Instant::now();
        let snapshot = self.index.snapshot();
        let ours: Vec<Arc<Workload>> = snapshot.on_node(&self.shared.node).cloned().collect();
        let wanted = ours
            .iter()
            .filter(|pod| is_wanted(pod))
            .filter_map(|pod| self.wanted(pod))
            .collect();
        self.pods.want(wanted, now);
        if self.is_told_of_ends() {
            let run = ours.iter().filter(|pod| pod.phase != Phase::Finished);
            let run: HashSet<&str> = run.map(|pod| &*pod.uid).collect();
            self.pods.end(|uid| !run.contains(uid));
        }
        if self.in_charge() {
            // What another daemon has not let go yet is no leftover.
            if self.before.is_none() {
                self.search_leftovers(&ours);
            }
            self.advise(&ours);
        }

        let held = self.pods.held();
        let served = |uid: &Arc<str>| self.held.contains_key(uid);
        let pods: Vec<_> = ours
            .into_iter()
            .filter(|pod| is_wanted(pod) || held.contains(&pod.uid))
            .map(|pod| (pod.clone(), served(&pod.uid)))
            .collect();
        let identities = pods.iter().map(|(pod, _)| pod.identity.clone()).collect();
        self.report_contested(&snapshot);
        let before = self.shared.world.load();
        let policies = self.policies.policies();
        let world = World::new(snapshot, policies, pods, Some(&**before));
        self.shared.world.store(Arc::new(world));
        self.shared.certificates.want(identities);
        self.tell(|| Command::WorldChanged);
        self.act();
    }

    /// Whether a pod that is told of no more is one that ends. A pod that leaves a file has left the mesh.
    fn is_told_of_ends(&self) -> bool {
        matches!(self.config.source, Source::Kube { .. })
    }

    /// What there is to capture of a pod: nothing before it has a sandbox or an address. One whose
    /// address is not told any more is what it was: that is how some pods end.
    fn wanted(&self, pod: &Workload) -> Option<Wanted> {
        let wanted = self.plugged.place(pod);
        if !wanted.ips.is_empty() {
            return Some(wanted);
        }
        let before = self.pods.entry(&pod.uid);
        before.map(|entry| entry.wanted().clone())
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker is gone only when the process ends.
            let _ = worker.send(command());
        }
    }

    /// Accepts nothing more in any pod, and says when the last connection has ended. Rules stay:
    /// the pods fail closed until the next daemon takes them over.
    fn drain_all(&mut self) -> Ending {
        let (drain, (process, _)) = (self.config.drain, self.names());
        match &self.charge {
            Charge::Handed(_) => tracing::info!(
                ?drain,
                successor.process = process,
                "ending: the pods are served by the next daemon",
            ),
            Charge::Awaited(..) => tracing::info!("ending: the daemon that runs goes on"),
            Charge::Own | Charge::Handing(_) => tracing::info!(
                ?drain,
                "ending: captured pods fail closed until a daemon runs again",
            ),
        }
        // Who waits to take the pods back may do so.
        self.doors.close_handover();
        self.before = None;
        self.held.clear();
        let drained = ask(&self.workers, Command::Drain);
        // Answered when the listeners are closed: another daemon may begin from then on.
        let (closed, lock) = (ask(&self.workers, Command::Pause), self.lock.take());
        let (events, limit) = (self.events.clone(), self.config.drain);
        let since = self.carries_since();
        let wait = async move {
            for worker in closed {
                let _ = worker.await;
            }
            drop(lock);
            let all = async {
                for worker in drained {
                    let _ = worker.await;
                }
            };
            match (tokio::time::timeout(limit, all).await, since) {
                (Err(_), _) => tracing::warn!("the time to drain is over, cutting what is left"),
                (Ok(()), Some(since)) => tell_last(since),
                (Ok(()), None) => {}
            }
            let _ = events.send(Event::Drained);
        };
        Ending(task::spawn("drain all", wait))
    }

    /// The daemon was told to end. One that is about to be relieved waits for that, a little, unless
    /// there is nothing more to be relieved of.
    fn told_to_end(&mut self) {
        let waits = self.awaits_successor() && self.told_to_end.is_none();
        if waits && !self.index.is_over() {
            let (process, _) = self.names();
            tracing::info!(
                successor.process = process,
                "told to end, once the next daemon has taken over"
            );
            self.told_to_end = Some(Instant::now());
        } else {
            self.end();
        }
    }

    /// Leaves the node if the mesh is over, and drains otherwise. Who has no pods yet has none to
    /// leave.
    fn end(&mut self) {
        if self.index.is_over() && !self.is_awaiting() {
            self.leaving.told(Instant::now());
        } else {
            self.ending = Some(self.drain_all());
        }
    }

    fn tick(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.wait_no_longer();
        self.list_estates();
        self.take_when_ready();
        if self.in_charge() {
            self.doors.tend();
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
            // What the daemon before this one carries, it alone counts.
            let beside = self.before.as_ref().and_then(|_| self.held.get(&uid));
            let beside = beside.map(|held| (self.enroller.clone(), held.clone()));
            let count = async move {
                let mut live = 0;
                for count in counts {
                    live += count.await.unwrap_or(0);
                }
                if let (0, Some((enroller, held))) = (live, beside) {
                    live = usize::from(!enroller.is_quiet(held).await);
                }
                let _ = events.send(Event::Live(uid, live));
            };
            task::spawn("count", count).detach();
        }
        if self.in_charge() {
            self.say_namespaces();
        }
        self.settle();
        self.mark();
        self.act();
    }
}

fn is_policy(change: &Change) -> bool {
    let kind = match change {
        Change::Upsert(Object::AuthorizationPolicy(_)) => Kind::AuthorizationPolicy,
        Change::Upsert(Object::PeerAuthentication(_)) => Kind::PeerAuthentication,
        Change::Upsert(_) => return false,
        Change::Remove(key) => key.kind,
    };
    matches!(kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication)
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

/// Whether this pod of our node is to be captured.
fn is_wanted(pod: &Workload) -> bool {
    pod.enrolled() && pod.phase != Phase::Finished
}
