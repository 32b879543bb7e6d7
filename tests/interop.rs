//! Adit speaks HBONE with others: Envoy and Node's own HTTP/2, each as the client and as the server
//! of a tunnel whose other end is a daemon.
//!
//! The peer stands in the pod of a node that runs no Adit, with a certificate of the authority that
//! the daemons share. The index knows the pod as enrolled, so the daemon tunnels to it.
//!
//! What Envoy does with ends is its own: when its application ends first, it sends the last data with
//! END_STREAM, then RST_STREAM(NO_ERROR), and drops what the client says after that; and when data
//! still wait for the window at that moment, it drops them too and sends RST_STREAM(INTERNAL_ERROR).
//! So nothing here asks Envoy for a half-open connection in that direction, nor for more than fits
//! into a first window; what is asked is that Adit never makes such a loss look like an end.

#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the daemon; this stands outside of it"
)]

#[path = "support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the benchmarks share it")]
#[path = "../benches/support/envoy.rs"]
mod envoy;

#[path = "interop/peer.rs"]
mod peer;

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::time::Duration;

use envoy::{Authority, Tunnel};
use peer::{Envoy, NodeClient, NodeServer};
use support::{Conn, Lab, Outcome, Pod, Server, within};

/// The port of the applications.
const APP: u16 = 8080;
/// The port of tunnels.
const TUNNEL: u16 = 15008;
/// Where an application beside Envoy dials.
const LOCAL: u16 = 9000;

/// A pod whose node runs no Adit, and one whose node does.
struct World {
    lab: Lab,
    peer: Pod,
    own: Pod,
    authority: Authority,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    /// With more objects, as YAML.
    fn with(objects: &str) -> Self {
        let mut lab = Lab::new();
        let (peer, own) = (lab.pod(1, "peer"), lab.pod(2, "own"));
        if !objects.is_empty() {
            lab.cluster.apply(objects);
        }
        lab.publish();
        let daemon = lab.launch(2).start();
        lab.install(2, daemon);
        let authority = Authority::open(&lab.ca(), lab.dir()).expect("the daemon has made it");
        Self {
            lab,
            peer,
            own,
            authority,
        }
    }

    /// A tunnel for applications in the peer's pod to the own one, where `expect` is to be found.
    fn towards_own(&self, expect: &str) -> Tunnel {
        Tunnel {
            listen: (Ipv4Addr::LOCALHOST, LOCAL).into(),
            to: self.own.at(APP),
            via: self.own.at(TUNNEL),
            expect: expect.to_owned(),
        }
    }

    /// Envoy with this identity beside the peer's application, as the client of a tunnel.
    fn envoy_client(&self, identity: &str, tunnel: &Tunnel) -> Envoy {
        let credential = self.authority.issue(identity, "envoy").expect("it signs");
        Envoy::client(&self.lab, &self.peer, &credential, tunnel)
    }

    /// Envoy with this identity in front of the peer's application, as a server for clients of the
    /// trust domain `trusts`.
    fn envoy_server(&self, identity: &str, trusts: &str) -> Envoy {
        let credential = self.authority.issue(identity, "envoy").expect("it signs");
        Envoy::server(&self.lab, &self.peer, &credential, trusts)
    }

    /// A connection of the application beside Envoy.
    fn dial_envoy(&self) -> Conn {
        self.peer.dial((Ipv4Addr::LOCALHOST, LOCAL).into())
    }

    /// A connection of the own pod's application to the peer's.
    fn dial_peer(&self) -> Conn {
        self.own.dial(self.peer.at(APP))
    }
}

/// Bytes without pattern.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(MUCH).collect()
}

/// What the client says in these tests, and what the server answers.
const THERE: u64 = 0x9e37_79b9_7f4a_7c15;
const BACK: u64 = 0xd1b5_4a32_d192_ed03;

/// Everything up to the end of the other side.
#[track_caller]
fn read_all(conn: &Conn) -> Vec<u8> {
    let mut all = Vec::new();
    let read = conn.stream().read_to_end(&mut all);
    assert!(read.is_ok(), "after {} bytes: {read:?}", all.len());
    all
}

/// What a server has read, and whom it saw.
type Heard = mpsc::Receiver<(Vec<u8>, SocketAddr)>;

/// An application that reads all that the client sends, and only then answers and ends.
fn answer_after_all(pod: &Pod) -> (Server, Heard) {
    let (tell, heard) = mpsc::channel();
    let server = pod.listen(APP).serve(move |conn| {
        let _ = tell.send((read_all(&conn), conn.peer()));
        conn.send(&noise(BACK));
        conn.finish();
    });
    (server, heard)
}

/// Calls it: sends all, ends first, and reads the answer to its end. Every byte is compared.
#[track_caller]
fn call_and_end_first(conn: &Conn, heard: &Heard) -> SocketAddr {
    conn.send(&noise(THERE));
    conn.finish();
    let (there, from) = heard
        .recv_timeout(Duration::from_secs(10))
        .expect("the server hears of the client's end");
    assert!(there == noise(THERE), "{} bytes arrived there", there.len());
    let back = read_all(conn);
    assert!(back == noise(BACK), "{} bytes came back", back.len());
    from
}

