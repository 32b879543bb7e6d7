//! Two pods of one node: over their own interfaces, without TLS unless that is asked, and with
//! every decision that is made between nodes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::reason;
use crate::support::{Conn, Lab, Outcome, Pod, eventually, within};
use crate::tunnel::{bytes_are_whole, ends_are_honest};

/// How long a connection may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

fn neighbours(args: &[&str]) -> (Lab, Pod, Pod) {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
    lab.start_with(|l| l.args(args));
    (lab, a, b)
}

#[test]
fn neighbours_meet_with_true_addresses_and_identities() {
    let (mut lab, a, b) = neighbours(&[]);
    let _servers = [a.greet(8080), b.greet(8080)];
    for ip in b.ips() {
        a.call((ip, 8080).into()).assert_served("b", a.ip_like(ip));
    }
    b.call(a.at(8080)).assert_served("a", b.ip());
    let inbound = lab.daemon(1).record("the destination's side", |r| {
        r.has(&[("direction", "inbound"), ("dst.workload", "b")])
    });
    assert!(
        inbound.has(&[("src.identity", &a.identity()), ("src.workload", "a")]),
        "{inbound:?}"
    );
    let outbound = lab.daemon(1).record("the source's side", |r| {
        r.has(&[("direction", "outbound"), ("src.workload", "a")])
    });
    assert!(
        outbound.has(&[("dst.identity", &b.identity()), ("dst.workload", "b")]),
        "{outbound:?}"
    );
}

#[test]
fn ends_and_bytes_are_honest_between_neighbours() {
    for mode in ["direct", "hbone"] {
        let (_lab, a, b) = neighbours(&["--same-node", mode]);
        ends_are_honest(&a, &b);
        bytes_are_whole(&a, &b);
    }
}

/// Applications need not send without delay, and may say what they have to say in two pieces: the
/// second then waits for the acknowledgement of the first (RFC 896). One that came late would hold
/// it for 40 ms, each time.
#[test]
fn applications_that_speak_in_pieces_are_not_held_up() {
    const CALLS: usize = 20;
    const STALL: Duration = Duration::from_millis(40);
    let in_pieces = |conn: &Conn| conn.stream().set_nodelay(false).expect("a TCP socket");
    for mode in ["direct", "hbone"] {
        let (_lab, a, b) = neighbours(&["--same-node", mode]);
        let _server = b.listen(8080).serve(move |conn| {
            in_pieces(&conn);
            conn.expect(b"request");
            conn.send(b"res");
            conn.send(b"ponse");
            assert_eq!(conn.ending(), Outcome::Closed);
        });
        // A busy machine makes some slow; a stall would make all.
        let slow = (0..CALLS).filter(|_| {
            let conn = a.dial(b.at(8080));
            in_pieces(&conn);
            let begun = Instant::now();
            conn.send(b"req");
            conn.send(b"uest");
            conn.expect(b"response");
            begun.elapsed() >= STALL
        });
        let slow = slow.count();
        assert!(slow < CALLS / 2, "{mode}: {slow} of {CALLS} were held up");
    }
}

/// What passes on a neighbour's interface while a marker is sent both ways.
fn on_the_interface(mode: &str) -> (Vec<crate::support::Packet>, Pod) {
    let (lab, a, b) = neighbours(&["--same-node", mode]);
    let _server = b.greet(8080);
    let wire = lab.tap(1, b.interface());
    a.dial_greeter(b.at(8080))
        .echoes(b"between neighbours")
        .expect("it is echoed");
    (wire.packets(), b)
}

#[test]
fn direct_connections_cross_the_interfaces_without_tls_on_the_tunnel_port() {
    let (packets, b) = on_the_interface("direct");
    assert!(
        packets.iter().any(|p| p.contains(b"between neighbours")),
        "it crosses, in plain TCP"
    );
    let opened: Vec<_> = packets.iter().filter(|p| p.opens()).map(|p| p.to).collect();
    assert!(
        !opened.is_empty() && opened.iter().all(|to| *to == b.at(15008)),
        "{opened:?}"
    );
}

