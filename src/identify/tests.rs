//! The index: objects in few words, and the ways that follow from them.

use super::*;
use crate::mesh::{
    Bypass, Enrolment, Family, InternalTrafficPolicy, Labels, OriginalDst, Owner, Phase, Route,
    Service, ServicePort, TargetPort, TrafficDistribution, TrustDomain, Workload,
};
use crate::source::{
    Change, Endpoint, EndpointPort, EndpointSlice, Hints, Key, Kind, Namespace, Node, Object, Pod,
    Readiness,
};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

mod addresses;
mod changes;
mod services;

fn settings() -> Settings {
    Settings::new(TrustDomain::parse("cluster.local").unwrap())
}

fn labels(words: &str) -> Labels {
    let pairs = words.split(' ').filter_map(|word| word.split_once('='));
    Labels::new(pairs.map(|(k, v)| (Arc::from(k), Arc::from(v))))
}

fn namespace(name: &str, words: &str) -> Object {
    Object::Namespace(Box::new(Namespace {
        name: name.into(),
        labels: labels(words),
        terminating: false,
    }))
}

fn node(name: &str, zone: &str) -> Object {
    Object::Node(Box::new(Node {
        name: name.into(),
        zone: zone.into(),
        region: "r".into(),
    }))
}

/// A running pod of namespace `shop`, enrolled by its own label.
fn pod(name: &str, node: &str, ips: &[&str]) -> Pod {
    Pod {
        uid: format!("uid-{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: "cart".into(),
        node: node.into(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        labels: labels("adit.mesh/mode=ambient"),
        owner: Owner {
            kind: "pod".into(),
            name: name.into(),
        },
        phase: Phase::Running,
        host_network: false,
        runtime_class: "".into(),
        sidecar: false,
        marked: false,
        terminating: false,
        created: 10,
        netns: None,
    }
}

/// A service of namespace `shop`, its ports written `name:port>target`.
fn service(name: &str, vips: &[&str], ports: &[&str]) -> Service {
    Service {
        name: name.into(),
        namespace: "shop".into(),
        vips: vips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: ports
            .iter()
            .map(|port| {
                let (name, rest) = port.split_once(':').unwrap();
                let (port, target) = rest.split_once('>').unwrap();
                ServicePort {
                    name: name.into(),
                    port: port.parse().unwrap(),
                    target: match target.parse() {
                        Ok(number) => TargetPort::Number(number),
                        Err(_) => TargetPort::Name(target.into()),
                    },
                }
            })
            .collect(),
        internal_traffic_policy: InternalTrafficPolicy::Cluster,
        traffic_distribution: TrafficDistribution::Any,
        publish_not_ready: false,
    }
}

/// A slice, its ports written `name:number` or `name:` and its endpoints `ip words…`, the words
/// being `not-ready`, `draining`, `node=N`, `zone=Z`, `for-zone=Z` and `for-node=N`.
fn slice(name: &str, service: &str, ports: &[&str], endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Box<[Endpoint]> = endpoints.iter().map(|words| endpoint(words)).collect();
    EndpointSlice {
        name: name.into(),
        namespace: "shop".into(),
        service: service.into(),
        family: endpoints.first().map_or(Family::V4, |e| Family::of(e.ip)),
        ports: ports
            .iter()
            .map(|port| {
                let (name, number) = port.split_once(':').unwrap();
                EndpointPort {
                    name: name.into(),
                    port: number.parse().ok(),
                }
            })
            .collect(),
        endpoints,
    }
}

fn endpoint(words: &str) -> Endpoint {
    let word = |key: &str| {
        let mut words = words.split(' ').filter_map(|word| word.split_once('='));
        words.find(|(k, _)| *k == key).map(|(_, v)| Arc::from(v))
    };
    let hints = Hints {
        zones: word("for-zone").into_iter().collect(),
        nodes: word("for-node").into_iter().collect(),
    };
    Endpoint {
        ip: words.split(' ').next().unwrap().parse().unwrap(),
        readiness: if words.contains("not-ready") {
            Readiness::NotReady
        } else if words.contains("draining") {
            Readiness::Draining
        } else {
            Readiness::Ready
        },
        node: word("node").unwrap_or_default(),
        zone: word("zone").unwrap_or_default(),
        hints: (hints != Hints::default()).then(|| Box::new(hints)),
    }
}

impl From<Pod> for Object {
    fn from(pod: Pod) -> Self {
        Self::Pod(Box::new(pod))
    }
}

impl From<Service> for Object {
    fn from(service: Service) -> Self {
        Self::Service(Arc::new(service))
    }
}

impl From<EndpointSlice> for Object {
    fn from(slice: EndpointSlice) -> Self {
        Self::EndpointSlice(Arc::new(slice))
    }
}

fn key(object: &Object) -> Key {
    let (kind, namespace, name) = match object {
        Object::Namespace(o) => (Kind::Namespace, "", &o.name),
        Object::Node(o) => (Kind::Node, "", &o.name),
        Object::Pod(o) => (Kind::Pod, &*o.namespace, &o.name),
        Object::Service(o) => (Kind::Service, &*o.namespace, &o.name),
        Object::EndpointSlice(o) => (Kind::EndpointSlice, &*o.namespace, &o.name),
        other => panic!("{other:?} is not indexed"),
    };
    Key {
        kind,
        namespace: namespace.into(),
        name: name.clone(),
    }
}

fn index(objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::new(settings());
    let changes: Vec<_> = objects.into_iter().map(Change::Upsert).collect();
    assert_eq!(index.apply(&changes), []);
    index
}

/// A route as words: `mesh NAME IP:PORT via IP:PORT`, `plain NAME|- IP:PORT`, `unknown IP:PORT`
/// or the reason of refusal; a service in front as `NAME/`.
fn words(route: Result<Route, Unroutable>) -> String {
    let through = |service: Option<Arc<Service>>| {
        service.map_or(String::new(), |service| format!("{}/", service.name))
    };
    match route {
        Ok(Route::Mesh {
            workload,
            service,
            to,
            via,
        }) => format!("mesh {}{} {to} via {via}", through(service), workload.name),
        Ok(Route::Plain {
            workload,
            service,
            to,
        }) => {
            let name = workload.map_or("-".into(), |workload| workload.name.clone());
            format!("plain {}{name} {to}", through(service))
        }
        Ok(Route::Unknown { to }) => format!("unknown {to}"),
        Err(error) => format!("{} {}", error.reason(), error.service().name),
    }
}

const CLIENT: &str = "client";

/// Where a client on node `n1` (zone `z1`) gets to, over draws from end to end, each way once.
fn ways(objects: Vec<Object>, to: &str) -> Vec<String> {
    let place = [node("n1", "z1"), node("n2", "z1"), node("n3", "z2")];
    let client = Object::from(pod(CLIENT, "n1", &["10.9.9.9"]));
    let index = index(place.into_iter().chain([client]).chain(objects));
    let snapshot = index.snapshot();
    let client = snapshot.workload("shop", CLIENT).unwrap();
    let to = OriginalDst::new(to.parse::<SocketAddr>().unwrap());
    let draws = (0..=16_u64).map(|i| i.saturating_mul(u64::MAX / 16));
    let mut ways: Vec<_> = draws
        .map(|draw| words(snapshot.resolve(client, to, draw)))
        .collect();
    ways.dedup();
    ways
}

#[track_caller]
fn check(objects: Vec<Object>, to: &str, expect: &[&str]) {
    assert_eq!(ways(objects, to), expect);
}

fn a() -> Object {
    pod("a", "n1", &["10.0.0.1"]).into()
}
