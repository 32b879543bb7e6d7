//! Capture: what is taken on its way out of and into a pod, what is left alone, and what it
//! leaves behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::{Conn, Families, Lab, Listener, Outcome, Pod, eventually};
use crate::target;

/// One pod of these families on each node, joined by the mesh; every address is called.
#[track_caller]
fn carries(families: Families) {
    let mut lab = Lab::new();
    let a = lab.pod_with(1, "a", |p| _ = p.families(families));
    let b = lab.pod_with(2, "b", |p| _ = p.families(families));
    lab.start();
    let _server = b.greet(8080);
    for ip in b.ips() {
        let from = a.ip_like(ip);
        a.call((ip, 8080).into()).assert_served("b", from);
        let addr = SocketAddr::new(ip, 8080).to_string();
        let sent = lab.daemon(1).record("the source's record", |r| {
            r.is("direction", "outbound") && target(r) == addr
        });
        assert!(sent.has(&[("dst.identity", &b.identity())]), "{sent:?}");
        let taken = lab.daemon(2).record("the destination's record", |r| {
            r.is("direction", "inbound") && r.text("src.addr").contains(&from.to_string())
        });
        assert!(taken.has(&[("src.identity", &a.identity())]), "{taken:?}");
    }
}

#[test]
fn dual_stack_pods_are_carried_over_both_families() {
    carries(Families::Dual);
}

#[test]
fn pods_with_ipv4_addresses_alone_are_carried() {
    carries(Families::V4);
}

#[test]
fn pods_with_ipv6_addresses_alone_are_carried() {
    carries(Families::V6);
}

#[test]
fn pods_without_any_ipv6_are_carried() {
    carries(Families::NoV6);
}

#[test]
fn the_application_sees_the_clients_address_on_every_path() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let near = lab.pod(1, "near");
    let far = lab.pod(2, "far");
    let plain = lab.plain_pod(1, "plain");
    let plain_far = lab.plain_pod(2, "plain-far");
    let stranger = lab.stranger(2, "stranger");
    lab.start();
    let pods = [&a, &near, &far, &plain, &plain_far, &stranger];
    let _servers: Vec<_> = pods.iter().map(|p| p.greet(8080)).collect();
    let calls = [
        ("tunnel", &a, &far),
        ("tunnel back", &far, &a),
        ("same node", &a, &near),
        ("plaintext into the mesh, same node", &plain, &a),
        ("plaintext into the mesh, other node", &plain_far, &a),
        ("out of the mesh to a known pod", &a, &plain_far),
        ("out of the mesh to a pod beside it", &a, &plain),
        ("out of the mesh to a stranger", &a, &stranger),
        ("from a stranger", &stranger, &a),
    ];
    for (path, from, to) in calls {
        for ip in to.ips() {
            let outcome = from.call((ip, 8080).into());
            assert_eq!(outcome.by(), Some(to.name()), "{path}, {ip}: {outcome:?}");
            outcome.assert_served(to.name(), from.ip_like(ip));
        }
    }
}

#[test]
fn calls_to_localhost_and_to_its_own_address_stay_direct() {
    let mut lab = Lab::one_node();
    let a = lab.pod(1, "a");
    lab.start();
    let _server = a.greet(8080);
    let local = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    for ip in local.into_iter().chain(a.ips()) {
        a.call((ip, 8080).into()).assert_served("a", ip);
    }
    let opened = lab
        .daemon(1)
        .metric("istio_tcp_connections_opened_total", &[]);
    assert!(opened == 0.0, "the daemon has seen {opened} connections");
    assert!(lab.daemon(1).records().is_empty());
}

