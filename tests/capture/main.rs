//! Capture, in real network namespaces: every promise of `src/capture` that can be seen from
//! outside, through real sockets. Needs root, `ip` and `nft`.
//!
//! Each test makes a pod and a peer that are joined by a veth pair, and removes them when it ends,
//! however it ends. `Proxy` stands for the daemon: it carries whatever is captured to where it was
//! going.
#![expect(
    clippy::disallowed_methods,
    reason = "a test's tasks end with its runtime"
)]

mod support;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adit::capture;
use adit::capture::{Drift, Error, Existing};
use adit::sys::socket;
use support::{
    Net, Proxy, Server, V4, V6, connect, connect_as, connect_briefly, first_line, options,
};

#[test]
fn outbound_is_captured_and_keeps_its_destination() {
    let net = Net::new();
    let proxy = Proxy::new(net.enrol());
    for family in [V4, V6] {
        let server = Server::new(&net.peer, family.peer, 80);
        let mut stream = connect(&net.pod, server.addr).unwrap();
        // The server sees the pod's address, because the test's proxy dials from there.
        assert_eq!(first_line(&mut stream).ip(), family.pod);
        stream.write_all(b"ping").unwrap();
        let mut reply = [0; 4];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"ping");
        assert_eq!(proxy.last_outbound(), Some(server.addr));
    }
    assert_eq!(proxy.count(), 2);
    net.no_conntrack();
}

#[test]
fn inbound_is_captured_and_the_application_sees_the_client() {
    let net = Net::new();
    let proxy = Proxy::new(net.enrol());
    for family in [V4, V6] {
        let server = Server::new(&net.pod, family.pod, 8080);
        let mut stream = connect(&net.peer, server.addr).unwrap();
        assert_eq!(first_line(&mut stream).ip(), family.peer);
        assert_eq!(proxy.last_inbound(), Some(server.addr));
    }
    assert_eq!(proxy.count(), 2);
    net.no_conntrack();
}

#[test]
fn strict_reverse_path_filters_do_no_harm() {
    let net = Net::new();
    for name in ["all", "default", "eth0", "lo"] {
        net.sysctl(&format!("net.ipv4.conf.{name}.rp_filter=1"));
        net.sysctl(&format!("net.ipv4.conf.{name}.src_valid_mark=1"));
    }
    net.sysctl("net.ipv4.tcp_fwmark_accept=1");
    net.sysctl("net.ipv4.fwmark_reflect=1");
    let proxy = Proxy::new(net.enrol());
    let outside = Server::new(&net.peer, V4.peer, 80);
    let inside = Server::new(&net.pod, V4.pod, 8080);
    assert_eq!(
        first_line(&mut connect(&net.pod, outside.addr).unwrap()).ip(),
        V4.pod
    );
    assert_eq!(
        first_line(&mut connect(&net.peer, inside.addr).unwrap()).ip(),
        V4.peer
    );
    assert_eq!(proxy.count(), 2);
}

#[test]
fn calls_within_the_pod_stay_direct() {
    let net = Net::new();
    let proxy = Proxy::new(net.enrol());
    for ip in ["127.0.0.1", "127.5.5.5", "::1", "10.9.0.2", "fd09::2"] {
        let ip: IpAddr = ip.parse().unwrap();
        let server = Server::new(&net.pod, ip, 8080);
        let mut stream = connect(&net.pod, server.addr).unwrap();
        assert!(net.is_pods(first_line(&mut stream).ip()));
    }
    assert_eq!(proxy.count(), 0);
}

