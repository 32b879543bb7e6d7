//! Enrolment: pods come under capture and leave it while they live, and the kernel's state is
//! mended, whatever happens to it or to the daemon.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::RELOAD;
use crate::VERIFY;
use crate::support::{Conn, Lab, Outcome, Pod, Server, eventually, holds_for, poll, within};
use crate::target;

/// A pod that is enrolled while it has a connection in each direction.
struct Enrolment {
    lab: Lab,
    pod: Pod,
    other: Pod,
    outgoing: Conn,
    incoming: Conn,
    _servers: Vec<Server>,
}

#[track_caller]
fn enrol_with_connections(existing: &'static str, ip: impl Fn(&Pod) -> IpAddr) -> Enrolment {
    let mut lab = Lab::new();
    let pod = lab.pod_with(1, "pod", |p| _ = p.label("adit.mesh/mode", "none"));
    let other = lab.plain_pod(2, "other");
    lab.start_with(|l| l.args(&["--existing", existing]));
    let _servers = vec![pod.greet(8080), other.greet(8080)];
    let outgoing = pod.dial_greeter((ip(&other), 8080).into());
    let incoming = other.dial_greeter((ip(&pod), 8080).into());
    assert!(!pod.has_rules());
    lab.cluster
        .label("Pod", "mesh", "pod", "adit.mesh/mode", None);
    lab.publish();
    eventually(2 * RELOAD, "the pod is enrolled", || pod.has_rules());
    Enrolment {
        lab,
        pod,
        other,
        outgoing,
        incoming,
        _servers,
    }
}

#[track_caller]
fn new_connections_are_captured(lab: &mut Lab, pod: &Pod, other: &Pod) {
    within(2 * RELOAD, "a new call is carried", || {
        let outcome = pod.call(other.at(8080));
        if outcome.served() {
            Ok(())
        } else {
            Err(outcome)
        }
    });
    let (to, name) = (other.at(8080).to_string(), pod.name().to_owned());
    lab.daemon(1).record("the new call", |r| {
        r.has(&[("direction", "outbound"), ("src.workload", &name)]) && target(r) == to
    });
}

#[test]
fn connections_open_at_enrolment_go_on_living_and_new_ones_are_captured() {
    for family in [Pod::v4, Pod::v6] {
        let mut world = enrol_with_connections("keep", family);
        for round in 0..20 {
            let bytes = format!("round {round}").repeat(1000);
            world
                .outgoing
                .echoes(bytes.as_bytes())
                .expect("the outgoing connection lives on");
            world
                .incoming
                .echoes(bytes.as_bytes())
                .expect("the incoming connection lives on");
        }
        new_connections_are_captured(&mut world.lab, &world.pod, &world.other);
        world
            .outgoing
            .echoes(b"again")
            .expect("the outgoing connection lives on");
        eventually(Duration::from_secs(6), "both are counted", || {
            world.lab.daemon(1).metric("adit_connections_kept", &[]) == 2.0
        });
        world.outgoing.finish();
        assert_eq!(
            world.outgoing.ending(),
            Outcome::Closed,
            "it also ends as it should"
        );
        world.incoming.finish();
        assert_eq!(world.incoming.ending(), Outcome::Closed);
    }
}

#[test]
fn connections_open_at_enrolment_are_reset_where_that_is_asked() {
    let mut world = enrol_with_connections("reset", Pod::v4);
    for conn in [&world.outgoing, &world.incoming] {
        conn.patience(Duration::from_secs(5));
        assert_eq!(conn.ending(), Outcome::Reset);
    }
    new_connections_are_captured(&mut world.lab, &world.pod, &world.other);
}

#[test]
fn a_pod_that_is_released_is_left_exactly_as_it_was_found() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let plain = lab.plain_pod(2, "plain");
    a.netns()
        .nft("add table inet own\nadd chain inet own c { type filter hook input priority 0; }\n");
    a.netns()
        .ip("rule add fwmark 0x777 pref 50 lookup 77\nroute add local default dev lo table 77");
    let _servers = [a.greet(8080), b.greet(8080), plain.greet(8080)];
    let before = a.netns().state();
    lab.start();
    assert_ne!(
        a.netns().state(),
        before,
        "capture leaves traces, or this test sees nothing"
    );

    let outgoing = a.dial_greeter(b.at(8080));
    let incoming = b.dial_greeter((a.v6(), 8080).into());
    lab.cluster
        .label("Pod", "mesh", "a", "adit.mesh/mode", Some("none"));
    lab.publish();
    // Nobody stands between the two any more: the server sees the client's own port.
    within(2 * RELOAD, "new calls are no longer captured", || {
        let conn = a.dial(plain.at(8080));
        let from = conn.line().map_err(|e| e.to_string())?;
        let port = conn.local().port().to_string();
        if from.ends_with(&format!(":{port}")) {
            Ok(())
        } else {
            Err(from)
        }
    });
    for conn in [&outgoing, &incoming] {
        conn.echoes(b"still carried")
            .expect("a live connection is drained, not cut");
    }
    outgoing.finish();
    assert_eq!(outgoing.ending(), Outcome::Closed);
    incoming.finish();
    assert_eq!(incoming.ending(), Outcome::Closed);
    left_as_found(&a, &before);
    b.call(a.at(8080)).assert_served("a", b.ip());
    a.call(b.at(8080)).assert_served("b", a.ip());
}

