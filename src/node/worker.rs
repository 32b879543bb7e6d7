//! One worker: a thread, its runtime, and every connection that was accepted on it.
//!
//! Workers share nothing on the path of a byte. Each has its own listeners in every pod, its own
//! tunnels and its own register of live connections; the world is read through an atomic pointer.
//! The control thread speaks to a worker by [`Command`]s, and a worker answers through the channels
//! that come with them.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::api;
use crate::authorize::{Evaluator, Permit, Verdict};
use crate::capture::{Kubelet, Port, WorkerListeners};
use crate::causes::Causes;
use crate::mesh::{Direction, Flow, Identity, Service, service_hostname};
use crate::node::accepting::Accepting;
use crate::node::account::Account;
use crate::node::busy_poll::BusyPoll;
use crate::node::config;
use crate::node::counting::Counted;
use crate::node::error::Error;
use crate::node::handshakes::Handshakes;
use crate::node::kept::Kept;
use crate::node::listing;
use crate::node::live::{Connection, Cut, Live};
use crate::node::places::Places;
use crate::node::pod::Pod;
use crate::node::refusing::Exhaustion;
use crate::node::same_node::SameNode;
use crate::node::sources::Sources;
use crate::node::world::World;
use crate::pki::{Certificate, Certificates};
use crate::sys::socket::Lane;
use crate::task;
use crate::telemetry::metrics::{Failure, Metrics, Recorder};
use crate::tunnel::{self, Pool};

/// How long a connection waits for its pod's first certificate.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(5);
/// How often the counters of connections that go on are brought up to date.
const TICK: Duration = Duration::from_secs(2);

/// What all workers and the control thread share.
pub(crate) struct Shared {
    /// This node's name.
    pub(crate) node: Arc<str>,
    /// The DNS domain of the cluster, for service names.
    pub(crate) cluster_domain: Arc<str>,
    /// How many workers there are.
    pub(crate) workers: u16,
    /// How two pods of this node reach each other.
    pub(crate) same_node: config::SameNode,
    /// What is known now.
    pub(crate) world: ArcSwap<World>,
    /// A certificate per identity of this node.
    pub(crate) certificates: Arc<Certificates>,
    /// Connections between pods of this node that are under way.
    pub(crate) announcements: SameNode,
    /// How long a worker looks for more before it sleeps.
    pub(crate) busy_poll: BusyPoll,
    /// Who probes our pods.
    pub(crate) kubelet: Arc<Kubelet>,
    /// How many connections there is room for.
    pub(crate) places: Arc<Places>,
    /// All counters.
    pub(crate) metrics: Arc<Metrics>,
    /// Deadlines and bounds of tunnels.
    pub(crate) limits: tunnel::Limits,
}

impl Shared {
    /// A service's name as metrics, logs and `Forwarded` have it.
    pub(crate) fn hostname(&self, service: &Service) -> String {
        service_hostname(service, &self.cluster_domain)
    }
}

/// What the control thread tells a worker.
pub(crate) enum Command {
    /// Serve a pod with these listeners, beside those it has in the same namespace.
    Serve(Pod, WorkerListeners),
    /// Say how many live connections a pod has here.
    CountLive(Arc<str>, oneshot::Sender<usize>),
    /// Stop serving a pod and end its connections; answered when its listeners are closed.
    Release(Arc<str>, oneshot::Sender<()>),
    /// The world changed: end what is now denied, and tunnels that lead nowhere.
    WorldChanged,
    /// List the live connections.
    List(oneshot::Sender<Vec<api::Connection>>),
    /// Copy every listener that is accepted on, with the pod it is of.
    Listeners(oneshot::Sender<Vec<(Arc<str>, OwnedFd)>>),
    /// Dial neighbours through tunnels from now on, and say when no other dial is under way.
    NotAlone(oneshot::Sender<()>),
    /// Accept nothing for now; what comes waits in the listeners.
    Pause(oneshot::Sender<()>),
    /// Do everything again as before any of the last three.
    Resume,
    /// Accept nothing more, and say when the last connection has ended.
    Drain(oneshot::Sender<()>),
    /// End every connection now.
    End,
}

