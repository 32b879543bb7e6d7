//! The server that nodes ask: TLS 1.3, HTTP/2, one call.
//!
//! Its own certificate is signed by the authority in force, names how it is reached, and is made
//! anew long before it ends and whenever another root signs. Everything a stranger can hold is
//! bounded: handshakes, connections ([`Seats`]), streams, header bytes, time.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use futures_util::future::{BoxFuture, abortable};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic_prost::ProstCodec;

use crate::control::keeper::{InForce, Keeper};
use crate::control::service::{Call, Desk};
use crate::pki::{grpc, provider};
use crate::task;
use crate::telemetry::http::Seats;
use crate::telemetry::metrics::Control as Metrics;
use crate::telemetry::timestamp;

/// Most connections at once.
const CONNECTIONS: usize = 4_096;
/// The same, from one address. A node makes one, and another when its root changes; but behind one
/// address may be many nodes, where a load balancer rewrites sources.
const OF_ONE_SOURCE: usize = 512;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Most calls of one connection at once.
const STREAMS: u32 = 64;
/// A connection without a sign of life is given up after these.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is ended in order after this, so that nodes spread over the replicas again.
const CONNECTION_AGE: Duration = Duration::from_secs(10 * 60);
/// What calls that run get when it ends.
const FAREWELL: Duration = Duration::from_secs(10);
/// Pause when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the server's own certificate is valid; made anew at half of it.
const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(30);

/// The server's own certificate, as TLS asks for it.
#[derive(Debug, Default)]
pub(crate) struct Face(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Face {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl Face {
    /// Whether there is a certificate to show.
    pub(crate) fn is_there(&self) -> bool {
        self.0.load().is_some()
    }

    /// Keeps a certificate for `names` in force, for ever.
    pub(crate) async fn keep(self: Arc<Self>, keeper: Arc<Keeper>, names: Vec<String>) {
        let mut changes = keeper.changes();
        let mut renew_at: Option<Instant> = None;
        loop {
            let changed = changes.has_changed().unwrap_or(false);
            changes.mark_unchanged();
            let due = renew_at.is_none_or(|at| Instant::now() >= at);
            if let Some(current) = keeper.latest().filter(|_| changed || due) {
                match make(&current, &names) {
                    Ok((key, ends)) => {
                        let life = ends.duration_since(SystemTime::now()).unwrap_or_default();
                        renew_at = Some(Instant::now() + life / 2);
                        self.0.store(Some(Arc::new(key)));
                        tracing::info!(
                            names = names.join(","),
                            ends = timestamp(ends),
                            "serving certificate made"
                        );
                    }
                    Err(error) => {
                        tracing::error!(error = %error, "no serving certificate: check --name");
                    }
                }
            }
            tokio::select! {
                _ = changes.changed() => changes.mark_changed(),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// Makes a key and its certificate.
fn make(current: &InForce, names: &[String]) -> Result<(CertifiedKey, SystemTime), rustls::Error> {
    let failed = |error: rcgen::Error| rustls::Error::General(error.to_string());
    let key = KeyPair::generate().map_err(failed)?;
    let now = SystemTime::now();
    let authority = &current.authority;
    let chain = authority
        .sign_server(&key, names, VALIDITY, now)
        .map_err(failed)?;
    let ends = (now + VALIDITY).min(authority.ends());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((CertifiedKey::from_der(chain, key, provider())?, ends))
}

/// TLS 1.3 under whatever certificate is in force.
pub(crate) fn acceptor(face: &Arc<Face>) -> Result<TlsAcceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(face.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Resumed sessions would outlive the certificate that they began under.
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until told to end, then lets the calls that run come to theirs.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    desk: Arc<Desk>,
    metrics: Arc<Metrics>,
    mut ending: watch::Receiver<bool>,
) {
    let seats = Arc::new(Mutex::new(Seats::new(CONNECTIONS, OF_ONE_SOURCE)));
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (acceptor, desk, ending) = (acceptor.clone(), desk.clone(), ending.clone());
        let (serving, end) = abortable(connection(stream, peer, acceptor, desk, ending));
        let seat = lock(&seats).take(Some(peer.ip()), end);
        let (metrics, seats, alive) = (metrics.clone(), seats.clone(), alive.clone());
        let work = async move {
            metrics.connections.inc();
            let done = serving.await;
            metrics.connections.dec();
            if let Ok(Err(error)) = done {
                metrics.handshake_failures.inc();
                tracing::debug!(peer = %peer, error = %error, "handshake failed");
            }
            lock(&seats).leave(seat);
            drop(alive);
        };
        task::spawn("connection", work).detach();
    }
    drop((listener, alive));
    let _ = tokio::time::timeout(FAREWELL, all_ended.recv()).await;
}

fn lock(seats: &Mutex<Seats>) -> MutexGuard<'_, Seats> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection. An error is one of its handshake.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    desk: Arc<Desk>,
    mut ending: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    let accepting = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
    let stream = accepting.await.unwrap_or_else(late)?;
    let call = Call { desk, peer };
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(32 * 1024)
        .max_send_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), Routes(call));
    let mut serving = std::pin::pin!(serving);
    let aged = tokio::time::sleep(CONNECTION_AGE);
    tokio::select! {
        _ = serving.as_mut() => return Ok(()),
        () = aged => {}
        _ = ending.wait_for(|ending| *ending) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(FAREWELL, serving).await;
    Ok(())
}

/// What can be asked for: the one call.
struct Routes(Call);

impl Service<http::Request<Incoming>> for Routes {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let call = self.0.clone();
        Box::pin(async move {
            if request.method() != Method::POST || request.uri().path() != grpc::PATH {
                return Ok(unknown());
            }
            let mut server = Grpc::new(ProstCodec::default())
                .max_decoding_message_size(grpc::LARGEST_REQUEST)
                .max_encoding_message_size(grpc::LARGEST_ANSWER);
            let response = server.unary(call, request.map(BodyExt::boxed)).await;
            Ok(response)
        })
    }
}

/// gRPC says by its own status that a call does not exist.
fn unknown() -> http::Response<Body> {
    let status = tonic::Status::unimplemented(format!("the only call here is {}", grpc::PATH));
    let mut response = status.into_http::<Body>();
    *response.status_mut() = StatusCode::OK;
    response
}