#[test]
fn no_byte_of_the_payload_is_visible_between_the_nodes() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (plain, other) = (lab.plain_pod(1, "plain"), lab.plain_pod(2, "other"));
    lab.start();
    let _servers = [b.greet(8080), other.greet(8080)];
    let wire = lab.tap_link();
    for ip in b.ips() {
        let conn = a.dial_greeter((ip, 8080).into());
        conn.echoes(b"the secret of the mesh")
            .expect("it is echoed");
    }
    let control = plain.dial_greeter(other.at(8080));
    control
        .echoes(b"the secret of nobody")
        .expect("it is echoed");
    let packets = wire.packets();
    assert!(
        packets.iter().any(|p| p.contains(b"the secret of nobody")),
        "the control is seen"
    );
    assert!(
        !packets
            .iter()
            .any(|p| p.contains(b"the secret of the mesh"))
    );
    // The greeting, which the server sends, begins with its name and the client's address.
    assert!(!packets.iter().any(|p| p.contains(b"b 10.1.")));
    let between: Vec<_> = packets
        .iter()
        .filter(|p| a.ips().iter().chain(&b.ips()).any(|ip| p.has_ip(*ip)))
        .collect();
    assert!(!between.is_empty());
    let other_port = between.iter().find(|p| !p.has_port(15008));
    assert!(other_port.is_none(), "only tunnels pass: {other_port:?}");
    assert!(
        between.iter().all(|p| !p.opens() || p.to.port() == 15008),
        "tunnels are opened to their port, never from it"
    );
}

#[test]
fn no_connection_is_tracked_in_a_pod() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let near = lab.pod(1, "near");
    let tracked = lab.stranger(1, "tracked");
    lab.start();
    // The control: a rule that asks for connection tracking makes it count here.
    tracked.netns().nft("add table inet t\nadd chain inet t c { type filter hook output priority 0; }\nadd rule inet t c ct state new accept\n");
    let _servers = [b.greet(8080), near.greet(8080), a.greet(8080)];
    let conns = [
        a.dial_greeter(b.at(8080)),
        a.dial_greeter((b.v6(), 8080).into()),
        a.dial_greeter(near.at(8080)),
        tracked.dial_greeter(a.at(8080)),
    ];
    let entries = |pod: &Pod| {
        ["ipv4", "ipv6"]
            .map(|family| pod.netns().run("conntrack", &["-L", "-f", family]))
            .concat()
    };
    assert!(
        entries(&tracked).contains("dport=8080"),
        "the control is tracked"
    );
    for pod in [&a, &b, &near] {
        assert_eq!(entries(pod), "", "{} tracks connections", pod.name());
        let count = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
        let count = pod
            .netns()
            .enter(count)
            .expect("connection tracking is in the kernel");
        assert_eq!(count.trim(), "0");
    }
    drop(conns);
}

/// Calls that are not what our ports are for.
const OWN_PORTS: [u16; 3] = [15001, 15006, 15008];

#[test]
fn calls_to_our_ports_are_refused_and_never_loop() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let near = lab.pod(1, "near");
    let plain = lab.plain_pod(1, "plain");
    lab.start();
    let localhost = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    let cpu = [lab.daemon(1).cpu(), lab.daemon(2).cpu()];
    let descriptors = lab.daemon(1).descriptors();
    let begin = Instant::now();
    let patience = Duration::from_secs(15);
    let call = |who: &str, from: &Pod, ip: IpAddr, port: u16| {
        let conn = Conn::dial(from.netns(), None, (ip, port).into(), patience);
        if let Ok(conn) = &conn {
            // A port that waits for a TLS greeting learns at once that none will come.
            let _ = conn.try_send(b"GET / HTTP/1.1\r\n\r\n");
        }
        let outcome = Outcome::of_connection(conn, patience);
        let ended = outcome.refused() || matches!(outcome, Outcome::Closed | Outcome::Failed(_));
        assert!(ended, "{who} called {ip} port {port}: {outcome:?}");
    };
    for port in OWN_PORTS {
        for ip in localhost.into_iter().chain(a.ips()) {
            call("the pod itself", &a, ip, port);
        }
        for ip in b.ips() {
            call("a pod of another node", &a, ip, port);
        }
        call("a pod of the node", &near, a.ip(), port);
        for ip in a.ips() {
            call("a pod outside the mesh", &plain, ip, port);
        }
    }
    // A loop would go on by itself: processor, sockets or records would grow without a call.
    let calls = 3.0 * (4.0 + 2.0 + 1.0 + 2.0);
    let opened = lab
        .daemon(1)
        .metric("istio_tcp_connections_opened_total", &[]);
    assert!(
        opened <= 2.0 * calls,
        "{opened} connections from {calls} calls"
    );
    eventually(
        Duration::from_secs(12),
        "the sockets of the calls are closed",
        || lab.daemon(1).descriptors() <= descriptors + 8,
    );
    let used = [lab.daemon(1).cpu() - cpu[0], lab.daemon(2).cpu() - cpu[1]];
    let elapsed = begin.elapsed().as_secs_f64();
    assert!(
        used.iter().all(|u| *u < elapsed.mul_add(0.5, 1.0)),
        "{used:?} s of CPU in {elapsed} s"
    );
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
}

