//! Everything a node knows, as `/config_dump` and its parts answer it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::api::{Policy, Service, Workload};
use crate::mesh;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dump {
    /// The daemon's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// What it was started with.
    pub config: Config,
    /// Where its objects come from, and what is wrong there.
    pub sources: Sources,
    /// Every pod of the cluster that it knows.
    pub workloads: Vec<Workload>,
    /// Every service, with endpoints.
    pub services: Vec<Service>,
    /// Every policy.
    pub policies: Vec<Policy>,
    /// The certificates of the identities on this node.
    pub certificates: Vec<Certificate>,
    /// The pods of this node that belong to the mesh.
    pub pods: Vec<Pod>,
    /// The connections alive.
    pub connections: Vec<Connection>,
}

/// The checked configuration, in words.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// `--source`.
    pub sources: Vec<String>,
    /// `--ca`.
    pub ca: String,
    /// `--trust-domain`.
    pub trust_domain: String,
    /// `--cluster-domain`.
    pub cluster_domain: String,
    /// `--root-namespace`.
    pub root_namespace: String,
    /// `--workers`, or what was chosen.
    pub workers: usize,
    /// `--same-node`.
    pub same_node: String,
    /// `--existing`.
    pub existing: String,
    /// The enrolment labels in force, `key=value`.
    pub enrol_labels: Vec<String>,
    /// Namespaces that are never enrolled.
    pub excluded_namespaces: Vec<String>,
    /// `--run-dir`.
    pub run_dir: String,
    /// `--admin`.
    pub admin: String,
    /// `--metrics`.
    pub metrics: String,
    /// `--ready`.
    pub ready: String,
    /// `--drain`, in seconds.
    pub drain_seconds: f64,
    /// `--cert-validity`, in seconds.
    pub cert_validity_seconds: f64,
}

/// Where the objects come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The files read.
    pub files: Vec<String>,
    /// What is wrong: the object or file named is not in force, or its last good version is.
    pub problems: Vec<Problem>,
    /// What was left aside without harm: kinds that are not used.
    pub notes: Vec<String>,
    /// How each watch of the API server is; none where files are read.
    #[serde(default)]
    pub watches: Vec<Watch>,
}

/// The watch of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The kind.
    pub kind: String,
    /// Whether it is watched right now, or known not to be served.
    pub connected: bool,
    /// Whether it has been read to its end once.
    pub synced: bool,
    /// Whether the cluster does not know this kind.
    pub absent: bool,
    /// Objects that are known.
    pub objects: usize,
    /// When the API server was last heard on it, seconds since 1970; 0 for never.
    pub heard: u64,
    /// How often it was listed anew after the first time.
    pub relists: u64,
    /// How often it failed.
    pub errors: u64,
    /// Why it is not watched right now, once that has lasted.
    pub error: Option<String>,
}

/// One thing that is wrong in the sources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file, if it is about one.
    pub file: String,
    /// The line in it; 0 when unknown.
    pub line: usize,
    /// The object, `Kind namespace/name`; empty when unknown.
    pub object: String,
    /// What is wrong.
    pub message: String,
}

/// A certificate of an identity on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The SPIFFE identity.
    pub identity: String,
    /// `valid`, `missing` or `expired`.
    pub state: String,
    /// Serial number in hexadecimal; empty without a certificate.
    pub serial: String,
    /// Start of validity, seconds since 1970.
    pub not_before: u64,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
    /// When it will be renewed, seconds since 1970.
    pub renew_at: u64,
    /// Attempts that failed since the last success.
    pub failures: u64,
    /// The last failure, until an attempt succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where a pod of this node stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// To be captured, not yet tried or not yet ready.
    #[default]
    Pending,
    /// Captured and served.
    Enrolled,
    /// Not captured; the reason is told, and it is tried again.
    Failed,
    /// Being released.
    Draining,
    /// Not captured, because its runtime cannot be; the reason is told.
    Unsupported,
}

impl PodState {
    /// The word, as in JSON and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Enrolled => "enrolled",
            Self::Failed => "failed",
            Self::Draining => "draining",
            Self::Unsupported => "unsupported",
        }
    }
}

/// A pod of this node that belongs to the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `metadata.uid`, or `namespace/name`.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its SPIFFE identity.
    pub identity: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Where it stands.
    pub state: PodState,
    /// Why it is not enrolled, as a stable word; empty when it is.
    pub reason: String,
    /// Why it is not enrolled, for a person; empty when it is.
    pub error: String,
    /// The path of its network namespace.
    pub netns: String,
    /// The kernel's cookie of that namespace; 0 while it is not open.
    pub netns_cookie: u64,
    /// Connections older than the enrolment that still live outside the mesh.
    pub connections_kept: usize,
}

/// A connection that is alive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number, as in the access record.
    pub id: u64,
    /// The worker that carries it.
    pub worker: usize,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// `tunnel`, `same_node`, `plain` or `probe`.
    pub path: String,
    /// `address:port` of the source.
    pub source: String,
    /// `namespace/name` of the source workload; empty when unknown.
    pub source_workload: String,
    /// The source's identity, where it is proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<String>,
    /// `address:port` that serves.
    pub destination: String,
    /// `namespace/name` of the destination workload; empty when unknown.
    pub destination_workload: String,
    /// The destination's identity, where it is proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_identity: Option<String>,
    /// `namespace/name` of the service dialled; empty when none was.
    pub service: String,
    /// Bytes our pod has sent.
    pub bytes_sent: u64,
    /// Bytes our pod has received.
    pub bytes_recv: u64,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// `namespace/name` of the policy that allowed it; `None` when no policy binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

impl Connection {
    /// A connection without its counters: who, to whom, by which way.
    #[must_use]
    pub fn of(flow: &mesh::Flow) -> Self {
        let name = |workload: &Option<std::sync::Arc<mesh::Workload>>| {
            let workload = workload.as_ref();
            workload.map_or_else(String::new, |w| format!("{}/{}", w.namespace, w.name))
        };
        let authenticated = flow.path.authenticated();
        let source = flow.source.identity.as_ref();
        let destination = flow.destination.workload.as_ref();
        let service = flow.destination.service.as_ref();
        Self {
            direction: flow.direction.as_str().to_owned(),
            path: flow.path.as_str().to_owned(),
            source: flow.source.addr.to_string(),
            source_workload: name(&flow.source.workload),
            source_identity: source.filter(|_| authenticated).map(ToString::to_string),
            destination: flow.destination.addr.to_string(),
            destination_workload: name(&flow.destination.workload),
            destination_identity: destination
                .filter(|_| authenticated)
                .map(|workload| workload.identity.to_string()),
            service: service.map_or_else(String::new, |s| format!("{}/{}", s.namespace, s.name)),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_json_stay_as_they_are() {
        let dump = Dump {
            pods: vec![Pod {
                state: PodState::Draining,
                ..Pod::default()
            }],
            ..Dump::default()
        };
        let json = serde_json::to_value(&dump).unwrap();
        let mut parts: Vec<_> = json.as_object().unwrap().keys().collect();
        parts.sort();
        assert_eq!(
            parts,
            [
                "certificates",
                "config",
                "connections",
                "node",
                "pods",
                "policies",
                "services",
                "sources",
                "version",
                "workloads"
            ]
        );
        assert_eq!(json["pods"][0]["state"], PodState::Draining.as_str());
        assert_eq!(serde_json::from_value::<Dump>(json).unwrap(), dump);
    }
}
