//! Telemetry: what the daemon counts, records and answers when asked.

use std::time::Duration;

use serde_json::Value;

use crate::reason;
use crate::support::{Lab, Pod, adit, eventually, within};

fn pair() -> (Lab, Pod, Pod) {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    (lab, a, b)
}

/// `a` asks `question`, `b` answers, and both part.
#[track_caller]
fn talk(a: &Pod, b: &Pod, to: std::net::SocketAddr, question: &[u8], answer: &[u8]) {
    let listener = b.listen(9000);
    let client = a.dial(to);
    client.send(question);
    client.finish();
    let server = listener.accept();
    server.expect(question);
    server.send(answer);
    server.finish();
    client.expect(answer);
}

#[test]
fn connections_are_counted_on_both_sides_with_the_fields_labels() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (vip, _) = lab.service("web").port("http", 80, 9000).to(&[&b]).add();
    lab.start();
    talk(&a, &b, (vip, 80).into(), &[1; 1000], &[2; 70_000]);
    for (node, reporter) in [(1, "source"), (2, "destination")] {
        let (source, destination) = (a.identity(), b.identity());
        let labels = [
            ("reporter", reporter),
            ("source_workload", "a"),
            ("source_workload_namespace", "mesh"),
            ("source_canonical_service", "a"),
            ("source_canonical_revision", "latest"),
            ("source_app", "a"),
            ("source_principal", &source),
            ("destination_workload", "b"),
            ("destination_workload_namespace", "mesh"),
            ("destination_canonical_service", "b"),
            ("destination_principal", &destination),
            ("destination_service", "web.mesh.svc.cluster.local"),
            ("destination_service_name", "web"),
            ("destination_service_namespace", "mesh"),
            ("request_protocol", "tcp"),
            ("connection_security_policy", "mutual_tls"),
            ("response_flags", "-"),
        ];
        let wanted = [
            ("istio_tcp_connections_opened_total", 1.0),
            ("istio_tcp_connections_closed_total", 1.0),
            // Named from the destination's side, as the field has it.
            ("istio_tcp_received_bytes_total", 1000.0),
            ("istio_tcp_sent_bytes_total", 70_000.0),
        ];
        within(
            Duration::from_secs(3),
            &format!("node {node} has counted"),
            || {
                let daemon = lab.daemon(node);
                let got = wanted.map(|(name, _)| daemon.metric(name, &labels));
                if got == wanted.map(|(_, value)| value) {
                    Ok(())
                } else {
                    Err((got, daemon.metrics()))
                }
            },
        );
        let failed = lab
            .daemon(node)
            .metric("istio_tcp_connections_failed_total", &[]);
        assert!(failed == 0.0, "node {node}: {failed}");
    }
}

#[test]
fn plain_connections_are_counted_as_such() {
    let mut lab = Lab::new();
    let (b, plain) = (lab.pod(2, "b"), lab.plain_pod(1, "plain"));
    lab.start();
    talk(&plain, &b, b.at(9000), &[1; 500], &[2; 600]);
    let labels = [
        ("reporter", "destination"),
        ("source_workload", "plain"),
        ("source_principal", "unknown"),
        ("destination_workload", "b"),
        ("connection_security_policy", "unknown"),
    ];
    eventually(Duration::from_secs(3), "it is counted", || {
        lab.daemon(2)
            .metric("istio_tcp_received_bytes_total", &labels)
            == 500.0
    });
}

#[test]
fn bytes_of_a_long_connection_are_counted_while_it_lives() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    let live = a.dial_greeter(b.at(8080));
    live.echoes(&[5; 50_000]).expect("it is echoed");
    for node in [1, 2] {
        eventually(Duration::from_secs(15), "the bytes are counted", || {
            lab.daemon(node).metric(
                "istio_tcp_received_bytes_total",
                &[("source_workload", "a")],
            ) == 50_000.0
        });
    }
}