/// One worker's state, shared by its tasks.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) live: Live,
    pub(crate) kept: Rc<Kept>,
    pub(crate) handshakes: Handshakes,
    pub(crate) sources: Rc<Sources>,
    pub(crate) exhaustion: Exhaustion,
    pub(crate) recorder: Recorder,
    pub(crate) index: usize,
    /// Which worker this is, for the ports from which it dials workers.
    pub(crate) lane: Lane,
    connections: Cell<u64>,
    random: Cell<u64>,
    server_configs: RefCell<HashMap<Identity, (u64, Arc<ServerConfig>)>>,
    served: RefCell<HashMap<Arc<str>, Served>>,
    /// Whether every listener of this node's pods is this daemon's.
    alone: Cell<bool>,
    /// Dials of neighbours that are under way.
    dialling: Rc<Cell<usize>>,
    /// The evaluator by which each pod's live connections were last checked.
    checked: RefCell<HashMap<Arc<str>, Evaluator>>,
    /// What of this worker is in the counters of all.
    counted: Counted,
}

struct Served {
    pod: Rc<Pod>,
    listeners: Vec<Accepting>,
    ending: Rc<Ending>,
}

impl Worker {
    /// A worker that serves nothing yet. `seed` makes its random draws differ from the others'.
    pub(crate) fn new(shared: Arc<Shared>, index: usize, seed: u64) -> Rc<Self> {
        let lane = Lane {
            index: u16::try_from(index).unwrap_or(0),
            of: shared.workers,
        };
        let pool = Pool::new(shared.limits.clone(), lane);
        Rc::new(Self {
            lane,
            recorder: shared.metrics.traffic.recorder(index),
            shared,
            pool,
            live: Live::default(),
            kept: Rc::default(),
            handshakes: Handshakes::new(),
            sources: Rc::default(),
            exhaustion: Exhaustion::new(),
            index,
            connections: Cell::new(0),
            random: Cell::new(seed),
            server_configs: RefCell::default(),
            served: RefCell::default(),
            alone: Cell::new(true),
            dialling: Rc::default(),
            checked: RefCell::default(),
            counted: Counted::default(),
        })
    }

