//! The index: who is behind an address, and how changes of the files take effect.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::RELOAD;
use crate::support::{Lab, Outcome, Pod, adit, within};
use crate::target;

/// Who answers `calls` calls to `to`, and how often each.
#[track_caller]
fn spread(from: &Pod, to: SocketAddr, calls: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..calls {
        let outcome = from.call(to);
        let by = outcome
            .by()
            .unwrap_or_else(|| panic!("a call to {to}: {outcome:?}"));
        *answers.entry(by.to_owned()).or_default() += 1;
    }
    answers
}

/// Only those named answer, and each of them does.
#[track_caller]
fn only(from: &Pod, to: SocketAddr, names: &[&str]) {
    let answers = spread(from, to, 16 * names.len());
    let who: Vec<&str> = answers.keys().map(String::as_str).collect();
    assert_eq!(who, names, "{answers:?}");
}

#[test]
fn a_service_leads_to_a_pod_of_another_node_of_this_node_and_to_oneself() {
    let mut lab = Lab::new();
    let (a, near, far) = (lab.pod(1, "a"), lab.pod(1, "near"), lab.pod(2, "far"));
    let mut vips = Vec::new();
    for pod in [&a, &near, &far] {
        vips.push((
            pod,
            lab.service(&format!("to-{}", pod.name()))
                .port("http", 80, 8080)
                .to(&[pod])
                .add(),
        ));
    }
    lab.start();
    let _servers = [a.greet(8080), near.greet(8080), far.greet(8080)];
    for (pod, (v4, v6)) in vips {
        for vip in [v4, v6] {
            a.call((vip, 80).into())
                .assert_served(pod.name(), a.ip_like(vip));
        }
    }
    let record = lab.daemon(1).record("the service is named", |r| {
        r.is("direction", "outbound") && r.is("dst.workload", "far")
    });
    assert!(
        record.text("dst.service").starts_with("to-far.mesh.svc"),
        "{record:?}"
    );
}

#[test]
fn connections_are_spread_evenly_over_the_ready_endpoints() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let pods = [
        lab.pod(1, "w1"),
        lab.pod(1, "w2"),
        lab.pod(2, "w3"),
        lab.pod(2, "w4"),
    ];
    let (v4, _) = lab
        .service("web")
        .port("http", 80, 8080)
        .to(&[&pods[0], &pods[1], &pods[2], &pods[3]])
        .add();
    lab.start();
    let _servers: Vec<_> = pods.iter().map(|p| p.greet(8080)).collect();
    let answers = spread(&a, (v4, 80).into(), 200);
    // Fifty each on average, with a standard deviation of 6 were the draw independent: five of
    // them are a mistake in fewer than one run in a million.
    assert!(
        answers.len() == 4 && answers.values().all(|n| (20..=80).contains(n)),
        "{answers:?}"
    );
}

#[test]
fn every_port_of_a_service_leads_where_it_says() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (v4, v6) = lab
        .service("web")
        .port("http", 80, 8080)
        .named_port("admin", 9000, "admin-port", 9001)
        .port("same", 7070, 7070)
        .to(&[&b])
        .add();
    lab.start();
    let _servers: Vec<_> = [8080, 9001, 7070]
        .map(|port| b.listen(port).greet(&format!("p{port}")))
        .into();
    for (port, target) in [(80, "p8080"), (9000, "p9001"), (7070, "p7070")] {
        for vip in [v4, v6] {
            assert_eq!(
                a.call((vip, port).into()).by(),
                Some(target),
                "port {port} of {vip}"
            );
        }
    }
    let outcome = a.call_for((v4, 81).into(), Duration::from_secs(3));
    assert!(
        !outcome.served(),
        "a port that the service has not: {outcome:?}"
    );
}

