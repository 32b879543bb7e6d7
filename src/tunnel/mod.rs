//! Stage 4: carries connections between nodes, as streams of tunnels (HBONE: HTTP/2 CONNECT over
//! mutual TLS 1.3).
//!
//! Outbound, a [`Pool`] gives the next [`Stream`] to a destination; inbound, [`accept`] makes a
//! socket an [`Incoming`], which yields [`Request`]s to be accepted or refused. A stream is a
//! [`Duplex`](crate::pipe::Duplex), which [`deliver`](crate::deliver) relays.
//!
//! | file | what |
//! |---|---|
//! | `connect` | pure: CONNECT heads and statuses |
//! | `io`, `record` | TLS on a socket, in few system calls; pure: its records, in place |
//! | `http2` | pure: frames, header blocks, flow control, the states of streams |
//! | `liveness`, `window` | pure: when to ask a silent peer; how large receive windows are |
//! | `waiting` | what waits for readers in all tunnels, and whose is given up |
//! | `link` | a connection and its wire, shared by its streams and its driver |
//! | `pace` | what both drivers do in a turn |
//! | `client`, `pool` | a tunnel this side made; which one carries the next stream |
//! | `server` | a tunnel the peer made |
//! | `stream`, `inbox` | one CONNECT stream: its opening, its ends; what it has not delivered |
//!
//! Everything here lives and dies on one worker thread and is `!Send`. No type of rustls
//! appears in what this stage hands out, but for the configurations that go in.

mod client;
mod connect;
mod error;
mod http2;
mod inbox;
mod io;
mod link;
mod liveness;
mod pace;
mod pool;
mod record;
mod server;
mod stream;
pub mod tls;
mod waiting;
mod window;

pub use connect::{ConnectHead, HeadError, Refused, Status};
pub use error::Error;
pub use http2::{Failure, Reason};
pub use pool::{Key, Origin, Pool};
pub use server::{Incoming, Request, accept};
pub use stream::Stream;
pub use waiting::{Shed, Waiting, take_shed};

use std::sync::Arc;
use std::time::Duration;

use crate::sys::socket::Congestion;

/// Deadlines and bounds of tunnels. The defaults are for a cluster's network.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first SYN to a usable tunnel, and from an accepted socket to one.
    pub handshake: Duration,
    /// From CONNECT to its answer; longer than the peer's own deadline for its dial, so that the
    /// peer's word arrives.
    pub answer: Duration,
    /// Silence after which a peer is asked by PING whether it lives.
    pub quiet: Duration,
    /// Silence after which a tunnel is given up with all its streams.
    pub dead: Duration,
    /// How long a tunnel without streams is kept for the next one.
    pub idle: Duration,
    /// Streams on one tunnel that this side made, at most; the peer's own limit also holds.
    pub streams: usize,
    /// Streams on one tunnel that the peer made, at most. Announced; more are refused.
    pub incoming_streams: u32,
    /// Bytes of one request's headers, decoded (RFC 9113 §6.5.2).
    pub header_list: u32,
    /// What may wait for readers, in all tunnels of a daemon.
    pub waiting: Arc<Waiting>,
    /// The congestion control of tunnels, once their path is known.
    pub congestion: Congestion,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            answer: Duration::from_secs(15),
            quiet: Duration::from_secs(10),
            dead: Duration::from_secs(20),
            idle: Duration::from_secs(300),
            streams: 1000,
            incoming_streams: 1000,
            header_list: 16 * 1024,
            waiting: Waiting::new(256 << 20, 1),
            congestion: Congestion::Auto,
        }
    }
}