#[test]
fn each_connection_has_one_record_at_its_end() {
    let (mut lab, a, b) = pair();
    talk(&a, &b, b.at(9000), &[1; 1234], &[2; 4321]);
    let sent = lab
        .daemon(1)
        .record("the source's", |r| r.is("direction", "outbound"));
    let (tunnel, address) = (b.at(15008).to_string(), b.at(9000).to_string());
    let common = [
        ("src.workload", "a"),
        ("src.namespace", "mesh"),
        ("src.identity", &*a.identity()),
        ("dst.addr", &tunnel),
        ("dst.hbone_addr", &address),
        ("dst.workload", "b"),
        ("dst.namespace", "mesh"),
        ("dst.identity", &*b.identity()),
        ("path", "tunnel"),
        ("message", "connection complete"),
        ("level", "INFO"),
    ]
    .map(|(field, value)| (field, value.to_owned()));
    let taken = lab
        .daemon(2)
        .record("the destination's", |r| r.is("direction", "inbound"));
    for (field, value) in &common {
        assert_eq!(sent.text(field), *value, "{field} at the source");
        assert_eq!(taken.text(field), *value, "{field} at the destination");
    }
    assert!(
        sent.text("src.addr").starts_with(&format!("{}:", a.ip())),
        "{sent:?}"
    );
    assert!(
        taken.text("src.addr").starts_with(&format!("{}:", a.ip())),
        "{taken:?}"
    );
    // Records look from the pod: what one has sent the other has received.
    assert!(
        sent.has(&[("bytes_sent", "1234"), ("bytes_recv", "4321")]),
        "{sent:?}"
    );
    assert!(
        taken.has(&[("bytes_sent", "4321"), ("bytes_recv", "1234")]),
        "{taken:?}"
    );
    assert!(sent.text("duration").ends_with("ms"), "{sent:?}");
    assert_eq!(
        (reason(&sent), reason(&taken)),
        (String::new(), String::new())
    );
    assert_eq!(
        (lab.daemon(1).records().len(), lab.daemon(2).records().len()),
        (1, 1)
    );
}

#[test]
fn a_reset_connection_is_recorded_as_reset() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    a.dial_greeter(b.at(8080)).reset();
    let record = lab
        .daemon(1)
        .record("the reset", |r| r.is("direction", "outbound"));
    assert_eq!(reason(&record), "reset", "{record:?}");
}

fn connections(lab: &mut Lab, node: usize) -> Vec<Value> {
    let text = lab.daemon(node).admin("GET", "/connections");
    serde_json::from_str(&text).expect("it is a JSON array")
}

#[test]
fn live_connections_are_listed_with_their_ends_and_counters() {
    let mut lab = Lab::new();
    let (a, b, near) = (lab.pod(1, "a"), lab.pod(2, "b"), lab.pod(1, "near"));
    let plain = lab.plain_pod(2, "plain");
    lab.start();
    let _servers = [b.greet(8080), near.greet(8080)];
    let live = [
        a.dial_greeter(b.at(8080)),
        a.dial_greeter(near.at(8080)),
        plain.dial_greeter(b.at(8080)),
    ];
    for conn in &live {
        conn.echoes(&[1; 777]).expect("it is echoed");
    }
    let mut listed = |node: usize, path: &str, direction: &str, from: &Pod, to: &Pod| {
        within(
            Duration::from_secs(3),
            &format!("{path} {direction} is listed"),
            || {
                let all = connections(&mut lab, node);
                let found = all.iter().find(|c| {
                    c["path"] == path
                        && c["direction"] == direction
                        && c["source_workload"] == from.id()
                        && c["destination_workload"] == to.id()
                });
                found.cloned().ok_or(all)
            },
        )
    };
    let sent = listed(1, "tunnel", "outbound", &a, &b);
    assert_eq!(sent["destination"], b.at(8080).to_string());
    assert_eq!(sent["destination_identity"], b.identity());
    assert_eq!(sent["bytes_sent"], 777);
    listed(2, "tunnel", "inbound", &a, &b);
    listed(1, "same_node", "outbound", &a, &near);
    listed(1, "same_node", "inbound", &a, &near);
    let taken = listed(2, "plain", "inbound", &plain, &b);
    assert!(taken["source_identity"].is_null(), "{taken}");
    drop(live);
    eventually(Duration::from_secs(5), "the list is empty", || {
        connections(&mut lab, 1).is_empty() && connections(&mut lab, 2).is_empty()
    });
}

