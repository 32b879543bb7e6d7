//! A certificate authority across the network: `--ca https://HOST:PORT`.
//!
//! `adit control`, istiod and cert-manager's istio-csr answer the same call
//! ([`grpc`](crate::pki::grpc)): the node authenticates with a service account's token, says for
//! which workload it asks, and sends a request for a key that it has just made.
//!
//! Rules: the token and the roots of the server are files that somebody else replaces; the token is
//! read for each request, the roots for each connection. Peers of the mesh are checked against the
//! roots in the answer, never against the server's: these may be a public authority's, which
//! vouches for web sites and not for workloads. Nothing is kept from a failed attempt; when to try
//! again is decided by [`rotate`](crate::pki::rotate).
//!
//! `link` is the connection, `answer` what came over it, `error` all that can go wrong.

mod answer;
mod error;
mod link;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use http::Uri;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic_prost::ProstCodec;

use crate::mesh::Identity;
use crate::pki::certificate::Certificate;
use crate::pki::grpc;
use crate::pki::grpc::{CertificateRequest, CertificateResponse};
use crate::pki::issue::{IssueError, Issuer, Request};
use crate::pki::remote::answer::Answer;
use crate::pki::remote::link::{Link, Sender};

pub use error::Error;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(10);

/// Where an authority is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A DNS name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    /// `HOST:PORT`, as in a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// What is needed to ask an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub address: Address,
    /// The file with the bearer token.
    pub token: PathBuf,
    /// The file with the roots of the authority's server.
    pub root: PathBuf,
    /// How long certificates are to be valid; the authority may shorten it.
    pub validity: Duration,
}

/// The issuer that asks an authority across the network.
pub struct RemoteCa {
    settings: Settings,
    origin: Uri,
    /// The connection that was used last.
    link: tokio::sync::Mutex<Option<Link>>,
    /// The end of the authority as of its last answer.
    ends: Mutex<Option<SystemTime>>,
}

impl RemoteCa {
    /// An issuer that has not asked for anything yet: nothing is read or reached before the first
    /// request.
    ///
    /// # Errors
    ///
    /// The library's, when the host cannot stand in a URL.
    pub fn new(settings: Settings) -> Result<Self, http::Error> {
        let origin = Uri::builder()
            .scheme("https")
            .authority(settings.address.to_string())
            .path_and_query("/")
            .build()?;
        Ok(Self {
            settings,
            origin,
            link: tokio::sync::Mutex::default(),
            ends: Mutex::default(),
        })
    }

    async fn ask(&self, identity: &Identity) -> Result<Certificate, IssueError> {
        let request = Request::new(identity)?;
        let validity = self.settings.validity.as_secs();
        let message = CertificateRequest::on_behalf_of(
            identity,
            request.csr()?,
            i64::try_from(validity).unwrap_or(i64::MAX),
        );
        let response = self.send(message).await.map_err(IssueError::Remote)?;
        let now = SystemTime::now();
        let answer = Answer::read(&response.cert_chain, now).map_err(IssueError::Remote)?;
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = answer.ends;
        request.complete(answer.chain, answer.roots, now)
    }

    /// Sends a request over the connection that is there, or over a new one. A connection that was
    /// there may have died unnoticed: then a new one is tried once.
    async fn send(&self, message: CertificateRequest) -> Result<CertificateResponse, Error> {
        let (sender, addr, kept) = self.link().await?;
        match self.call(sender, addr, message.clone()).await {
            Err(error) if error.is_the_connections() => {
                self.forget(addr).await;
                if !kept {
                    return Err(error);
                }
                let (sender, addr, _) = self.link().await?;
                self.call(sender, addr, message).await
            }
            outcome => outcome,
        }
    }

    /// A connection, and whether it was there before.
    async fn link(&self) -> Result<(Sender, SocketAddr, bool), Error> {
        // Whoever comes meanwhile waits for this connection instead of opening another.
        let mut link = self.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| link.is_fresh()) {
            return Ok((link.sender(), link.addr(), true));
        }
        let opened = Link::open(&self.settings.address, &self.settings.root).await?;
        let ready = (opened.sender(), opened.addr(), false);
        *link = Some(opened);
        Ok(ready)
    }

    /// Uses a connection to `addr` no more.
    async fn forget(&self, addr: SocketAddr) {
        let mut link = self.link.lock().await;
        if link.as_ref().is_some_and(|link| link.addr() == addr) {
            *link = None;
        }
    }

    async fn call(
        &self,
        sender: Sender,
        addr: SocketAddr,
        message: CertificateRequest,
    ) -> Result<CertificateResponse, Error> {
        let mut request = tonic::Request::new(message);
        let token = self.token().await?;
        request.metadata_mut().insert("authorization", token);
        let mut client = Grpc::with_origin(sender, self.origin.clone())
            .max_decoding_message_size(grpc::LARGEST_ANSWER);
        let calling = async {
            let codec = ProstCodec::default();
            client.unary(request, grpc::path(), codec).await
        };
        match tokio::time::timeout(CALL, calling).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::of(status)),
            Err(_) => Err(Error::Silent { addr, after: CALL }),
        }
    }

    /// The value of the header; it is never shown.
    async fn token(&self) -> Result<MetadataValue<Ascii>, Error> {
        let path = &self.settings.token;
        let text = link::read(path.clone())
            .await
            .map_err(|source| Error::Token {
                path: path.clone(),
                source,
            })?;
        let none = || Error::NoToken { path: path.clone() };
        let token = std::str::from_utf8(&text).map_err(|_| none())?.trim();
        if token.is_empty() {
            return Err(none());
        }
        let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| none())?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Issuer for RemoteCa {
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Certificate, IssueError>> {
        Box::pin(self.ask(identity))
    }

    fn ends(&self) -> Option<SystemTime> {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
