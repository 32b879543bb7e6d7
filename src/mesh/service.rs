//! A service, reduced to what the journey needs.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

/// A named group of workloads behind virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `spec.clusterIPs`; empty for a headless service.
    pub vips: SmallVec<[IpAddr; 2]>,
    /// The TCP ports of `spec.ports`.
    pub ports: SmallVec<[ServicePort; 2]>,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: TrafficDistribution,
    /// `spec.publishNotReadyAddresses`: endpoints count as ready whatever they say.
    pub publish_not_ready: bool,
}

/// The fully qualified name of a service, as metrics, logs and `Forwarded` headers have it.
#[must_use]
pub fn service_hostname(service: &Service, cluster_domain: &str) -> String {
    format!(
        "{}.{}.svc.{cluster_domain}",
        service.name, service.namespace
    )
}

/// One TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Its name; empty when the service has but one port. EndpointSlices refer to ports by it.
    pub name: Arc<str>,
    /// The port clients dial.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
}

/// Where a service port leads (`targetPort`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// A number, the same on every endpoint.
    Number(u16),
    /// A name of a container's port; each EndpointSlice says which number that is.
    Name(Arc<str>),
}

/// Which endpoints a client inside the cluster may be sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InternalTrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Those on the client's node alone; without one, none.
    Local,
}

/// Which endpoints are preferred; with no near one the choice falls back to all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// All alike.
    #[default]
    Any,
    /// Those in the client's zone first (`PreferClose` and `PreferSameZone`).
    SameZone,
    /// Those on the client's node first, then its zone.
    SameNode,
}
