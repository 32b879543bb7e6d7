//! Which endpoints of a service a client may be sent to, worked out ahead of any client.
//!
//! For each port of a service and each family there is a [`Pool`]. What the API says:
//!
//! - An endpoint port belongs to the service port of the same name; where a slice leaves the
//!   number open, the service's numeric `targetPort` stands.
//! - Ready endpoints count. Where there is none, those that are terminating and still serving do,
//!   so that a rollout does not cut a service off. `publishNotReadyAddresses` counts all.
//! - `internalTrafficPolicy: Local`: those on the client's node, and no others; the rule above
//!   holds among them alone.
//! - `trafficDistribution`: those near the client first, and all where none is near. Near is what
//!   the endpoints' `hints` say where every endpoint has some, else the endpoint's own node and
//!   zone; an endpoint that names its node and no zone is in its node's zone.
//!
//! An address that several slices list is one endpoint, and ready if any of them says so. Lists
//! are sorted, so that they do not depend on the order of the slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::mesh::{
    Family, InternalTrafficPolicy, Service, ServicePort, TargetPort, TrafficDistribution, Workload,
};
use crate::source::{Endpoint, EndpointSlice, Hints, Readiness};

/// An endpoint of a service: an address and the application's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The address, canonical.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

/// Where a service leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Backends {
    /// In the order of the service's ports. Most services have one, and every connection to a
    /// service looks here: it lies inside.
    pub(super) ports: SmallVec<[Port; 1]>,
    /// Whether a node's zone went into this, so that it must be redone when one changes.
    pub(super) asked_nodes: bool,
}

/// Where a port of a service leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// The port that clients dial.
    pub(super) number: u16,
    v4: Pool,
    v6: Pool,
}

impl Port {
    pub(super) fn family(&self, family: Family) -> &Pool {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// The endpoints of one port and family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pool {
    /// Sorted.
    all: Box<[Backend]>,
    near: Option<Box<Near>>,
}

/// The endpoints near a place, for services that care.
#[derive(Debug, Default, PartialEq, Eq)]
struct Near {
    local_only: bool,
    by_node: Groups,
    by_zone: Groups,
}

/// Sorted by name.
type Groups = Box<[(Arc<str>, Box<[Backend]>)]>;

impl Pool {
    /// What any client may be sent to, distance aside.
    pub(super) fn all(&self) -> &[Backend] {
        &self.all
    }

    /// Whether any client may be sent to `ip`, distance aside.
    pub(super) fn has(&self, ip: IpAddr) -> bool {
        let at = self.all.partition_point(|backend| backend.ip < ip);
        self.all.get(at).is_some_and(|backend| backend.ip == ip)
    }

    /// What a client may be sent to, each as well as any other; empty when there is nothing.
    pub(super) fn within_reach(&self, client: &Workload) -> &[Backend] {
        let Some(near) = &self.near else {
            return &self.all;
        };
        let here = group(&near.by_node, &client.node);
        if near.local_only || !here.is_empty() {
            return here;
        }
        match group(&near.by_zone, &client.zone) {
            [] => &self.all,
            zone => zone,
        }
    }
}

fn group<'g>(groups: &'g Groups, name: &str) -> &'g [Backend] {
    match groups.binary_search_by(|(known, _)| (**known).cmp(name)) {
        Ok(at) if !name.is_empty() => &groups[at].1,
        _ => &[],
    }
}

/// Works out where `service` leads by `slices`.
pub(super) fn backends<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    zone_of: impl Fn(&str) -> Option<Arc<str>>,
) -> Backends {
    let mut asked_nodes = false;
    let mut pool = |port: &ServicePort, family: Family| {
        let slices = slices.clone().filter(|slice| slice.family == family);
        let candidates = candidates(service, port, slices);
        pool(service, &candidates, |endpoint| {
            if endpoint.zone.is_empty() && !endpoint.node.is_empty() {
                asked_nodes = true;
                return zone_of(&endpoint.node).unwrap_or_default();
            }
            endpoint.zone.clone()
        })
    };
    let ports = service.ports.iter().map(|port| Port {
        number: port.port,
        v4: pool(port, Family::V4),
        v6: pool(port, Family::V6),
    });
    let ports = ports.collect();
    Backends { ports, asked_nodes }
}

/// An endpoint of one port.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    backend: Backend,
    readiness: Readiness,
    endpoint: &'a Endpoint,
}

