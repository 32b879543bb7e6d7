//! From one daemon to the next: pods pass with their listeners, and nobody notices.
//!
//! ```text
//!  next daemon                    handover.sock                   daemon that runs
//!      │ hello ─────────────────────────────────────────────────▶ │ lets go of its ports, if they
//!      │ ◀─────────────────────────────────────────────── welcome │ are in the same namespace
//!      │ (reads the sources, gets certificates)                   │ (goes on as ever)
//!      │ inventory ─────────────────────────────────────────────▶ │ captures nothing new from here
//!      │ ◀─────────────────── pods, listeners, sandboxes, complete │
//!      │ take ──────────────────────────────────────────────────▶ │ neighbours by tunnel, then no
//!      │ ◀───────────────────────────────────────────────── yours │ accepting: what comes waits
//!      │ serving ───────────────────────────────────────────────▶ │ closes its listeners, drains
//!      │ (accepts)                                                 │
//!      ┆ as long as both live, each sees in this conversation whether the other does           ┆
//! ```
//!
//! At every moment one of the two is in charge, and knows it. Before `serving` that is the one that
//! runs: if the other falls silent or dies, it goes on, and nothing is lost, for its listeners never
//! closed. From `serving` on it is the next one; should that die while the first still lives, the
//! first takes the pods back, as after a crash of its own. Who finds the other dead instead goes on
//! with what it has been given. Whoever is in charge holds the [`lock`] of the run directory, which
//! passes with `yours`: so that of several who find nobody, one alone begins to serve.
//!
//! [`message`] is what passes, [`offer`] the side of the daemon that runs, [`take`] that of the next.
//! What is decided on either side is the control loop's (`control/handing.rs`, `control/taking.rs`).

mod lock;
mod message;
mod offer;
mod take;

use std::os::fd::OwnedFd;

use crate::capture::Estate;
use crate::node::plugin::Known;
use crate::node::pods::Wanted;
use crate::sys::netns::Netns;

pub(crate) use lock::Lock;
pub(crate) use message::{Hello, Wants};
pub(crate) use offer::{Wish, serve};
pub(crate) use take::{Arrived, Error, Predecessor, arrive, left_to, lives, watch};

/// The socket in the run directory at which the next daemon asks the one that runs.
pub(crate) const SOCKET: &str = "handover.sock";

/// A captured pod on its way to the next daemon.
#[derive(Debug)]
pub(crate) struct PodEstate {
    pub(crate) wanted: Wanted,
    pub(crate) netns: Netns,
    pub(crate) estate: Estate,
    /// In the order in which they began to listen.
    pub(crate) listeners: Vec<OwnedFd>,
}

/// All that passes.
#[derive(Debug, Default)]
pub(crate) struct Estates {
    pub(crate) pods: Vec<PodEstate>,
    /// Sandboxes that the runtime has told of.
    pub(crate) sandboxes: Vec<Known>,
}

impl Estates {
    /// How many listeners there are.
    pub(crate) fn listeners(&self) -> usize {
        self.pods.iter().map(|pod| pod.listeners.len()).sum()
    }
}