#[test]
fn the_dump_tells_everything_on_both_admin_addresses() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.plain_pod(2, "plain");
    lab.service("web").port("http", 80, 8080).to(&[&b]).add();
    lab.cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: rule\n  namespace: mesh\nspec:\n  rules: [{}]\n",
    );
    lab.start();
    let dump = lab.daemon(1).dump();
    let names = |part: &str| {
        let mut names: Vec<String> = dump[part]
            .as_array()
            .unwrap_or_else(|| panic!("no {part} in {dump}"))
            .iter()
            .map(|o| {
                format!(
                    "{}/{}",
                    o["namespace"].as_str().unwrap_or("?"),
                    o["name"].as_str().unwrap_or("?")
                )
            })
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("workloads"), ["mesh/a", "mesh/b", "plain/plain"]);
    assert_eq!(names("services"), ["mesh/web"]);
    assert_eq!(names("policies"), ["mesh/rule"]);
    assert_eq!(
        names("pods"),
        ["mesh/a"],
        "those of this node that belong to the mesh"
    );
    assert_eq!(dump["pods"][0]["state"], "enrolled");
    assert_eq!(dump["certificates"][0]["identity"], a.identity());
    assert!(dump["connections"].is_array());
    assert_eq!(dump["node"], "node1");
    let socket = lab
        .daemon(1)
        .admin_socket("GET", "/config_dump")
        .expect("the socket answers");
    assert_eq!(socket.0, 200);
    let socket: Value = serde_json::from_str(&socket.1).expect("it is JSON");
    assert_eq!(socket["workloads"], dump["workloads"]);
    assert_eq!(
        lab.daemon(1)
            .http(15000, "GET", "/nowhere")
            .map(|a| a.0)
            .ok(),
        Some(404)
    );
    for secret in ["PRIVATE KEY", "private_key"] {
        assert!(!dump.to_string().contains(secret));
    }
}

#[test]
fn admin_is_not_reachable_from_outside_the_node() {
    let (lab, a, _b) = pair();
    for ip in [[10, 1, 1, 1], [10, 0, 0, 1]] {
        let outcome = a.call_for((ip, 15000).into(), Duration::from_secs(3));
        assert!(!outcome.served(), "{outcome:?}");
        let on_link = lab.node(2).netns().enter(|| {
            std::net::TcpStream::connect_timeout(&(ip, 15000).into(), Duration::from_secs(2))
                .is_ok()
        });
        assert!(!on_link, "the other node reaches it at {ip:?}");
    }
}

#[test]
fn the_log_level_is_changed_at_run_time() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    assert!(a.call(b.at(8080)).served());
    lab.daemon(1).record("the first call", |_| true);
    assert!(
        !lab.daemon(1).log().contains("connection opened"),
        "not asked for yet"
    );

    assert!(
        lab.daemon(1)
            .admin("POST", "/logging?level=info,access=debug")
            .contains("access=debug")
    );
    assert!(a.call(b.at(8080)).served());
    lab.daemon(1).says(&["connection opened", "DEBUG"]);

    // A record is written when the connection is over, a moment after the caller has gone.
    let soon = Duration::from_secs(3);
    eventually(soon, "the second call is recorded", || {
        lab.daemon(1).records().len() == 2
    });

    lab.daemon(1).admin("POST", "/logging?level=error");
    assert!(a.call(b.at(8080)).served());
    eventually(soon, "the third call is over", || {
        connections(&mut lab, 1).is_empty() && lab.daemon(2).records().len() == 3
    });
    let wrong = lab.daemon(1).http(15000, "POST", "/logging?level=verbose");
    assert_eq!(wrong.expect("it answers").0, 400);
    lab.daemon(1).admin("POST", "/logging?reset");
    assert!(a.call(b.at(8080)).served());
    eventually(
        soon,
        "records are written again, and one is missing",
        || lab.daemon(2).records().len() == 4 && lab.daemon(1).records().len() == 3,
    );
}

