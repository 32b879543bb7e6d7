//! The tunnel: bytes arrive whole and in order, ends are honest, and one connection's trouble is
//! no other's.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::reason;
use crate::support::{
    Authority, Conn, HboneClient, HboneServer, Lab, Listener, Mint, Outcome, Pod, Reply,
    eventually, exchange, holds_for, within,
};

/// How long a connection that fails may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two pods on two nodes with daemons.
fn pair() -> (Lab, Pod, Pod) {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    (lab, a, b)
}

/// A connection from `a` to `b`, both ends in hand.
#[track_caller]
pub(crate) fn joined(a: &Pod, b: &Pod, listener: &Listener, port: u16) -> (Conn, Conn) {
    let client = a.dial(b.at(port));
    let server = listener.accept();
    (client, server)
}

/// The ways in which a connection can end, each seen at the other side as it was meant. The same
/// for every path.
#[track_caller]
pub(crate) fn ends_are_honest(a: &Pod, b: &Pod) {
    let listener = b.listen(9000);

    let (client, server) = joined(a, b, &listener, 9000);
    client.send(b"question");
    client.finish();
    server.expect(b"question");
    assert_eq!(
        server.ending(),
        Outcome::Closed,
        "the client's half close arrives"
    );
    server.send(b"a long answer, after the end of the question");
    client.expect(b"a long answer, after the end of the question");
    server.finish();
    assert_eq!(client.ending(), Outcome::Closed);

    let (client, server) = joined(a, b, &listener, 9000);
    server.send(b"all that I say");
    server.finish();
    client.expect(b"all that I say");
    assert_eq!(
        client.ending(),
        Outcome::Closed,
        "the server's half close arrives"
    );
    client.send(b"and you may still speak");
    server.expect(b"and you may still speak");
    client.finish();
    assert_eq!(server.ending(), Outcome::Closed);

    let (client, server) = joined(a, b, &listener, 9000);
    client.send(b"x");
    server.expect(b"x");
    client.reset();
    assert_eq!(
        server.ending(),
        Outcome::Reset,
        "a reset by the client is a reset at the server"
    );

    let (client, server) = joined(a, b, &listener, 9000);
    server.send(b"x");
    client.expect(b"x");
    server.reset();
    assert_eq!(
        client.ending(),
        Outcome::Reset,
        "a reset by the server is a reset at the client"
    );

    let (client, server) = joined(a, b, &listener, 9000);
    client.finish();
    assert_eq!(server.ending(), Outcome::Closed);
    server.reset();
    assert_eq!(
        client.ending(),
        Outcome::Reset,
        "a reset after a half close is still a reset"
    );

    // A server that closes with unread bytes resets, as its kernel does without a mesh.
    let (client, server) = joined(a, b, &listener, 9000);
    client.send(&[7; 1000]);
    eventually(Duration::from_secs(5), "the bytes arrive", || {
        server
            .stream()
            .peek(&mut [0; 1000])
            .is_ok_and(|n| n == 1000)
    });
    drop(server);
    assert_eq!(client.last_ending(), Outcome::Reset);
}

/// Every shape of traffic arrives whole.
#[track_caller]
pub(crate) fn bytes_are_whole(a: &Pod, b: &Pod) {
    let listener = b.listen(9001);
    let (client, server) = joined(a, b, &listener, 9001);
    server.send(b"220 the server speaks first\n");
    assert_eq!(
        client.line().expect("it arrives"),
        "220 the server speaks first"
    );
    for n in 0..300_u32 {
        let byte = [n.to_le_bytes()[0]];
        client.send(&byte);
        if n % 3 == 0 {
            server.send(&byte);
        }
    }
    let sent: Vec<u8> = (0..300_u32).map(|n| n.to_le_bytes()[0]).collect();
    server.expect(&sent);
    client.expect(&sent.iter().copied().step_by(3).collect::<Vec<_>>());
    for round in 0..50 {
        client.send(b"ping");
        server.expect(b"ping");
        server.send(format!("pong {round:2}").as_bytes());
        client.expect(format!("pong {round:2}").as_bytes());
    }
    both_ways(a, b, &listener, 9001, 3_000_017);
}

#[track_caller]
fn both_ways(a: &Pod, b: &Pod, listener: &Listener, port: u16, bytes: u64) {
    let (client, server) = joined(a, b, listener, port);
    thread::scope(|scope| {
        let far = scope.spawn(|| exchange(&server, 2, 1, bytes));
        let near = exchange(&client, 1, 2, bytes);
        let far = far.join().expect("it does not panic");
        assert_eq!((near, far), (Ok(()), Ok(())), "client and server");
    });
}

