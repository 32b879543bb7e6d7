//! What a node daemon is told, checked and ready to use.
//!
//! [`config`](crate::config) makes it from flags and environment; nothing here is optional or in
//! doubt any more, and nothing below it reads either.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::api::{ADMIN_SOCKET, plugin};
use crate::cluster::Access;
use crate::mesh::TrustDomain;
use crate::node::handover;
use crate::pki::remote::Address;
use crate::sys::socket::Congestion;
use crate::telemetry::log;

/// The checked configuration of a node daemon.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node, as pods' `spec.nodeName` has it.
    pub node: String,
    /// Where the Kubernetes objects come from.
    pub source: Source,
    /// Who signs certificates.
    pub ca: CaSpec,
    /// The file with the token for a remote authority.
    pub ca_token: PathBuf,
    /// The file with the roots of a remote authority's server.
    pub ca_root: PathBuf,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The DNS suffix of services.
    pub cluster_domain: String,
    /// The namespace whose policies without a selector bind the whole mesh.
    pub root_namespace: String,
    /// Worker threads, at least one.
    pub workers: usize,
    /// How long a worker looks for more before it sleeps, one at a time; zero for never.
    pub busy_poll: Duration,
    /// The way between two pods of this node.
    pub same_node: SameNode,
    /// The congestion control of tunnels between nodes.
    pub tunnel_congestion: Congestion,
    /// What becomes of connections that are older than their pod's enrolment.
    pub existing: Existing,
    /// Labels of a namespace or pod that enrol it; one suffices.
    pub enrol_labels: Vec<(String, String)>,
    /// Namespaces that are never enrolled.
    pub excluded_namespaces: Vec<String>,
    /// Runtime classes of which it is known that their pods cannot be captured.
    pub sandboxed_runtimes: Vec<String>,
    /// Where the CNI plugin is kept installed, if anywhere.
    pub install: Option<Install>,
    /// The directory of sockets and state that need not outlive a boot.
    pub run_dir: PathBuf,
    /// The admin address, beside `admin.sock` in the run directory.
    pub admin: SocketAddr,
    /// The address of metrics.
    pub metrics: SocketAddr,
    /// The address of readiness.
    pub ready: SocketAddr,
    /// How long live connections may go on after SIGTERM.
    pub drain: Duration,
    /// How long a certificate is valid.
    pub cert_validity: Duration,
    /// Which log lines are written.
    pub log_filter: log::Filter,
    /// How log lines look.
    pub log_format: log::Format,
}

impl Config {
    /// The unix socket of the admin server.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join(ADMIN_SOCKET)
    }

    /// The unix socket of the CNI plugin.
    #[must_use]
    pub fn plugin_socket(&self) -> PathBuf {
        self.run_dir.join(plugin::SOCKET)
    }

    /// The unix socket on which the next daemon asks this one for its pods.
    #[must_use]
    pub fn handover_socket(&self) -> PathBuf {
        self.run_dir.join(handover::SOCKET)
    }
}

/// Where the CNI plugin is kept installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The node's directory of plugins.
    pub bin_dir: PathBuf,
    /// The node's directory of network configuration.
    pub conf_dir: PathBuf,
    /// How it stands in the chain.
    pub chain: Chain,
    /// The daemon's own namespace.
    pub own_namespace: String,
}

/// How the CNI plugin stands in the runtime's chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chain {
    /// As the node's container runtime wants it; by a list of our own if that is not known.
    #[default]
    Auto,
    /// By a list of our own.
    List,
    /// Beside the primary network's list, in its directory.
    Beside,
}

/// Where the Kubernetes objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Files and directories of YAML or JSON; at least one.
    Files(Vec<PathBuf>),
    /// A watch of the API server.
    Kube {
        /// Where it is, and our credentials for it.
        access: Access,
        /// How long a watch may be silent.
        silence: Duration,
    },
}

/// Who signs certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaSpec {
    /// A root key in a directory, made by the first daemon that needs it.
    Directory(PathBuf),
    /// A program across the network: `adit control`, istiod or istio-csr.
    Remote(Address),
}

impl fmt::Display for CaSpec {
    /// As the flag is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::Remote(address) => write!(f, "https://{address}"),
        }
    }
}

/// The way between two pods of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameNode {
    /// Plain TCP across the pods' own links, policy applied.
    #[default]
    Direct,
    /// A tunnel, as between nodes.
    Hbone,
}

impl SameNode {
    /// The flag's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Hbone => "hbone",
        }
    }
}

/// What becomes of connections that are older than their pod's enrolment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// They go on outside the mesh, counted and listed.
    #[default]
    Keep,
    /// They are reset, so that the application makes them again through the mesh.
    Reset,
}

impl Existing {
    /// The flag's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Reset => "reset",
        }
    }
}

impl Source {
    /// As the flag is written, one for each.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        match self {
            Self::Files(paths) => {
                let paths = paths.iter();
                paths.map(|path| path.display().to_string()).collect()
            }
            Self::Kube { .. } => vec!["kube".to_owned()],
        }
    }
}
