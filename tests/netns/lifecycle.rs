//! Life of a daemon: how it starts, what it says when it cannot, and how it ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::RELOAD;
use crate::reason;
use crate::support::{
    Authority, Finished, HboneClient, Lab, Launch, Listener, Mint, Outcome, Pod, adit, eventually,
    holds_for, within,
};

fn pair() -> (Lab, Pod, Pod) {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    (lab, a, b)
}

#[test]
fn sigterm_ends_an_idle_daemon_at_once() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    assert!(a.call(b.at(8080)).served());
    let begin = Instant::now();
    lab.daemon(1).signal(Signal::SIGTERM);
    let status = lab.daemon(1).await_end(Duration::from_secs(4));
    assert!(status.success(), "{status}");
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "after {:?}",
        begin.elapsed()
    );
}

#[test]
fn sigterm_waits_for_live_connections() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    for draining in [1, 2] {
        lab.daemon(draining).kill();
        let daemon = lab.launch(draining).drain("20s").start();
        lab.install(draining, daemon);
        let live = a.dial_greeter(b.at(8080));
        lab.daemon(draining).signal(Signal::SIGTERM);
        holds_for(Duration::from_secs(2), "the connection lives", || {
            live.echoes(&[3; 1000]).is_ok()
        });
        assert!(lab.daemon(draining).runs());
        let late = a.call_for(b.at(8080), Duration::from_secs(1));
        assert!(
            !late.served(),
            "a draining daemon takes nothing new: {late:?}"
        );
        live.finish();
        assert_eq!(live.ending(), Outcome::Closed);
        let status = lab.daemon(draining).await_end(Duration::from_secs(5));
        assert!(status.success(), "{status}");
        lab.restart(draining);
        within(Duration::from_secs(5), "its successor carries", || {
            let outcome = a.call(b.at(8080));
            if outcome.served() {
                Ok(())
            } else {
                Err(outcome)
            }
        });
    }
}

/// What a peer has sent, and has not arrived, is nobody's live connection yet.
#[test]
fn a_stream_on_its_way_to_a_daemon_that_ends_is_served() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start_with(|launch| launch.drain("20s"));
    let _server = b.greet(8080);
    let credential = Authority::of_directory(&lab.ca()).issue(&Mint::of(&a.identity()));
    let peer = lab.node(1).netns();
    let mut tunnel = HboneClient::open(peer, b.at(15008), Some(&credential)).expect("it is taken");
    peer.nft(
        "add table inet wall\nadd chain inet wall c { type filter hook output priority 0; }\n\
         add rule inet wall c tcp dport 15008 drop\n",
    );
    let to = b.at(8080).to_string();
    let request = std::thread::spawn(move || {
        let (status, mut stream) = tunnel.connect(&to)?;
        stream.send(b"", true)?;
        Ok::<_, String>((status, stream.receive_all()?))
    });
    std::thread::sleep(Duration::from_millis(300));
    lab.daemon(2).signal(Signal::SIGTERM);
    holds_for(
        Duration::from_secs(1),
        "it waits for what peers have sent",
        || lab.daemon(2).runs(),
    );
    lab.node(1).netns().nft("delete table inet wall\n");
    let (status, said) = request.join().unwrap().expect("it is served");
    assert_eq!(status, 200);
    assert!(said.starts_with(b"b "), "{said:?}");
    let status = lab.daemon(2).await_end(Duration::from_secs(5));
    assert!(status.success(), "{status}");
}

