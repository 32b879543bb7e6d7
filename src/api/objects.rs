//! The objects of the cluster, as a node understands them: workloads, services, policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::mesh;
use crate::mesh::policy::{AuthorizationPolicy, Body, PeerAuthentication, PolicyName, Requirement};

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
            enrolled: workload.tunnelled(),
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
    /// Those that its selector matches: in its namespace, or anywhere when that is the root
    /// namespace.
    Workload,
}

impl PolicyScope {
    /// The word, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
        }
    }
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
    /// `ALLOW`, `DENY`; a PeerAuthentication's mode, `STRICT`, `PERMISSIVE`, …; `REFUSE` when it
    /// was not understood.
    pub action: String,
    /// Whether it is only tried.
    pub dry_run: bool,
    /// How many rules it has, or ports with a mode of their own.
    pub rules: usize,
    /// What its author should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<Notice>,
    /// Why it was not understood, in which case the workloads it binds refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_understood: Option<String>,
}

/// A remark on a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What sort of remark: `needs_http`, `never_matches`, ….
    pub kind: String,
    /// The remark, with the path of the field it is about.
    pub message: String,
}

impl Policy {
    /// An AuthorizationPolicy.
    #[must_use]
    pub fn authorization(policy: &AuthorizationPolicy, root_namespace: &str) -> Self {
        let (action, rules, not_understood) = match &policy.body {
            Body::Rules { action, rules } => (action.as_str(), rules.len(), None),
            Body::Refuse { why } => (REFUSE, 0, Some(why.clone())),
        };
        Self {
            kind: "AuthorizationPolicy".to_owned(),
            action: action.to_owned(),
            dry_run: policy.dry_run,
            rules,
            not_understood,
            ..Self::named(&policy.name, policy.selector.as_ref(), root_namespace)
        }
        .noticed(&policy.notices)
    }

    /// A PeerAuthentication.
    #[must_use]
    pub fn peer_authentication(policy: &PeerAuthentication, root_namespace: &str) -> Self {
        let (action, rules, not_understood) = match &policy.requirement {
            Requirement::Modes { mode, ports } => (mode.as_str(), ports.len(), None),
            Requirement::Unreadable { why } => (REFUSE, 0, Some(why.clone())),
        };
        Self {
            kind: "PeerAuthentication".to_owned(),
            action: action.to_owned(),
            rules,
            not_understood,
            ..Self::named(&policy.name, policy.selector.as_ref(), root_namespace)
        }
        .noticed(&policy.notices)
    }

    fn named(name: &PolicyName, selector: Option<&mesh::Selector>, root_namespace: &str) -> Self {
        Self {
            namespace: name.namespace().to_owned(),
            name: name.name().to_owned(),
            scope: match selector {
                Some(_) => PolicyScope::Workload,
                None if name.namespace() == root_namespace => PolicyScope::Mesh,
                None => PolicyScope::Namespace,
            },
            selector: selector.map_or_else(BTreeMap::new, |all| pairs(all.labels())),
            ..Self::default()
        }
    }

    fn noticed(mut self, notices: &[mesh::policy::Notice]) -> Self {
        let notice = |notice: &mesh::policy::Notice| Notice {
            kind: notice.kind.reason().to_owned(),
            message: notice.text.clone(),
        };
        self.notices = notices.iter().map(notice).collect();
        self
    }
}

/// The action of a policy that was not understood.
const REFUSE: &str = "REFUSE";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(namespace: &str, spec: &serde_json::Value, expect: (&str, PolicyScope, bool)) {
        let none: [(&str, &str); 0] = [];
        let policy = AuthorizationPolicy::read("p", namespace, none, spec);
        let policy = Policy::authorization(&policy, "adit-system");
        let got = (
            policy.action.as_str(),
            policy.scope,
            policy.not_understood.is_some(),
        );
        assert_eq!(got, expect, "{policy:?}");
    }

    #[test]
    fn policies_say_whom_they_bind_and_whether_they_were_understood() {
        let json = |text| serde_json::from_str(text).unwrap();
        let allow = json(r#"{"rules": [{}]}"#);
        check("shop", &allow, ("ALLOW", PolicyScope::Namespace, false));
        check("adit-system", &allow, ("ALLOW", PolicyScope::Mesh, false));
        let deny = json(r#"{"action": "DENY", "selector": {"matchLabels": {"app": "db"}}}"#);
        check("shop", &deny, ("DENY", PolicyScope::Workload, false));
        let odd = json(r#"{"action": "MAYBE"}"#);
        check("shop", &odd, ("REFUSE", PolicyScope::Namespace, true));
    }
}