/// Short connections share what lies between the pods: one after the other, each with its own bytes,
/// its own end and its own records, and never longer than a second.
#[test]
fn short_connections_use_the_way_between_neighbours_again() {
    const CALLS: usize = 12;
    let (mut lab, a, b) = neighbours(&[]);
    let _server = b.greet(8080);
    let wire = lab.tap(1, b.interface());
    let begun = Instant::now();
    for call in 0..CALLS {
        let conn = a.dial_greeter(b.at(8080));
        conn.echoes(format!("this is call {call}").as_bytes())
            .expect("it is echoed");
        conn.finish();
        assert_eq!(conn.ending(), Outcome::Closed);
    }
    let seconds = begun.elapsed().as_secs() as usize;
    std::thread::sleep(Duration::from_millis(1100));
    a.call(b.at(8080)).assert_served("b", a.ip());
    let opened = wire.packets().iter().filter(|p| p.opens()).count();
    // Each of two workers has its own.
    let most = 2 * (seconds + 1) + 1;
    assert!((2..=most).contains(&opened), "{opened} handshakes");
    for direction in ["inbound", "outbound"] {
        eventually(PATIENCE, "one record for each", || {
            let all = lab.daemon(1).records();
            let own = all.iter().filter(|r| r.has(&[("direction", direction)]));
            own.count() == CALLS + 1
        });
    }
}

/// A reset reaches the other application on a way that was used before, and spoils that alone.
#[test]
fn a_reset_passes_on_a_way_that_was_used_before() {
    let (_lab, a, b) = neighbours(&[]);
    let _server = b.greet(8080);
    for _ in 0..4 {
        a.call(b.at(8080)).assert_served("b", a.ip());
        ends_are_honest(&a, &b);
    }
}

#[test]
fn hbone_between_neighbours_is_encrypted_where_that_is_asked() {
    let (packets, b) = on_the_interface("hbone");
    assert!(
        packets
            .iter()
            .any(|p| p.to == b.at(15008) && !p.payload.is_empty()),
        "it crosses"
    );
    assert!(!packets.iter().any(|p| p.contains(b"between neighbours")));
}

#[test]
fn a_network_policy_between_neighbours_still_binds() {
    for mode in ["direct", "hbone"] {
        let (lab, a, b) = neighbours(&["--same-node", mode]);
        let _server = b.greet(8080);
        a.call(b.at(8080)).assert_served("b", a.ip());
        lab.node(1).netns().nft(&format!(
            "add table bridge wall\nadd chain bridge wall c {{ type filter hook forward priority 0; }}\nadd rule bridge wall c oifname {} ip saddr {} tcp flags & (syn | ack) == syn drop\n",
            b.interface(),
            a.v4(),
        ));
        if mode == "direct" {
            // Connections are used again for a second at most, so the wall is felt after that.
            std::thread::sleep(Duration::from_secs(1));
            let outcome = a.call_for(b.at(8080), Duration::from_secs(2));
            assert!(!outcome.served(), "{mode}: {outcome:?}");
        }
        // A drop of everything between them stops both kinds.
        lab.node(1).netns().nft(&format!(
            "add rule bridge wall c oifname {} ip saddr {} drop\n",
            b.interface(),
            a.v4()
        ));
        let outcome = a.call_for(b.at(8080), Duration::from_secs(2));
        assert!(!outcome.served(), "{mode}: {outcome:?}");
    }
}