#[test]
fn the_time_to_drain_is_bounded() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start_with(|l| l.drain("2s"));
    let _server = b.greet(8080);
    let live = a.dial_greeter(b.at(8080));
    let begin = Instant::now();
    lab.daemon(1).signal(Signal::SIGTERM);
    let status = lab.daemon(1).await_end(Duration::from_secs(6));
    assert!(status.success(), "{status}");
    let took = begin.elapsed();
    assert!(
        took > Duration::from_millis(1800) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert_eq!(live.ending(), Outcome::Reset);
    let record = lab
        .daemon(1)
        .record("the cut is recorded", |r| r.is("direction", "outbound"));
    assert_eq!(reason(&record), "drained", "{record:?}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start_with(|l| l.drain("60s"));
    let _server = b.greet(8080);
    let live = a.dial_greeter(b.at(8080));
    lab.daemon(1).signal(Signal::SIGTERM);
    holds_for(Duration::from_millis(500), "it drains", || {
        live.echoes(b"x").is_ok()
    });
    assert!(lab.daemon(1).runs());
    lab.daemon(1).signal(Signal::SIGTERM);
    lab.daemon(1).await_end(Duration::from_secs(2));
    assert_eq!(live.ending(), Outcome::Reset);
}

#[test]
fn a_stopped_daemon_leaves_its_pods_closed_until_the_next() {
    let (mut lab, a, b) = pair();
    let _server = b.greet(8080);
    lab.daemon(1).signal(Signal::SIGTERM);
    lab.daemon(1).await_end(Duration::from_secs(5));
    assert!(a.has_rules(), "an enrolled pod stays enrolled");
    assert!(!a.call_for(b.at(8080), Duration::from_secs(1)).served());
    lab.restart(1);
    within(Duration::from_secs(5), "it is carried again", || {
        let outcome = a.call(b.at(8080));
        if outcome.served() {
            Ok(())
        } else {
            Err(outcome)
        }
    });
}

#[test]
fn a_port_taken_inside_one_pod_harms_no_other_and_is_tried_again() {
    for port in [15001, 15006, 15008] {
        let mut lab = Lab::new();
        let (a, b, taken) = (lab.pod(1, "a"), lab.pod(2, "b"), lab.pod(1, "taken"));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let squatter = Listener::open(taken.netns(), local).expect("the port is free");
        lab.publish();
        let daemons = [lab.launch(1).spawn(), lab.launch(2).spawn()];
        for (n, daemon) in daemons.into_iter().enumerate() {
            lab.install(n + 1, daemon);
        }
        lab.daemon(1).says(&["mesh/taken", &port.to_string()]);
        let _server = b.greet(8080);
        within(Duration::from_secs(10), "the other pod is served", || {
            let outcome = if a.has_rules() {
                a.call(b.at(8080))
            } else {
                Outcome::Silence
            };
            if outcome.served() {
                Ok(())
            } else {
                Err(outcome)
            }
        });
        let (state, reason) = lab.daemon(1).pod("mesh/taken");
        assert_eq!(state, "failed", "{reason}");
        let ready = lab.daemon(1).ready().expect("it answers");
        assert!(
            ready.0 == 503 && ready.1.contains("mesh/taken"),
            "{ready:?}"
        );
        assert!(lab.daemon(1).metric("adit_pods", &[("state", "failed")]) == 1.0);
        drop(squatter);
        eventually(
            Duration::from_secs(15),
            "the freed port is taken up",
            || taken.has_rules(),
        );
        eventually(Duration::from_secs(3), "and is served", || {
            lab.daemon(1).pod("mesh/taken").0 == "enrolled"
        });
        taken.call(b.at(8080)).assert_served("b", taken.ip());
    }
}

#[test]
fn a_namespace_that_is_missing_harms_no_other_pod_and_is_tried_again() {
    let mut lab = Lab::new();
    let (a, b, lost) = (lab.pod(1, "a"), lab.pod(2, "b"), lab.pod(1, "lost"));
    let path = lost.netns().path();
    let point = |lab: &mut Lab, at: &str| {
        lab.cluster.edit("Pod", "mesh", "lost", |pod| {
            pod["metadata"]["annotations"]["adit.mesh/netns"] = json!(at);
        });
        lab.publish();
    };
    point(&mut lab, "/run/netns/there-is-none");
    let daemons = [lab.launch(1).spawn(), lab.launch(2).spawn()];
    for (n, daemon) in daemons.into_iter().enumerate() {
        lab.install(n + 1, daemon);
    }
    let said = lab.daemon(1).says(&["mesh/lost"]);
    assert!(said.contains("/run/netns/there-is-none"), "{said}");
    let _server = b.greet(8080);
    lab.daemon(2).await_ready();
    eventually(Duration::from_secs(10), "the other pod is served", || {
        a.has_rules()
    });
    a.call(b.at(8080)).assert_served("b", a.ip());
    point(&mut lab, &path.display().to_string());
    eventually(
        Duration::from_secs(10),
        "it is served once it is there",
        || lost.has_rules(),
    );
    lab.daemon(1).await_ready();
}

#[test]
fn a_pod_whose_namespace_goes_is_let_go_in_silence() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let gone = lab.pod(1, "gone");
    lab.start();
    let _server = b.greet(8080);
    gone.call(b.at(8080)).assert_served("b", gone.ip());
    let descriptors = lab.daemon(1).descriptors();
    lab.cluster.remove("Pod", "mesh", "gone");
    lab.publish();
    eventually(Duration::from_secs(15), "its sockets are closed", || {
        lab.daemon(1).descriptors() + 6 <= descriptors
    });
    a.call(b.at(8080)).assert_served("b", a.ip());
    assert!(
        lab.daemon(1)
            .lines()
            .iter()
            .all(|l| l.text("level") != "ERROR")
    );
}