    /// Follows commands until the control thread is gone.
    pub(crate) async fn run(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.follow(command),
                    None => return,
                },
                _ = tick.tick() => self.count(&self.counted),
            }
        }
    }

    fn follow(self: &Rc<Self>, command: Command) {
        match command {
            Command::Serve(pod, listeners) => self.serve(pod, listeners),
            Command::CountLive(uid, answer) => {
                let _ = answer.send(self.live.in_pod(&uid));
            }
            Command::Release(uid, answer) => {
                let listeners = self.release(&uid);
                // Whoever is answered may at once want the ports again.
                let close = async move {
                    for listener in listeners {
                        listener.end().await;
                    }
                    let _ = answer.send(());
                };
                task::spawn_local("release", close).detach();
            }
            Command::WorldChanged => self.world_changed(),
            Command::List(answer) => {
                let _ = answer.send(listing::connections(self));
            }
            Command::Listeners(answer) => {
                let _ = answer.send(self.listeners());
            }
            Command::NotAlone(answer) => self.not_alone(answer),
            Command::Pause(answer) => {
                let mut served = self.served.borrow_mut();
                let all = served.values_mut().flat_map(|served| &mut served.listeners);
                all.for_each(Accepting::pause);
                let _ = answer.send(());
            }
            Command::Resume => self.resume(),
            Command::Drain(answer) => self.drain(answer),
            Command::End => {
                self.live.end(|_| Some(Cut::Drained));
            }
        }
    }

    /// What is known now.
    pub(crate) fn world(&self) -> arc_swap::Guard<Arc<World>> {
        self.shared.world.load()
    }

    /// The next number of a connection, unique in this daemon.
    pub(crate) fn next_id(&self) -> u64 {
        let count = self.connections.get() + 1;
        self.connections.set(count);
        (self.index as u64) << 48 | count
    }

    /// A random draw (SplitMix64): good enough to spread load, not for secrets.
    pub(crate) fn draw(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The certificate of an identity of this node; waits for the first one, not for ever.
    pub(crate) async fn certificate(&self, of: &Identity) -> Result<Arc<Certificate>, Error> {
        match self.shared.certificates.current(of) {
            Some(certificate) => Ok(certificate),
            None => Ok(self.shared.certificates.wait(of, CERTIFICATE_WAIT).await?),
        }
    }

    /// The server side of TLS for a certificate, made once per certificate.
    pub(crate) fn server_config(&self, certificate: &Certificate) -> Arc<ServerConfig> {
        let mut configs = self.server_configs.borrow_mut();
        match configs.get(certificate.identity()) {
            Some((epoch, config)) if *epoch == certificate.epoch() => config.clone(),
            _ => {
                let config = tunnel::tls::server_config(certificate);
                let entry = (certificate.epoch(), config.clone());
                configs.insert(certificate.identity().clone(), entry);
                config
            }
        }
    }

    /// Asks a pod's policies; counts and logs what dry-run policies would have done.
    pub(crate) fn decide(
        &self,
        evaluator: &Evaluator,
        flow: Flow,
        account: &Account,
    ) -> Result<Permit, Error> {
        let Verdict { decision, dry_run } = evaluator.decide(flow);
        for would in &dry_run {
            account.would(would);
        }
        decision.map_err(|refusal| Error::Authorize(Box::new(refusal)))
    }

    /// How many listeners this worker accepts on.
    pub(crate) fn listening(&self) -> usize {
        let served = self.served.borrow();
        served.values().map(|served| served.listeners.len()).sum()
    }

    /// How the end of serving a pod is told to its tunnels.
    pub(crate) fn ending(&self, pod: &Pod) -> Rc<Ending> {
        let served = self.served.borrow();
        // A pod that is not served any more ended before its connection got here.
        served
            .get(&pod.uid)
            .filter(|served| served.pod.netns == pod.netns)
            .map_or_else(Ending::over, |served| served.ending.clone())
    }

    /// Records a tunnel that did not come to be: there is no stream yet to account for.
    pub(crate) fn handshake_failed(&self, pod: &Pod, source: SocketAddr, error: &Error) {
        let failure = Failure {
            direction: Direction::Inbound.as_str(),
            reason: error.reason(),
        };
        self.shared
            .metrics
            .daemon
            .handshake_failures
            .get_or_create(&failure)
            .inc();
        tracing::info!(
            src.addr = %source,
            pod = %pod.name,
            reason = error.reason(),
            error = %Causes(error),
            "tunnel refused",
        );
    }

    /// The pod of this name, if this worker serves it.
    pub(crate) fn served(&self, uid: &str) -> Option<Rc<Pod>> {
        let served = self.served.borrow();
        served.get(uid).map(|served| served.pod.clone())
    }

    /// Whether this very pod, in this very namespace, is served now.
    pub(crate) fn serves(&self, pod: &Pod) -> bool {
        let served = self.served.borrow();
        served
            .get(&pod.uid)
            .is_some_and(|served| served.pod.netns == pod.netns)
    }

    fn serve(self: &Rc<Self>, pod: Pod, listeners: WorkerListeners) {
        let pod = Rc::new(pod);
        let WorkerListeners {
            outbound,
            inbound,
            tunnel,
        } = listeners;
        let ports = [
            (outbound, Port::Outbound),
            (inbound, Port::Inbound),
            (tunnel, Port::Tunnel),
        ];
        let mut tasks = Vec::new();
        for (listeners, port) in ports {
            for listener in listeners {
                match listener.accepting() {
                    Ok(listener) => tasks.push(Accepting::begin(self, &pod, listener, port)),
                    Err(error) => {
                        tracing::error!(pod = %pod.name, error = %error, "listener not usable");
                    }
                }
            }
        }
        let mut served = self.served.borrow_mut();
        match served.get_mut(&pod.uid) {
            // After a repair these are the ones that had to be made anew, often none: the others
            // live, and connections wait in them.
            Some(served) if served.pod.netns == pod.netns => {
                served.listeners.retain(|listener| !listener.is_over());
                served.listeners.append(&mut tasks);
            }
            _ => {
                let now = Served {
                    pod: pod.clone(),
                    listeners: tasks,
                    ending: Rc::default(),
                };
                if let Some(before) = served.insert(pod.uid.clone(), now) {
                    before.ending.reach(Stage::Over);
                    let cookie = before.pod.netns.cookie();
                    self.kept.forget(cookie, Instant::now());
                }
            }
        }
        drop(served);
        self.count_own(&self.counted);
    }

    /// Ends what a pod has here, but for its listeners, which are given back.
    fn release(&self, uid: &str) -> Vec<Accepting> {
        let mut listeners = Vec::new();
        if let Some(served) = self.served.borrow_mut().remove(uid) {
            served.ending.reach(Stage::Over);
            let cookie = served.pod.netns.cookie();
            self.pool.retain(|key| key.origin != cookie);
            self.kept.forget(cookie, Instant::now());
            listeners = served.listeners;
        }
        self.live
            .end(|connection| (*connection.pod.uid == *uid).then_some(Cut::PodReleased));
        self.checked.borrow_mut().remove(uid);
        listeners
    }

    /// Ends what the new world denies. Only pods whose policies changed are looked at, so that a
    /// change elsewhere in the cluster costs this worker nothing.
    fn world_changed(&self) {
        let world = self.world();
        let mut checked = self.checked.borrow_mut();
        let mut changed: HashMap<&str, &Evaluator> = HashMap::new();
        for (uid, local) in &world.pods {
            let before = checked.insert(uid.clone(), local.evaluator.clone());
            if !before.is_some_and(|before| before.same(&local.evaluator)) {
                changed.insert(uid, &local.evaluator);
            }
        }
        checked.retain(|uid, _| world.pods.contains_key(uid));
        let present: HashSet<_> = world
            .pods
            .values()
            .map(|pod| &pod.workload.identity)
            .collect();
        // What is left of an identity is a private key.
        let mut configs = self.server_configs.borrow_mut();
        configs.retain(|identity, _| present.contains(identity));
        if !changed.is_empty() {
            let denied = |connection: &Connection| {
                let evaluator = changed.get(&*connection.pod.uid);
                evaluator.and_then(|evaluator| evaluator.recheck(&connection.permit))
            };
            self.live.revoke(denied);
        }
        self.pool.retain(|key| {
            // A destination that leaves the mesh drains: what it has runs on, and nothing new is
            // routed there.
            let workload = world.snapshot.workload_at(key.via.ip());
            workload.is_some_and(|workload| workload.identity == key.peer)
        });
    }

    /// Whether a neighbour's listener is sure to be this daemon's.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone.get()
    }

    /// Counts the dial of a neighbour while the result lives.
    pub(crate) fn dialling(&self) -> Dialling {
        self.dialling.set(self.dialling.get() + 1);
        Dialling(self.dialling.clone())
    }

    fn listeners(&self) -> Vec<(Arc<str>, OwnedFd)> {
        let served = self.served.borrow();
        let of = |served: &Served| {
            let uid = served.pod.uid.clone();
            let copies = served.listeners.iter().filter_map(Accepting::copy);
            copies.map(|fd| (uid.clone(), fd)).collect::<Vec<_>>()
        };
        served.values().flat_map(of).collect()
    }

    /// Whoever accepts may be another daemon: no neighbour is dialled any more, and none is reached
    /// by what was kept of earlier dials.
    fn not_alone_any_more(&self) {
        self.alone.set(false);
        self.kept.clear();
    }

    fn not_alone(self: &Rc<Self>, answer: oneshot::Sender<()>) {
        self.not_alone_any_more();
        let dialling = self.dialling.clone();
        let wait = async move {
            while dialling.get() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let _ = answer.send(());
        };
        task::spawn_local("dials", wait).detach();
    }

    fn resume(self: &Rc<Self>) {
        self.alone.set(true);
        for served in self.served.borrow_mut().values_mut() {
            served.ending.take_back();
            for listener in &mut served.listeners {
                listener.resume(self, &served.pod);
            }
        }
    }

    fn drain(self: &Rc<Self>, answer: oneshot::Sender<()>) {
        self.not_alone_any_more();
        for served in self.served.borrow_mut().values_mut() {
            served.listeners.clear();
            served.ending.reach(Stage::Begun);
        }
        let worker = self.clone();
        let wait = async move {
            // A tunnel has ended when its peer has said that nothing more is on its way.
            while worker.live.len() > 0 || worker.sources.have_tunnels() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = answer.send(());
        };
        task::spawn_local("drain", wait).detach();
    }
}

/// A dial of a neighbour that is under way.
pub(crate) struct Dialling(Rc<Cell<usize>>);

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// How far the end of serving a pod has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It has not begun.
    #[default]
    Not,
    /// No new streams; those that run may end.
    Begun,
    /// Nothing more.
    Over,
}

/// Tells the tunnels of a pod that it is not served any longer.
#[derive(Default)]
pub(crate) struct Ending {
    stage: Cell<Stage>,
    wake: Notify,
}

impl Ending {
    fn over() -> Rc<Self> {
        Rc::new(Self {
            stage: Cell::new(Stage::Over),
            wake: Notify::new(),
        })
    }

    fn reach(&self, stage: Stage) {
        self.stage.set(stage.max(self.stage.get()));
        self.wake.notify_waiters();
    }

    /// What begins from now on is served again.
    fn take_back(&self) {
        if self.stage.get() == Stage::Begun {
            self.stage.set(Stage::Not);
        }
    }

    /// Waits until the end has come that far.
    pub(crate) async fn reached(&self, stage: Stage) {
        loop {
            let wake = self.wake.notified();
            if self.stage.get() >= stage {
                return;
            }
            wake.await;
        }
    }
}
