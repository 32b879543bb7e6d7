//! From serde shapes to slim objects: what an object must say to be one.
//!
//! The checks are those without which a later stage would have to guess. An object that fails
//! one is invalid as a whole; its last good version stands.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::mesh;
use crate::mesh::Family;
use crate::source::object;
use crate::source::object::Readiness;
use crate::source::owner::owner;
use crate::source::raw;
use crate::source::raw::Text;
use crate::source::{Interner, Key, Kind, Object};

/// Why an object is invalid, in words for its author.
pub(super) type Invalid = String;

/// The key of an object with this metadata; the namespace of a namespaced kind is `default`
/// where none is written.
pub(super) fn key(
    kind: Kind,
    meta: &raw::Meta<'_>,
    interner: &mut Interner,
) -> Result<Key, Invalid> {
    let name = meta.name.as_deref().unwrap_or_default();
    let namespace = match meta.namespace.as_deref() {
        _ if !kind.namespaced() => "",
        None | Some("") => "default",
        Some(namespace) => word("metadata.namespace", namespace)?,
    };
    Ok(Key {
        kind,
        namespace: interner.text(namespace),
        name: word("metadata.name", name)?.into(),
    })
}

/// A name that can stand in an identity, a host name and a metric.
fn word<'a>(field: &str, text: &'a str) -> Result<&'a str, Invalid> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.is_empty() {
        return Err(format!("{field} is missing"));
    }
    if text.len() > 253 || text == "." || text == ".." || !text.bytes().all(legal) {
        return Err(format!("{field} {text:?} is not a name"));
    }
    Ok(text)
}

/// A Namespace.
pub(super) fn namespace(raw: &raw::Bare<'_>, key: Key, interner: &mut Interner) -> Object {
    Object::Namespace(Box::new(object::Namespace {
        name: key.name,
        labels: interner.labels(raw.metadata.labels.iter()),
        terminating: raw.metadata.deletion_timestamp.is_some(),
    }))
}

/// A Node.
pub(super) fn node(raw: &raw::Bare<'_>, key: Key, interner: &mut Interner) -> Object {
    let labels = &raw.metadata.labels;
    let mut label = |key| interner.text(labels.value(key).unwrap_or_default());
    Object::Node(Box::new(object::Node {
        zone: label("topology.kubernetes.io/zone"),
        region: label("topology.kubernetes.io/region"),
        name: interner.text(&key.name),
    }))
}

/// A Pod.
pub(super) fn pod(
    raw: &raw::Pod<'_>,
    key: Key,
    interner: &mut Interner,
) -> Result<Object, Invalid> {
    let raw::Pod {
        metadata,
        spec,
        status,
    } = raw;
    let account = match spec.service_account_name.as_deref() {
        None | Some("") => "default",
        Some(account) => word("spec.serviceAccountName", account)?,
    };
    let labels = interner.labels(metadata.labels.iter());
    let controller = metadata.owner_references.iter().find(|o| o.controller);
    let controller = controller.map(|o| (&*o.kind, &*o.name));
    Ok(Object::Pod(Box::new(object::Pod {
        uid: match metadata.uid.as_deref() {
            None | Some("") => format!("{}/{}", key.namespace, key.name).into(),
            Some(uid) => uid.into(),
        },
        service_account: interner.text(account),
        node: interner.text(&spec.node_name),
        ips: pod_ips(status),
        owner: owner(controller, &key.name, &labels, interner),
        labels,
        phase: match status.phase.as_deref() {
            None | Some("" | "Running" | "Unknown") => mesh::Phase::Running,
            Some("Succeeded" | "Failed") => mesh::Phase::Finished,
            Some(_) => mesh::Phase::Pending,
        },
        host_network: spec.host_network,
        runtime_class: interner.text(&spec.runtime_class_name),
        sidecar: metadata.annotations.sidecar,
        marked: metadata.annotations.marked,
        terminating: metadata.deletion_timestamp.is_some(),
        created: digits(metadata.creation_timestamp.as_deref().unwrap_or_default()),
        netns: metadata.annotations.netns.as_deref().map(Arc::from),
        name: key.name,
        namespace: key.namespace,
    })))
}

fn pod_ips(status: &raw::PodStatus<'_>) -> SmallVec<[std::net::IpAddr; 2]> {
    let mut ips: SmallVec<[std::net::IpAddr; 2]> = SmallVec::new();
    let listed = status.pod_ips.iter().filter_map(|entry| entry.ip);
    for raw::Ip(ip) in listed.chain(status.pod_ip) {
        if !ips.iter().any(|known| Family::of(*known) == Family::of(ip)) {
            ips.push(ip);
        }
    }
    ips
}

/// `2026-01-05T10:01:22Z` as 20260105100122. The API writes all times in UTC, so that the digits
/// order as the times do; anything else counts as 0, older than all.
fn digits(time: &str) -> u64 {
    let mut number = 0;
    for byte in time.bytes().take(19) {
        match byte {
            b'0'..=b'9' => number = number * 10 + u64::from(byte - b'0'),
            b'-' | b'T' | b':' => {}
            _ => return 0,
        }
    }
    number
}

