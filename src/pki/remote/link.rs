//! A connection to one replica of the authority.
//!
//! The name is looked up and the roots are read for each connection, and the addresses are tried in
//! a random order, so that replicas share the nodes and a new connection finds another one than
//! that which failed. A connection lives for [`AGE`]: renewals that come together share it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::codegen::Service;

use crate::pki::authority::{Part, read_bundle};
use crate::pki::crypto::{provider, random};
use crate::pki::remote::Address;
use crate::pki::remote::error::Error;
use crate::task;

/// How long a connection is used for new requests.
const AGE: Duration = Duration::from_secs(30);
/// How long it stays beyond that, for those that run.
const LINGER: Duration = Duration::from_secs(35);
/// Time for a TCP connection to one address, and for TLS over it.
const CONNECT: Duration = Duration::from_secs(4);
/// Most addresses that are tried in a row.
const ADDRESSES: usize = 6;
/// A silent connection is asked for a sign of life this often …
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// … and given up when there is none for so long.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// No file of roots is larger.
const LARGEST: u64 = 1 << 20;

/// A connection that takes requests.
pub(in crate::pki::remote) struct Link {
    sender: Sender,
    addr: SocketAddr,
    opened: Instant,
}

impl Link {
    /// Connects to one of the addresses of the authority.
    pub(in crate::pki::remote) async fn open(
        address: &Address,
        root: &Path,
    ) -> Result<Self, Error> {
        let connector = connector(root).await?;
        let lookup = |source| Error::Lookup {
            host: address.host.clone(),
            source,
        };
        let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await;
        let mut addrs: Vec<_> = found.map_err(lookup)?.collect();
        shuffle(&mut addrs);
        let mut last = lookup(io::Error::other("the name has no address"));
        for addr in addrs.into_iter().take(ADDRESSES) {
            match connect(&connector, address, addr, root).await {
                Ok(stream) => return Self::over(stream, addr).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn over(stream: TlsStream<TcpStream>, addr: SocketAddr) -> Result<Self, Error> {
        let connecting = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .max_header_list_size(64 * 1024)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = connecting.await.map_err(|cause| Error::Connect {
            addr,
            source: io::Error::other(cause),
        })?;
        let work = async move {
            // Its end is told to whoever waits for an answer.
            let _ = tokio::time::timeout(AGE + LINGER, connection).await;
        };
        // It ends by itself: requests that run may outlast this link.
        task::spawn("authority connection", work).detach();
        Ok(Self {
            sender: Sender(sender),
            addr,
            opened: Instant::now(),
        })
    }

    /// Whether new requests may go this way.
    pub(in crate::pki::remote) fn is_fresh(&self) -> bool {
        self.opened.elapsed() < AGE && !self.sender.0.is_closed()
    }

    /// Where requests are sent.
    pub(in crate::pki::remote) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The replica's address.
    pub(in crate::pki::remote) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// The sending half, in the form that [`tonic`] calls.
#[derive(Clone)]
pub(in crate::pki::remote) struct Sender(SendRequest<Body>);

impl Service<http::Request<Body>> for Sender {
    type Response = http::Response<Body>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.send_request(request);
        Box::pin(async move {
            let (head, body) = answer.await?.into_parts();
            Ok(http::Response::from_parts(head, Body::new(body.boxed())))
        })
    }
}

/// TLS that trusts the roots in the file as it is now.
async fn connector(root: &Path) -> Result<TlsConnector, Error> {
    let text = read(root.to_owned()).await.map_err(|source| Error::Root {
        path: root.to_owned(),
        source,
    })?;
    let none = || Error::NoRoot {
        path: root.to_owned(),
    };
    let mut roots = RootCertStore::empty();
    let (added, _) =
        roots.add_parsable_certificates(read_bundle(&text, Part::Roots).map_err(|_| none())?);
    if added == 0 {
        return Err(none());
    }
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| none())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn connect(
    connector: &TlsConnector,
    address: &Address,
    addr: SocketAddr,
    root: &Path,
) -> Result<TlsStream<TcpStream>, Error> {
    let unreachable = |source| Error::Connect { addr, source };
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    #[expect(
        clippy::disallowed_methods,
        reason = "the daemon's own request, which carries no pod's bytes"
    )]
    let connecting = TcpStream::connect(addr);
    let stream = tokio::time::timeout(CONNECT, connecting)
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(unreachable)?;
    // A request is two small writes, of which the second must not wait for an acknowledgement.
    stream.set_nodelay(true).map_err(unreachable)?;
    let untrusted = |source| Error::Tls {
        addr,
        root: root.to_owned(),
        source,
    };
    let name = ServerName::try_from(address.host.clone())
        .map_err(|error| untrusted(io::Error::other(error)))?;
    let stream = tokio::time::timeout(CONNECT, connector.connect(name, stream))
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(untrusted)?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(untrusted(io::Error::other("it does not speak HTTP/2")));
    }
    Ok(stream)
}

/// Reads a small file beside the runtime: a mounted file may hang.
pub(in crate::pki::remote) async fn read(path: PathBuf) -> io::Result<Vec<u8>> {
    let work = move || {
        use std::io::Read;
        let mut text = Vec::new();
        std::fs::File::open(path)?
            .take(LARGEST)
            .read_to_end(&mut text)?;
        Ok(text)
    };
    let read = task::blocking("read a file of the authority", work).await;
    read.unwrap_or_else(|| Err(io::Error::other("reading was given up")))
}

/// Fisher and Yates. Few addresses: the bias of the remainder does not matter.
fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let draw = u64::from_ne_bytes(random());
        let at = usize::try_from(draw % (last as u64 + 1)).unwrap_or(0);
        items.swap(last, at);
    }
}
