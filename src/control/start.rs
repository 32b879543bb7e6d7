//! Starts the certificate authority, and ends it.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::control::config::Config;
use crate::control::keeper::Keeper;
use crate::control::kube::Kube;
use crate::control::pods::Pods;
use crate::control::rules::Rules;
use crate::control::service::Desk;
use crate::control::serving::{self, Face};
use crate::sys;
use crate::task;
use crate::telemetry::http::{self, Listener, Request, Response, answer, text};
use crate::telemetry::log::{self, Log};
use crate::telemetry::metrics::{CONTENT_TYPE, Control as Metrics};

/// How often unused watches are looked for.
const TIDY: Duration = Duration::from_secs(10);
/// What goes on being served after the signal to end, while nodes and endpoints learn of it.
const GRACE: Duration = Duration::from_secs(2);

/// Why the authority could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be set up.
    #[error("cannot set up the log")]
    Log(#[source] log::Error),
    /// An address to listen on is taken or not ours.
    #[error(transparent)]
    Listen(#[from] http::Unserved),
    /// TLS cannot be had.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The system refused a runtime, a socket or a signal handler.
    #[error("cannot start {0}")]
    System(&'static str, #[source] io::Error),
}

/// Runs the authority until it is told to end (SIGTERM, SIGINT).
///
/// # Errors
///
/// A [`StartError`], before anything is served. That the API server is away is none: the authority
/// waits for it, and is not ready.
pub fn run(config: Config) -> Result<(), StartError> {
    let filter = config.log_filter.clone().keeping("audit");
    let log = Log::start(&filter, config.log_format).map_err(StartError::Log)?;
    sys::process::raise_descriptor_limit();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()
        .map_err(|cause| StartError::System("the runtime", cause))?;
    LocalSet::new().block_on(&runtime, control(config, log))
}

async fn control(config: Config, log: Log) -> Result<(), StartError> {
    let metrics = Arc::new(Metrics::new(Some(log.dropped())));
    let kube = Arc::new(Kube::new(config.access.clone()));
    let keeper = Keeper::new(&config, &kube, &metrics);
    let pods = Arc::new(Pods::new(&kube));
    let face = Arc::new(Face::default());
    let rules = Rules {
        trust_domain: config.trust_domain.clone(),
        audience: config.audience.clone(),
        node_accounts: config.node_accounts.clone(),
        longest: config.max_validity,
    };
    let desk = Desk::new(rules, &kube, &keeper, &pods, &metrics);
    let (end, ending) = watch::channel(false);
    let (leave, leaving) = watch::channel(false);
    let ready = Rc::new(Readiness {
        keeper: keeper.clone(),
        face: face.clone(),
        leaving,
    });
    let listener = listen(config.listen)?;
    let mut tasks = side_servers(&config, &metrics, &ready)?;
    let acceptor = serving::acceptor(&face).map_err(StartError::Tls)?;
    let serving = serving::serve(listener, acceptor, desk, metrics.clone(), ending);
    let mut signals =
        task::ends().map_err(|cause| StartError::System("a signal handler", cause))?;
    tasks.push(task::spawn("keep the authority", keeper.clone().run()));
    let names = config.names.clone();
    tasks.push(task::spawn("keep the face", face.keep(keeper, names)));
    tasks.push(task::spawn("tidy", tidy(pods, metrics)));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %config.listen,
        ca = %config.keys,
        names = config.names.join(","),
        "certificate authority started",
    );
    let ended = async move {
        signals.next().await;
        tracing::info!("told to end");
        leave.send_replace(true);
        tokio::select! {
            () = tokio::time::sleep(GRACE) => {}
            () = signals.next() => {}
        }
        end.send_replace(true);
        // A second signal does not wait for the calls that run.
        signals.next().await;
    };
    tokio::select! {
        () = serving => {}
        () = ended => {}
    }
    tracing::info!("certificate authority ended");
    drop(tasks);
    Ok(())
}

/// Listens for nodes. `[::]` takes IPv4 as well, and falls back to `0.0.0.0` on a machine without
/// IPv6.
fn listen(addr: SocketAddr) -> Result<tokio::net::TcpListener, StartError> {
    let listener = Listener::tcp(addr);
    let listener = listener.map_err(|cause| cause.of("certificate requests", "--listen"))?;
    let listener = listener
        .into_tcp()
        .ok_or_else(|| StartError::System("the server", io::ErrorKind::Unsupported.into()))?;
    let system = |cause| StartError::System("the server", cause);
    listener.set_nonblocking(true).map_err(system)?;
    tokio::net::TcpListener::from_std(listener).map_err(system)
}

async fn tidy(pods: Arc<Pods>, metrics: Arc<Metrics>) {
    loop {
        pods.tidy(Instant::now());
        let watched = i64::try_from(pods.watched()).unwrap_or(i64::MAX);
        metrics.nodes_watched.set(watched);
        tokio::time::sleep(TIDY).await;
    }
}

/// What has to be there before anybody is sent here.
struct Readiness {
    keeper: Arc<Keeper>,
    face: Arc<Face>,
    /// Whether this replica was told to end.
    leaving: watch::Receiver<bool>,
}

impl Readiness {
    fn answer(&self) -> Response {
        let waiting = if *self.leaving.borrow() {
            "it is ending".to_owned()
        } else {
            match self.keeper.current() {
                Err(why) => why,
                Ok(_) if !self.face.is_there() => "it has no certificate of its own yet".to_owned(),
                Ok(_) => return text(StatusCode::OK, "ready\n"),
            }
        };
        text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {waiting}\n"),
        )
    }
}

/// Serves metrics and readiness.
fn side_servers(
    config: &Config,
    metrics: &Arc<Metrics>,
    ready: &Rc<Readiness>,
) -> Result<Vec<task::Task>, StartError> {
    let tcp = |purpose, flag, address| {
        Listener::tcp(address).map_err(|cause: http::Error| cause.of(purpose, flag))
    };
    let scrape = metrics.clone();
    let ready = ready.clone();
    Ok(vec![
        server(
            tcp("metrics", "--metrics", config.metrics)?,
            move |request| {
                page(&request, "/metrics", || {
                    answer(StatusCode::OK, CONTENT_TYPE, scrape.encode())
                })
            },
        ),
        server(tcp("readiness", "--ready", config.ready)?, move |request| {
            if request.path == "/healthz/live" {
                // Whoever answers runs. What it waits for a restart would not bring.
                return text(StatusCode::OK, "alive\n");
            }
            page(&request, "/healthz/ready", || ready.answer())
        }),
    ])
}

/// The one page of a server.
fn page(request: &Request, path: &str, answer: impl FnOnce() -> Response) -> Response {
    match (&request.method, request.path.as_str()) {
        (&(Method::GET | Method::HEAD), asked) if asked == path => answer(),
        _ => text(
            StatusCode::NOT_FOUND,
            format!("the only page here is {path}\n"),
        ),
    }
}

fn server(listener: Listener, route: impl Fn(Request) -> Response + 'static) -> task::Task {
    task::spawn_local("http", async move {
        let serving = http::serve(listener, |request| std::future::ready(route(request)));
        let Err(error) = serving.await;
        tracing::error!(error = %error, "a server ended");
    })
}
