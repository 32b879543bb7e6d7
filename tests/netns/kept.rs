//! One way between two neighbours, many pairs of applications one after the other: each has its own
//! bytes, its own end and its own decision, whatever the one before left or the network does.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::reason;
use crate::support::{Conn, Lab, Outcome, Pod, eventually, exchange};
use crate::tunnel::joined;

/// How long a connection may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

fn neighbours() -> (Lab, Pod, Pod) {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
    lab.start_with(|l| l.drain("30s"));
    (lab, a, b)
}

/// Bytes that no other call has.
fn words(call: usize, length: usize) -> Vec<u8> {
    let mut state = (call as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(length + 8);
    bytes.extend_from_slice(&(call as u64).to_le_bytes());
    while bytes.len() < length.max(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.push(state.to_le_bytes()[3]);
    }
    bytes
}

/// Says its words and ends at once, then reads until the end.
fn says_and_ends(from: &Pod, to: SocketAddr, call: usize, length: usize) -> Result<(), String> {
    let told = |what: &'static str| move |e: std::io::Error| format!("call {call}: {what}: {e}");
    let conn = from.try_dial(to).map_err(told("dialling"))?;
    let said = words(call, length);
    let heard = thread::scope(|scope| {
        scope.spawn(|| {
            let _ = conn.stream().write_all(&said);
            let _ = conn.stream().shutdown(Shutdown::Write);
        });
        let mut heard = Vec::new();
        let read = (&mut conn.stream()).read_to_end(&mut heard);
        read.map(|_| heard).map_err(told("hearing"))
    })?;
    match heard == said {
        true => Ok(()),
        false => Err(format!(
            "call {call}: {} bytes came of {}, {} of them the same",
            heard.len(),
            said.len(),
            heard.iter().zip(&said).take_while(|(h, s)| h == s).count(),
        )),
    }
}

/// A way that has just been used and is nobody's now, on each worker.
fn warm(a: &Pod, b: &Pod) {
    for _ in 0..8 {
        a.call(b.at(8080)).assert_served("b", a.ip());
    }
}

/// What a client says may be there before its connection is accepted, and so may its end.
#[test]
fn a_client_that_speaks_and_ends_at_once_is_heard_and_answered() {
    let (_lab, a, b) = neighbours();
    let _server = b.listen(8080).echo();
    for call in 0..300 {
        says_and_ends(&a, b.at(8080), call, 1 + call % 50 * 40).expect("an echo and an end");
    }
}

/// Thousands of connections, at once and one after the other, both ways between two pods and in both
/// families, of all lengths, some reset: each hears what it has said and nothing else, each is
/// recorded once, and nothing is left.
#[test]
fn thousands_of_short_connections_keep_their_bytes_apart() {
    const CALLERS: usize = 12;
    const CALLS: usize = 150;
    let (mut lab, a, b) = neighbours();
    let _servers = [a.listen(8080).echo(), b.listen(8080).echo()];
    let _greeters = [a.greet(8081), b.greet(8081)];
    for (from, to) in [(&a, &b), (&b, &a)] {
        from.call(to.at(8081)).assert_served(to.name(), from.ip());
    }
    thread::sleep(Duration::from_secs(4));
    let before = lab.daemon(1).descriptors();
    let (a, b) = (&a, &b);
    let failed: Vec<String> = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                scope.spawn(move || {
                    let (from, to) = [(a, b), (b, a)][caller % 2];
                    let ip = to.ips()[caller / 2 % to.ips().len()];
                    let mut failed = Vec::new();
                    for turn in 0..CALLS {
                        let call = caller * CALLS + turn;
                        let length = [9, 700, 20_000, 70_000, 400_000][call % 5];
                        let done = match call % 16 {
                            // Left in the middle.
                            3 => from.try_dial((ip, 8080).into()).map_or(Ok(()), |conn| {
                                let _ = conn.try_send(&words(call, length));
                                conn.reset();
                                Ok(())
                            }),
                            7 => {
                                let outcome = from.call((ip, 8081).into());
                                let greeted = outcome.by() == Some(to.name());
                                greeted.then_some(()).ok_or(format!("{outcome:?}"))
                            }
                            _ => says_and_ends(from, (ip, 8080).into(), call, length),
                        };
                        failed.extend(done.err());
                    }
                    failed
                })
            })
            .collect();
        let all = callers.into_iter().map(|caller| caller.join());
        all.flat_map(|failed| failed.expect("no panic")).collect()
    });
    assert!(
        failed.is_empty(),
        "{} failed: {:#?}",
        failed.len(),
        &failed[..failed.len().min(9)]
    );
    for direction in ["outbound", "inbound"] {
        eventually(PATIENCE, "one record for each", || {
            let all = lab.daemon(1).records();
            let own = all.iter().filter(|r| r.has(&[("direction", direction)]));
            own.count() >= CALLERS * CALLS * 15 / 16
        });
        let all = lab.daemon(1).records();
        let own = all.iter().filter(|r| r.has(&[("direction", direction)]));
        assert!(own.count() <= CALLERS * CALLS + 2);
    }
    eventually(2 * PATIENCE, "all is given back", || {
        // What a thread keeps for later: pipes, two descriptors each.
        lab.daemon(1).descriptors() <= before + 2 * 8 * 2
    });
}

