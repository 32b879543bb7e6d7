//! What happens between two moments: while a destination is dialled, while a daemon ends, while
//! its neighbours misbehave.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Conn, Lab, Outcome, Pod, eventually, holds_for, within};
use crate::{RELOAD, VERIFY};

const PATIENCE: Duration = Duration::from_secs(5);

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  \
                    name: nobody\n  namespace: mesh\nspec:\n  action: DENY\n  rules: [{}]\n";

/// A server `b` on the second node, and its callers by tunnel, same node and plain TCP.
fn world() -> (Lab, [Pod; 3], Pod) {
    let mut lab = Lab::new();
    let callers = [lab.pod(1, "a"), lab.pod(2, "c"), lab.plain_pod(2, "plain")];
    let b = lab.pod(2, "b");
    lab.start_with(|l| l.drain("30s"));
    (lab, callers, b)
}

fn deny_all(lab: &mut Lab) {
    lab.cluster.apply(DENY);
    lab.publish();
    within(RELOAD, "the policy is in force", || {
        let policies = lab.daemon(2).dump()["policies"].to_string();
        policies.contains("nobody").then_some(()).ok_or(policies)
    });
}

#[test]
fn a_policy_that_changes_while_the_application_is_dialled_cuts_the_connection() {
    let (mut lab, callers, b) = world();
    let _server = b.greet(8080);
    for caller in &callers {
        assert!(caller.call(b.at(8080)).served());
    }
    // The application's side is silent for a while, as when its backlog is full.
    b.netns().nft(
        "add table inet wall\n\
         add chain inet wall c { type filter hook input priority 300; }\n\
         add rule inet wall c tcp dport 8080 tcp flags & (syn | ack) == syn drop\n",
    );
    let waiting: Vec<Conn> = callers[..2].iter().map(|c| c.dial(b.at(8080))).collect();
    holds_for(Duration::from_millis(500), "they wait", || true);
    deny_all(&mut lab);
    holds_for(Duration::from_millis(500), "the workers hear of it", || {
        true
    });
    b.netns().nft("delete table inet wall\n");
    for (conn, caller) in waiting.iter().zip(&callers) {
        conn.patience(PATIENCE);
        assert_eq!(conn.ending(), Outcome::Reset, "{}", caller.name());
    }
}

#[test]
fn a_client_that_gives_up_at_any_moment_is_no_orderly_end_to_the_application() {
    let (_lab, callers, b) = world();
    let endings = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&endings);
    let _server = b.listen(8080).serve(move |conn| {
        let ending = conn.last_ending();
        seen.lock().expect("no holder panics").push(ending);
    });
    for caller in &callers {
        for round in 0..300 {
            let conn = caller.dial(b.at(8080));
            conn.send(b"half a question");
            // From before the application is dialled until after it has accepted.
            std::thread::sleep(Duration::from_micros(10 * round));
            conn.reset();
        }
        let endings = std::mem::take(&mut *endings.lock().expect("no holder panics"));
        let resets = endings.iter().filter(|e| **e == Outcome::Reset).count();
        assert_eq!(resets, endings.len(), "{}: {endings:?}", caller.name());
        assert!(resets > 100, "{}: {resets} arrived at all", caller.name());
    }
}

#[test]
fn a_policy_that_changes_while_the_daemon_drains_still_cuts() {
    let (mut lab, callers, b) = world();
    let _server = b.greet(8080);
    let live: Vec<Conn> = callers.iter().map(|c| c.dial_greeter(b.at(8080))).collect();
    lab.daemon(2).signal(Signal::SIGTERM);
    holds_for(Duration::from_secs(1), "they live", || {
        live.iter().all(|conn| conn.echoes(b"still").is_ok())
    });
    deny_all(&mut lab);
    for (conn, caller) in live.iter().zip(&callers) {
        conn.patience(PATIENCE);
        assert_eq!(conn.ending(), Outcome::Reset, "{}", caller.name());
    }
}

#[test]
fn a_daemon_that_is_killed_leaves_no_end_that_looks_in_order() {
    for dies in [1, 2] {
        let (mut lab, callers, b) = world();
        let _server = b.greet(8080);
        let listener = b.listen(8081);
        let from = if dies == 1 { 1 } else { 3 };
        let live: Vec<Conn> = callers[..from]
            .iter()
            .map(|c| c.dial_greeter(b.at(8080)))
            .collect();
        let conn = callers[0].dial(b.at(8081));
        conn.send(b"half a");
        let accepted = listener.accept();
        accepted.expect(b"half a");
        lab.daemon(dies).kill();
        for (conn, caller) in live.iter().zip(&callers) {
            conn.patience(PATIENCE);
            assert_eq!(
                conn.ending(),
                Outcome::Reset,
                "{}, {dies} died",
                caller.name()
            );
        }
        accepted.patience(PATIENCE);
        assert_eq!(accepted.ending(), Outcome::Reset, "the server, {dies} died");
    }
}

#[test]
fn a_repair_of_the_rules_leaves_the_listeners_alone() {
    let (mut lab, callers, b) = world();
    let _server = b.greet(8080);
    assert!(callers[0].call(b.at(8080)).served());
    b.netns().nft("delete table inet adit\n");
    let repairs = |lab: &mut Lab| lab.daemon(2).metric("adit_capture_repairs_total", &[]);
    eventually(VERIFY, "it is repaired", || repairs(&mut lab) >= 1.0);
    holds_for(Duration::from_secs(6), "it is served", || {
        callers
            .iter()
            .all(|caller| caller.call(b.at(8080)).served())
    });
    assert_eq!(repairs(&mut lab), 1.0, "nothing else was to be repaired");
}

#[test]
fn silent_peers_do_not_hold_up_the_tunnels_of_others() {
    let (_lab, [a, _, plain], b) = world();
    let _server = b.greet(8080);
    let _silent: Vec<Conn> = (0..200).map(|_| plain.dial(b.at(15008))).collect();
    let outcome = a.call_for(b.at(8080), Duration::from_secs(3));
    assert!(outcome.served(), "{outcome:?}");
}

/// A connection that was opened before its destination left the mesh runs on.
#[test]
fn a_destination_that_leaves_the_mesh_keeps_what_it_has() {
    let (mut lab, [a, c, _], b) = world();
    let _server = b.greet(8080);
    let live = [a.dial_greeter(b.at(8080)), c.dial_greeter(b.at(8080))];
    lab.cluster
        .label("Pod", "mesh", "b", "adit.mesh/mode", Some("none"));
    lab.publish();
    holds_for(Duration::from_secs(3), "they live", || {
        live.iter().all(|conn| conn.echoes(b"still").is_ok())
    });
    for conn in live {
        conn.finish();
        assert_eq!(conn.ending(), Outcome::Closed);
    }
}
