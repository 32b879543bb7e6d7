//! Messages between our own processes, and to people: what the admin socket answers.
//!
//! Plain values with stable `snake_case` names. Programs fill them, `inspect`
//! prints them, scripts read them; a field may be added, but none changes its meaning.

mod dump;
mod status;

pub use dump::{
    Certificate, Config, Connection, Dump, Endpoint, Notice, Pod, PodState, Policy, PolicyScope,
    Problem, Service, ServicePort, Sources, Workload,
};
pub use status::{CertificateCounts, ObjectCounts, PodCounts, Status};
//! What our own processes tell each other and people, as plain serialisable values.
//!
//! No I/O, no clock, no logging: the node fills these in, the command line reads or prints them.

pub mod explain;
