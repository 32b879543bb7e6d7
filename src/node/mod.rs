//! The node daemon: `adit node`.
//!
//! ```text
//!  files ─▶ control thread ── World (atomic pointer) ──▶ worker 0 … N-1
//!              │  index, policies, certificates,            │ listeners in every pod,
//!              │  enrolment, admin                          │ tunnels, live connections
//!              └──────────── commands, answers ─────────────┘
//! ```
//!
//! Start: check the environment, open the certificate authority, start the workers, read the
//! sources, publish the first world, capture the pods. End: accept nothing more, drain, leave the
//! rules in place, so that captured pods fail closed until the next daemon takes them over. Where
//! the next one starts while this one runs, they pass with their listeners ([`handover`]).

mod accepting;
mod account;
mod admin;
mod busy_poll;
mod carry;
pub mod config;
mod control;
mod counting;
mod doors;
mod enrol;
mod error;
mod events;
mod handover;
mod handshakes;
mod inbound;
mod kept;
mod listing;
mod live;
mod mark;
mod outbound;
mod places;
mod plaintext;
mod plugin;
mod pod;
mod pods;
mod refusing;
mod same_node;
mod sources;
mod start;
mod worker;
mod world;

pub use config::Config;
pub use plugin::uninstall;
pub use start::{StartError, run};
