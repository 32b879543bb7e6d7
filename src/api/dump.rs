//! Everything a node knows, as `/config_dump` and its parts answer it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

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

/// A pod of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// `metadata.uid`, or `namespace/name`.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its SPIFFE identity.
    pub identity: String,
    /// Its node; empty while unscheduled.
    pub node: String,
    /// Its node's zone; empty when unknown.
    pub zone: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// `kind/name` of what made it.
    pub owner: String,
    /// Whether it is reached by tunnel.
    pub enrolled: bool,
    /// Why not, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl From<&mesh::Workload> for Workload {
    fn from(workload: &mesh::Workload) -> Self {
        Self {
            uid: workload.uid.to_string(),
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            identity: workload.identity.to_string(),
            node: workload.node.to_string(),
            zone: workload.zone.to_string(),
            ips: workload.ips.to_vec(),
            owner: format!("{}/{}", workload.owner.kind, workload.owner.name),
            enrolled: workload.enrolled(),
            bypass: match workload.enrolment {
                mesh::Enrolment::Enrolled => None,
                mesh::Enrolment::Bypass(why) => Some(why.reason().to_owned()),
            },
            labels: pairs(&workload.labels),
        }
    }
}

/// The pairs of a label set or selector.
fn pairs(labels: &mesh::Labels) -> BTreeMap<String, String> {
    let pairs = labels.pairs().iter();
    pairs.map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its virtual addresses; empty when headless.
    pub vips: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// `Any`, `PreferSameZone` or `PreferSameNode`.
    pub traffic_distribution: String,
    /// What serves it.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name; may be empty.
    pub name: String,
    /// What clients dial.
    pub port: u16,
    /// The number or name it leads to.
    pub target: String,
}

/// One address that serves a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub ip: String,
    /// Its ports: service port to its own.
    pub ports: BTreeMap<u16, u16>,
    /// Whether it may be chosen.
    pub ready: bool,
    /// `namespace/name` of its workload, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its node; empty when unknown.
    pub node: String,
    /// Its zone; empty when unknown.
    pub zone: String,
}

impl Service {
    /// A service with the endpoints given.
    #[must_use]
    pub fn new(service: &mesh::Service, endpoints: Vec<Endpoint>) -> Self {
        let port = |port: &mesh::ServicePort| ServicePort {
            name: port.name.to_string(),
            port: port.port,
            target: match &port.target {
                mesh::TargetPort::Number(number) => number.to_string(),
                mesh::TargetPort::Name(name) => name.to_string(),
            },
        };
        Self {
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            vips: service.vips.to_vec(),
            ports: service.ports.iter().map(port).collect(),
            internal_traffic_policy: match service.internal_traffic_policy {
                mesh::InternalTrafficPolicy::Cluster => "Cluster",
                mesh::InternalTrafficPolicy::Local => "Local",
            }
            .to_owned(),
            traffic_distribution: match service.traffic_distribution {
                mesh::TrafficDistribution::Any => "Any",
                mesh::TrafficDistribution::SameZone => "PreferSameZone",
                mesh::TrafficDistribution::SameNode => "PreferSameNode",
            }
            .to_owned(),
            endpoints,
        }
    }
}

/// Which workloads a policy binds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyScope {
    /// All.
    #[default]
    Mesh,
    /// Those of its namespace.
    Namespace,
    /// Those of its namespace that its selector matches.
    Workload,
}

/// A policy, as it is understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whom it binds.
    pub scope: PolicyScope,
    /// The labels it selects by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// `ALLOW` or `DENY`; for a PeerAuthentication its mode, `STRICT`, `PERMISSIVE`, ….
    pub action: String,
    /// Whether it is only tried.
    pub dry_run: bool,
    /// How many rules it has.
    pub rules: usize,
    /// What is worth knowing about how it was read: HTTP fields on layer 4, for example.
    pub notices: Vec<Notice>,
    /// Why it was not understood, in which case the workloads it binds refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_understood: Option<String>,
}

impl Policy {
    /// Sets the selector and the scope that follows from it.
    #[must_use]
    pub fn binding(mut self, selector: Option<&mesh::Selector>, root_namespace: &str) -> Self {
        self.scope = match selector {
            Some(_) => PolicyScope::Workload,
            None if self.namespace == root_namespace => PolicyScope::Mesh,
            None => PolicyScope::Namespace,
        };
        self.selector = selector.map_or_else(BTreeMap::new, |selector| pairs(selector.labels()));
        self
    }
}

/// A remark on a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The part it is about, as a path (`rules[0].to[0].operation.methods`).
    pub field: String,
    /// What was made of it.
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
    /// `tunnel`, `same_node` or `plain`.
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
            policies: vec![
                Policy {
                    namespace: "adit-system".to_owned(),
                    ..Policy::default()
                }
                .binding(None, "adit-system"),
            ],
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
        assert_eq!(json["policies"][0]["scope"], "mesh");
        assert_eq!(serde_json::from_value::<Dump>(json).unwrap(), dump);
    }
}
