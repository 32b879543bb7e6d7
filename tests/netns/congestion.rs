//! Which congestion control the daemon's sockets have: none that paces on a hop inside the node,
//! and on tunnels what was asked for.

use std::time::Duration;

use crate::support::{Lab, Namespace, Pod, eventually};

/// The algorithm of each established socket that a daemon has in `netns`, with its two ends.
fn daemon_sockets(netns: &Namespace) -> Vec<(String, String, String)> {
    const KNOWN: [&str; 3] = ["bbr", "cubic", "reno"];
    let text = netns.run("ss", &["-HtinpO", "state", "established"]);
    let ours = text.lines().filter(|line| line.contains("\"adit\""));
    ours.map(|line| {
        let mut words = line.split_whitespace().skip(2).map(str::to_owned);
        let mut end = || words.next().expect("an address");
        let (local, peer) = (end(), end());
        let control = words.find(|word| KNOWN.contains(&word.as_str()));
        (
            local,
            peer,
            control.unwrap_or_else(|| panic!("no algorithm: {line}")),
        )
    })
    .collect()
}

fn joined(a: &Pod, b: &Pod) -> crate::support::Conn {
    let conn = a.dial_greeter(b.at(8080));
    conn.echoes(b"settled").expect("it is echoed");
    conn
}

/// All pods and nodes of a lab take `control` for their own.
fn choose(lab: &Lab, nodes: usize, pods: &[&Pod], control: &str) {
    let nodes = (1..=nodes).map(|node| lab.node(node).netns());
    for netns in nodes.chain(pods.iter().map(|pod| pod.netns())) {
        netns.sysctl("ipv4/tcp_congestion_control", control);
    }
}

/// What is between the ends of a tunnel, or to one application, in each pod; none else.
fn check(pod: &Pod, tunnel: &str, others: &str) {
    let sockets = daemon_sockets(pod.netns());
    let (tunnels, inside): (Vec<_>, Vec<_>) = sockets
        .iter()
        .partition(|(local, peer, _)| [local, peer].iter().any(|end| end.ends_with(":15008")));
    assert!(!tunnels.is_empty() && !inside.is_empty(), "{sockets:?}");
    assert!(
        tunnels.iter().all(|(_, _, control)| control == tunnel),
        "{sockets:?}"
    );
    assert!(
        inside.iter().all(|(_, _, control)| control == others),
        "{sockets:?}"
    );
}

#[test]
fn nothing_paces_between_neighbours() {
    for (system, expect) in [("bbr", "cubic"), ("cubic", "cubic"), ("reno", "reno")] {
        let mut lab = Lab::one_node();
        let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
        choose(&lab, 1, &[&a, &b], system);
        lab.start();
        let _server = b.greet(8080);
        let _conn = joined(&a, &b);
        for pod in [&a, &b] {
            check(pod, expect, expect);
        }
    }
}

#[test]
fn a_tunnel_has_what_is_asked_at_both_ends() {
    // The link between the nodes is a short path; a long one is chosen for by a unit test.
    for (asked, tunnel) in [("auto", "cubic"), ("system", "bbr"), ("reno", "reno")] {
        let mut lab = Lab::new();
        let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
        choose(&lab, 2, &[&a, &b], "bbr");
        lab.start_with(|l| l.args(&["--tunnel-congestion", asked]));
        let _server = b.greet(8080);
        let _conn = joined(&a, &b);
        for pod in [&a, &b] {
            check(pod, tunnel, "cubic");
        }
    }
}

#[test]
fn what_the_kernel_lacks_is_said_at_the_start() {
    let lab = Lab::one_node();
    lab.publish();
    let launch = lab.launch(1).args(&["--tunnel-congestion", "none_such"]);
    let ended = launch.finish(Duration::from_secs(10));
    for words in ["none_such", "modprobe", "--tunnel-congestion", "reno"] {
        assert!(ended.output.contains(words), "{}", ended.output);
    }
}

#[test]
fn a_call_out_of_the_mesh_is_left_to_the_system() {
    let mut lab = Lab::one_node();
    let (a, plain) = (lab.pod(1, "a"), lab.plain_pod(1, "plain"));
    choose(&lab, 1, &[&a, &plain], "bbr");
    lab.start();
    let _server = plain.greet(8080);
    let _conn = joined(&a, &plain);
    eventually(Duration::from_secs(5), "both sides are joined", || {
        daemon_sockets(a.netns()).len() == 2
    });
    let sockets = daemon_sockets(a.netns());
    let own = a.ip().to_string();
    for (local, _, control) in &sockets {
        // What it dialled has the pod's own address, what it accepted the one that was dialled.
        let dialled = local.starts_with(&own);
        assert_eq!(
            control,
            if dialled { "bbr" } else { "cubic" },
            "{sockets:?}"
        );
    }
}
