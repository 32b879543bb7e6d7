//! Changes, in any order: later ones reach what came before, and a snapshot stays.

use super::*;

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
fn when_our_own_namespace_goes_nobody_is_enrolled_any_more() {
    let going = |name: &str| match namespace(name, "adit.mesh/mode=ambient") {
        Object::Namespace(mut namespace) => {
            namespace.terminating = true;
            Object::Namespace(namespace)
        }
        other => other,
    };
    let check = |home: Option<&str>, change: Change, over: bool| {
        let mut index = Index::new(Settings {
            home: home.map(str::to_owned),
            ..settings()
        });
        index.apply([a(), namespace("home", "")].map(Change::Upsert));
        index.apply([&change]);
        // What comes later does not bring it back.
        index.apply(
            [pod("b", "n1", &["10.0.0.2"]).into(), namespace("home", "")].map(Change::Upsert),
        );
        assert_eq!(index.is_over(), over, "{home:?} {change:?}");
        let enrolled = index.snapshot().counts().enrolled;
        assert_eq!(enrolled, if over { 0 } else { 2 }, "{home:?} {change:?}");
    };
    check(Some("home"), Change::Upsert(going("home")), true);
    check(Some("home"), Change::Remove(key(&going("home"))), true);
    check(Some("home"), Change::Upsert(going("other")), false);
    check(
        Some("home"),
        Change::Upsert(namespace("home", "a=b")),
        false,
    );
    check(None, Change::Upsert(going("home")), false);
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
    let pods = (0..6_u8, 0..3_u8, 0..6_u8, 0..7_u8, 0..3_u64).prop_map(
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
                5 => pod.runtime_class = "kata".into(),
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
