//! The labels of the `istio_tcp_*` counters: two workloads, a service, and how they met.
//!
//! Boards of the field (Kiali, Grafana) read these names, so they are Istio's. Workloads are named
//! by what made them (a Deployment), never by pod: the number of series follows the number of
//! applications that talk, not of pods.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::mesh::{Direction, Flow, Identity, Path, Service, Workload, service_hostname};

/// What stands for a value nobody knows.
const UNKNOWN: &str = "unknown";
/// The only cluster there is; Istio's default name for it.
const CLUSTER: &str = "Kubernetes";
/// What stands in every label of the series that takes the rest once there are too many.
const OVERFLOW: &str = "overflow";

/// Something a series is about, and with which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member<'a> {
    /// A workload, by the name of what made its pods ([`mesh::Owner`](crate::mesh::Owner)).
    Workload {
        /// Its namespace.
        namespace: &'a str,
        /// The owner's name.
        name: &'a str,
    },
    /// A service.
    Service {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
}

/// One label set of the traffic counters, without the flag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Labels {
    reporter: &'static str,
    security: &'static str,
    source: Party,
    destination: Party,
    service: Option<ServiceName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceName {
    host: Arc<str>,
    name: Arc<str>,
    namespace: Arc<str>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Party {
    /// Nothing in the index has its address; an identity may still have been proven.
    Unknown(Option<Identity>),
    /// A workload of the index.
    Known(Arc<Known>),
    /// The bucket for what is too much.
    Overflow,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Known {
    principal: Option<Identity>,
    workload: Arc<str>,
    namespace: Arc<str>,
    canonical: Arc<str>,
    revision: Arc<str>,
    region: Arc<str>,
    zone: Arc<str>,
}

impl Party {
    fn new(workload: Option<&Workload>, principal: Option<Identity>) -> Self {
        let Some(workload) = workload else {
            return Self::Unknown(principal);
        };
        Self::Known(Arc::new(Known {
            principal,
            workload: workload.owner.name.clone(),
            namespace: workload.namespace.clone(),
            canonical: workload.canonical_name().into(),
            revision: workload.canonical_revision().into(),
            region: workload.region.clone(),
            zone: workload.zone.clone(),
        }))
    }

    fn member(&self) -> Option<Member<'_>> {
        let Self::Known(known) = self else {
            return None;
        };
        Some(Member::Workload {
            namespace: &known.namespace,
            name: &known.workload,
        })
    }

    /// Workload, its namespace, canonical service, its revision, region and zone.
    fn values(&self) -> [&str; 6] {
        match self {
            Self::Unknown(_) => [UNKNOWN; 6],
            Self::Overflow => [OVERFLOW; 6],
            Self::Known(known) => [
                &known.workload,
                &known.namespace,
                &known.canonical,
                &known.revision,
                or_unknown(&known.region),
                or_unknown(&known.zone),
            ],
        }
    }

    fn principal(&self) -> Option<&Identity> {
        match self {
            Self::Unknown(principal) => principal.as_ref(),
            Self::Known(known) => known.principal.as_ref(),
            Self::Overflow => None,
        }
    }
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { UNKNOWN } else { text }
}

impl Labels {
    /// The labels of a connection. Principals are those that the path vouches for: a plain
    /// connection has none, whatever the index thinks of its address.
    pub(crate) fn new(flow: &Flow, cluster_domain: &str) -> Self {
        let proven = |workload: Option<&Workload>, identity: Option<&Identity>| {
            identity
                .cloned()
                .or_else(|| workload.map(|workload| workload.identity.clone()))
                .filter(|_| flow.path.authenticated())
        };
        let source = flow.source.workload.as_deref();
        let destination = flow.destination.workload.as_deref();
        Self {
            reporter: reporter(flow.direction),
            security: security(flow.path),
            source: Party::new(source, proven(source, flow.source.identity.as_ref())),
            destination: Party::new(destination, proven(destination, None)),
            service: flow
                .destination
                .service
                .as_deref()
                .map(|service| ServiceName::new(service, cluster_domain)),
        }
    }

    /// The one label set that takes connections for which there is no room.
    pub(crate) fn overflow(direction: Direction) -> Self {
        Self {
            reporter: reporter(direction),
            security: UNKNOWN,
            source: Party::Overflow,
            destination: Party::Overflow,
            service: None,
        }
    }

    /// What it is about.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member<'_>> {
        let service = self.service.as_ref().map(|service| Member::Service {
            namespace: &service.namespace,
            name: &service.name,
        });
        [self.source.member(), self.destination.member(), service]
            .into_iter()
            .flatten()
    }
}

impl ServiceName {
    fn new(service: &Service, cluster_domain: &str) -> Self {
        Self {
            host: service_hostname(service, cluster_domain).into(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
        }
    }
}

fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

/// `mutual_tls` says what was on the wire. Both identities of a same-node connection are known and
/// stand in the principals, but there was no TLS, and so the label does not say so.
fn security(path: Path) -> &'static str {
    match path {
        Path::Tunnel => "mutual_tls",
        Path::SameNode | Path::Plain | Path::Probe => UNKNOWN,
    }
}

/// A label set with the flag under which a connection ended (`-` while it lives).
pub(crate) struct Flagged<'a>(pub(crate) &'a Labels, pub(crate) &'static str);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Self(labels, flag) = self;
        let mut put = |name: &str, value: &str| (name, value).encode(encoder.encode_label());
        put("reporter", labels.reporter)?;
        for (party, names) in [
            (&labels.source, &SOURCE),
            (&labels.destination, &DESTINATION),
        ] {
            let [workload, namespace, canonical, revision, region, zone] = party.values();
            let principal = party.principal().map(ToString::to_string);
            let values = [
                workload,
                namespace,
                canonical,
                revision,
                canonical,
                revision,
                principal.as_deref().unwrap_or(UNKNOWN),
                CLUSTER,
                region,
                zone,
            ];
            for (name, value) in names.iter().zip(values) {
                put(name, value)?;
            }
        }
        let (host, name, namespace) = match &labels.service {
            Some(service) => (&*service.host, &*service.name, &*service.namespace),
            None => (UNKNOWN, UNKNOWN, UNKNOWN),
        };
        put("destination_service", host)?;
        put("destination_service_name", name)?;
        put("destination_service_namespace", namespace)?;
        put("request_protocol", "tcp")?;
        put("response_flags", flag)?;
        put("connection_security_policy", labels.security)
    }
}

const SOURCE: [&str; 10] = [
    "source_workload",
    "source_workload_namespace",
    "source_canonical_service",
    "source_canonical_revision",
    "source_app",
    "source_version",
    "source_principal",
    "source_cluster",
    "source_region",
    "source_zone",
];

const DESTINATION: [&str; 10] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_app",
    "destination_version",
    "destination_principal",
    "destination_cluster",
    "destination_region",
    "destination_zone",
];