#[test]
fn only_ready_endpoints_are_chosen() {
    let mut lab = Lab::new();
    let (a, ready, not) = (lab.pod(1, "a"), lab.pod(2, "ready"), lab.pod(2, "unready"));
    let (strict, _) = lab
        .service("strict")
        .port("http", 80, 8080)
        .endpoint(&ready, true)
        .endpoint(&not, false)
        .add();
    let (lax, _) = lab
        .service("lax")
        .port("http", 80, 8080)
        .endpoint(&ready, true)
        .endpoint(&not, false)
        .spec("publishNotReadyAddresses", json!(true))
        .add();
    lab.start();
    let _servers = [ready.greet(8080), not.greet(8080)];
    only(&a, (strict, 80).into(), &["ready"]);
    only(&a, (lax, 80).into(), &["ready", "unready"]);
    a.call(not.at(8080)).assert_served("unready", a.ip());
}

#[test]
fn a_local_traffic_policy_keeps_to_the_node() {
    let mut lab = Lab::new();
    let (a, far_client) = (lab.pod(1, "a"), lab.pod(2, "far-client"));
    let (near, far) = (lab.pod(1, "near"), lab.pod(2, "far"));
    let local = json!("Local");
    let (both, _) = lab
        .service("both")
        .port("http", 80, 8080)
        .to(&[&near, &far])
        .spec("internalTrafficPolicy", local.clone())
        .add();
    let (one, _) = lab
        .service("one")
        .port("http", 80, 8080)
        .to(&[&near])
        .spec("internalTrafficPolicy", local)
        .add();
    lab.start();
    let _servers = [near.greet(8080), far.greet(8080)];
    only(&a, (both, 80).into(), &["near"]);
    only(&far_client, (both, 80).into(), &["far"]);
    assert_eq!(
        far_client.call((one, 80).into()),
        Outcome::Reset,
        "there is none on its node"
    );
}

#[test]
fn a_service_without_ready_endpoint_resets_and_says_so() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (empty, _) = lab.service("empty").port("http", 80, 8080).add();
    let (unready, _) = lab
        .service("unready")
        .port("http", 80, 8080)
        .endpoint(&b, false)
        .add();
    lab.start();
    let _server = b.greet(8080);
    for (vip, name) in [(empty, "empty"), (unready, "unready")] {
        let begin = Instant::now();
        assert_eq!(a.call((vip, 80).into()), Outcome::Reset);
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "it is told at once"
        );
        let record = lab
            .daemon(1)
            .record("no endpoint", |r| r.text("dst.service").starts_with(name));
        assert_eq!(crate::reason(&record), "no_endpoint", "{record:?}");
    }
    let failed = lab.daemon(1).metric(
        "istio_tcp_connections_failed_total",
        &[("source_workload", "a")],
    );
    assert!(failed == 2.0, "{failed}");
}

#[test]
fn headless_services_need_nothing_and_external_names_are_no_fault() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.service("headless")
        .port("http", 80, 8080)
        .to(&[&b])
        .spec("clusterIP", json!("None"))
        .spec("clusterIPs", json!(["None"]))
        .add();
    lab.cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: outside, namespace: mesh}\nspec: {type: ExternalName, externalName: example.com}\n",
    );
    lab.start();
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
    assert!(
        lab.daemon(1)
            .lines()
            .iter()
            .all(|l| !["WARN", "ERROR"].contains(&l.text("level").as_str()))
    );
}

#[test]
fn a_service_without_selector_leads_to_the_addresses_of_its_slices() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let outside = lab.stranger(2, "outside");
    let (v4, v6) = lab
        .service("db")
        .port("sql", 5432, 15432)
        .address(outside.v4())
        .address(outside.v6())
        .add();
    lab.start();
    let _server = outside.greet(15432);
    for vip in [v4, v6] {
        a.call((vip, 5432).into())
            .assert_served("outside", a.ip_like(vip));
    }
}