#[test]
fn every_end_is_seen_as_it_was_meant() {
    let (_lab, a, b) = pair();
    ends_are_honest(&a, &b);
}

#[test]
fn small_and_mixed_writes_arrive_whole_in_both_directions() {
    let (_lab, a, b) = pair();
    bytes_are_whole(&a, &b);
}

#[test]
fn ends_and_bytes_are_as_honest_in_plain_tcp_into_and_out_of_the_mesh() {
    let mut lab = Lab::new();
    let (a, plain) = (lab.pod(1, "a"), lab.plain_pod(2, "plain"));
    lab.start();
    for (from, to) in [(&a, &plain), (&plain, &a)] {
        ends_are_honest(from, to);
        bytes_are_whole(from, to);
    }
}

#[test]
fn sixty_four_mebibytes_pass_both_ways_at_once_unchanged() {
    let (_lab, a, b) = pair();
    let listener = b.listen(9000);
    both_ways(&a, &b, &listener, 9000, 64 << 20);
}

#[test]
fn many_bulk_streams_share_the_tunnels_without_mixing() {
    let (_lab, a, b) = pair();
    let listener = b.listen(9000);
    thread::scope(|scope| {
        for _ in 0..8_u64 {
            let (client, server) = joined(&a, &b, &listener, 9000);
            scope.spawn(move || exchange(&server, 9, 3, 4 << 20).expect("at the server"));
            scope.spawn(move || exchange(&client, 3, 9, 4 << 20).expect("at the client"));
        }
    });
}

#[test]
fn two_hundred_connections_live_at_once() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    let baseline = lab.daemon(1).descriptors();
    let conns: Vec<Conn> = (0..200).map(|_| a.dial_greeter(b.at(8080))).collect();
    for (n, conn) in conns.iter().enumerate() {
        conn.echoes(format!("this is number {n}").as_bytes())
            .expect("each is its own");
    }
    for conn in &conns {
        conn.finish();
    }
    for conn in &conns {
        assert_eq!(conn.ending(), Outcome::Closed);
    }
    drop(conns);
    eventually(
        Duration::from_secs(5),
        "their descriptors are closed",
        || lab.daemon(1).descriptors() <= baseline + 16,
    );
    eventually(Duration::from_secs(5), "all are recorded", || {
        lab.daemon(1).records().len() == 200
    });
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    // Tunnels are pooled, so the first calls may leave some.
    for _ in 0..10 {
        a.call(b.at(8080)).assert_served("b", a.ip());
    }
    let before = [lab.daemon(1).descriptors(), lab.daemon(2).descriptors()];
    for _ in 0..200 {
        assert!(a.call(b.at(8080)).served());
    }
    for _ in 0..20 {
        a.dial_greeter(b.at(8080)).reset();
        assert!(a.call(b.at(81)).refused());
    }
    for node in [1, 2] {
        eventually(Duration::from_secs(5), "descriptors are as before", || {
            lab.daemon(node).descriptors() <= before[node - 1] + 4
        });
    }
}

#[test]
fn a_slow_reader_stalls_nobody_else() {
    let (_lab, a, b) = pair();
    let listener = b.listen(9000);
    let _server = b.greet(8080);
    // Enough of them that each worker and each tunnel has its share.
    let slow: Vec<_> = (0..8).map(|_| joined(&a, &b, &listener, 9000)).collect();
    for (client, _) in &slow {
        client.patience(Duration::from_millis(300));
        let filled = (0..4096)
            .take_while(|_| client.try_send(&[1; 65536]).is_ok())
            .count();
        assert!(
            filled < 4096,
            "256 MiB were taken for a reader that does not read"
        );
    }
    for _ in 0..30 {
        let begin = Instant::now();
        assert!(a.call(b.at(8080)).served());
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "a call took {:?}",
            begin.elapsed()
        );
    }
    let (client, server) = joined(&a, &b, &listener, 9000);
    thread::scope(|scope| {
        scope.spawn(|| exchange(&server, 1, 2, 4 << 20).expect("the bulk arrives"));
        exchange(&client, 2, 1, 4 << 20).expect("the bulk arrives");
    });
    // The slow one was only slow: what it did not read is still there for it.
    let (_, reader) = &slow[0];
    for _ in 0..100 {
        reader.expect(&[1; 1000]);
    }
}

