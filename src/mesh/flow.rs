//! One connection, as the stages hand it to each other: who, to whom, and by which way.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::mesh::{Identity, OriginalDst, PodAddr, Service, TunnelAddr, Workload};

/// The side of a pod on which a connection is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Leaving a pod.
    Outbound,
    /// Arriving at a pod.
    Inbound,
}

impl Direction {
    /// `outbound` or `inbound`, as access records say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// The end of a connection that started it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address as the last hop saw it.
    pub addr: SocketAddr,
    /// Who it has proven to be; `None` for plaintext.
    pub identity: Option<Identity>,
    /// The workload that owns the address, if any. A label for people, never a proof.
    pub workload: Option<Arc<Workload>>,
}

/// The end of a connection that serves it.
#[derive(Clone, Debug)]
pub struct Local {
    /// The address that serves: pod address and application port.
    pub addr: SocketAddr,
    /// The workload that owns it, if known.
    pub workload: Option<Arc<Workload>>,
    /// The service it was reached by, if any.
    pub service: Option<Arc<Service>>,
}

/// One connection: who, to whom, by which way.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Seen leaving or arriving.
    pub direction: Direction,
    /// Who started it.
    pub source: Peer,
    /// Who serves it.
    pub destination: Local,
    /// How the bytes travel.
    pub path: Path,
}

/// How the bytes of a flow travel between the two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// HBONE: HTTP/2 CONNECT over mutual TLS.
    Tunnel,
    /// Plain TCP between two pods of this node's daemon, both identities known to it.
    SameNode,
    /// Plain TCP, with no identity proven.
    Plain,
    /// Plain TCP from this node's kubelet, as the kernel says: a probe.
    Probe,
}

impl Path {
    /// `tunnel`, `same_node`, `plain` or `probe`, as access records say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::SameNode => "same_node",
            Self::Plain => "plain",
            Self::Probe => "probe",
        }
    }

    /// Whether both ends' identities are known on this path.
    #[must_use]
    pub fn authenticated(self) -> bool {
        !matches!(self, Self::Plain | Self::Probe)
    }
}

/// Where a captured outbound connection goes, as [`identify`](crate::identify) found it.
#[derive(Clone, Debug)]
pub enum Route {
    /// To a workload of the mesh, through the tunnel port in front of it.
    Mesh {
        /// The workload that was chosen.
        workload: Arc<Workload>,
        /// The service that led to it, if a VIP was dialled.
        service: Option<Arc<Service>>,
        /// The workload's address and the application's port.
        to: PodAddr,
        /// Where its daemon takes tunnels.
        via: TunnelAddr,
    },
    /// To a workload outside the mesh, in plain TCP: one the index knows but has not enrolled,
    /// or an endpoint that is no pod.
    Plain {
        /// The workload, where the endpoint is one.
        workload: Option<Arc<Workload>>,
        /// The service that led to it, if a VIP was dialled.
        service: Option<Arc<Service>>,
        /// The endpoint's address and port.
        to: PodAddr,
    },
    /// To an address the index does not know: unchanged, in plain TCP.
    Unknown {
        /// What the application dialled.
        to: OriginalDst,
    },
}
