//! Tunnels and relays in one process over loopback: real TLS, real HTTP/2, real sockets.
//!
//! `bed` is a node with an outbound and an inbound side around the product's own stages; `peer` is
//! the bare h2 crate, for peers that misbehave. Needs root, for the mark of the daemon's sockets.
#![expect(clippy::disallowed_methods, reason = "a test dials as it likes")]
#![allow(missing_docs)]

mod bed;
mod drain;
mod ends;
mod failures;
mod load;
mod peer;
mod pooling;
mod splicing;
