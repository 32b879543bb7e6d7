//! Starts the node daemon, and ends it.
//!
//! Everything that can be wrong with the environment is found here, before a pod is touched, and
//! said in one message that names the cause and the mend.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::authorize;
use crate::capture::{self, Kubelet};
use crate::identify::{self, Index};
use crate::node::admin::{Board, Desk};
use crate::node::busy_poll::{self, BusyPoll};
use crate::node::config::{CaSpec, Config, Existing, Source};
use crate::node::control::{Control, Parts};
use crate::node::doors::Doors;
use crate::node::enrol::Enroller;
use crate::node::events;
use crate::node::handover::{self, Arrived, Hello, Wants};
use crate::node::places::Places;
use crate::node::same_node::SameNode;
use crate::node::worker::{Command, Shared, Worker};
use crate::node::world::World;
use crate::pki::directory::{self, DirectoryCa};
use crate::pki::remote::{self, RemoteCa};
use crate::pki::{Certificates, Issuer};
use crate::sys;
use crate::sys::socket;
use crate::task;
use crate::telemetry::http;
use crate::telemetry::log::{self, Log};
use crate::telemetry::metrics::Metrics;
use crate::tunnel;

/// What cut connections get to write their records.
const FAREWELL: Duration = Duration::from_millis(100);