#[track_caller]
fn left_as_found(pod: &Pod, before: &str) {
    within(VERIFY, "the namespace is as it was found", || {
        let now = pod.netns().state();
        if now == before { Ok(()) } else { Err(now) }
    });
}

#[test]
fn live_connections_of_a_released_pod_end_when_the_time_to_drain_is_over() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let _server = b.greet(8080);
    let before = a.netns().state();
    lab.start_with(|l| l.drain("2s"));
    let live = a.dial_greeter(b.at(8080));
    lab.cluster
        .label("Pod", "mesh", "a", "adit.mesh/mode", Some("none"));
    lab.publish();
    left_as_found(&a, &before);
    assert_eq!(
        live.ending(),
        Outcome::Reset,
        "an end by force is no clean end"
    );
}

#[test]
fn a_pod_that_leaves_the_file_is_released() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.plain_pod(2, "b"));
    let _server = b.greet(8080);
    let before = a.netns().state();
    lab.start();
    a.call(b.at(8080)).assert_served("b", a.ip());
    lab.cluster.remove("Pod", "mesh", "a");
    lab.publish();
    left_as_found(&a, &before);
    a.call(b.at(8080)).assert_served("b", a.ip());
}

#[test]
fn a_namespace_label_enrols_and_releases_its_pods() {
    let mut lab = Lab::one_node();
    let a = lab.plain_pod(1, "a");
    let opted_out = lab.pod_with(1, "out", |p| {
        _ = p.namespace("plain").label("adit.mesh/mode", "none")
    });
    let opted_in = lab.pod_with(1, "in", |p| {
        _ = p.namespace("plain").label("adit.mesh/mode", "ambient")
    });
    let before = a.netns().state();
    lab.start();
    assert!(!a.has_rules());
    assert!(opted_in.has_rules(), "the pod's own label enrols it");
    lab.cluster.edit("Namespace", "", "plain", |n| {
        n["metadata"]["labels"] = serde_json::json!({ "adit.mesh/mode": "ambient" });
    });
    lab.publish();
    eventually(2 * RELOAD, "the pod is enrolled", || a.has_rules());
    assert!(!opted_out.has_rules(), "the pod's own label opts out");
    lab.cluster
        .label("Namespace", "", "plain", "adit.mesh/mode", None);
    lab.publish();
    left_as_found(&a, &before);
    assert!(opted_in.has_rules());
}

#[test]
fn the_fields_own_label_enrols_where_that_is_asked() {
    let mut lab = Lab::one_node();
    lab.namespace("istio", &[("istio.io/dataplane-mode", "ambient")]);
    let own = lab.pod(1, "own");
    let field = lab.pod_with(1, "field", |p| _ = p.namespace("istio"));
    lab.start();
    assert!(own.has_rules() && !field.has_rules());
    lab.daemon(1).kill();
    let labels = [
        "--enrol-label",
        "adit.mesh/mode=ambient",
        "--enrol-label",
        "istio.io/dataplane-mode=ambient",
    ];
    lab.start_with(|l| l.args(&labels));
    assert!(own.has_rules() && field.has_rules());
}

#[test]
fn rules_removed_by_hand_are_put_back() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.plain_pod(2, "b"));
    lab.start();
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
    let rules = a.netns().run("nft", &["list", "ruleset"]);
    let (policy, routes) = (
        a.netns().run("ip", &["rule"]),
        a.netns().run("ip", &["route", "show", "table", "all"]),
    );

    a.netns().run("nft", &["flush", "ruleset"]);
    eventually(VERIFY, "the table is back", || a.has_rules());
    assert_eq!(
        strip_counters(&a.netns().run("nft", &["list", "ruleset"])),
        strip_counters(&rules)
    );

    a.netns().run("ip", &["rule", "flush"]);
    a.netns()
        .ip("rule add pref 32766 lookup main\nrule add pref 32767 lookup default");
    within(VERIFY, "the routing rules are back", || {
        let now = (
            a.netns().run("ip", &["rule"]),
            a.netns().run("ip", &["route", "show", "table", "all"]),
        );
        if now == (policy.clone(), routes.clone()) {
            Ok(())
        } else {
            Err(now)
        }
    });
    a.call(b.at(8080)).assert_served("b", a.ip());
}