#[test]
fn calls_to_our_own_ports_are_refused() {
    let net = Net::new();
    let proxy = Proxy::new(net.enrol());
    let refused = |from: &str, ip: IpAddr, port: u16| {
        let end = connect(from, SocketAddr::new(ip, port)).and_then(|mut stream| {
            // Refused after it was accepted: the first read says so.
            stream.read(&mut [0; 1])
        });
        let kind = end.expect_err("this call must not succeed").kind();
        assert!(
            matches!(
                kind,
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
            ),
            "{from} to {ip}:{port}: {kind:?}"
        );
    };
    for family in [V4, V6] {
        for port in [15001, 15006, 15008] {
            refused(&net.pod, family.loopback, port);
            refused(&net.pod, family.pod, port);
            // Of another machine, reached through capture.
            refused(&net.pod, family.peer, port);
        }
        refused(&net.peer, family.pod, 15001);
        refused(&net.peer, family.pod, 15006);
        // From outside, the tunnel port is for tunnels.
        connect(&net.peer, SocketAddr::new(family.pod, 15008)).unwrap();
    }
    // The callers are told before the daemon's side has counted.
    let begun = Instant::now();
    while (proxy.refused(), proxy.count()) != (6, 2) && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        proxy.refused(),
        6,
        "those to another machine are seen by the daemon"
    );
    assert_eq!(proxy.count(), 2);
}

