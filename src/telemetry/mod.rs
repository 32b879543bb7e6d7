//! What the daemon tells about itself and its connections: metrics, access records, logs, and the
//! small HTTP servers through which people and scrapers ask.
//!
//! Stages neither count nor log; they return facts, and the programs hand these to this module.
//! What is on the data path is resolved once per pair of workloads and then costs an addition
//! ([`metrics::Recorder`]) or a bounded, lossy queue ([`log`]); nothing here can block a worker.

pub mod access;
pub mod http;
mod line;
pub mod log;
pub mod metrics;
mod outcome;
mod queue;
mod timestamp;

pub use outcome::{Flag, Outcome};
pub use timestamp::timestamp;