/// How long the daemon that runs may take to close its ports, after it has said that it does.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine lacks what capturing needs.
    #[error("this machine cannot capture pods")]
    Environment(#[source] capture::Unfit),
    /// The congestion control that was asked for is not there.
    #[error("cannot start tunnels as --tunnel-congestion says")]
    Congestion(#[source] socket::NoSuchCongestion),
    /// The log cannot be set up.
    #[error("cannot set up the log")]
    Log(#[source] log::Error),
    /// The run directory cannot be used.
    #[error("cannot use the run directory {0}: choose another with --run-dir")]
    RunDir(PathBuf, #[source] io::Error),
    /// The certificate authority cannot be used.
    #[error("cannot use the certificate authority")]
    Ca(#[source] directory::Error),
    /// The remote authority's address is not one.
    #[error("cannot use the address of the certificate authority: write --ca https://HOST:PORT")]
    CaAddress(#[source] ::http::Error),
    /// An address to listen on is taken or not ours.
    #[error(transparent)]
    Listen(#[from] http::Unserved),
    /// The CNI plugin cannot be served.
    #[error("cannot serve the CNI plugin at {0}: choose another directory with --run-dir")]
    Plugin(PathBuf, #[source] io::Error),
    /// Another daemon runs, and this one cannot be the next.
    #[error("cannot take over from the daemon that runs")]
    Handover(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system refused a thread, a runtime or a signal handler.
    #[error("cannot start {0}")]
    System(&'static str, #[source] io::Error),
}

/// Runs the daemon until it is told to end (SIGTERM, SIGINT).
///
/// # Errors
///
/// A [`StartError`], before any pod was touched.
pub fn run(config: Config) -> Result<(), StartError> {
    let log = Log::start(&config.log_filter, config.log_format).map_err(StartError::Log)?;
    sys::process::raise_descriptor_limit();
    // First of all, because it finds out which capabilities there are.
    capture::probe().map_err(StartError::Environment)?;
    let congestion = &config.tunnel_congestion;
    congestion.probe().map_err(StartError::Congestion)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.run_dir)
        .map_err(|cause| StartError::RunDir(config.run_dir.clone(), cause))?;
    let shared = Arc::new(shared(&config, &log)?);
    let workers = (0..config.workers)
        .map(|index| start_worker(&shared, index))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|cause| StartError::System("a worker", cause))?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(32)
        .build()
        .map_err(|cause| StartError::System("the control runtime", cause))?;
    LocalSet::new().block_on(&runtime, run_control(config, shared, workers, log))
}

fn shared(config: &Config, log: &Log) -> Result<Shared, StartError> {
    let issuer = issuer(&config.ca, config)?;
    let metrics = Metrics::new(
        config.workers,
        &config.cluster_domain,
        Some(log.dropped()),
        Instant::now(),
    );
    let metrics = Arc::new(metrics);
    let places = Places::new();
    let most = i64::try_from(places.most()).unwrap_or(i64::MAX);
    metrics.daemon.connection_places.set(most);
    let certificates = Certificates::new(issuer, events::observer(&metrics));
    let policies = authorize::Store::new(&config.root_namespace, &config.trust_domain);
    let index = Index::new(index_settings(config));
    let world = World::new(index.snapshot(), policies.policies(), [], None);
    Ok(Shared {
        node: config.node.as_str().into(),
        cluster_domain: config.cluster_domain.as_str().into(),
        workers: u16::try_from(config.workers).unwrap_or(1),
        same_node: config.same_node,
        world: ArcSwap::from_pointee(world),
        certificates,
        announcements: SameNode::default(),
        kubelet: Arc::new(Kubelet::new(Path::new("/proc"))),
        busy_poll: BusyPoll::new(busy_poll_time(config)),
        places,
        metrics,
        limits: tunnel::Limits {
            waiting: tunnel::Waiting::new(waiting_bytes(), config.workers),
            congestion: config.tunnel_congestion.clone(),
            ..tunnel::Limits::default()
        },
    })
}

/// How many bytes may wait for readers: an eighth of the memory, within reason.
fn waiting_bytes() -> usize {
    const LEAST: u64 = 64 << 20;
    const MOST: u64 = 1 << 30;
    let memory = sys::process::memory().unwrap_or(MOST);
    usize::try_from((memory / 8).clamp(LEAST, MOST)).unwrap_or(usize::MAX)
}

/// A remote authority need not answer yet: pods wait for it, and this daemon's readiness with them.
fn issuer(ca: &CaSpec, config: &Config) -> Result<Arc<dyn Issuer>, StartError> {
    match ca {
        CaSpec::Directory(path) => {
            let authority =
                DirectoryCa::open(path, &config.trust_domain).map_err(StartError::Ca)?;
            Ok(Arc::new(authority.with_validity(config.cert_validity)))
        }
        CaSpec::Remote(address) => {
            let settings = remote::Settings {
                address: address.clone(),
                token: config.ca_token.clone(),
                root: config.ca_root.clone(),
                validity: config.cert_validity,
            };
            let authority = RemoteCa::new(settings).map_err(StartError::CaAddress)?;
            Ok(Arc::new(authority))
        }
    }
}

/// Time awake counts against a quota as any other, and a daemon that has used up its own stands still
/// for the rest of the period: worse than any wake-up.
fn busy_poll_time(config: &Config) -> Duration {
    if config.busy_poll.is_zero() || !sys::process::has_cpu_quota() {
        return config.busy_poll;
    }
    tracing::info!("busy polling is off: the control group has a processor quota");
    Duration::ZERO
}

fn index_settings(config: &Config) -> identify::Settings {
    identify::Settings {
        trust_domain: config.trust_domain.clone(),
        cluster_domain: config.cluster_domain.clone(),
        enrol_labels: config.enrol_labels.clone(),
        excluded_namespaces: config.excluded_namespaces.clone(),
        sandboxed_runtimes: config.sandboxed_runtimes.clone(),
        marking: match config.source {
            Source::Files(_) => None,
            Source::Kube { .. } => Some(config.node.clone()),
        },
        home: match (&config.source, &config.install) {
            (Source::Kube { .. }, Some(install)) => Some(install.own_namespace.clone()),
            _ => None,
        },
    }
}

async fn run_control(
    config: Config,
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    log: Log,
) -> Result<(), StartError> {
    let board = Arc::new(ArcSwap::from_pointee(Board::starting()));
    let desk = Rc::new(Desk {
        shared: shared.clone(),
        board: board.clone(),
        workers: workers.clone(),
        config: config.clone(),
        log,
        started: Instant::now(),
    });
    let arrived = arrive(&config).await?;
    let over = watch::Sender::new(false);
    let (mut doors, asked) = Doors::new(desk, over.subscribe());
    match &arrived {
        // What lies in the run directory is its own until it hands over.
        Arrived::After(_) => open_ports(&mut doors).await?,
        Arrived::Alone(_) => doors.open()?,
    }
    let _certificates = task::spawn("certificates", shared.certificates.clone().run());
    let signals = task::ends().map_err(|cause| StartError::System("a signal handler", cause))?;
    let policies = authorize::Store::new(&config.root_namespace, &config.trust_domain);
    let index = Index::new(index_settings(&config));
    let options = capture::Options {
        workers: config.workers,
        existing: existing(&config),
        fresh: false,
    };
    let enroller = Enroller::new(options);
    tracing::info!(
        node = %config.node,
        version = env!("CARGO_PKG_VERSION"),
        workers = config.workers,
        "node daemon started",
    );
    let parts = Parts {
        config,
        shared,
        workers: workers.clone(),
        index,
        policies,
        enroller,
        board,
        doors,
        over,
    };
    let mut control = Control::new(parts, arrived)
        .map_err(|cause| StartError::System("the watch of the API server", cause))?;
    let ended = control.run(signals, asked).await;
    for worker in &workers {
        let _ = worker.send(Command::End);
    }
    // Cut connections write their records on the way out.
    tokio::time::sleep(FAREWELL).await;
    tracing::info!("node daemon ended");
    ended.map_err(|error| StartError::Handover(Box::new(error)))
}

/// Opens the ports that the daemon before is just letting go.
async fn open_ports(doors: &mut Doors) -> Result<(), StartError> {
    let until = Instant::now() + LETTING_GO;
    loop {
        match doors.open_ports() {
            Err(_) if Instant::now() < until => tokio::time::sleep(LETTING_GO / 100).await,
            done => return done,
        }
    }
}

/// Whether this daemon is the only one of its node, or is to take over.
async fn arrive(config: &Config) -> Result<Arrived, StartError> {
    let hello = Hello::new(Wants::Pods, &config.node)
        .map_err(|cause| StartError::System("the daemon's own network namespace", cause))?;
    let arrived = handover::arrive(&config.run_dir, &hello).await;
    let arrived = arrived.map_err(|error| StartError::Handover(Box::new(error)))?;
    if let Arrived::After(predecessor) = &arrived {
        tracing::info!(
            predecessor.process = predecessor.process,
            predecessor.version = predecessor.program,
            "another daemon runs: it goes on until this one can take over",
        );
    }
    Ok(arrived)
}

fn existing(config: &Config) -> capture::Existing {
    match config.existing {
        Existing::Keep => capture::Existing::Keep,
        Existing::Reset => capture::Existing::Reset,
    }
}

fn start_worker(shared: &Arc<Shared>, index: usize) -> io::Result<mpsc::UnboundedSender<Command>> {
    let (commands, received) = mpsc::unbounded_channel();
    let (made, outcome) = std::sync::mpsc::sync_channel(1);
    let shared = shared.clone();
    let work = move || {
        // A runtime whose tasks stay on its thread is made there.
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = made.send(Err(error));
                return;
            }
        };
        let _ = made.send(Ok(()));
        // Nobody else could serve this worker's connections, so the daemon ends with it and the
        // pods fail closed until it is started again.
        let abort = AbortOnPanic;
        let seed = RandomState::new().hash_one(index);
        let work = async move {
            let _busy_poll = task::spawn_watcher("busy poll", busy_poll::run(shared.clone()));
            Worker::new(shared, index, seed).run(received).await;
        };
        runtime.block_on(work);
        drop(abort);
    };
    thread::Builder::new()
        .name(format!("adit-worker-{index}"))
        .spawn(work)?;
    outcome
        .recv()
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
    Ok(commands)
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            log::flush();
            eprintln!("adit: a worker panicked outside of a connection; ending");
            std::process::abort();
        }
    }
}