/// A rule set without what changes by itself: counters, and the lives of set elements.
fn strip_counters(rules: &str) -> String {
    let words = rules
        .split_whitespace()
        .filter(|w| !w.bytes().all(|b| b.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_namespace_replaced_behind_its_pod_is_captured_again() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
    let a = lab.replace_netns(a);
    assert!(!a.has_rules(), "it is a new namespace");
    eventually(VERIFY, "the new namespace is captured", || a.has_rules());
    let _own = a.greet(8080);
    within(VERIFY, "it is carried again", || {
        let outcomes = (a.call(b.at(8080)), b.call(a.at(8080)));
        if outcomes.0.served() && outcomes.1.served() {
            Ok(())
        } else {
            Err(outcomes)
        }
    });
    lab.daemon(1).record("the call is seen", |r| {
        r.has(&[("direction", "outbound"), ("src.workload", "a")])
    });
}

#[test]
fn a_killed_daemon_fails_closed_and_its_successor_needs_nothing_of_the_pods() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (plain, near) = (lab.plain_pod(2, "plain"), lab.plain_pod(1, "near"));
    lab.start();
    let servers = [a.greet(8080), b.greet(8080), plain.greet(8080)];
    let live = a.dial_greeter(b.at(8080));
    live.echoes(b"before").expect("it is carried");
    let wire = lab.tap_link();
    lab.daemon(1).kill();

    let _ = live.try_send(b"a marker in clear");
    let brief = Duration::from_millis(1500);
    for to in [b.at(8080), (b.v6(), 8080).into(), plain.at(8080)] {
        let outcome = a.call_for(to, brief);
        assert!(
            !outcome.served(),
            "{to} was reached without the daemon: {outcome:?}"
        );
    }
    for from in [&near, &plain, &b] {
        let outcome = from.call_for(a.at(8080), brief);
        assert!(
            !outcome.served(),
            "{} reached the pod: {outcome:?}",
            from.name()
        );
    }
    assert!(servers[0].callers().is_empty());
    let packets = wire.packets();
    assert!(!packets.iter().any(|p| p.contains(b"a marker in clear")));
    let leaked = packets
        .iter()
        .find(|p| p.opens() && p.from.ip() == a.ip() && p.to.port() != 15008);
    assert!(leaked.is_none(), "{leaked:?}");

    lab.restart(1);
    within(Duration::from_secs(5), "everything works again", || {
        let outcomes = vec![
            a.call(b.at(8080)),
            a.call(plain.at(8080)),
            near.call(a.at(8080)),
            b.call(a.at(8080)),
        ];
        if outcomes.iter().all(Outcome::served) {
            Ok(())
        } else {
            Err(outcomes)
        }
    });
}

#[test]
fn a_successor_releases_a_pod_that_left_the_mesh_while_nobody_ran() {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.plain_pod(1, "b"));
    let _server = b.greet(8080);
    let before = a.netns().state();
    lab.start();
    lab.daemon(1).kill();
    assert_ne!(a.netns().state(), before);
    lab.cluster
        .label("Pod", "mesh", "a", "adit.mesh/mode", Some("none"));
    lab.publish();
    lab.restart(1);
    left_as_found(&a, &before);
    a.call(b.at(8080)).assert_served("b", a.ip());
}

#[test]
fn listening_precedes_the_rules_so_that_no_call_fails_during_enrolment() {
    let mut lab = Lab::new();
    let pod = lab.pod_with(1, "pod", |p| _ = p.label("adit.mesh/mode", "none"));
    let other = lab.plain_pod(2, "other");
    lab.start();
    let _server = other.greet(8080);
    let failed = std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let end = Instant::now() + 2 * RELOAD;
            let calls = std::iter::from_fn(|| {
                (Instant::now() < end).then(|| pod.call_for(other.at(8080), Duration::from_secs(3)))
            });
            calls.filter(|o| !o.served()).collect::<Vec<_>>()
        });
        lab.cluster
            .label("Pod", "mesh", "pod", "adit.mesh/mode", None);
        lab.publish();
        caller.join().expect("it does not panic")
    });
    assert!(pod.has_rules(), "the pod was enrolled meanwhile");
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_daemon_refuses_a_namespace_whose_addresses_are_not_the_pods() {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
    let _server = b.greet(8080);
    let path = a.netns().path();
    lab.cluster.edit("Pod", "mesh", "b", |pod| {
        pod["metadata"]["annotations"]["adit.mesh/netns"] = serde_json::json!(path);
    });
    lab.publish();
    let daemon = lab.launch(1).spawn();
    daemon.says(&["mesh/b"]);
    lab.install(1, daemon);
    eventually(Duration::from_secs(10), "the other pod is served", || {
        a.has_rules()
    });
    eventually(Duration::from_secs(5), "its enrolment is over", || {
        lab.daemon(1).pod("mesh/a").0 == "enrolled"
    });
    let state = a.netns().state();
    holds_for(Duration::from_secs(1), "its own pod keeps it", || {
        a.has_rules()
    });
    assert!(poll(RELOAD, || (a.netns().state() != state).then_some(())).is_none());
    assert!(!b.has_rules());
    let (state, reason) = lab.daemon(1).pod("mesh/b");
    assert_eq!(state, "failed", "{reason}");
    let ready = lab.daemon(1).ready();
    assert!(
        !matches!(ready, Ok((200, _))),
        "a pod that is not served is not ready: {ready:?}"
    );
}