#[test]
fn a_refused_dial_resets_and_is_recorded_on_both_sides() {
    let (mut lab, a, b) = pair();
    let end = a.end_of(b.at(81), b"is anybody there?", PATIENCE);
    assert_eq!(end, Outcome::Reset);
    for (node, direction) in [(1, "outbound"), (2, "inbound")] {
        let record = lab
            .daemon(node)
            .record("the failed dial", |r| r.is("direction", direction));
        let why = reason(&record);
        assert!(
            ["dial_failed", "refused"].contains(&why.as_str()),
            "{record:?}"
        );
    }
    let record = lab.daemon(2).record("the failed dial", |_| true);
    assert_eq!(reason(&record), "dial_failed");
}

#[test]
fn a_destination_whose_daemon_hangs_is_given_up_in_bounded_time() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    lab.daemon(2).signal(Signal::SIGSTOP);
    let begin = Instant::now();
    assert_eq!(a.end_of(b.at(8080), b"", 3 * PATIENCE), Outcome::Reset);
    assert!(
        begin.elapsed() < Duration::from_secs(25),
        "after {:?}",
        begin.elapsed()
    );
    let record = lab
        .daemon(1)
        .record("it is recorded", |r| r.is("direction", "outbound"));
    assert_eq!(reason(&record), "timeout", "{record:?}");
    lab.daemon(2).signal(Signal::SIGCONT);
    within(Duration::from_secs(10), "it is reached again", || {
        let outcome = a.call(b.at(8080));
        if outcome.served() {
            Ok(())
        } else {
            Err(outcome)
        }
    });
}

#[test]
fn live_connections_end_in_bounded_time_when_the_other_daemon_hangs() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    let live = a.dial_greeter(b.at(8080));
    lab.daemon(2).signal(Signal::SIGSTOP);
    let begin = Instant::now();
    live.patience(Duration::from_secs(60));
    let _ = live.try_send(b"are you there?");
    assert_eq!(live.ending(), Outcome::Reset);
    assert!(
        begin.elapsed() < Duration::from_secs(50),
        "after {:?}",
        begin.elapsed()
    );
}

#[test]
fn a_killed_peer_daemon_resets_live_connections_and_its_successor_is_reached_at_once() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    let live = a.dial_greeter(b.at(8080));
    lab.daemon(2).kill();
    assert_eq!(
        live.ending(),
        Outcome::Reset,
        "a broken tunnel is no clean end"
    );
    lab.restart(2);
    within(
        Duration::from_secs(5),
        "no dead tunnel is used again",
        || {
            let outcome = a.call(b.at(8080));
            if outcome.served() {
                Ok(())
            } else {
                Err(outcome)
            }
        },
    );
    for _ in 0..20 {
        a.call(b.at(8080)).assert_served("b", a.ip());
    }
}

/// The established connections to tunnel ports, as the namespace of `pod` lists them.
fn tunnels(pod: &Pod) -> usize {
    let all = pod.netns().run(
        "ss",
        &["-Htn", "state", "established", "dport", "=", ":15008"],
    );
    all.lines().count()
}

#[test]
fn tunnels_are_shared_by_connections_and_go_with_the_workload() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    for _ in 0..30 {
        a.call(b.at(8080)).assert_served("b", a.ip());
    }
    let open = tunnels(&a);
    // One for each of the two workers that has had a connection.
    assert!((1..=2).contains(&open), "{open} tunnels");
    lab.cluster.remove("Pod", "mesh", "b");
    lab.publish();
    eventually(Duration::from_secs(15), "no tunnel is left", || {
        tunnels(&a) == 0
    });
}

#[test]
fn what_the_application_sends_first_travels_with_the_request() {
    let (_lab, a, b) = pair();
    let server = b.listen(9000).serve(|conn| {
        let asked = conn.line().unwrap_or_default();
        let _ = conn.try_send(format!("you said {asked}\n").as_bytes());
    });
    for n in 0..50 {
        let conn = a.dial(b.at(9000));
        conn.send(format!("number {n}\n").as_bytes());
        conn.finish();
        assert_eq!(
            conn.line().expect("an answer"),
            format!("you said number {n}")
        );
        assert_eq!(conn.ending(), Outcome::Closed);
    }
    assert_eq!(server.callers().len(), 50, "each once");
}

/// A source whose destination the test plays itself.
#[track_caller]
fn against(reply: Reply) -> (Lab, Pod, Pod, HboneServer) {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.publish();
    let daemon = lab.launch(1).start();
    lab.install(1, daemon);
    let credential = Authority::of_directory(&lab.ca()).issue(&Mint::of(&b.identity()));
    let server = HboneServer::open(b.netns(), b.at(15008), &credential, reply);
    (lab, a, b, server)
}