/// Every endpoint of one port and family once, sorted.
fn candidates<'a>(
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices {
        for open in slice.ports.iter().filter(|open| open.name == port.name) {
            let Some(number) = open.port.or(match port.target {
                TargetPort::Number(number) => Some(number),
                TargetPort::Name(_) => None,
            }) else {
                continue;
            };
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                backend: Backend {
                    ip: endpoint.ip,
                    port: number,
                },
                readiness: if service.publish_not_ready {
                    Readiness::Ready
                } else {
                    endpoint.readiness
                },
                endpoint,
            }));
        }
    }
    // Of two entries for one address the readier stands, then the one whose place sorts first.
    candidates.sort_by(|a, b| order(a).cmp(&order(b)));
    candidates.dedup_by_key(|candidate| candidate.backend);
    candidates
}

fn order<'a>(candidate: &Candidate<'a>) -> impl Ord + use<'a> {
    let endpoint = candidate.endpoint;
    let hints = endpoint.hints.as_ref();
    (
        candidate.backend,
        candidate.readiness,
        &endpoint.node,
        &endpoint.zone,
        hints.map(|hints| (&hints.zones, &hints.nodes)),
    )
}

fn pool(
    service: &Service,
    candidates: &[Candidate<'_>],
    zone: impl FnMut(&Endpoint) -> Arc<str>,
) -> Pool {
    let usable = usable(candidates);
    let near = if service.internal_traffic_policy == InternalTrafficPolicy::Local {
        Some(local(candidates))
    } else {
        nearby(service.traffic_distribution, &usable, zone)
    };
    Pool {
        all: usable.iter().map(|candidate| candidate.backend).collect(),
        near: near.map(Box::new),
    }
}

/// The ready ones, or else those that are on their way out.
fn usable<'a>(candidates: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
    let all = |readiness: Readiness| {
        let those = candidates.iter().filter(|c| c.readiness == readiness);
        those.copied().collect::<Vec<_>>()
    };
    let ready = all(Readiness::Ready);
    if ready.is_empty() {
        all(Readiness::Draining)
    } else {
        ready
    }
}

fn local(candidates: &[Candidate<'_>]) -> Near {
    let mut nodes: BTreeMap<&Arc<str>, Vec<Candidate<'_>>> = BTreeMap::new();
    for candidate in candidates {
        let node = nodes.entry(&candidate.endpoint.node).or_default();
        node.push(*candidate);
    }
    let groups = nodes.into_iter().map(|(node, candidates)| {
        let backends = usable(&candidates).into_iter().map(|c| c.backend);
        (node.clone(), backends.collect())
    });
    Near {
        local_only: true,
        by_node: groups.collect(),
        by_zone: Groups::default(),
    }
}

fn nearby(
    distribution: TrafficDistribution,
    usable: &[Candidate<'_>],
    mut zone: impl FnMut(&Endpoint) -> Arc<str>,
) -> Option<Near> {
    let by_zone = |hinted: bool| {
        grouped(usable, |candidate| match &candidate.endpoint.hints {
            Some(hints) if hinted => hints.zones.to_vec(),
            _ => vec![zone(candidate.endpoint)],
        })
    };
    let by_node = |hinted: bool| {
        grouped(usable, |candidate| match &candidate.endpoint.hints {
            Some(hints) if hinted => hints.nodes.to_vec(),
            _ => vec![candidate.endpoint.node.clone()],
        })
    };
    let hinted = |has: fn(&Hints) -> bool| {
        let mut hints = usable.iter().map(|candidate| &candidate.endpoint.hints);
        hints.all(|hints| hints.as_deref().is_some_and(has))
    };
    match distribution {
        TrafficDistribution::Any => None,
        TrafficDistribution::SameZone => Some(Near {
            by_zone: { by_zone }(hinted(|hints| !hints.zones.is_empty())),
            ..Near::default()
        }),
        TrafficDistribution::SameNode => Some(Near {
            by_node: by_node(hinted(|hints| !hints.nodes.is_empty())),
            by_zone: { by_zone }(hinted(|hints| !hints.zones.is_empty())),
            local_only: false,
        }),
    }
}

fn grouped(
    usable: &[Candidate<'_>],
    mut places: impl FnMut(&Candidate<'_>) -> Vec<Arc<str>>,
) -> Groups {
    let mut groups: BTreeMap<Arc<str>, Vec<Backend>> = BTreeMap::new();
    for candidate in usable {
        for place in places(candidate) {
            groups.entry(place).or_default().push(candidate.backend);
        }
    }
    let groups = groups.into_iter();
    groups
        .map(|(place, backends)| (place, backends.into()))
        .collect()
}
