//! The harness of the tests that need real network namespaces.
//!
//! A test builds a [`Lab`]: two nodes joined by a link, pods behind a bridge on each, a file of
//! Kubernetes objects, and one `adit node` per node. It then acts as the applications do, through
//! sockets made inside the pods, and looks at what a user could look at: bytes, addresses,
//! packets on the wire, logs, metrics and the admin endpoints. Nothing here knows the daemon's
//! source.
//!
//! Rules: needs root, and says so; every wait is bounded ([`eventually`]); every name carries this
//! process's id, so that tests run side by side; everything made is removed when the lab goes,
//! also by a panic, and what a killed run left behind is swept by the next.

#![allow(
    dead_code,
    unused_imports,
    reason = "the harness serves several test programs, and each uses its own part"
)]

pub(crate) mod apiserver;
mod app;
mod cluster;
mod daemon;
mod kubernetes;
mod lab;
mod namespace;
mod objects;
mod peer;
mod played;
mod wait;
mod wire;

pub(crate) use app::{Conn, Listener, Outcome, Server, exchange};
pub(crate) use cluster::{Cluster, Slice, to_yaml};
pub(crate) use daemon::{Daemon, Finished, Launch, Record, adit, program};
pub(crate) use kubernetes::Kubernetes;
pub(crate) use lab::{Families, Lab, Node, Pod, PodSpec};
pub(crate) use namespace::{Namespace, run};
pub(crate) use peer::{Authority, HboneClient, HboneServer, Mint, Reply};
pub(crate) use played::Played;
pub(crate) use wait::{eventually, holds_for, poll, within};
pub(crate) use wire::{Packet, Wire};
