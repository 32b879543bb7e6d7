//! The index: order independence, ownership of addresses, resolution.

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

#[test]
fn an_address_leads_to_its_pod_or_through() {
    check(
        vec![a()],
        "10.0.0.1:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
    check(
        vec![a()],
        "[::ffff:10.0.0.1]:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
    check(vec![a()], "10.0.0.2:81", &["unknown 10.0.0.2:81"]);
    let dual = || vec![pod("a", "n1", &["10.0.0.1", "fd00::1"]).into()];
    check(
        dual(),
        "[fd00::1]:81",
        &["mesh a [fd00::1]:81 via [fd00::1]:15008"],
    );
    let plain = Pod {
        labels: Labels::default(),
        ..pod("a", "n1", &["10.0.0.1"])
    };
    check(vec![plain.into()], "10.0.0.1:81", &["plain a 10.0.0.1:81"]);
    check(
        vec![pod("a", "n1", &[]).into()],
        "10.0.0.1:81",
        &["unknown 10.0.0.1:81"],
    );
    let pending = Pod {
        phase: Phase::Pending,
        ..pod("a", "", &["10.0.0.1"])
    };
    check(
        vec![pending.into()],
        "10.0.0.1:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
}

#[test]
fn a_finished_pod_and_one_on_its_nodes_network_own_no_address() {
    let finished = || Pod {
        phase: Phase::Finished,
        created: 99,
        ..pod("f", "n1", &["10.0.0.1"])
    };
    let host = || Pod {
        host_network: true,
        created: 99,
        ..pod("h", "n1", &["10.0.0.1"])
    };
    check(
        vec![finished().into()],
        "10.0.0.1:81",
        &["unknown 10.0.0.1:81"],
    );
    check(vec![host().into()], "10.0.0.1:81", &["unknown 10.0.0.1:81"]);
    check(
        vec![host().into(), finished().into(), a()],
        "10.0.0.1:81",
        &["mesh a 10.0.0.1:81 via 10.0.0.1:15008"],
    );
}

#[test]
fn of_several_pods_with_one_address_one_owns_it_in_any_order() {
    let base = || pod("a", "n1", &["10.0.0.1"]);
    let b = || Pod {
        name: "b".into(),
        uid: "uid-b".into(),
        ..base()
    };
    for (winner, loser) in [
        (
            base(),
            Pod {
                terminating: true,
                created: 99,
                ..b()
            },
        ),
        (
            base(),
            Pod {
                phase: Phase::Pending,
                created: 99,
                ..b()
            },
        ),
        (
            Pod {
                created: 11,
                ..base()
            },
            b(),
        ),
        (b(), base()),
        (
            Pod {
                uid: "z".into(),
                ..base()
            },
            b(),
        ),
        (
            Pod {
                labels: Labels::default(),
                created: 11,
                ..base()
            },
            b(),
        ),
    ] {
        for pair in [[&winner, &loser], [&loser, &winner]] {
            let mut index = index(pair.map(|pod| pod.clone().into()));
            let owner = |index: &Index| {
                let owner = index.snapshot().workload_at([10, 0, 0, 1].into()).cloned();
                owner.map(|workload| workload.name.clone())
            };
            assert_eq!(
                owner(&index),
                Some(winner.name.clone()),
                "{winner:?} {loser:?}"
            );
            assert_eq!(index.snapshot().counts().contested_addresses, 1);
            index.apply(&[Change::Remove(key(&winner.clone().into()))]);
            assert_eq!(owner(&index), Some(loser.name.clone()));
            assert_eq!(index.snapshot().counts().contested_addresses, 0);
            index.apply(&[Change::Remove(key(&loser.clone().into()))]);
            assert_eq!(owner(&index), None);
        }
    }
}

#[test]
fn a_virtual_address_leads_to_a_ready_endpoint() {
    let svc = || service("s", &["10.96.0.1"], &["http:80>web", "raw:81>9000"]);
    let one = || slice("s-1", "s", &["http:8080", "raw:"], &["10.0.0.1"]);
    let all = || vec![a(), svc().into(), one().into()];
    check(
        all(),
        "10.96.0.1:80",
        &["mesh s/a 10.0.0.1:8080 via 10.0.0.1:15008"],
    );
    check(
        all(),
        "10.96.0.1:81",
        &["mesh s/a 10.0.0.1:9000 via 10.0.0.1:15008"],
    );
    check(all(), "10.96.0.1:8080", &["no_port s"]);
    check(vec![svc().into()], "10.96.0.1:80", &["no_endpoint s"]);
    let outside = slice("s-1", "s", &["http:8080"], &["192.0.2.1"]);
    check(
        vec![svc().into(), outside.into()],
        "10.96.0.1:80",
        &["plain s/- 192.0.2.1:8080"],
    );
    let foreign = slice("s-1", "t", &["http:8080"], &["10.0.0.1"]);
    check(
        vec![svc().into(), foreign.into()],
        "10.96.0.1:80",
        &["no_endpoint s"],
    );
}

#[test]
fn readiness_is_weighed_as_the_api_says() {
    let eps = |endpoints: &[&str]| {
        let service = service("s", &["10.96.0.1"], &[":80>80"]);
        vec![
            service.into(),
            slice("s-1", "s", &[":80"], endpoints).into(),
        ]
    };
    let to = "10.96.0.1:80";
    check(
        eps(&["10.0.0.1", "10.0.0.2 not-ready", "10.0.0.3 draining"]),
        to,
        &["plain s/- 10.0.0.1:80"],
    );
    check(
        eps(&["10.0.0.2 not-ready", "10.0.0.3 draining"]),
        to,
        &["plain s/- 10.0.0.3:80"],
    );
    check(eps(&["10.0.0.2 not-ready"]), to, &["no_endpoint s"]);
    let unready = Service {
        publish_not_ready: true,
        ..service("s", &["10.96.0.1"], &[":80>80"])
    };
    let one = slice("s-1", "s", &[":80"], &["10.0.0.2 not-ready"]);
    check(
        vec![unready.into(), one.into()],
        to,
        &["plain s/- 10.0.0.2:80"],
    );
}

#[test]
fn an_endpoint_is_of_the_virtual_addresss_family() {
    let all = || -> Vec<Object> {
        vec![
            service("s", &["10.96.0.1", "fd96::1"], &[":80>80"]).into(),
            slice("s-4", "s", &[":80"], &["10.0.0.1"]).into(),
            slice("s-6", "s", &[":80"], &["fd00::1"]).into(),
        ]
    };
    check(all(), "10.96.0.1:80", &["plain s/- 10.0.0.1:80"]);
    check(all(), "[fd96::1]:80", &["plain s/- [fd00::1]:80"]);
    check(all()[..2].to_vec(), "[fd96::1]:80", &["no_endpoint s"]);
}

#[test]
fn the_choice_is_spread_evenly_over_every_endpoint_once() {
    let eps = |name: &str, from: u8, to: u8| {
        let ips: Vec<String> = (from..to).map(|i| format!("10.0.0.{i}")).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        slice(name, "s", &[":80"], &ips)
    };
    // Two endpoints stand in both slices.
    let index = index([
        service("s", &["10.96.0.1"], &[":80>80"]).into(),
        eps("s-1", 1, 6).into(),
        eps("s-2", 4, 9).into(),
        pod(CLIENT, "n1", &["10.9.9.9"]).into(),
    ]);
    let snapshot = index.snapshot();
    let client = snapshot.workload("shop", CLIENT).unwrap();
    let to = OriginalDst::new("10.96.0.1:80".parse().unwrap());
    let mut counts = std::collections::BTreeMap::new();
    for i in 0..8_000_u64 {
        let way = words(snapshot.resolve(client, to, (2 * i + 1) * (u64::MAX / 16_000)));
        *counts.entry(way).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [1_000; 8]);
}

#[test]
fn a_local_service_stays_on_the_clients_node() {
    let eps = |endpoints: &[&str]| -> Vec<Object> {
        let service = Service {
            internal_traffic_policy: InternalTrafficPolicy::Local,
            ..service("s", &["10.96.0.1"], &[":80>80"])
        };
        vec![
            service.into(),
            slice("s-1", "s", &[":80"], endpoints).into(),
        ]
    };
    let to = "10.96.0.1:80";
    check(
        eps(&["10.0.0.1 node=n1", "10.0.0.2 node=n2"]),
        to,
        &["plain s/- 10.0.0.1:80"],
    );
    check(
        eps(&["10.0.0.2 node=n2", "10.0.0.3"]),
        to,
        &["no_endpoint s"],
    );
    check(
        eps(&["10.0.0.1 node=n1 draining", "10.0.0.2 node=n2"]),
        to,
        &["plain s/- 10.0.0.1:80"],
    );
}

#[test]
fn near_endpoints_come_first() {
    let eps = |distribution, endpoints: &[&str]| -> Vec<Object> {
        let service = Service {
            traffic_distribution: distribution,
            ..service("s", &["10.96.0.1"], &[":80>80"])
        };
        vec![
            service.into(),
            slice("s-1", "s", &[":80"], endpoints).into(),
        ]
    };
    use TrafficDistribution::{Any, SameNode, SameZone};
    let to = "10.96.0.1:80";
    let [one, two, three] = ["1", "2", "3"].map(|i| format!("plain s/- 10.0.0.{i}:80"));
    let [one, two, three] = [&*one, &*two, &*three];
    let spread = [
        "10.0.0.1 node=n1 zone=z1",
        "10.0.0.2 node=n2 zone=z1",
        "10.0.0.3 node=n3 zone=z2",
    ];
    check(eps(Any, &spread), to, &[one, two, three]);
    check(eps(SameZone, &spread), to, &[one, two]);
    check(eps(SameNode, &spread), to, &[one]);
    check(eps(SameNode, &spread[1..]), to, &[two]);
    check(eps(SameNode, &spread[2..]), to, &[three]);
    check(eps(SameZone, &spread[2..]), to, &[three]);
    // Without zones in the slice, those of the nodes.
    check(
        eps(SameZone, &["10.0.0.1 node=n1", "10.0.0.3 node=n3"]),
        to,
        &[one],
    );
    // Hints go before places, if every endpoint has some.
    let hinted = "10.0.0.3 node=n3 zone=z2 for-zone=z1 for-node=n1";
    check(
        eps(SameZone, &["10.0.0.2 zone=z1 for-zone=z2", hinted]),
        to,
        &[three],
    );
    check(eps(SameZone, &["10.0.0.2 zone=z1", hinted]), to, &[two]);
    check(
        eps(SameNode, &["10.0.0.1 node=n1 for-node=n2", hinted]),
        to,
        &[three],
    );
    check(
        eps(Any, &["10.0.0.2 zone=z1 for-zone=z2", hinted]),
        to,
        &[two, three],
    );
    // An endpoint that is near and not ready is no endpoint.
    check(
        eps(SameNode, &["10.0.0.1 node=n1 draining", spread[2]]),
        to,
        &[three],
    );
}

#[test]
fn a_nodes_zone_reaches_pods_and_services_at_any_time() {
    let near = Service {
        traffic_distribution: TrafficDistribution::SameZone,
        ..service("s", &["10.96.0.1"], &[":80>80"])
    };
    let mut index = index([
        near.into(),
        slice(
            "s-1",
            "s",
            &[":80"],
            &["10.0.0.1 node=n1", "10.0.0.2 node=n2"],
        )
        .into(),
        pod(CLIENT, "n1", &["10.9.9.9"]).into(),
    ]);
    let mut ways = |changes: &[Object]| {
        index.apply(
            changes
                .iter()
                .cloned()
                .map(Change::Upsert)
                .collect::<Vec<_>>(),
        );
        let snapshot = index.snapshot();
        let client = snapshot.workload("shop", CLIENT).unwrap();
        let at = snapshot.workload_at([10, 9, 9, 9].into()).unwrap();
        assert!(Arc::ptr_eq(client, at));
        assert!(snapshot.on_node("n1").any(|w| Arc::ptr_eq(w, client)));
        let to = OriginalDst::new("10.96.0.1:80".parse().unwrap());
        let ends = [0, u64::MAX].map(|draw| words(snapshot.resolve(client, to, draw)));
        (
            client.zone.to_string(),
            ends.map(|way| way.replace("plain s/- ", "")),
        )
    };
    let (one, two) = ("10.0.0.1:80".to_owned(), "10.0.0.2:80".to_owned());
    assert_eq!(ways(&[]), (String::new(), [one.clone(), two.clone()]));
    assert_eq!(
        ways(&[node("n1", "z1")]),
        ("z1".into(), [one.clone(), one.clone()])
    );
    assert_eq!(ways(&[node("n2", "z1")]), ("z1".into(), [one, two.clone()]));
    assert_eq!(
        ways(&[node("n1", "z2"), node("n2", "z2"), node("n1", "z3")]).0,
        "z3"
    );
}

#[test]
fn a_namespaces_label_reaches_its_pods_at_any_time() {
    let bare = |name: &str| Pod {
        labels: Labels::default(),
        ..pod(name, "n1", &[])
    };
    let mut index = index([bare("a").into(), bare("b").into()]);
    let enrolled = |index: &Index| {
        let snapshot = index.snapshot();
        let on = snapshot
            .on_node("n1")
            .filter(|workload| workload.enrolled());
        assert_eq!(on.count(), snapshot.counts().enrolled);
        snapshot.counts().enrolled
    };
    assert_eq!(enrolled(&index), 0);
    let on = namespace("shop", "adit.mesh/mode=ambient");
    index.apply(&[Change::Upsert(on.clone())]);
    assert_eq!(enrolled(&index), 2);
    index.apply(&[Change::Upsert(bare("c").into())]);
    assert_eq!(enrolled(&index), 3);
    index.apply(&[Change::Upsert(namespace("shop", "x=y"))]);
    assert_eq!(enrolled(&index), 0);
    index.apply(&[Change::Upsert(on.clone())]);
    index.apply(&[Change::Remove(key(&on))]);
    assert_eq!(enrolled(&index), 0);
    let snapshot = index.snapshot();
    let a = snapshot.workload("shop", "a").unwrap();
    assert_eq!(a.enrolment, Enrolment::Bypass(Bypass::NotLabelled));
}

#[test]
fn a_service_goes_before_a_pod_and_the_first_service_before_others() {
    let mut index = index([
        a(),
        service("s", &["10.0.0.1"], &[]).into(),
        service("r", &["10.0.0.1"], &[]).into(),
    ]);
    let at = |index: &Index| {
        let snapshot = index.snapshot();
        let ip = [10, 0, 0, 1].into();
        let client = snapshot.workload("shop", "a").unwrap();
        let way = snapshot.resolve(client, OriginalDst::new((ip, 80).into()), 0);
        (
            snapshot.service_at(ip).map(|s| s.name.to_string()),
            words(way),
        )
    };
    assert_eq!(at(&index), (Some("r".into()), "no_port r".into()));
    index.apply(&[Change::Upsert(service("r", &["10.0.0.2"], &[]).into())]);
    assert_eq!(at(&index), (Some("s".into()), "no_port s".into()));
    index.apply(&[Change::Remove(key(&service("s", &[], &[]).into()))]);
    let own = "mesh a 10.0.0.1:80 via 10.0.0.1:15008";
    assert_eq!(at(&index), (None, own.into()));
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mut index = index([a()]);
    let before = index.snapshot();
    index.apply(&[Change::Remove(key(&a()))]);
    index.apply(&[Change::Upsert(pod("b", "n1", &["10.0.0.1"]).into())]);
    assert_eq!(
        &*before.workload_at([10, 0, 0, 1].into()).unwrap().name,
        "a"
    );
    assert_eq!(before.workloads().count(), 1);
    assert_eq!(before.on_node("n1").count(), 1);
}

#[test]
fn what_cannot_have_an_identity_is_rejected_and_keeps_its_last_version() {
    let mut index = index([a()]);
    let bad = Pod {
        service_account: "no/such".into(),
        ..pod("a", "n2", &["10.0.0.1"])
    };
    let rejected = index.apply(&[Change::Upsert(bad.into())]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(&*index.snapshot().workload("shop", "a").unwrap().node, "n1");
}

/// Everything a snapshot answers, in an order of its own.
fn dump(index: &Index) -> String {
    let snapshot = index.snapshot();
    let mut lines = vec![format!("{:?}", snapshot.counts())];
    let ips = (0..8_u8).flat_map(|i| {
        [
            IpAddr::from([10, 0, 0, i]),
            IpAddr::from([10, 96, 0, i]),
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(i)]),
        ]
    });
    let clients: Vec<Arc<Workload>> = snapshot.workloads().cloned().collect();
    for workload in &clients {
        lines.push(format!("{workload:?}"));
    }
    for ip in ips {
        lines.push(format!(
            "{ip} {:?}",
            snapshot.workload_at(ip).map(|w| &w.name)
        ));
        lines.push(format!("{ip} {:?}", snapshot.service_at(ip)));
        for (client, port) in clients.iter().flat_map(|c| [(c, 80), (c, 81)]) {
            let ways = [0, u64::MAX / 3, u64::MAX / 2, u64::MAX].map(|draw| {
                words(snapshot.resolve(client, OriginalDst::new((ip, port).into()), draw))
            });
            lines.push(format!("{} {ip}:{port} {ways:?}", client.name));
        }
    }
    for node in ["n0", "n1", "n2"] {
        for workload in snapshot.on_node(node) {
            lines.push(format!("{node} {}", workload.name));
        }
    }
    for service in snapshot.services() {
        let endpoints: Vec<_> = snapshot.endpoints(service).collect();
        for client in &clients {
            let mut backends = endpoints.iter().flat_map(|(_, _, backends)| *backends);
            let among = backends.any(|backend| client.ips.contains(&backend.ip));
            assert_eq!(snapshot.selects(service, client), among);
        }
        lines.push(format!("{} {endpoints:?}", service.name));
    }
    lines.sort();
    lines.join("\n")
}

/// Objects of few names and addresses, so that they meet.
fn objects() -> impl Strategy<Value = Object> {
    let ip = |i: u8| format!("10.0.0.{i}");
    let pods = (0..6_u8, 0..3_u8, 0..6_u8, 0..6_u8, 0..3_u64).prop_map(
        move |(name, on, at, odd, created)| {
            let v6 = format!("fd00::{at}");
            let mut pod = pod(&format!("p{name}"), &format!("n{on}"), &[&ip(at), &v6]);
            pod.created = created;
            match odd {
                0 => pod.phase = Phase::Finished,
                1 => pod.host_network = true,
                2 => pod.terminating = true,
                3 => pod.labels = Labels::default(),
                4 => pod.phase = Phase::Pending,
                _ => {}
            }
            pod.into()
        },
    );
    let services = (0..3_u8, 0..4_u8, 0..4_u8).prop_map(|(name, at, odd)| {
        let vip = format!("10.96.0.{at}");
        let mut service = service(&format!("s{name}"), &[&vip], &["a:80>8080", "b:81>x"]);
        match odd {
            0 => service.internal_traffic_policy = InternalTrafficPolicy::Local,
            1 => service.traffic_distribution = TrafficDistribution::SameZone,
            2 => service.traffic_distribution = TrafficDistribution::SameNode,
            _ => {}
        }
        service.into()
    });
    let endpoint = (0..8_u8, 0..3_u8, 0..4_u8).prop_map(|(at, on, odd)| {
        let odd = ["", " not-ready", " draining", " zone=z1"][usize::from(odd)];
        format!("10.0.0.{at} node=n{on}{odd}")
    });
    let endpoints = prop::collection::vec(endpoint, 0..5);
    let slices = (0..4_u8, 0..3_u8, endpoints).prop_map(|(name, of, endpoints)| {
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let (name, of) = (format!("e{name}"), format!("s{of}"));
        slice(&name, &of, &["a:", "b:9090"], &endpoints).into()
    });
    prop_oneof![
        6 => pods,
        3 => services,
        3 => slices,
        1 => (0..3_u8, 0..3_u8).prop_map(|(n, z)| node(&format!("n{n}"), &format!("z{z}"))),
        1 => any::<bool>().prop_map(|on| {
            namespace("shop", if on { "adit.mesh/mode=ambient" } else { "" })
        }),
    ]
}

proptest! {
    #[test]
    fn a_snapshot_depends_on_the_objects_and_not_on_their_order(
        steps in prop::collection::vec((objects(), 0..4_u8), 0..60),
        shuffled in any::<prop::sample::Index>(),
    ) {
        let mut incremental = Index::new(settings());
        let mut last = std::collections::BTreeMap::new();
        for (object, action) in steps {
            let key = key(&object);
            if action == 0 {
                incremental.apply(&[Change::Remove(key.clone())]);
                last.remove(&key);
            } else {
                incremental.apply(&[Change::Upsert(object.clone())]);
                last.insert(key, object);
            }
        }
        let mut rest: Vec<Object> = last.into_values().collect();
        let whole = index(rest.clone());
        prop_assert_eq!(dump(&incremental), dump(&whole));
        if !rest.is_empty() {
            let by = shuffled.index(rest.len());
            rest.rotate_left(by);
            rest.reverse();
        }
        prop_assert_eq!(dump(&index(rest.clone())), dump(&whole));
        // And back to nothing.
        for object in &rest {
            incremental.apply(&[Change::Remove(key(object))]);
        }
        prop_assert_eq!(dump(&incremental), dump(&Index::new(settings())));
    }
}

#[test]
fn where_nodes_mark_what_they_captured_a_pod_of_another_one_must_be_marked() {
    let check = |marking: Option<&str>, node: &str, marked: bool, label: &str, tunnel: bool| {
        let settings = Settings {
            marking: marking.map(str::to_owned),
            ..settings()
        };
        let mut index = Index::new(settings);
        let mut pod = pod("a", node, &["10.0.0.1"]);
        pod.marked = marked;
        pod.labels = labels(label);
        index.apply([Change::Upsert(Object::Pod(Box::new(pod)))]);
        let snapshot = index.snapshot();
        let pod = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
        let case = format!("{marking:?} {node} {marked} {label}");
        assert_eq!(pod.tunnelled(), tunnel, "{case}");
        assert_eq!(pod.enrolled(), !label.is_empty(), "{case}");
    };
    let ambient = "adit.mesh/mode=ambient";
    for marked in [false, true] {
        check(None, "n2", marked, ambient, true);
        check(None, "n2", marked, "", false);
        // Our own node's pods are ours to capture, whatever an old mark says.
        check(Some("n1"), "n1", marked, ambient, true);
        check(Some("n1"), "n1", marked, "", false);
        check(Some("n1"), "n2", marked, ambient, marked);
        check(Some("n1"), "n2", marked, "", marked);
    }
}