/// What `adit node` says when it cannot start: one message, no trace of its insides.
#[track_caller]
fn cannot_start(launch: Launch, words: &[&str]) -> Finished {
    let end = launch.finish(Duration::from_secs(10));
    assert!(
        !end.status.success(),
        "it ended as if all were well: {}",
        end.output
    );
    assert!(
        end.status.code().is_some(),
        "it ended by a signal: {}",
        end.output
    );
    for word in words {
        assert!(
            end.output.contains(word),
            "{word:?} is not in: {}",
            end.output
        );
    }
    assert!(!end.output.contains("panicked"), "{}", end.output);
    end
}

#[test]
fn unknown_flags_and_values_are_named() {
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--no-such-flag"], &["--no-such-flag"]),
        (
            &["--same-node", "sometimes"],
            &["sometimes", "direct", "hbone"],
        ),
        (&["--existing", "perhaps"], &["perhaps", "keep", "reset"]),
        (&["--log-format", "xml"], &["xml", "json"]),
        (&["--trust-domain", "Not A Domain"], &["Not A Domain"]),
        (&["--enrol-label", "nonsense"], &["nonsense", "KEY=VALUE"]),
        (&["--admin", "nowhere"], &["nowhere", "--admin"]),
        (&["--log", "verbose"], &["verbose", "debug"]),
    ];
    let lab = Lab::one_node();
    lab.publish();
    for (args, words) in cases {
        let mut launch = lab.launch(1).args(args);
        launch.log = lab.dir().join("wrong.log");
        if args[0] == "--log-format" {
            // The harness gives one itself.
            let run_dir = launch.run_dir.display().to_string();
            let ended = adit(
                None,
                &[
                    "node",
                    "--node",
                    "n",
                    "--source",
                    "/x",
                    "--ca",
                    "dir:/x",
                    "--run-dir",
                    &run_dir,
                    args[0],
                    args[1],
                ],
            );
            assert!(
                !ended.status.success() && words.iter().all(|w| ended.output.contains(w)),
                "{}",
                ended.output
            );
            continue;
        }
        cannot_start(launch, words);
    }
    let bare = adit(None, &["node"]);
    assert!(!bare.status.success());
    for flag in ["--node", "--source", "--ca"] {
        assert!(bare.output.contains(flag), "{flag}: {}", bare.output);
    }
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let lab = Lab::one_node();
    cannot_start(
        lab.launch(1).source("/nowhere/cluster.yaml"),
        &["/nowhere/cluster.yaml"],
    );
}

