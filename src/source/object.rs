//! The slim objects: what is left of a Kubernetes object once it is inside.
//!
//! There is one [`Pod`] and one [`Endpoint`] per pod of the cluster, so a field must earn its
//! bytes. Services and policies have no shape of their own here: they are read straight into
//! [`mesh`](crate::mesh) values.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::mesh::{Family, Labels, Owner, Phase};

/// A namespace: its labels may enrol the pods in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Whether it is being deleted, which nothing can stop any more.
    pub terminating: bool,
}

/// A node: where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`; empty when it has none.
    pub zone: Arc<str>,
    /// Label `topology.kubernetes.io/region`; empty when it has none.
    pub region: Arc<str>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// `metadata.uid`; `namespace/name` where there is none (hand-written files).
    pub uid: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `spec.serviceAccountName`; `default` where there is none.
    pub service_account: Arc<str>,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// `status.podIPs` (or `podIP`), canonical, the first of each family.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// What made it, seen through ReplicaSets and Jobs to what a person wrote.
    pub owner: Owner,
    /// `status.phase`; a pod that does not say is taken to be running.
    pub phase: Phase,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.runtimeClassName`; empty for the node's own runtime.
    pub runtime_class: Arc<str>,
    /// Whether annotation `sidecar.istio.io/status` is there.
    pub sidecar: bool,
    /// Whether annotation `ambient.istio.io/redirection` is `enabled`: its node has captured it.
    pub marked: bool,
    /// Whether `metadata.deletionTimestamp` is there.
    pub terminating: bool,
    /// `metadata.creationTimestamp` as the digits `YYYYMMDDhhmmss`, which order as the times do;
    /// 0 when there is none.
    pub created: u64,
    /// Annotation `adit.mesh/netns`.
    pub netns: Option<Arc<str>>,
}

/// A part of the endpoints of a service, all of one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// Label `kubernetes.io/service-name`.
    pub service: Arc<str>,
    /// `addressType`.
    pub family: Family,
    /// The TCP ports of `ports`.
    pub ports: SmallVec<[EndpointPort; 1]>,
    /// `endpoints`.
    pub endpoints: Box<[Endpoint]>,
}

/// A port that every endpoint of a slice serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointPort {
    /// The name of the service port that leads here; empty for an unnamed one.
    pub name: Arc<str>,
    /// The number; `None` leaves it to the service's `targetPort`.
    pub port: Option<u16>,
}

/// One address behind a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The first of `addresses`; the API calls the others interchangeable.
    pub ip: IpAddr,
    /// `conditions`.
    pub readiness: Readiness,
    /// `nodeName`; empty when not said.
    pub node: Arc<str>,
    /// `zone`; empty when not said.
    pub zone: Arc<str>,
    /// `hints`.
    pub hints: Option<Box<Hints>>,
}

/// Whether an endpoint takes connections, by the three conditions of the API taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Readiness {
    /// `ready`, or nothing said.
    Ready,
    /// Not ready because it is terminating, but still serving: the last resort.
    Draining,
    /// Neither.
    NotReady,
}

/// For which clients an endpoint is meant, as the control plane has worked it out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes`.
    pub nodes: Box<[Arc<str>]>,
}