#[test]
fn a_request_is_what_other_implementations_expect() {
    let (mut lab, a, b, server) = against(Reply::Echo);
    let (vip, _) = lab.service("web").port("http", 80, 8080).to(&[&b]).add();
    lab.publish();
    within(Duration::from_secs(3), "the service is reached", || {
        // Until the service is known its address leads nowhere, and slowly.
        let brief = Duration::from_millis(300);
        let conn = Conn::dial(a.netns(), None, (vip, 80).into(), brief)?;
        conn.patience(brief);
        conn.echoes(b"x")
    });
    let seen = server.seen().pop().expect("one was seen");
    assert_eq!(
        (seen.method.as_str(), seen.authority),
        ("CONNECT", b.at(8080).to_string())
    );
    assert_eq!(seen.client, [a.identity()]);
    let header = |name: &str| {
        seen.headers
            .get(name)
            .map_or("", |v| v.to_str().unwrap_or_default())
            .to_owned()
    };
    let forwarded = header("forwarded");
    assert!(
        forwarded.contains(&format!("for=\"{}:", a.v4())),
        "{forwarded}"
    );
    assert!(
        forwarded.contains("host=web.mesh.svc.cluster.local"),
        "{forwarded}"
    );
    let baggage = header("baggage");
    assert!(
        baggage.contains("k8s.namespace.name=mesh") && baggage.contains("k8s.pod.name=a"),
        "{baggage}"
    );
}

#[test]
fn a_tunnel_refused_by_status_resets_the_application_and_says_which() {
    for (status, word) in [
        (401, "denied"),
        (503, "refused"),
        (400, "refused"),
        (204, "refused"),
    ] {
        let (mut lab, a, b, _server) = against(Reply::Status(status));
        let end = a.end_of(b.at(8080), b"hello", PATIENCE);
        assert_eq!(end, Outcome::Reset, "on status {status}");
        let record = lab
            .daemon(1)
            .record("the refusal", |r| r.is("direction", "outbound"));
        let why = reason(&record);
        assert!(
            why == word || (status == 503 && why == "dial_failed"),
            "on status {status}: {record:?}"
        );
    }
}

#[test]
fn a_stream_reset_by_the_peer_resets_the_application() {
    let (_lab, a, b, _server) = against(Reply::Reset);
    assert_eq!(a.end_of(b.at(8080), b"", PATIENCE), Outcome::Reset);
}

#[test]
fn a_request_that_is_never_answered_times_out() {
    let (mut lab, a, b, _server) = against(Reply::Nothing);
    let begin = Instant::now();
    assert_eq!(a.end_of(b.at(8080), b"", 4 * PATIENCE), Outcome::Reset);
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "after {:?}",
        begin.elapsed()
    );
    let record = lab
        .daemon(1)
        .record("the silence", |r| r.is("direction", "outbound"));
    assert_eq!(reason(&record), "timeout", "{record:?}");
}

#[test]
fn a_tunnel_port_that_speaks_something_else_is_a_failed_tunnel() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.publish();
    let daemon = lab.launch(1).start();
    lab.install(1, daemon);
    let _server = b.listen(15008).serve(|conn| {
        let _ = conn.try_send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    assert_eq!(a.end_of(b.at(8080), b"", PATIENCE), Outcome::Reset);
    let record = lab
        .daemon(1)
        .record("the failure", |r| r.is("direction", "outbound"));
    assert_eq!(reason(&record), "tls_failed", "{record:?}");
}

#[test]
fn a_tunnel_port_that_is_closed_fails_the_dial_at_once() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.publish();
    let daemon = lab.launch(1).start();
    lab.install(1, daemon);
    let begin = Instant::now();
    assert_eq!(a.end_of(b.at(8080), b"", PATIENCE), Outcome::Reset);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "after {:?}",
        begin.elapsed()
    );
    let record = lab
        .daemon(1)
        .record("the failure", |r| r.is("direction", "outbound"));
    assert_eq!(reason(&record), "dial_failed", "{record:?}");
}

