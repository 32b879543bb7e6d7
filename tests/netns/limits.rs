//! One pod's greed, or one peer's, is nobody else's trouble.

use std::time::{Duration, Instant};

use crate::support::{Authority, Conn, Daemon, HboneClient, Lab, Mint, Pod, eventually, run};

/// How long a call may take that nobody stands in the way of.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Opens connections until `most`; those that were served, at the begin of their lives.
fn hoard(pod: &Pod, to: std::net::SocketAddr, most: usize) -> Vec<Conn> {
    let served = |conn: &Conn| {
        conn.patience(AT_ONCE);
        conn.line().is_ok_and(|line| !line.is_empty())
    };
    let all = (0..most).filter_map(|_| pod.try_dial(to).ok());
    all.filter(served).collect()
}

#[track_caller]
fn assert_served_at_once(pod: &Pod, to: std::net::SocketAddr) {
    let begin = Instant::now();
    let outcome = pod.call_for(to, AT_ONCE);
    assert!(
        outcome.served(),
        "{} after {:?}",
        pod.name(),
        begin.elapsed()
    );
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
}

fn refused(daemon: &Daemon, reason: &str) -> f64 {
    daemon.metric("adit_connections_refused_total", &[("reason", reason)])
}

#[test]
fn a_pod_that_takes_all_descriptors_it_can_leaves_some_to_the_others() {
    for hog_is_on in [1, 2] {
        let mut lab = Lab::new();
        let hog = lab.pod(hog_is_on, "hog");
        let (a, b, c) = (lab.pod(1, "a"), lab.pod(2, "b"), lab.pod(2, "c"));
        lab.start_with(|launch| launch.privileges(&["prlimit", "--nofile=400:400"]));
        let _servers = [b.greet(8080), c.greet(8080)];
        let places = lab.daemon(1).metric("adit_connection_places", &[]);
        assert_eq!(places, 350.0);
        let held = hoard(&hog, b.at(8080), 450);
        // By tunnel: two thirds of the places of b's daemon, or eight ninths of its own. Same node:
        // two descriptors for each at both ends.
        assert!((70..320).contains(&held.len()), "{} were held", held.len());
        for daemon in [1, 2] {
            let descriptors = lab.daemon(daemon).descriptors();
            assert!(descriptors < 400, "daemon {daemon} has {descriptors}");
        }
        // By then whatever is counted now and then has been.
        std::thread::sleep(Duration::from_millis(2_200));
        // Its own daemon, and that of the pod it calls.
        assert_served_at_once(&a, b.at(8080));
        assert_served_at_once(&a, c.at(8080));
        assert_served_at_once(&c, b.at(8080));
        for conn in held.iter().step_by(20) {
            assert!(conn.echoes(b"still").is_ok(), "what is held lives");
        }
        let all: f64 = [1, 2]
            .iter()
            .map(|n| {
                let daemon = &*lab.daemon(*n);
                refused(daemon, "pod_share") + refused(daemon, "source_share")
            })
            .sum();
        assert!(all > 100.0, "{all} were refused");
        let says = [1, 2].map(|n| {
            let log = lab.daemon(n).log();
            let told = log.lines().filter(|l| l.contains("connections refused"));
            told.map(str::to_owned).collect::<Vec<_>>()
        });
        let told = says.concat();
        assert!((1..20).contains(&told.len()), "{told:#?}");
        assert!(
            told.iter()
                .all(|line| line.contains("mend") && line.contains("mesh/")),
            "{told:#?}"
        );
        // What it gives back, it may have again.
        drop(held);
        eventually(AT_ONCE, "the hog is served again", || {
            hog.call(b.at(8080)).served()
        });
    }
}

#[test]
fn without_descriptors_a_daemon_waits_quietly_and_loses_nothing() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    let _server = b.greet(8080);
    assert!(a.call(b.at(8080)).served());
    let daemon = lab.daemon(1);
    let limit = |soft: usize| {
        let (pid, soft) = (daemon.pid().to_string(), format!("--nofile={soft}:"));
        run("prlimit", &["--pid", &pid, &soft]);
    };
    // All that are open stay open; not one more.
    limit(4);
    let waiting: Vec<Conn> = (0..5).map(|_| a.dial(b.at(8080))).collect();
    eventually(AT_ONCE, "it is told", || {
        daemon.log().contains("accept failed")
    });
    let before = daemon.cpu();
    std::thread::sleep(Duration::from_secs(2));
    let spent = daemon.cpu() - before;
    assert!(spent < 0.4, "{spent} s of the processor in 2 s");
    let told = daemon.log().matches("accept failed").count();
    assert!(told <= 2, "told {told} times: once per worker");
    limit(10_000);
    for conn in waiting {
        conn.patience(AT_ONCE);
        assert!(conn.line().is_ok_and(|line| line.contains('b')), "lost");
    }
}

#[test]
fn a_peer_that_opens_tunnel_after_tunnel_is_stopped_and_others_are_not() {
    const MOST: usize = 256;
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start_with(|launch| launch.args(&["--workers", "1"]));
    let _server = b.greet(8080);
    let probe = lab.node(1).netns();
    let credential = Authority::of_directory(&lab.ca()).issue(&Mint::of(&a.identity()));
    let open = || HboneClient::open(probe, b.at(15008), Some(&credential));
    let mut held: Vec<_> = (0..MOST).map(|_| open().expect("it is taken")).collect();
    assert!(open().is_err(), "one more");
    assert!(open().is_err(), "one more");
    assert_served_at_once(&a, b.at(8080));
    let last = held.pop().expect("there are many");
    drop(last);
    eventually(AT_ONCE, "a place is free again", || open().is_ok());
    let daemon = &*lab.daemon(2);
    assert!(refused(daemon, "source_tunnels") >= 2.0);
    daemon.says(&[
        "tunnels refused: their source has too many to this pod",
        "mesh/b",
    ]);
}