/// A Service; `None` for an `ExternalName`, which has no address to dial.
pub(super) fn service(
    raw: &raw::Service<'_>,
    key: Key,
    interner: &mut Interner,
) -> Result<Option<Object>, Invalid> {
    let spec = &raw.spec;
    if spec.service_type.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let mut vips: SmallVec<[std::net::IpAddr; 2]> = SmallVec::new();
    for ip in spec.cluster_ips.iter().chain(&spec.cluster_ip) {
        if let Some(ip) = ip.0
            && !vips.contains(&ip)
        {
            vips.push(ip);
        }
    }
    let tcp = |port: &&raw::ServicePort<'_>| is_tcp(port.protocol.as_ref());
    let ports = spec.ports.iter().filter(tcp);
    let ports = ports.map(|port| service_port(port, interner));
    Ok(Some(Object::Service(Arc::new(mesh::Service {
        ports: ports.collect::<Result<_, _>>()?,
        vips,
        internal_traffic_policy: internal_traffic_policy(spec)?,
        traffic_distribution: traffic_distribution(spec),
        publish_not_ready: spec.publish_not_ready_addresses,
        name: key.name,
        namespace: key.namespace,
    }))))
}

fn service_port(
    raw: &raw::ServicePort<'_>,
    interner: &mut Interner,
) -> Result<mesh::ServicePort, Invalid> {
    if raw.port == 0 {
        return Err("spec.ports has a port without a number".to_owned());
    }
    Ok(mesh::ServicePort {
        name: interner.text(&raw.name),
        port: raw.port,
        target: match &raw.target_port {
            Some(raw::TargetPort::Number(number)) if *number != 0 => {
                mesh::TargetPort::Number(*number)
            }
            Some(raw::TargetPort::Name(name)) if !name.is_empty() => match name.parse() {
                Ok(number) => mesh::TargetPort::Number(number),
                Err(_) => mesh::TargetPort::Name(interner.text(name)),
            },
            _ => mesh::TargetPort::Number(raw.port),
        },
    })
}

fn internal_traffic_policy(
    spec: &raw::ServiceSpec<'_>,
) -> Result<mesh::InternalTrafficPolicy, Invalid> {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => Ok(mesh::InternalTrafficPolicy::Cluster),
        Some("Local") => Ok(mesh::InternalTrafficPolicy::Local),
        Some(other) => Err(format!(
            "spec.internalTrafficPolicy {other:?} is neither Cluster nor Local"
        )),
    }
}

/// A distribution of a later Kubernetes is a preference we do not know, and so none.
fn traffic_distribution(spec: &raw::ServiceSpec<'_>) -> mesh::TrafficDistribution {
    match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => mesh::TrafficDistribution::SameZone,
        Some("PreferSameNode") => mesh::TrafficDistribution::SameNode,
        _ => mesh::TrafficDistribution::Any,
    }
}

fn is_tcp(protocol: Option<&Text<'_>>) -> bool {
    protocol.is_none_or(|p| p.is_empty() || **p == *"TCP")
}

/// An EndpointSlice; `None` where it belongs to no service or lists host names.
pub(super) fn slice(
    raw: &raw::Slice<'_>,
    key: Key,
    interner: &mut Interner,
) -> Result<Option<Object>, Invalid> {
    let service = raw.metadata.labels.value("kubernetes.io/service-name");
    let family = match raw.address_type.as_deref() {
        Some("IPv4") => Family::V4,
        Some("IPv6") => Family::V6,
        Some("FQDN") => return Ok(None),
        other => {
            return Err(format!(
                "addressType {:?} is neither IPv4, IPv6 nor FQDN",
                other.unwrap_or_default()
            ));
        }
    };
    let Some(service) = service else {
        return Ok(None);
    };
    let tcp = raw.ports.iter().filter(|p| is_tcp(p.protocol.as_ref()));
    let endpoints = raw.endpoints.iter().filter(|e| !e.addresses.is_empty());
    Ok(Some(Object::EndpointSlice(Arc::new(
        object::EndpointSlice {
            service: interner.text(service),
            family,
            ports: tcp
                .map(|p| object::EndpointPort {
                    name: interner.text(&p.name),
                    port: p.port,
                })
                .collect(),
            endpoints: endpoints
                .map(|e| endpoint(e, family, interner))
                .collect::<Result<_, _>>()?,
            name: key.name,
            namespace: key.namespace,
        },
    ))))
}

fn endpoint(
    raw: &raw::Endpoint<'_>,
    family: Family,
    interner: &mut Interner,
) -> Result<object::Endpoint, Invalid> {
    // Endpoints without an address have been left out.
    let ip = raw.addresses[0].0;
    if Family::of(ip) != family {
        return Err(format!("endpoint {ip} is not of the slice's addressType"));
    }
    let mut names = |hints: &[raw::Hint<'_>]| {
        let names = hints.iter().map(|hint| interner.text(&hint.name));
        names.collect::<Box<[_]>>()
    };
    let hints = object::Hints {
        zones: names(&raw.hints.for_zones),
        nodes: names(&raw.hints.for_nodes),
    };
    Ok(object::Endpoint {
        ip,
        readiness: readiness(&raw.conditions),
        node: interner.text(&raw.node_name),
        zone: interner.text(&raw.zone),
        hints: (hints != object::Hints::default()).then(|| Box::new(hints)),
    })
}

/// The conditions by the API's rules: `ready` and `serving` are true when not said,
/// `terminating` is false.
fn readiness(raw: &raw::Conditions) -> Readiness {
    let serving = raw.serving.unwrap_or(true);
    match (raw.ready.unwrap_or(true), raw.terminating.unwrap_or(false)) {
        (true, _) => Readiness::Ready,
        (false, true) if serving => Readiness::Draining,
        _ => Readiness::NotReady,
    }
}