#[test]
fn near_endpoints_are_preferred_and_far_ones_stand_in() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let (near, far) = (lab.pod(1, "near"), lab.pod(2, "far"));
    let vips: Vec<_> = ["PreferClose", "PreferSameZone", "PreferSameNode"]
        .into_iter()
        .map(|wish| {
            let name = wish.to_lowercase();
            let service = lab.service(&name).port("http", 80, 8080).to(&[&near, &far]);
            (
                name,
                service.spec("trafficDistribution", json!(wish)).add().0,
            )
        })
        .collect();
    lab.start();
    let _servers = [near.greet(8080), far.greet(8080)];
    for (_, vip) in &vips {
        only(&a, (*vip, 80).into(), &["near"]);
    }
    for (name, _) in &vips {
        for family in ["ipv4", "ipv6"] {
            lab.cluster.edit(
                "EndpointSlice",
                "mesh",
                &format!("{name}-{family}"),
                |slice| {
                    slice["endpoints"][0]["conditions"]["ready"] = json!(false);
                },
            );
        }
    }
    lab.publish();
    for (name, vip) in &vips {
        within(RELOAD, &format!("{name} falls back"), || {
            let outcome = a.call((*vip, 80).into());
            if outcome.by() == Some("far") {
                Ok(())
            } else {
                Err(outcome)
            }
        });
    }
}

#[test]
fn a_zone_is_preferred_over_another_node_of_a_far_one() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let (same, other) = (lab.pod(2, "same"), lab.pod(2, "other"));
    let (vip, _) = lab
        .service("web")
        .port("http", 80, 8080)
        .to(&[&same, &other])
        .spec("trafficDistribution", json!("PreferSameZone"))
        .add();
    // The endpoints of one node are put into two zones: the slice says where each is.
    for family in ["ipv4", "ipv6"] {
        lab.cluster
            .edit("EndpointSlice", "mesh", &format!("web-{family}"), |slice| {
                slice["endpoints"][0]["zone"] = json!("zone1");
            });
    }
    lab.cluster.edit("Node", "", "node2", |node| {
        node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!("zone2");
    });
    lab.start();
    let _servers = [same.greet(8080), other.greet(8080)];
    only(&a, (vip, 80).into(), &["same"]);
}

#[test]
fn an_unknown_address_passes_through_and_is_recorded() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let stranger = lab.stranger(2, "stranger");
    lab.start();
    let _server = stranger.greet(8080);
    a.call(stranger.at(8080)).assert_served("stranger", a.ip());
    let to = stranger.at(8080).to_string();
    let record = lab.daemon(1).record("the call", |r| target(r) == to);
    assert!(
        record.has(&[("direction", "outbound"), ("src.workload", "a")]),
        "{record:?}"
    );
    assert!(
        record.text("dst.workload").is_empty() || record.is("dst.workload", "unknown"),
        "{record:?}"
    );
    let closed = lab.daemon(1).metric(
        "istio_tcp_connections_closed_total",
        &[
            ("destination_workload", "unknown"),
            ("connection_security_policy", "unknown"),
        ],
    );
    assert!(closed == 1.0, "{closed}");
}

#[test]
fn a_running_pod_wins_an_address_over_a_finished_one() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    // The older ones come first and last by name, and neither owns the address any more.
    for name in ["aaa", "zzz"] {
        lab.cluster.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "mesh", "uid": name, "annotations": { "adit.mesh/netns": b.netns().path() } },
            "spec": { "nodeName": "node2", "serviceAccountName": "job", "containers": [] },
            "status": { "phase": if name == "aaa" { "Succeeded" } else { "Failed" }, "podIP": b.v4(), "podIPs": [{ "ip": b.v4() }, { "ip": b.v6() }] },
        }));
    }
    lab.start();
    let _server = b.greet(8080);
    for ip in b.ips() {
        a.call((ip, 8080).into()).assert_served("b", a.ip_like(ip));
    }
    let record = lab
        .daemon(1)
        .record("the call", |r| r.is("direction", "outbound"));
    assert!(
        record.has(&[("dst.workload", "b"), ("dst.identity", &b.identity())]),
        "{record:?}"
    );
}

