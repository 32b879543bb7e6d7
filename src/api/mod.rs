//! Messages between our own processes, and to people: what the admin socket answers.
//!
//! Plain values with stable `snake_case` names. Programs fill them, `inspect`
//! prints them, scripts read them; a field may be added, but none changes its meaning.

pub mod ask;
mod dump;
pub mod explain;
mod objects;
pub mod plugin;
mod status;

pub use dump::{Certificate, Config, Connection, Dump, Pod, PodState, Problem, Sources, Watch};
pub use objects::{Endpoint, Notice, Policy, PolicyScope, Service, ServicePort, Workload};
pub use status::{CertificateCounts, ObjectCounts, PodCounts, Status};

/// The name of a node's admin socket in its run directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
