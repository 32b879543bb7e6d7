//! Why a connection, or the daemon, could not go on.

use std::net::SocketAddr;

use crate::authorize::Refusal;
use crate::deliver;
use crate::identify::Unroutable;
use crate::node::live::Cut;
use crate::pki;
use crate::telemetry::Outcome;
use crate::tunnel;
use crate::tunnel::{Refused, Status};

/// Why one connection was not carried, or not to its end. The variant is the stage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The connection is for a port that is the daemon's own in every pod.
    #[error("port {port} belongs to the mesh in every captured pod")]
    OwnPort { port: u16 },
    /// The pod left the index while the connection arrived.
    #[error("the pod is not in the index any more")]
    PodUnknown,
    /// A tunnel's client asked this pod for another address.
    #[error("asked for {asked}, which is not an address of this pod")]
    NotThisPod { asked: SocketAddr },
    /// A tunnel's client asked for something that is no address and port.
    #[error("malformed CONNECT request")]
    BadRequest(#[source] tunnel::HeadError),
    /// The destination is a mesh pod of this node that is not captured at the moment. Dialling it
    /// nevertheless could reach an application that took the tunnel port.
    #[error("the destination is enrolled on this node, but not captured at the moment")]
    DestinationNotServed,
    /// The original destination leads nowhere.
    #[error("no route")]
    Identify(#[from] Unroutable),
    /// Policy refused.
    #[error("refused by policy: {}", .0.denial)]
    Authorize(Box<Refusal>),
    /// There is no valid certificate for this pod.
    #[error("no certificate")]
    Certificate(#[from] pki::WaitError),
    /// The tunnel could not be made or refused the stream.
    #[error("tunnel failed")]
    Tunnel(#[from] tunnel::Error),
    /// The destination could not be dialled.
    #[error("delivery failed")]
    Deliver(#[from] deliver::Error),
    /// The pod of this node that was dialled refused; its own record says more.
    #[error("refused at the destination, on this node")]
    RefusedBeside(Outcome),
    /// A limit of this daemon was reached.
    #[error("too many at once")]
    Overloaded,
    /// The node ended it.
    #[error("ended by the node: {0}")]
    Cut(Cut),
}

impl Error {
    /// A stable word for records and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::OwnPort { .. } => "own_port",
            Self::PodUnknown => "pod_unknown",
            Self::NotThisPod { .. } => "not_this_pod",
            Self::BadRequest(_) => "bad_request",
            Self::DestinationNotServed => "not_served",
            Self::Identify(unroutable) => unroutable.reason(),
            Self::Authorize(refusal) => refusal.denial.reason(),
            Self::Certificate(_) => "no_certificate",
            Self::Tunnel(error) => error.reason(),
            Self::Deliver(error) => error.reason(),
            Self::Overloaded => "overloaded",
            Self::RefusedBeside(outcome) => outcome.reason().unwrap_or("refused"),
            Self::Cut(cut) => cut.reason(),
        }
    }

    /// How the connection ended, in the words of records and metrics.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::OwnPort { .. } | Self::NotThisPod { .. } | Self::BadRequest(_) => {
                Outcome::Misdirected
            }
            Self::PodUnknown => Outcome::PodGone,
            Self::DestinationNotServed => Outcome::DialFailed,
            Self::Identify(_) => Outcome::NoEndpoint,
            Self::Authorize(_) => Outcome::Denied,
            Self::Certificate(_) => Outcome::NoCertificate,
            Self::Tunnel(error) => of_tunnel(error),
            Self::Deliver(error) => of_delivery(error),
            Self::Overloaded => Outcome::Overloaded,
            Self::RefusedBeside(outcome) => *outcome,
            Self::Cut(Cut::PolicyChanged(_)) => Outcome::PolicyChanged,
            Self::Cut(Cut::PodReleased) => Outcome::PodGone,
            Self::Cut(Cut::Drained) => Outcome::Drained,
        }
    }

    /// What a tunnel's client is answered, as the field's peers answer it.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::NotThisPod { .. } | Self::BadRequest(_) => Status::BadRequest,
            Self::Authorize(_) => Status::Denied,
            _ => Status::DialFailed,
        }
    }
}

/// What a tunnel's failure is to the connection inside.
pub(crate) fn of_tunnel(error: &tunnel::Error) -> Outcome {
    match error {
        tunnel::Error::Timeout(_) => Outcome::TunnelTimeout,
        tunnel::Error::Tls(_) | tunnel::Error::Peer(_) => Outcome::TlsFailed,
        tunnel::Error::Connect(_) | tunnel::Error::Socket(_) => Outcome::DialFailed,
        tunnel::Error::Refused(Refused::Denied) => Outcome::Denied,
        tunnel::Error::Refused(Refused::DialFailed) => Outcome::DialFailed,
        tunnel::Error::Refused(_) => Outcome::Refused,
        tunnel::Error::Reset(_) => Outcome::Reset,
        tunnel::Error::Unread => Outcome::Overloaded,
        _ => Outcome::TunnelFailed,
    }
}

fn of_delivery(error: &deliver::Error) -> Outcome {
    match error {
        deliver::Error::Timeout { .. } => Outcome::Timeout,
        _ => Outcome::DialFailed,
    }
}