#[test]
fn an_address_claimed_twice_is_the_younger_pods_on_every_node() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    // Names on both sides of its own: the order of the objects plays no part.
    for name in ["aaa", "zzz"] {
        lab.cluster.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "mesh", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "nodeName": "node9", "serviceAccountName": name, "containers": [] },
            "status": { "phase": "Running", "podIP": b.v4(), "podIPs": [{ "ip": b.v4() }] },
        }));
    }
    let born = |lab: &mut Lab, when: &str| {
        lab.cluster.edit("Pod", "mesh", "b", |pod| {
            pod["metadata"]["creationTimestamp"] = json!(when)
        });
        lab.publish();
    };
    let owner = |lab: &Lab, node: usize| {
        let run_dir = lab.launch(node).run_dir.display().to_string();
        let to = b.at(8080).to_string();
        let told = adit(
            None,
            &[
                "explain",
                "mesh/a",
                &to,
                "--run-dir",
                &run_dir,
                "-o",
                "json",
            ],
        );
        let told: serde_json::Value =
            serde_json::from_str(&told.answer).map_err(|_| told.output)?;
        Ok::<_, String>(
            told["destination"]["pod"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    born(&mut lab, "2026-02-01T00:00:00Z");
    let daemons = [lab.launch(1).spawn(), lab.launch(2).spawn()];
    for (n, mut daemon) in daemons.into_iter().enumerate() {
        daemon.await_ready();
        lab.install(n + 1, daemon);
    }
    lab.daemon(2).says(&["address claimed twice", "mesh/aaa"]);
    let _server = b.greet(8080);
    assert_eq!(
        [owner(&lab, 1), owner(&lab, 2)],
        [Ok("mesh/b".to_owned()), Ok("mesh/b".to_owned())]
    );
    a.call(b.at(8080)).assert_served("b", a.ip());
    born(&mut lab, "2025-12-01T00:00:00Z");
    within(
        RELOAD,
        "the younger one owns it, on both nodes alike",
        || {
            let owners = [owner(&lab, 1), owner(&lab, 2)];
            if owners.iter().all(|o| o.as_deref() == Ok("mesh/zzz")) {
                Ok(())
            } else {
                Err(owners)
            }
        },
    );
}

#[test]
fn a_pod_on_its_nodes_network_is_reached_in_plain_and_never_captured() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let node = lab.node(2).ip();
    for n in [1, 2] {
        lab.cluster.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("agent{n}"), "namespace": "mesh", "uid": format!("agent{n}"),
                "annotations": { "adit.mesh/netns": lab.node(n).netns().path() } },
            "spec": { "nodeName": format!("node{n}"), "hostNetwork": true, "serviceAccountName": "agent", "containers": [] },
            "status": { "phase": "Running", "podIP": lab.node(n).ip(), "podIPs": [{ "ip": lab.node(n).ip() }] },
        }));
    }
    lab.start();
    assert_eq!(lab.node(1).netns().run("nft", &["list", "tables"]), "");
    let any: SocketAddr = ([0, 0, 0, 0], 8080).into();
    let _server = crate::support::Listener::open(lab.node(2).netns(), any)
        .expect("the port is free")
        .greet("agent2");
    a.call((node, 8080).into()).assert_served("agent2", a.ip());
    let _own = a.greet(8080);
    let outcome = Outcome::of_call(lab.node(2).netns(), a.at(8080), Duration::from_secs(5));
    outcome.assert_served("a", lab.node(2).ip());
}

#[test]
fn a_pod_that_moves_to_another_address_is_followed() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
    let moved: IpAddr = [10, 1, 2, 99].into();
    b.netns().ip(
        "addr del 10.1.2.2/24 dev eth0\naddr add 10.1.2.99/24 dev eth0\nroute add default via 10.1.2.1",
    );
    lab.cluster.edit("Pod", "mesh", "b", |pod| {
        pod["status"]["podIP"] = json!(moved);
        pod["status"]["podIPs"][0]["ip"] = json!(moved);
    });
    lab.publish();
    // Until the file is read the address is nobody's, and the call passes through in plain.
    let to = SocketAddr::new(moved, 8080);
    within(2 * RELOAD, "it is reached there, by tunnel", || {
        let outcome = a.call_for(to, Duration::from_secs(3));
        let records = lab.daemon(1).records();
        let last = records
            .iter()
            .find(|r| target(r) == to.to_string() && r.is("dst.identity", &b.identity()));
        if outcome.served() && last.is_some() {
            Ok(())
        } else {
            Err((outcome, records))
        }
    });
}