/// The half of a connection that has ended does not end the other one, nor does time, nor a reader
/// that is slow; and what is used afterwards is a way without leftovers.
#[test]
fn a_slow_reader_after_the_end_still_gets_all() {
    const MUCH: usize = 6 << 20;
    let (_lab, a, b) = neighbours();
    let listener = b.listen(9000);
    for round in 0..2 {
        let (client, server) = joined(&a, &b, &listener, 9000);
        let said = words(round, MUCH);
        thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&said);
                client.finish();
                assert_eq!(client.ending(), Outcome::Closed);
            });
            server.finish();
            thread::sleep(Duration::from_millis(2500));
            server.expect(&said);
            assert_eq!(server.ending(), Outcome::Closed);
        });
        for seed in 0..4 {
            let (client, server) = joined(&a, &b, &listener, 9000);
            thread::scope(|scope| {
                let far = scope.spawn(|| exchange(&server, 20 + seed, seed, 300_000));
                assert_eq!(exchange(&client, seed, 20 + seed, 300_000), Ok(()));
                assert_eq!(far.join().expect("no panic"), Ok(()));
            });
        }
    }
}

/// Whatever kills a way while nobody uses it, the next connection does not pay for it.
#[test]
fn a_way_that_died_while_it_was_idle_is_not_used() {
    let (_lab, a, b) = neighbours();
    let _server = b.greet(8080);
    for round in 0..12 {
        warm(&a, &b);
        let pod = [&a, &b][round % 2];
        let side = ["dport", "sport"][round % 2];
        pod.netns().run(
            "ss",
            &["-K", "-tn", "state", "established", side, "=", ":15008"],
        );
        for _ in 0..4 {
            a.call(b.at(8080)).assert_served("b", a.ip());
        }
    }
}

/// The way is the same, the decision is not: each port has its own policy.
#[test]
fn each_use_of_a_way_is_decided_by_itself() {
    let (mut lab, a, b) = neighbours();
    let _servers = [b.greet(8080), b.greet(8081)];
    lab.cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: one\n  namespace: mesh\nspec:\n  selector: {matchLabels: {app: b}}\n  action: DENY\n  rules: [{to: [{operation: {ports: ['8081']}}]}]\n",
    );
    lab.publish();
    eventually(PATIENCE, "the policy is in force", || {
        a.call(b.at(8081)) == Outcome::Reset
    });
    for _ in 0..30 {
        a.call(b.at(8080)).assert_served("b", a.ip());
        let begun = Instant::now();
        assert_eq!(a.call(b.at(8081)), Outcome::Reset);
        assert!(begun.elapsed() < Duration::from_secs(1), "told at once");
        assert_eq!(a.end_of(b.at(82), b"words", PATIENCE), Outcome::Reset);
    }
    for (port, wanted) in [(8080, ""), (82, "dial_failed")] {
        let target = SocketAddr::new(b.ip(), port).to_string();
        eventually(PATIENCE, "two records of each", || {
            let records = lab.daemon(1).records();
            let own = records.iter().filter(|r| crate::target(r) == target);
            own.map(reason).collect::<Vec<_>>() == [wanted; 60]
        });
    }
}