/// More than any window or buffer holds at first.
const MUCH: usize = 1 << 20;
/// What fits into the first window of a stream.
const LITTLE: usize = 32 << 10;

/// An application that answers so much at once and ends, before the client has said anything.
fn answer_at_once(pod: &Pod, much: usize) -> Server {
    pod.listen(APP).serve(move |conn| {
        conn.send(&noise(BACK)[..much]);
        conn.finish();
        // The socket must not be closed on unread bytes, which would make the end a reset.
        let _ = conn.ending();
    })
}

#[track_caller]
fn call_and_end_last(conn: &Conn, much: usize) {
    let back = read_all(conn);
    assert!(
        back == noise(BACK)[..much],
        "{} bytes came back",
        back.len()
    );
}

/// Panics unless the connection ends without a byte.
#[track_caller]
fn assert_cut(conn: &Conn) {
    let ending = conn.ending();
    assert!(
        matches!(ending, Outcome::Reset | Outcome::Closed),
        "it should have been cut, but: {ending:?}"
    );
}

#[test]
fn envoy_as_client_bytes_ends_and_identities_are_exact() {
    let mut world = World::new();
    let envoy = world.envoy_client(
        &world.peer.identity(),
        &world.towards_own(&world.own.identity()),
    );
    {
        let (_server, heard) = answer_after_all(&world.own);
        for _ in 0..3 {
            let from = call_and_end_first(&world.dial_envoy(), &heard);
            assert_eq!(from.ip(), world.peer.ip(), "whom the application saw");
        }
    }
    {
        let _server = answer_at_once(&world.own, MUCH);
        call_and_end_last(&world.dial_envoy(), MUCH);
    }
    let (client, server) = (world.peer.identity(), world.own.identity());
    envoy.logs(&["UPSTREAM", &server]);
    let record = world.lab.daemon(2).record("the inbound side", |r| {
        r.is("direction", "inbound") && r.is("src.workload", "peer")
    });
    assert!(
        record.has(&[("src.identity", &client), ("dst.identity", &server)]),
        "{record:?}"
    );
}

#[test]
fn envoy_as_client_refuses_adit_under_another_name() {
    let world = World::new();
    let other = "spiffe://cluster.local/ns/mesh/sa/other";
    let envoy = world.envoy_client(&world.peer.identity(), &world.towards_own(other));
    let server = world.own.greet(APP);
    assert_cut(&world.dial_envoy());
    envoy.logs(&["CERTIFICATE_VERIFY_FAILED"]);
    assert!(server.callers().is_empty());
}

#[test]
fn envoy_as_client_of_another_trust_domain_is_refused() {
    let world = World::new();
    let tunnel = world.towards_own(&world.own.identity());
    let _envoy = world.envoy_client("spiffe://elsewhere.example/ns/mesh/sa/peer", &tunnel);
    let server = world.own.greet(APP);
    assert_cut(&world.dial_envoy());
    assert!(server.callers().is_empty());
}

#[test]
fn envoy_as_client_sees_a_denial_as_401() {
    let mut world = World::with(DENY_PEER);
    let tunnel = world.towards_own(&world.own.identity());
    let envoy = world.envoy_client(&world.peer.identity(), &tunnel);
    let server = world.own.greet(APP);
    assert_cut(&world.dial_envoy());
    envoy.logs(&["tunnel_response:401"]);
    assert!(server.callers().is_empty());
    world.lab.daemon(2).record("the denial", |r| {
        r.is("src.workload", "peer") && r.is("direction", "inbound") && !r.text("reason").is_empty()
    });
}

#[test]
fn envoy_as_client_sees_a_failed_dial_as_503() {
    let world = World::new();
    let tunnel = world.towards_own(&world.own.identity());
    let envoy = world.envoy_client(&world.peer.identity(), &tunnel);
    assert_cut(&world.dial_envoy());
    envoy.logs(&["tunnel_response:503"]);
}

#[test]
fn envoy_as_server_bytes_ends_and_identities_are_exact() {
    let mut world = World::new();
    let envoy = world.envoy_server(&world.peer.identity(), "cluster.local");
    {
        let (_server, heard) = answer_after_all(&world.peer);
        for _ in 0..3 {
            call_and_end_first(&world.dial_peer(), &heard);
        }
    }
    {
        let _server = answer_at_once(&world.peer, LITTLE);
        call_and_end_last(&world.dial_peer(), LITTLE);
    }
    let (client, server) = (world.own.identity(), world.peer.identity());
    let authority = world.peer.at(APP).to_string();
    envoy.logs(&["200", "DOWNSTREAM", &client, &authority]);
    let record = world.lab.daemon(2).record("the outbound side", |r| {
        r.is("direction", "outbound") && r.is("dst.workload", "peer")
    });
    assert!(
        record.has(&[("src.identity", &client), ("dst.identity", &server)]),
        "{record:?}"
    );
}

