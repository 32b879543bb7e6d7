//! What the certificate authority is told, checked and ready to use.
//!
//! [`config`](crate::config) makes it from flags and environment.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::Access;
use crate::mesh::TrustDomain;
use crate::telemetry::log;

/// The name of the Secret unless told otherwise.
pub const SECRET: &str = "adit-ca";

/// The checked configuration of `adit control`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace of the Secret and the ConfigMap.
    pub namespace: String,
    /// Where the authority's key is.
    pub keys: KeySpec,
    /// The ConfigMap in which the roots are published.
    pub bundle: String,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The audience that tokens must be made for.
    pub audience: String,
    /// The service accounts of node daemons, `NAMESPACE/NAME`.
    pub node_accounts: Vec<String>,
    /// No certificate is valid for longer.
    pub max_validity: Duration,
    /// The names and addresses by which nodes reach this, for its own certificate.
    pub names: Vec<String>,
    /// Where certificates are asked for.
    pub listen: SocketAddr,
    /// The address of metrics.
    pub metrics: SocketAddr,
    /// The address of readiness.
    pub ready: SocketAddr,
    /// How the API server is reached.
    pub access: Access,
    /// Which log lines are written.
    pub log_filter: log::Filter,
    /// How log lines look.
    pub log_format: log::Format,
}

/// Where the authority's key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySpec {
    /// In a Secret of this name, made at the first start.
    Secret(String),
    /// In a directory with `tls.crt`, `tls.key` and `ca.crt`, as cert-manager fills a Secret.
    Directory(PathBuf),
}

impl fmt::Display for KeySpec {
    /// As the flag is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret:{name}"),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}