#[test]
fn a_port_that_is_closed_is_refused_at_once() {
    let net = Net::new();
    let proxy = Proxy::new(net.enrol());
    let begun = Instant::now();
    for family in [V4, V6] {
        // Outbound it is accepted first. The reset may be quicker than the end of the call.
        let end = connect(&net.pod, SocketAddr::new(family.peer, 9999))
            .and_then(|mut stream| stream.read(&mut [0; 1]));
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        // Inbound the pod's kernel refuses, as if there was no capture.
        let end = connect(&net.peer, SocketAddr::new(family.pod, 9999));
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(proxy.count(), 2, "the two calls from the pod");
}

#[test]
fn a_dead_daemon_cuts_the_pod_off_and_the_next_one_brings_it_back() {
    let net = Net::new();
    let outside = [V4, V6].map(|family| Server::new(&net.peer, family.peer, 80));
    let inside = [V4, V6].map(|family| Server::new(&net.pod, family.pod, 8080));
    let proxy = Proxy::new(net.enrol());
    let mut carried = connect(&net.pod, outside[0].addr).unwrap();
    first_line(&mut carried);
    drop(proxy);

    for server in &outside {
        assert_eq!(
            connect_briefly(&net.pod, server.addr).unwrap_err().kind(),
            ErrorKind::TimedOut
        );
    }
    for server in &inside {
        assert_eq!(
            connect_briefly(&net.peer, server.addr).unwrap_err().kind(),
            ErrorKind::TimedOut
        );
    }
    assert!(capture::leftover(&net.netns()).unwrap());
    // What was carried has lost its other half; nothing more of it gets out.
    let seen = outside[0].received();
    let _ = carried.write_all(b"in clear");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(outside[0].received(), seen);

    let proxy = Proxy::new(net.enrol());
    for (server, family) in outside.iter().zip([V4, V6]) {
        let mut stream = connect(&net.pod, server.addr).unwrap();
        assert_eq!(first_line(&mut stream).ip(), family.pod);
    }
    for (server, family) in inside.iter().zip([V4, V6]) {
        let mut stream = connect(&net.peer, server.addr).unwrap();
        assert_eq!(first_line(&mut stream).ip(), family.peer);
    }
    assert_eq!(proxy.count(), 4);
}

#[test]
fn what_a_dead_daemon_left_can_be_cleaned() {
    let net = Net::new();
    let before = net.state();
    drop(net.enrol());
    assert_ne!(net.state(), before);
    assert!(capture::leftover(&net.netns()).unwrap());
    capture::clean(&net.netns()).unwrap();
    assert!(!capture::leftover(&net.netns()).unwrap());
    assert_eq!(net.state(), before);
}

#[test]
fn open_connections_are_kept_and_new_ones_captured() {
    let net = Net::new();
    let outside = [V4, V6].map(|family| Server::new(&net.peer, family.peer, 80));
    let inside = [V4, V6].map(|family| Server::new(&net.pod, family.pod, 8080));
    let mut open: Vec<_> = outside
        .iter()
        .map(|server| connect(&net.pod, server.addr).unwrap())
        .chain(
            inside
                .iter()
                .map(|server| connect(&net.peer, server.addr).unwrap()),
        )
        .collect();
    open.iter_mut().for_each(|stream| _ = first_line(stream));
    let mut capture = net.enrol();
    assert_eq!(capture.existing().kept.len(), 4);
    assert_eq!(capture.existing().reset, 0);
    for stream in &mut open {
        stream.write_all(b"still").unwrap();
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"still");
    }

    // The same two ends again: no longer an exception, whoever opens it.
    let reused: Vec<_> = open
        .iter()
        .map(|stream| (stream.local_addr().unwrap(), stream.peer_addr().unwrap()))
        .collect();
    for stream in &open {
        // Reset, so that no TIME_WAIT stands in the way.
        socket2::SockRef::from(stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    drop(open);
    std::thread::sleep(Duration::from_millis(100));
    let listeners = capture.take_listeners();
    let proxy = Proxy::serve(&net, listeners);
    for (index, (local, remote)) in reused.into_iter().enumerate() {
        let from = if index < 2 { &net.pod } else { &net.peer };
        let mut stream = connect_as(from, Some(local), remote).unwrap();
        first_line(&mut stream);
        stream.write_all(b"again").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(proxy.count(), index + 1);
    }
    capture.forget_ended().unwrap();
    assert_eq!(capture.existing().kept.len(), 0);
    capture.verify(&net.netns()).unwrap();
}

#[test]
fn kept_connections_survive_the_daemon_twice() {
    let net = Net::new();
    let server = Server::new(&net.peer, V4.peer, 80);
    let mut kept = connect(&net.pod, server.addr).unwrap();
    first_line(&mut kept);
    let proxy = Proxy::new(net.enrol());
    let mut carried = connect(&net.pod, server.addr).unwrap();
    first_line(&mut carried);
    drop(proxy);
    let capture = net.enrol();
    assert_eq!(capture.existing().kept.len(), 1);
    kept.write_all(b"still").unwrap();
    kept.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn open_connections_are_reset_if_asked_for() {
    let net = Net::new();
    let outside = Server::new(&net.peer, V4.peer, 80);
    let inside = Server::new(&net.pod, V6.pod, 8080);
    let within = Server::new(&net.pod, V4.loopback, 8081);
    let mut out = connect(&net.pod, outside.addr).unwrap();
    let mut arrived = connect(&net.peer, inside.addr).unwrap();
    let mut local = connect(&net.pod, within.addr).unwrap();
    for stream in [&mut out, &mut arrived, &mut local] {
        first_line(stream);
    }
    let reset = capture::Options {
        existing: Existing::Reset,
        ..options()
    };
    let capture = capture::enrol(&net.netns(), &net.addresses(), &reset).unwrap();
    assert_eq!(capture.existing().reset, 2);
    assert!(capture.existing().kept.is_empty());
    // Both sides hear of it at once.
    let kind = |stream: &mut TcpStream| stream.read(&mut [0; 1]).unwrap_err().kind();
    assert_eq!(kind(&mut out), ErrorKind::ConnectionAborted);
    assert_eq!(kind(&mut arrived), ErrorKind::ConnectionReset);
    assert!(
        outside.ended(Duration::from_secs(1)),
        "the far end was not told"
    );
    local.write_all(b"local").unwrap();
    local.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn a_pod_whose_network_is_taken_down_ends_without_complaint() {
    let net = Net::new();
    let before = net.state();
    let mut capture = net.enrol();
    let listeners = capture.take_listeners();
    // A container runtime does so before the pod's object is gone.
    net.inside("ip addr flush dev eth0");
    capture.stop_new().unwrap();
    drop(listeners);
    capture.release().unwrap();
    let rules = |state: &str| state.contains("adit");
    assert!(!rules(&net.state()) && !rules(&before), "{}", net.state());
}

#[test]
fn drain_lets_live_ones_end_and_release_leaves_nothing() {
    let net = Net::new();
    let before = net.state();
    let outside = [V4, V6].map(|family| Server::new(&net.peer, family.peer, 80));
    let inside = [V4, V6].map(|family| Server::new(&net.pod, family.pod, 8080));
    let mut capture = net.enrol();
    let proxy = Proxy::serve(&net, capture.take_listeners());
    let dial_all = || -> Vec<_> {
        let outward = outside
            .iter()
            .map(|server| connect(&net.pod, server.addr).unwrap());
        let inward = inside
            .iter()
            .map(|server| connect(&net.peer, server.addr).unwrap());
        let mut all: Vec<_> = outward.chain(inward).collect();
        all.iter_mut().for_each(|stream| _ = first_line(stream));
        all
    };
    let mut carried = dial_all();
    assert_eq!(proxy.count(), 4);

    capture.stop_new().unwrap();
    capture.verify(&net.netns()).unwrap();
    let mut direct = dial_all();
    assert_eq!(proxy.count(), 4, "captured after it had stopped");
    for stream in carried.iter_mut().chain(&mut direct) {
        stream.write_all(b"alive").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    // Tunnels that are still there may still deliver.
    for server in &inside {
        let from = if server.addr.is_ipv4() {
            V4.peer
        } else {
            V6.peer
        };
        let mut late = support::dial(&net, from, server.addr, None).unwrap();
        assert_eq!(first_line(&mut late).ip(), from);
    }

    // Back again: the direct ones are now the open ones.
    capture.resume().unwrap();
    assert_eq!(capture.existing().kept.len(), 4);
    for stream in carried.iter_mut().chain(&mut direct) {
        stream.write_all(b"alive").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    let mut again = dial_all();
    assert_eq!(proxy.count(), 8);

    capture.stop_new().unwrap();
    capture.release().unwrap();
    for stream in &mut direct {
        stream.write_all(b"alive").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    // What was carried is reset, not left hanging and not let out.
    for stream in again.iter_mut().chain(&mut carried) {
        assert!(
            stream.read(&mut [0; 1]).is_ok_and(|read| read == 0)
                || stream.write_all(b"x").is_err()
                || stream.read(&mut [0; 1]).is_err()
        );
    }
    drop(proxy);
    assert_eq!(net.state(), before);
    net.no_conntrack();
}

#[test]
fn drift_is_seen_and_repaired() {
    let net = Net::new();
    let server = Server::new(&net.peer, V4.peer, 80);
    let mut capture = net.enrol();
    let proxy = Proxy::serve(&net, capture.take_listeners());
    capture.verify(&net.netns()).unwrap();
    let check = |capture: &mut capture::Capture, change: &str, reason: &str| {
        net.inside(change);
        let drift = capture.verify(&net.netns()).expect_err(change);
        assert_eq!(drift.reason(), reason, "{change}");
        assert!(drift.repairable());
        capture.repair().unwrap();
        capture.verify(&net.netns()).unwrap();
        let seen = proxy.count();
        first_line(&mut connect(&net.pod, server.addr).unwrap());
        assert_eq!(proxy.count(), seen + 1, "not captured after {change}");
    };
    check(&mut capture, "nft delete table inet adit", "rules");
    check(&mut capture, "nft flush chain inet adit out", "rules");
    check(
        &mut capture,
        "nft insert rule inet adit pre accept",
        "rules",
    );
    check(&mut capture, "nft flush ruleset", "rules");
    check(&mut capture, "ip rule del pref 539", "route");
    check(&mut capture, "ip -6 rule del pref 539", "route");
    check(&mut capture, "ip route flush table 1633970548", "route");
    // Somebody else's rules are none of our business.
    net.inside("nft add table inet other");
    capture.verify(&net.netns()).unwrap();
    // A rule before ours that has no effect on marked packets.
    net.inside("ip rule add from 192.0.2.77 pref 100 lookup 77");
    capture.verify(&net.netns()).unwrap();

    // A connection opened while the rules are away does not stay uncaptured.
    net.inside("nft delete table inet adit");
    let mut stray = connect(&net.pod, server.addr).unwrap();
    first_line(&mut stray);
    capture.repair().unwrap();
    assert_eq!(
        stray.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::ConnectionAborted
    );

    // The listeners go with their worker.
    drop(proxy);
    assert!(matches!(
        capture.verify(&net.netns()),
        Err(Drift::Listener(_))
    ));
    capture.repair().unwrap();
    let proxy = Proxy::serve(&net, capture.take_listeners());
    capture.verify(&net.netns()).unwrap();
    first_line(&mut connect(&net.pod, server.addr).unwrap());
    assert_eq!(proxy.count(), 1);

    net.inside("ip addr del 10.9.0.2/24 dev eth0");
    assert!(matches!(
        capture.verify(&net.netns()),
        Err(Drift::Address(_))
    ));
    let other = Net::new();
    assert!(matches!(
        capture.verify(&other.netns()),
        Err(Drift::Namespace)
    ));
}

#[test]
fn without_its_route_nothing_leaves_in_clear() {
    let net = Net::new();
    let server = [V4, V6].map(|family| Server::new(&net.peer, family.peer, 80));
    let _proxy = Proxy::new(net.enrol());
    net.inside("ip rule del pref 539; ip -6 rule del pref 539");
    for server in &server {
        assert!(connect_briefly(&net.pod, server.addr).is_err());
    }
}

#[test]
fn a_pod_without_ipv6_is_served_until_it_has_it() {
    let net = Net::without_v6();
    let before = net.state();
    let mut capture = capture::enrol(&net.netns(), &[V4.pod], &options()).unwrap();
    let proxy = Proxy::serve(&net, capture.take_listeners());
    capture.verify(&net.netns()).unwrap();
    let server = [V4, V6].map(|family| Server::new(&net.peer, family.peer, 80));
    first_line(&mut connect(&net.pod, server[0].addr).unwrap());
    assert_eq!(proxy.count(), 1);

    net.add_v6();
    // Until it is noticed nothing of it passes, in either direction.
    let inside = Server::new(&net.pod, V6.pod, 8080);
    assert!(connect_briefly(&net.pod, server[1].addr).is_err());
    assert!(connect_briefly(&net.peer, inside.addr).is_err());
    assert!(matches!(
        capture.verify(&net.netns()),
        Err(Drift::Ipv6 { appeared: true })
    ));
    capture.repair().unwrap();
    capture.verify(&net.netns()).unwrap();
    let second = Proxy::serve(&net, capture.take_listeners());
    first_line(&mut connect(&net.pod, server[1].addr).unwrap());
    first_line(&mut connect(&net.peer, inside.addr).unwrap());
    assert_eq!(second.count(), 2);

    net.inside("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    assert!(matches!(
        capture.verify(&net.netns()),
        Err(Drift::Ipv6 { appeared: false })
    ));
    capture.repair().unwrap();
    capture.verify(&net.netns()).unwrap();
    first_line(&mut connect(&net.pod, server[0].addr).unwrap());
    capture.release().unwrap();
    drop((proxy, second));
    assert_eq!(net.state(), before);
}

#[test]
fn a_pod_whose_loopback_alone_lacks_ipv6_sends_none() {
    let net = Net::new();
    net.sysctl("net.ipv6.conf.lo.disable_ipv6=1");
    let server = [V4, V6].map(|family| Server::new(&net.peer, family.peer, 80));
    let proxy = Proxy::new(net.enrol());
    first_line(&mut connect(&net.pod, server[0].addr).unwrap());
    assert!(connect_briefly(&net.pod, server[1].addr).is_err());
    assert_eq!(proxy.count(), 1);
}

#[test]
fn a_port_taken_in_the_pod_is_named_and_nothing_is_left() {
    let net = Net::new();
    let before = net.state();
    for (ip, port) in [
        (V4.loopback, 15001),
        ("0.0.0.0".parse().unwrap(), 15006),
        (V6.loopback, 15008),
    ] {
        let app = Server::new(&net.pod, ip, port);
        let error = capture::enrol(&net.netns(), &net.addresses(), &options()).unwrap_err();
        assert!(
            matches!(error, Error::PortTaken { addr } if addr.port() == port),
            "{error}"
        );
        assert!(error.to_string().contains(&port.to_string()));
        drop(app);
        assert_eq!(net.state(), before);
    }
    let capture = net.enrol();
    let error = capture::enrol(&net.netns(), &net.addresses(), &options()).unwrap_err();
    assert!(matches!(error, Error::Served), "{error}");
    capture.release().unwrap();
    assert_eq!(net.state(), before);
}

#[test]
fn only_the_pods_own_namespace_is_touched() {
    let net = Net::new();
    let before = net.state();
    let stranger: IpAddr = "10.9.0.77".parse().unwrap();
    let error = capture::enrol(&net.netns(), &[V4.pod, stranger], &options()).unwrap_err();
    assert!(matches!(error, Error::NotThePod { missing } if missing == stranger));
    assert_eq!(net.state(), before);
    let here = adit::sys::netns::Netns::current().unwrap();
    let error = capture::enrol(&here, &[V4.loopback], &options()).unwrap_err();
    assert!(matches!(error, Error::TheNode));
}

#[test]
fn workers_share_the_connections() {
    let net = Net::new();
    let options = capture::Options {
        workers: 3,
        ..options()
    };
    let mut capture = capture::enrol(&net.netns(), &net.addresses(), &options).unwrap();
    let listeners = capture.take_listeners();
    assert_eq!(listeners.len(), 3);
    for worker in &listeners {
        assert_eq!(
            (
                worker.outbound.len(),
                worker.inbound.len(),
                worker.tunnel.len()
            ),
            (2, 2, 2)
        );
    }
    let server = Server::new(&net.peer, V4.peer, 80);
    let proxies: Vec<_> = listeners
        .into_iter()
        .map(|worker| Proxy::serve(&net, vec![worker]))
        .collect();
    for _ in 0..60 {
        first_line(&mut connect(&net.pod, server.addr).unwrap());
    }
    let counts: Vec<_> = proxies.iter().map(Proxy::count).collect();
    assert_eq!(counts.iter().sum::<usize>(), 60);
    assert!(counts.iter().all(|count| *count > 3), "{counts:?}");
}

#[test]
fn a_pod_can_reach_itself_through_a_tunnel() {
    let net = Net::new();
    let proxy = Proxy::new(net.enrol());
    for family in [V4, V6] {
        let to = SocketAddr::new(family.pod, 15008);
        let socket = socket::connector(&net.netns(), to.ip()).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.bind(&SocketAddr::new(family.pod, 0).into()).unwrap();
        socket
            .connect_timeout(&to.into(), Duration::from_secs(1))
            .unwrap();
        let mut stream: TcpStream = socket.into();
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    assert_eq!(proxy.count(), 2);
}

#[test]
fn a_client_may_dial_again_and_again() {
    const MANY: usize = 12_000;
    let net = Net::new();
    let _capture = net.enrol();
    let server = Server::new(&net.pod, V6.pod, 8080);
    let begun = Instant::now();
    for turn in 0..MANY {
        // Closed by this side, which is then the one with TIME_WAIT.
        if let Err(error) = support::dial(&net, V6.peer, server.addr, None) {
            panic!("after {turn}: {error}");
        }
    }
    // More than there are ports, in less than it takes for one to come out of TIME_WAIT.
    assert!(begun.elapsed() < Duration::from_secs(50));
}

#[test]
fn a_clients_own_connection_is_not_hurt_by_one_in_its_name() {
    let net = Net::new();
    let server = Server::new(&net.pod, V4.pod, 8080);
    let mut capture = net.enrol();
    let proxy = Proxy::serve(&net, capture.take_listeners());
    // The client has taken many of the ports that dials would choose.
    let mut own: Vec<_> = (61_000..61_100)
        .map(|port| {
            connect_as(&net.peer, Some(SocketAddr::new(V4.peer, port)), server.addr).unwrap()
        })
        .collect();
    own.iter_mut().for_each(|stream| _ = first_line(stream));
    assert_eq!(proxy.count(), own.len());
    let ours: Vec<_> = (0..5_000)
        .filter_map(|turn| {
            let avoid = (turn % 2 == 0).then_some(61_000);
            let stream = support::dial(&net, V4.peer, server.addr, avoid).unwrap();
            (turn % 50 == 0).then_some(stream)
        })
        .collect();
    assert_eq!(ours.len(), 100);
    for stream in &mut own {
        stream.write_all(b"alive").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
}

#[test]
fn to_verify_costs_next_to_nothing() {
    let net = Net::new();
    let begun = Instant::now();
    let mut capture = net.enrol();
    let enrolled = begun.elapsed();
    let netns = net.netns();
    let begun = Instant::now();
    for _ in 0..200 {
        capture.verify(&netns).unwrap();
    }
    let each = begun.elapsed() / 200;
    eprintln!("enrol {enrolled:?}, verify {each:?}");
    // To run `nft` once takes longer than this, even on a busy machine.
    assert!(each < Duration::from_millis(8), "{each:?}");
}

#[test]
fn a_pod_with_ipv6_only_is_served() {
    let net = Net::new();
    net.inside("ip -4 addr flush dev eth0");
    let mut capture = capture::enrol(&net.netns(), &[V6.pod], &options()).unwrap();
    let proxy = Proxy::serve(&net, capture.take_listeners());
    let outside = Server::new(&net.peer, V6.peer, 80);
    let inside = Server::new(&net.pod, V6.pod, 8080);
    first_line(&mut connect(&net.pod, outside.addr).unwrap());
    first_line(&mut connect(&net.peer, inside.addr).unwrap());
    assert_eq!(proxy.count(), 2);
    capture.verify(&net.netns()).unwrap();
}

#[test]
fn datagrams_are_left_alone() {
    let net = Net::new();
    let _proxy = Proxy::new(net.enrol());
    let bind = |name: &str, ip| support::datagrams(name, SocketAddr::new(ip, 5353));
    for family in [V4, V6] {
        let (inside, outside) = (bind(&net.pod, family.pod), bind(&net.peer, family.peer));
        let mut heard = [0; 2];
        inside.send_to(b"hi", (family.peer, 5353)).unwrap();
        assert_eq!(outside.recv_from(&mut heard).unwrap().1.ip(), family.pod);
        outside.send_to(b"ho", (family.pod, 5353)).unwrap();
        assert_eq!(inside.recv_from(&mut heard).unwrap().1.ip(), family.peer);
    }
}

/// Whatever moment of enrolment, drain and return a connection is opened in, it lives.
#[test]
fn no_connection_is_lost_while_the_rules_change() {
    let net = Net::new();
    let outside = Server::new(&net.peer, V4.peer, 80);
    let inside = Server::new(&net.pod, V6.pod, 8080);
    let stop = AtomicBool::new(false);
    let (all, proxies, mut capture) = std::thread::scope(|scope| {
        let calls = [(&net.pod, outside.addr), (&net.peer, inside.addr)].map(|(from, to)| {
            let stop = &stop;
            scope.spawn(move || {
                let (mut open, mut all) = (VecDeque::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    open.push_back(connect(from, to).unwrap());
                    all += 1;
                    // However slow the machine and long the test, descriptors do not run out.
                    if open.len() > 100 {
                        assert_alive(open.pop_front().unwrap());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                open.into_iter().for_each(assert_alive);
                all
            })
        });
        std::thread::sleep(Duration::from_millis(50));
        let mut capture = net.enrol();
        let proxies = vec![Proxy::serve(&net, capture.take_listeners())];
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(50));
            capture.stop_new().unwrap();
            std::thread::sleep(Duration::from_millis(50));
            capture.resume().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let all: usize = calls.into_iter().map(|call| call.join().unwrap()).sum();
        (all, proxies, capture)
    });
    let captured = proxies[0].count();
    eprintln!(
        "{all} opened, {captured} captured, {} kept",
        capture.existing().kept.len()
    );
    assert!(captured > 0 && captured < all);
    capture.verify(&net.netns()).unwrap();
}

/// That a connection to a [`Server`] still carries bytes both ways.
fn assert_alive(mut stream: TcpStream) {
    first_line(&mut stream);
    stream.write_all(b"alive").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}
