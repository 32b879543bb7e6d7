//! The vocabulary: what every part of Adit talks about, as plain values.
//!
//! Nothing here does I/O, reads a clock, logs or spawns. A value that exists is valid: names are
//! parsed once at the edge ([`Identity::parse`], [`TrustDomain::parse`]) and trusted afterwards.
//! Everything that is held once per workload of the cluster is cheap to clone and shares its text.

mod addr;
mod flow;
mod identity;
mod labels;
pub mod policy;
mod service;
mod workload;

pub use addr::{Family, OriginalDst, PodAddr, TUNNEL_PORT, TunnelAddr, canonical, canonical_ip};
pub use flow::{Direction, Flow, Local, Path, Peer, Route};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use labels::{Labels, Selector};
pub use service::{
    InternalTrafficPolicy, Service, ServicePort, TargetPort, TrafficDistribution, service_hostname,
};
pub use workload::{Bypass, Enrolment, Owner, Phase, Reach, Workload};