/// What ends a connection from above resets it on both sides, on a way that others used before.
#[test]
fn a_changed_policy_cuts_a_connection_on_a_way_that_was_used_before() {
    let (mut lab, a, b) = neighbours();
    let _server = b.greet(8080);
    let listener = b.listen(9000);
    warm(&a, &b);
    let (client, server) = joined(&a, &b, &listener, 9000);
    client.send(b"x");
    server.expect(b"x");
    let (half, other) = joined(&a, &b, &listener, 9000);
    half.finish();
    assert_eq!(other.ending(), Outcome::Closed);
    lab.cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: nobody\n  namespace: mesh\nspec:\n  action: DENY\n  rules: [{}]\n",
    );
    lab.publish();
    for end in [&client, &server, &half] {
        assert_eq!(end.last_ending(), Outcome::Reset);
    }
    eventually(PATIENCE, "the half that may still speak is cut", || {
        other.try_send(b"y").is_err()
    });
}

/// A daemon that ends lets what runs on such a way end, and waits for no idle one.
#[test]
fn a_drain_waits_for_those_who_speak_and_for_no_idle_way() {
    let (mut lab, a, b) = neighbours();
    let _server = b.greet(8080);
    warm(&a, &b);
    let conns: Vec<Conn> = (0..4).map(|_| a.dial_greeter(b.at(8080))).collect();
    lab.daemon(1).signal(Signal::SIGTERM);
    thread::sleep(Duration::from_millis(300));
    for conn in &conns {
        conn.echoes(b"still here").expect("it is echoed");
        conn.finish();
        assert_eq!(conn.ending(), Outcome::Closed);
    }
    let status = lab.daemon(1).await_end(PATIENCE);
    assert!(status.success(), "{status}");
}

/// A pod that is released takes its ways along, also one whose last user ends later.
#[test]
fn a_released_pod_leaves_no_way() {
    let (mut lab, a, b) = neighbours();
    let _server = b.greet(8080);
    warm(&a, &b);
    lab.cluster
        .label("Pod", "mesh", "b", "adit.mesh/mode", Some("none"));
    lab.publish();
    eventually(Duration::from_secs(12), "it is released", || !b.has_rules());
    let ways = |pod: &Pod| pod.netns().run("ss", &["-Htn", "state", "established"]);
    for pod in [&a, &b] {
        let left = ways(pod);
        assert!(!left.contains(":15008"), "{}: {left}", pod.name());
    }
    a.call(b.at(8080)).assert_served("b", a.ip());
    lab.cluster
        .label("Pod", "mesh", "b", "adit.mesh/mode", None);
    lab.publish();
    eventually(Duration::from_secs(3), "it is enrolled", || b.has_rules());
    eventually(PATIENCE, "it is called with identity", || {
        let served = a.call(b.at(8080)).served();
        let records = lab.daemon(1).records();
        let own = records.last();
        served && own.is_some_and(|r| r.has(&[("src.identity", &a.identity())]))
    });
}

/// The same addresses in another namespace are another pod.
#[test]
fn a_pod_in_a_new_namespace_is_reached_there() {
    let (mut lab, a, mut b) = neighbours();
    for round in 0..2 {
        let server = b.greet(8080);
        warm(&a, &b);
        drop(server);
        b = lab.replace_netns(b);
        lab.publish();
        let _server = b.greet(8080);
        // It has another link address.
        a.netns().ip("neigh flush all");
        eventually(4 * PATIENCE, "it is served again", || {
            a.call_for(b.at(8080), Duration::from_secs(1)).served()
        });
        for _ in 0..20 {
            a.call(b.at(8080)).assert_served("b", a.ip());
        }
        assert!(b.has_rules(), "round {round}");
    }
}