#[test]
fn requests_that_are_not_for_the_pod_are_refused() {
    let (lab, a, b) = pair();
    let probe = lab.node(1).netns();
    let _server = b.greet(8080);
    let credential = Authority::of_directory(&lab.ca()).issue(&Mint::of(&a.identity()));
    let mut tunnel = HboneClient::open(probe, b.at(15008), Some(&credential)).expect("it is taken");
    let mut status = |authority: &str| tunnel.connect(authority).map(|(status, _)| status);
    assert_eq!(status(&b.at(8080).to_string()), Ok(200));
    assert_eq!(
        status(&SocketAddr::new(b.v6(), 8080).to_string()),
        Ok(400),
        "its other address, of a family that the client did not come by"
    );
    assert_eq!(status(&a.at(8080).to_string()), Ok(400), "another pod");
    assert_eq!(status("127.0.0.1:8080"), Ok(400), "the loopback");
    let name = status("example.com:80");
    assert!(
        matches!(name, Ok(400 | 503)),
        "a name that nobody knows: {name:?}"
    );
    for port in [15001, 15006, 15008] {
        let answer = status(&b.at(port).to_string());
        assert!(
            matches!(answer, Ok(400 | 503)),
            "our own port {port}: {answer:?}"
        );
    }
    let dial = status(&b.at(81).to_string());
    assert_eq!(dial, Ok(503), "a port on which nobody listens");
    let get = http::Request::get("https://10.1.2.2/")
        .body(())
        .expect("it is a request");
    assert_eq!(
        tunnel.request(get).map(|(status, _)| status),
        Ok(400),
        "no CONNECT"
    );
    assert_eq!(
        tunnel.connect(&b.at(8080).to_string()).map(|(s, _)| s),
        Ok(200),
        "the tunnel lives on"
    );
}

#[test]
fn a_peer_of_another_make_is_served_with_its_ends_kept() {
    let (lab, a, b) = pair();
    let credential = Authority::of_directory(&lab.ca()).issue(&Mint::of(&a.identity()));
    let probe = lab.node(1).netns();
    let mut tunnel = HboneClient::open(probe, b.at(15008), Some(&credential)).expect("it is taken");
    let listener = b.listen(9000);
    let target = b.at(9000).to_string();

    let (status, mut stream) = tunnel.connect(&target).expect("it answers");
    assert_eq!(status, 200);
    let server = listener.accept();
    assert_eq!(
        server.peer().ip(),
        lab.node(1).ip(),
        "the application sees the tunnel's source"
    );
    stream.send(b"hello", true).expect("it can be sent");
    server.expect(b"hello");
    assert_eq!(server.ending(), Outcome::Closed);
    server.send(b"good bye");
    server.finish();
    assert_eq!(stream.receive_all(), Ok(b"good bye".to_vec()));

    let (_, mut stream) = tunnel.connect(&target).expect("it answers");
    let server = listener.accept();
    stream.reset(h2::Reason::CANCEL);
    assert_eq!(server.ending(), Outcome::Reset);

    let (_, mut stream) = tunnel.connect(&target).expect("it answers");
    listener.accept().reset();
    let end = stream.receive();
    assert!(end.is_err(), "a reset is no clean end: {end:?}");
    assert!(!tunnel.ended(), "one stream's end is not the tunnel's");
}

#[test]
fn strangers_on_the_tunnel_port_cost_nobody_else() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    let probe = lab.node(1).netns();
    let dial = || Conn::dial(probe, None, b.at(15008), Duration::from_secs(5)).expect("it opens");
    // Silent, talkative and half-spoken ones; and one that is done right but says nothing.
    let silent: Vec<_> = (0..50).map(|_| dial()).collect();
    let half: Vec<_> = (0..50)
        .map(|_| {
            let conn = dial();
            conn.send(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]);
            conn
        })
        .collect();
    for n in 0..50_u8 {
        let conn = dial();
        let _ = conn.try_send(&[n; 3000]);
    }
    for _ in 0..20 {
        a.call(b.at(8080)).assert_served("b", a.ip());
    }
    // Handshakes have a deadline.
    for conn in silent.iter().chain(&half) {
        conn.patience(Duration::from_secs(30));
        assert!(matches!(
            conn.last_ending(),
            Outcome::Closed | Outcome::Reset
        ));
    }
    assert!(lab.daemon(2).runs());
    a.call(b.at(8080)).assert_served("b", a.ip());
}

#[test]
fn an_idle_connection_is_not_disturbed() {
    let (_lab, a, b) = pair();
    let _server = b.greet(8080);
    let idle = a.dial_greeter(b.at(8080));
    idle.patience(Duration::from_secs(12));
    // Longer than any deadline of handshakes and dials.
    assert_eq!(idle.ending(), Outcome::Silence);
    idle.patience(Duration::from_secs(5));
    idle.echoes(b"still here").expect("it lives");
    holds_for(Duration::from_millis(200), "and goes on", || {
        idle.echoes(b"x").is_ok()
    });
}
