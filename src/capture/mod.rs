//! Takes a pod's connections: listeners inside its namespace, and the rules that lead there.
//!
//! The first stage of the journey: [`enrol()`] puts a pod under capture, [`accept()`] takes its
//! connections one by one, and [`identify`](crate::identify) finds out what they are.
//!
//! Everything but [`accept()`] blocks, for up to some tens of milliseconds, and belongs on a thread
//! that may. What the kernel holds is looked at each time and never remembered: [`enrol()`] may be
//! called after a crash of the daemon, and [`Capture::verify`] tells what is no longer as it was.
//!
//! Order is the point of this stage. In: listeners, then routes, then rules, then the pod counts as
//! enrolled. Out: rules, then routes, then listeners. A pod whose rules stand and whose
//! listeners are gone is cut off; never open.

mod accept;
mod attest;
mod commit;
mod enrol;
mod estate;
mod existing;
mod find;
mod nft;
mod noted;
mod probe;
mod rules;
mod verify;

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::mesh::{Family, TUNNEL_PORT};
use crate::sys::socket::Listener;

pub use accept::{ACCEPT_PAUSE, AcceptError, Accepted, Captured, Refused, accept, classify};
pub use attest::Kubelet;
pub use enrol::{Capture, Options, clean, enrol, leftover};
pub use estate::{Estate, inherit};
pub use existing::{Connection, Existing, Treated};
pub use find::{Missing, Sought, find};
pub use nft::Failure;
pub use probe::{Unfit, probe};
pub use rules::{LOOP, TABLE};
pub use verify::Drift;

/// One of the three ports that are ours in every enrolled pod, on its loopback addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// Takes what the pod sends out.
    Outbound,
    /// Takes what arrives at the pod in plain TCP.
    Inbound,
    /// Takes tunnels to the pod.
    Tunnel,
}

impl Port {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Outbound, Self::Inbound, Self::Tunnel];

    /// Its number, the one that the field uses.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Outbound => 15001,
            Self::Inbound => 15006,
            Self::Tunnel => TUNNEL_PORT,
        }
    }

    /// `outbound`, `inbound` or `tunnel`, as logs say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Tunnel => "tunnel",
        }
    }

    /// Whether a port number is one of ours. No application is reached at such a port: what asks
    /// for it would go round in circles.
    #[must_use]
    pub fn is_ours(number: u16) -> bool {
        Self::ALL.iter().any(|port| port.number() == number)
    }
}

/// The listeners of one pod that one worker serves, one per family. The worker puts
/// them on its runtime ([`Listener::accepting`]) and calls [`accept()`] on each.
#[derive(Debug, Default)]
pub struct WorkerListeners {
    /// On [`Port::Outbound`].
    pub outbound: Vec<Listener>,
    /// On [`Port::Inbound`].
    pub inbound: Vec<Listener>,
    /// On [`Port::Tunnel`].
    pub tunnel: Vec<Listener>,
}

impl WorkerListeners {
    /// The listeners on one of the ports.
    pub fn on(&mut self, port: Port) -> &mut Vec<Listener> {
        match port {
            Port::Outbound => &mut self.outbound,
            Port::Inbound => &mut self.inbound,
            Port::Tunnel => &mut self.tunnel,
        }
    }
}

/// Why a pod is not, or no longer surely, under capture. The pod is left as it was found, or, if it
/// was captured before, cut off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace given for the pod is another one's: nothing was touched.
    #[error("the network namespace does not have the pod's address {missing}")]
    NotThePod {
        /// The pod's address that is not there.
        missing: IpAddr,
    },
    /// The namespace given for the pod is the node's.
    #[error("the network namespace is that of the node itself")]
    TheNode,
    /// Packets cannot come round through `lo`.
    #[error("the pod's loopback interface is down or has no 127.0.0.1")]
    NoLoopback,
    /// Somebody else listens where we must.
    #[error("an application in the pod holds port {}, which is reserved under capture", addr.port())]
    PortTaken {
        /// Where.
        addr: SocketAddr,
    },
    /// Our own listeners are there: of another daemon, which is about to end, or of an earlier
    /// enrolment whose listeners are not closed yet.
    #[error("the pod is still served by another daemon or enrolment")]
    Served,
    /// A listener could not be made, for another reason.
    #[error("cannot listen on {addr} inside the pod")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The rules could not be changed or read.
    #[error("cannot {doing} the pod's nftables rules")]
    Rules {
        /// `write` or `read`.
        doing: &'static str,
        /// What went wrong with the `nft` program.
        #[source]
        cause: Failure,
    },
    /// The policy route could not be changed.
    #[error("cannot set the pod's policy route for {family:?}")]
    Route {
        /// Of which family.
        family: Family,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The kernel did not answer, or not do, something else.
    #[error("cannot {doing} inside the pod")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// What another daemon handed over is no listener of this pod's.
    #[error("a listener that was handed over is none of this pod's")]
    NoListener(#[source] io::Error),
    /// All was written, and yet something is not there.
    #[error("capture does not hold")]
    NotHeld(#[source] Box<Drift>),
}

impl Error {
    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotThePod { .. } => "not_the_pod",
            Self::TheNode => "node_namespace",
            Self::NoLoopback => "no_loopback",
            Self::PortTaken { .. } => "port_taken",
            Self::Served => "served",
            Self::Listen { .. } => "listen",
            Self::Rules { .. } => "rules",
            Self::Route { .. } => "route",
            Self::Kernel { .. } => "kernel",
            Self::NoListener(_) => "no_listener",
            Self::NotHeld(_) => "not_held",
        }
    }

    fn kernel(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Kernel { doing, cause }
    }
}