#[test]
fn plain_bytes_on_the_tunnel_port_prove_nothing() {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
    let plain = lab.plain_pod(1, "plain");
    lab.start();
    let server = b.greet(8080);
    for round in 0..5 {
        for from in [&plain, &a] {
            let end = from.try_dial(b.at(15008)).map_or(Outcome::Reset, |conn| {
                let _ = conn.try_send(b"GET / HTTP/1.1\r\n\r\n");
                conn.last_ending()
            });
            assert!(
                matches!(end, Outcome::Closed | Outcome::Reset),
                "round {round}: {end:?}"
            );
        }
    }
    assert!(server.callers().is_empty(), "the application was reached");
    // The address pair of a live direct connection is no key for another.
    let live = a.dial_greeter(b.at(8080));
    let own = SocketAddr::new(a.ip(), live.local().port());
    let again = Conn::dial(
        plain.netns(),
        Some(SocketAddr::new(plain.ip(), own.port())),
        b.at(15008),
        Duration::from_secs(5),
    );
    if let Ok(conn) = again {
        let _ = conn.try_send(b"hello");
        assert!(matches!(
            conn.last_ending(),
            Outcome::Closed | Outcome::Reset
        ));
    }
    assert_eq!(server.callers().len(), 1);
    live.echoes(b"x").expect("it is not disturbed");
}

#[test]
fn a_refused_dial_between_neighbours_resets_and_is_recorded() {
    let (mut lab, a, b) = neighbours(&[]);
    assert_eq!(a.end_of(b.at(81), b"", PATIENCE), Outcome::Reset);
    let record = lab
        .daemon(1)
        .record("at the destination", |r| r.is("direction", "inbound"));
    assert_eq!(reason(&record), "dial_failed", "{record:?}");
    let record = lab
        .daemon(1)
        .record("at the source", |r| r.is("direction", "outbound"));
    assert_eq!(reason(&record), "dial_failed", "{record:?}");
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut lab = Lab::one_node();
    let a = lab.pod(1, "a");
    let (v4, v6) = lab.service("self").port("http", 80, 8080).to(&[&a]).add();
    lab.start();
    let _server = a.greet(8080);
    for vip in [v4, v6] {
        a.call((vip, 80).into()).assert_served("a", a.ip_like(vip));
    }
}

#[test]
fn a_neighbour_that_is_released_is_called_in_plain_and_one_that_is_enrolled_with_identity() {
    let (mut lab, a, b) = neighbours(&[]);
    let _server = b.greet(8080);
    a.call(b.at(8080)).assert_served("b", a.ip());
    lab.cluster
        .label("Pod", "mesh", "b", "adit.mesh/mode", Some("none"));
    lab.publish();
    eventually(Duration::from_secs(12), "it is released", || !b.has_rules());
    a.call(b.at(8080)).assert_served("b", a.ip());
    lab.cluster
        .label("Pod", "mesh", "b", "adit.mesh/mode", None);
    lab.publish();
    eventually(Duration::from_secs(3), "it is enrolled", || b.has_rules());
    within(Duration::from_secs(3), "it is called with identity", || {
        let outcome = a.call(b.at(8080));
        let records = lab.daemon(1).records();
        let count = records
            .iter()
            .filter(|r| r.has(&[("direction", "inbound"), ("src.identity", &a.identity())]))
            .count();
        if outcome.served() && count >= 2 {
            Ok(())
        } else {
            Err((outcome, records))
        }
    });
}

#[test]
fn a_denial_between_neighbours_resets_and_is_recorded() {
    let (mut lab, a, b) = neighbours(&[]);
    let _server = b.greet(8080);
    lab.cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: mesh\nspec:\n  action: DENY\n  rules: [{}]\n",
    );
    lab.publish();
    eventually(Duration::from_secs(3), "it is reset", || {
        a.call(b.at(8080)) == Outcome::Reset
    });
    // That one may have been cut while it lived; this one comes after the change.
    assert_eq!(a.call(b.at(8080)), Outcome::Reset);
    let mut denied = |direction| {
        lab.daemon(1).record("the denial", |r| {
            r.is("direction", direction) && reason(r) == "denied"
        })
    };
    let record = denied("inbound");
    assert!(record.has(&[("policy", "mesh/nobody")]), "{record:?}");
    denied("outbound");
}