#[test]
fn readiness_is_said_when_every_pod_is_served_and_not_before() {
    let mut lab = Lab::one_node();
    let pods: Vec<Pod> = (0..12).map(|n| lab.pod(1, &format!("p{n}"))).collect();
    lab.publish();
    let daemon = lab.launch(1).spawn();
    let mut waiting = None;
    within(Duration::from_secs(10), "it is ready", || {
        match daemon.ready() {
            Ok((200, _)) => Ok(()),
            Ok((503, body)) => {
                waiting = Some(body);
                Err(503)
            }
            _ => Err(0),
        }
    });
    assert!(pods.iter().all(Pod::has_rules), "ready means served");
    assert!(daemon.metric("adit_pods", &[("state", "enrolled")]) == 12.0);
    let waiting = waiting.expect("it was seen while it was not ready");
    assert!(waiting.contains("not ready"), "{waiting}");
}

#[test]
fn metrics_are_in_the_open_format_and_tell_the_daemons_own_state() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    assert!(a.call(b.at(8080)).served());
    let (_, text) = lab
        .daemon(1)
        .http(15020, "GET", "/metrics")
        .expect("it answers");
    assert!(
        text.trim_end().ends_with("# EOF"),
        "OpenMetrics ends so: {text}"
    );
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap_or_default();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    let daemon = lab.daemon(1);
    // Some of them are brought up to date once in a while.
    let is = |name: &str, labels: &[(&str, &str)], value: f64| {
        within(
            Duration::from_secs(3),
            &format!("{name}{labels:?} is {value}"),
            || {
                let got = daemon.metric(name, labels);
                if got == value { Ok(()) } else { Err(got) }
            },
        );
    };
    is("adit_workers", &[], 2.0);
    is("adit_pods", &[("state", "enrolled")], 1.0);
    is("adit_certificates", &[("state", "valid")], 1.0);
    is(
        "adit_tunnels_opened_total",
        &[("direction", "outbound")],
        1.0,
    );
    is("adit_source_problems", &[], 0.0);
    let (status, _) = lab
        .daemon(1)
        .http(15020, "GET", "/stats/prometheus")
        .expect("it answers");
    assert_eq!(status, 200);
}

#[test]
fn drift_is_counted_when_it_is_mended() {
    let mut lab = Lab::one_node();
    let a = lab.pod(1, "a");
    lab.start();
    a.netns().run("nft", &["flush", "ruleset"]);
    eventually(crate::VERIFY, "it is mended", || a.has_rules());
    eventually(Duration::from_secs(3), "it is counted", || {
        lab.daemon(1).metric("adit_capture_repairs_total", &[]) >= 1.0
    });
}

#[test]
fn a_person_asks_the_node_from_a_shell() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.service("web").port("http", 80, 8080).to(&[&b]).add();
    lab.cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: rule\n  namespace: mesh\nspec:\n  rules: [{}]\n",
    );
    lab.start();
    let _server = b.greet(8080);
    let _live = a.dial_greeter(b.at(8080));
    let run_dir = lab.launch(1).run_dir.display().to_string();
    let identity = a.identity();
    let questions: [(&str, &[&str]); 6] = [
        ("status", &["node1"]),
        ("workloads", &["mesh", "a", "b"]),
        ("services", &["web", "10.96.0.1"]),
        ("policies", &["rule", "ALLOW"]),
        ("certificates", &[&identity]),
        ("connections", &["mesh/a", "mesh/b", "tunnel"]),
    ];
    for (question, words) in questions {
        let answer = adit(None, &[question, "--run-dir", &run_dir]);
        assert!(answer.status.success(), "{question}: {}", answer.output);
        for word in words {
            assert!(
                answer.output.contains(word),
                "{question} tells {word}: {}",
                answer.output
            );
        }
    }
    let nobody = adit(None, &["status", "--run-dir", "/nowhere"]);
    assert!(!nobody.status.success());
    assert!(nobody.output.contains("/nowhere"), "{}", nobody.output);
}
