//! A node on one screen.

use serde::{Deserialize, Serialize};

use crate::api::{Problem, Watch};

/// How a node is, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Seconds since the daemon started.
    pub uptime_seconds: f64,
    /// Whether every pod of the mesh on this node is served.
    pub ready: bool,
    /// What readiness waits for.
    pub waiting_for: Vec<String>,
    /// Worker threads.
    pub workers: usize,
    /// Pods of this node by state.
    pub pods: PodCounts,
    /// Certificates by state.
    pub certificates: CertificateCounts,
    /// Objects in the index.
    pub objects: ObjectCounts,
    /// Tunnels open to other nodes.
    pub tunnels_outbound: u64,
    /// Tunnels open from other nodes.
    pub tunnels_inbound: u64,
    /// Connections alive.
    pub connections: u64,
    /// Connections older than enrolment that still live outside the mesh.
    pub connections_kept: u64,
    /// What is wrong in the sources.
    pub problems: Vec<Problem>,
    /// How each watch of the API server is; none where files are read.
    #[serde(default)]
    pub watches: Vec<Watch>,
    /// Failures of pods and certificates, one line each.
    pub failures: Vec<String>,
}

/// Pods of this node by state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCounts {
    /// Captured and served.
    pub enrolled: usize,
    /// To be captured.
    pub pending: usize,
    /// Not captured, and tried again.
    pub failed: usize,
    /// Being released.
    pub draining: usize,
    /// Not captured, because their runtime cannot be.
    #[serde(default)]
    pub unsupported: usize,
}

/// Certificates by state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateCounts {
    /// In force.
    pub valid: usize,
    /// Not there yet.
    pub missing: usize,
    /// Over.
    pub expired: usize,
    /// Of all these, those whose last attempt at renewal failed.
    pub failing: usize,
}

/// Objects in the index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCounts {
    /// Pods.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Policies of both kinds.
    pub policies: usize,
}