#[test]
fn an_authority_that_cannot_be_used_is_named_with_its_mend() {
    let mut lab = Lab::one_node();
    lab.pod(1, "a");
    lab.publish();
    let file = lab.dir().join("a-file");
    std::fs::write(&file, "").expect("the lab's directory is writable");
    cannot_start(lab.launch(1).ca(&file), &[&file.display().to_string()]);
    let broken = lab.dir().join("broken");
    std::fs::create_dir(&broken).expect("the lab's directory is writable");
    std::fs::write(broken.join("root.key"), "no key").expect("the lab's directory is writable");
    std::fs::write(broken.join("root.pem"), "no certificate")
        .expect("the lab's directory is writable");
    for file in ["root.key", "root.pem"] {
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(broken.join(file), mode).expect("it is ours");
    }
    cannot_start(lab.launch(1).ca(&broken), &[&broken.display().to_string()]);
    let mut launch = lab.launch(1);
    launch.ca = "/proc/no-directory-can-be-made-here".into();
    cannot_start(launch, &["/proc/no-directory-can-be-made-here"]);
}

#[test]
fn a_missing_capability_is_named() {
    let mut lab = Lab::one_node();
    lab.pod(1, "a");
    lab.publish();
    for (capability, name) in [("-net_admin", "NET_ADMIN"), ("-sys_admin", "SYS_ADMIN")] {
        let launch =
            lab.launch(1)
                .privileges(&["--bounding-set", capability, "--inh-caps", capability]);
        let end = launch.finish(Duration::from_secs(10));
        assert!(!end.status.success());
        assert!(end.output.contains(name), "{}", end.output);
        let complaints = end.output.lines().filter(|l| l.contains(name)).count();
        assert_eq!(complaints, 1, "once is enough: {}", end.output);
    }
}

#[test]
fn an_address_in_use_is_named() {
    let mut lab = Lab::one_node();
    lab.pod(1, "a");
    lab.publish();
    for (port, any) in [
        (15000, [127, 0, 0, 1]),
        (15020, [0, 0, 0, 0]),
        (15021, [0, 0, 0, 0]),
    ] {
        let _squatter =
            Listener::open(lab.node(1).netns(), (any, port).into()).expect("the port is free");
        cannot_start(lab.launch(1), &[&port.to_string()]);
    }
}

#[test]
fn a_daemon_of_another_node_does_not_disturb_the_first() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    let _server = b.greet(8080);
    let mut second = lab.launch(1);
    second.log = lab.dir().join("second.log");
    second.node = "node2".to_owned();
    cannot_start(second, &["run-dir", "node1"]);
    for _ in 0..10 {
        a.call(b.at(8080)).assert_served("b", a.ip());
    }
}

#[test]
fn flags_can_be_given_by_the_environment() {
    let help = adit(None, &["node", "--help"]);
    assert!(help.status.success());
    let flags = [
        "SOURCE",
        "CA",
        "TRUST_DOMAIN",
        "CLUSTER_DOMAIN",
        "ROOT_NAMESPACE",
        "WORKERS",
        "SAME_NODE",
        "ENROL_LABEL",
        "RUN_DIR",
        "ADMIN",
        "METRICS",
        "READY",
        "DRAIN",
        "LOG",
        "LOG_FORMAT",
    ];
    for flag in flags {
        assert!(
            help.output.contains(&format!("ADIT_{flag}")),
            "ADIT_{flag}: {}",
            help.output
        );
    }
    assert!(help.output.contains("NODE_NAME"), "{}", help.output);
}

#[test]
fn many_pods_are_enrolled_side_by_side_and_soon() {
    let mut lab = Lab::one_node();
    let pods: Vec<Pod> = (0..20).map(|n| lab.pod(1, &format!("p{n}"))).collect();
    let begin = Instant::now();
    lab.start();
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "after {:?}",
        begin.elapsed()
    );
    assert!(pods.iter().all(Pod::has_rules));
    let _servers: Vec<_> = pods.iter().map(|p| p.greet(8080)).collect();
    for (n, pod) in pods.iter().enumerate() {
        let next = &pods[(n + 1) % pods.len()];
        pod.call(next.at(8080)).assert_served(next.name(), pod.ip());
    }
    for pod in &pods {
        lab.cluster
            .label("Pod", "mesh", pod.name(), "adit.mesh/mode", Some("none"));
    }
    lab.publish();
    eventually(Duration::from_secs(10), "all are released", || {
        !pods.iter().any(Pod::has_rules)
    });
    holds_for(RELOAD, "and stay so", || !pods.iter().any(Pod::has_rules));
}