#[test]
fn what_envoy_as_server_loses_never_looks_like_an_end() {
    let world = World::new();
    let _envoy = world.envoy_server(&world.peer.identity(), "cluster.local");
    let _server = answer_at_once(&world.peer, MUCH);
    for _ in 0..10 {
        let mut back = Vec::new();
        let read = world.dial_peer().stream().read_to_end(&mut back);
        assert!(noise(BACK).starts_with(&back), "changed bytes");
        match read {
            Ok(_) => assert_eq!(back.len(), MUCH, "a loss looks like an end"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn envoy_as_server_under_another_name_is_refused() {
    let mut world = World::new();
    let _envoy = world.envoy_server("spiffe://cluster.local/ns/mesh/sa/other", "cluster.local");
    let server = world.peer.greet(APP);
    assert_eq!(world.dial_peer().ending(), Outcome::Reset);
    assert!(server.callers().is_empty());
    let record = failed_outbound(&mut world);
    assert_eq!(record.text("reason"), "tls_failed", "{record:?}");
}

#[test]
fn envoy_as_server_refuses_a_client_of_another_trust_domain() {
    let mut world = World::new();
    let _envoy = world.envoy_server(&world.peer.identity(), "elsewhere.example");
    let server = world.peer.greet(APP);
    assert_eq!(world.dial_peer().ending(), Outcome::Reset);
    assert!(server.callers().is_empty());
    failed_outbound(&mut world);
}

#[test]
fn envoy_as_server_that_cannot_dial_resets_the_application() {
    let mut world = World::new();
    let envoy = world.envoy_server(&world.peer.identity(), "cluster.local");
    assert_eq!(world.dial_peer().ending(), Outcome::Reset);
    envoy.logs(&["503"]);
    failed_outbound(&mut world);
}

#[test]
fn node_as_client_bytes_ends_and_identities_are_exact() {
    let mut world = World::new();
    let (client, server) = (world.peer.identity(), world.own.identity());
    let credential = world.authority.issue(&client, "node").expect("it signs");
    let (_server, heard) = answer_after_all(&world.own);
    let tunnel = world.towards_own(&server);
    let node = NodeClient::run(&world.peer, &credential, &tunnel, &noise(THERE));
    let (there, from) = heard
        .recv_timeout(Duration::from_secs(10))
        .unwrap_or_else(|_| panic!("nothing came; node says:\n{}", node.said));
    assert!(there == noise(THERE), "{} bytes arrived there", there.len());
    assert_eq!(from.ip(), world.peer.ip(), "whom the application saw");
    assert!(
        node.received == noise(BACK),
        "{} bytes came back",
        node.received.len()
    );
    assert_eq!(
        node.said.lines().collect::<Vec<_>>(),
        [&*format!("server URI:{server}"), "status 200", "end"],
    );
    let record = world.lab.daemon(2).record("the inbound side", |r| {
        r.is("direction", "inbound") && r.is("src.workload", "peer")
    });
    assert!(record.is("src.identity", &client), "{record:?}");
}

#[test]
fn node_as_client_sees_a_denial_as_401() {
    let world = World::with(DENY_PEER);
    let credential = world.authority.issue(&world.peer.identity(), "node");
    let tunnel = world.towards_own(&world.own.identity());
    let node = NodeClient::run(&world.peer, &credential.expect("it signs"), &tunnel, b"");
    assert!(node.said.contains("status 401"), "{}", node.said);
}

#[test]
fn node_as_server_bytes_ends_and_identities_are_exact() {
    let world = World::new();
    let credential = world.authority.issue(&world.peer.identity(), "node");
    let node = NodeServer::start(&world.lab, &world.peer, &credential.expect("it signs"));
    {
        let (_server, heard) = answer_after_all(&world.peer);
        for _ in 0..3 {
            call_and_end_first(&world.dial_peer(), &heard);
        }
    }
    {
        let _server = answer_at_once(&world.peer, MUCH);
        call_and_end_last(&world.dial_peer(), MUCH);
    }
    // Nothing listens any more: the dial fails, and the application is told so.
    assert_eq!(world.dial_peer().ending(), Outcome::Reset);
    let stream = format!("stream {} URI:{}", world.peer.at(APP), world.own.identity());
    within(Duration::from_secs(5), "node names the client", || {
        let said = node.said();
        if said.lines().any(|line| line == stream) {
            Ok(())
        } else {
            Err(said)
        }
    });
}

/// The record of a connection that Adit could not open to the peer.
#[track_caller]
fn failed_outbound(world: &mut World) -> support::Record {
    world.lab.daemon(2).record("the failure", |r| {
        r.is("direction", "outbound")
            && r.is("dst.workload", "peer")
            && !r.text("reason").is_empty()
    })
}

/// Refuses the peer's identity at the own pod.
const DENY_PEER: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: no-peer
  namespace: mesh
spec:
  selector:
    matchLabels:
      app: own
  action: DENY
  rules:
    - from:
        - source:
            principals: [cluster.local/ns/mesh/sa/peer]
";