#[test]
fn the_nodes_other_traffic_is_untouched() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let (plain, other) = (lab.plain_pod(1, "plain"), lab.plain_pod(2, "other"));
    let opted_out = lab.pod_with(1, "opted-out", |p| _ = p.label("adit.mesh/mode", "none"));
    let neighbours = [&plain, &other, &opted_out];
    let state = |lab: &Lab| {
        let pods = neighbours.map(|p| p.netns().state());
        (
            pods,
            lab.node(1).netns().run("nft", &["list", "ruleset"]),
            lab.node(1).netns().run("ip", &["rule"]),
        )
    };
    let before = state(&lab);
    lab.start();
    assert!(a.has_rules());
    assert_eq!(
        state(&lab),
        before,
        "a pod outside the mesh, or the node, was changed"
    );
    let _servers = neighbours.map(|p| p.greet(8080));
    plain
        .call(other.at(8080))
        .assert_served("other", plain.ip());
    other
        .call((plain.v6(), 8080).into())
        .assert_served("plain", other.v6());
    opted_out
        .call(other.at(8080))
        .assert_served("other", opted_out.ip());
    let on_node = Outcome::of_call(lab.node(1).netns(), other.at(8080), Duration::from_secs(5));
    on_node.assert_served("other", lab.node(1).ip());
    assert!(
        lab.daemon(1).records().is_empty(),
        "the daemon took part in none of it"
    );
}

#[test]
fn datagrams_are_left_alone() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    let bind = |pod: &Pod, port: u16| {
        let addr = SocketAddr::new(pod.v4(), port);
        let socket = pod
            .netns()
            .enter(|| std::net::UdpSocket::bind(addr))
            .expect("the port is free");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("not zero");
        socket
    };
    let (client, server) = (bind(&a, 4000), bind(&b, 5353));
    client
        .send_to(b"ping", (b.v4(), 5353))
        .expect("it can be sent");
    let mut buffer = [0; 16];
    let (n, from) = server.recv_from(&mut buffer).expect("it arrives");
    assert_eq!((&buffer[..n], from), (&b"ping"[..], (a.v4(), 4000).into()));
}

#[test]
fn strict_source_checks_in_the_pod_do_no_harm() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let plain = lab.plain_pod(2, "plain");
    for pod in [&a, &b] {
        for key in ["ipv4/conf/all", "ipv4/conf/eth0", "ipv4/conf/lo"] {
            pod.netns().sysctl(&format!("{key}/rp_filter"), "1");
            pod.netns().sysctl(&format!("{key}/src_valid_mark"), "1");
        }
    }
    lab.start();
    let _servers = [b.greet(8080), plain.greet(8080)];
    a.call(b.at(8080)).assert_served("b", a.ip());
    plain.call(b.at(8080)).assert_served("b", plain.ip());
    a.call(plain.at(8080)).assert_served("plain", a.ip());
}

#[test]
fn a_closed_port_is_refused_and_not_timed_out() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let plain = lab.plain_pod(2, "plain");
    lab.start();
    for (from, to) in [(&a, &b), (&a, &plain), (&plain, &a)] {
        for ip in to.ips() {
            let outcome = from.call_for((ip, 81).into(), Duration::from_secs(5));
            assert!(
                outcome.refused(),
                "{} to {}: {outcome:?}",
                from.name(),
                to.name()
            );
        }
    }
}

#[test]
fn an_application_that_listens_late_is_reached_at_once() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    a.call(b.at(8080)).assert_refused();
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
}

#[test]
fn an_application_bound_to_localhost_is_not_exposed() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let plain = lab.plain_pod(2, "plain");
    lab.start();
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let _server = Listener::open(b.netns(), local)
        .expect("the port is free")
        .greet("b");
    b.call(local).assert_served("b", local.ip());
    a.call(b.at(8080)).assert_refused();
    plain.call(b.at(8080)).assert_refused();
}
