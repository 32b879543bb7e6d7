//! A pod, reduced to what the journey needs.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::mesh::{Family, Identity, Labels};

/// One pod of the cluster.
///
/// There is one of these per pod on every node, so a field must earn its bytes; text is shared
/// between workloads wherever the same text recurs. They are laid out as they stand here: what
/// every connection asks is in one line of memory with the counters of the `Arc` around it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Workload {
    /// Whether the mesh carries it, and if not, why.
    pub enrolment: Enrolment,
    /// Where it is in its life.
    pub phase: Phase,
    /// Whether it uses its node's network namespace, and so has no address of its own.
    pub host_network: bool,
    /// What tells whether it is reached through a tunnel.
    pub reach: Reach,
    /// Who it is: its service account, in our trust domain.
    pub identity: Identity,
    /// `metadata.uid`, or `namespace/name` where the object has none (hand-written files).
    pub uid: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// `topology.kubernetes.io/zone` of its node; empty when unknown.
    pub zone: Arc<str>,
    /// `topology.kubernetes.io/region` of its node; empty when unknown.
    pub region: Arc<str>,
    /// `status.podIPs`, in canonical form, at most one per family.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// What made it, for the `workload` label of metrics.
    pub owner: Owner,
    /// Annotation `adit.mesh/netns`: the path of its network namespace, in file mode alone.
    pub netns: Option<Arc<str>>,
}

impl Workload {
    /// Its address of that family.
    #[must_use]
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        self.ips
            .iter()
            .copied()
            .find(|ip| Family::of(*ip) == family)
    }

    /// Whether the mesh is to carry it.
    #[must_use]
    pub fn enrolled(&self) -> bool {
        self.enrolment == Enrolment::Enrolled
    }

    /// Whether it is reached through a tunnel.
    #[must_use]
    pub fn tunnelled(&self) -> bool {
        match self.reach {
            Reach::AsEnrolled | Reach::Marked => self.enrolled(),
            Reach::Captured => true,
            Reach::Uncaptured => false,
        }
    }

    /// The canonical service that the field's metrics and logs call it by: the label
    /// `service.istio.io/canonical-name`, else `app.kubernetes.io/name`, else `app`, else the
    /// name of its owner.
    #[must_use]
    pub fn canonical_name(&self) -> &str {
        [
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ]
        .iter()
        .find_map(|key| self.labels.get(key))
        .map_or(&self.owner.name, |value| value)
    }

    /// The revision of its canonical service: the label `service.istio.io/canonical-revision`,
    /// else `app.kubernetes.io/version`, else `version`, else `latest`.
    #[must_use]
    pub fn canonical_revision(&self) -> &str {
        [
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]
        .iter()
        .find_map(|key| self.labels.get(key))
        .map_or("latest", |value| value)
    }
}

/// What made a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Lower case: `deployment`, `statefulset`, `daemonset`, `job`, `cronjob`, `pod`, …
    pub kind: Arc<str>,
    /// Its name; the pod's own where nothing owns it.
    pub name: Arc<str>,
}

/// What tells whether a pod is reached through a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Its [`Enrolment`]: it is ours to capture, or nobody says more.
    #[default]
    AsEnrolled,
    /// The same: it is ours, and others are told that it is captured, rightly or not.
    Marked,
    /// Its own node says that it has captured it.
    Captured,
    /// Its own node does not say so: nobody takes tunnels there.
    Uncaptured,
}

/// Whether the mesh carries a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enrolment {
    /// Its traffic is captured, and it is reached by tunnel.
    Enrolled,
    /// Its traffic is left alone.
    Bypass(Bypass),
}

/// Why a pod is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// Neither its namespace nor itself carries an enrolment label.
    NotLabelled,
    /// Its own label opts out (`none`).
    OptedOut,
    /// It uses the node's network namespace.
    HostNetwork,
    /// It carries a sidecar of another mesh (annotation `sidecar.istio.io/status`).
    Sidecar,
    /// It has ended (`Succeeded` or `Failed`).
    Finished,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// Its runtime takes its packets past the network namespace (Kata, gVisor): nothing there can
    /// capture it.
    SandboxedRuntime,
}

impl Bypass {
    /// A stable word for logs, metrics and dumps.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotLabelled => "not_labelled",
            Self::OptedOut => "opted_out",
            Self::HostNetwork => "host_network",
            Self::Sidecar => "sidecar",
            Self::Finished => "finished",
            Self::ExcludedNamespace => "excluded_namespace",
            Self::SandboxedRuntime => "sandboxed_runtime",
        }
    }
}

/// Where a pod is in its life (`status.phase`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not all its containers have started.
    Pending,
    /// Running.
    Running,
    /// `Succeeded` or `Failed`: its address may already be another pod's.
    Finished,
}
