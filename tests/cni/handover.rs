//! From one daemon to the next, as a container runtime and the API server see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::marks::{mark, server};
use crate::runtime::{Pod, Runtime, Sandbox, lab};
use crate::support::{Lab, eventually, within};

const SOON: Duration = Duration::from_secs(15);

#[test]
fn no_sandbox_is_turned_away_while_a_daemon_relieves_another() {
    let mut lab = lab();
    let b = lab.pod(2, "b");
    let pods: Vec<_> = (0..40)
        .map(|n| Pod::new("mesh", &format!("p{n}")))
        .collect();
    for pod in &pods {
        lab.cluster.put(pod.object(&[]));
    }
    lab.start();
    let _server = b.greet(8080);
    let runtime = Runtime::new(&lab);
    let before = AtomicBool::new(true);
    let (sandboxes, old) = thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let mut sandboxes = Vec::new();
            for pod in &pods {
                let sandbox = Sandbox::new(pod);
                let begin = Instant::now();
                let added = runtime.add(&sandbox);
                let when = (before.load(Ordering::Relaxed), begin.elapsed());
                let added = added.unwrap_or_else(|fault| panic!("{when:?}: {}", fault.text()));
                assert!(sandbox.is_captured());
                sandboxes.push((sandbox, added.ips()[0]));
            }
            sandboxes
        });
        eventually(SOON, "some are captured", || {
            lab.daemon(1).metric("adit_pods", &[("state", "enrolled")]) >= 5.0
        });
        let old = lab.relieve(1, |launch| launch);
        before.store(false, Ordering::Relaxed);
        (adding.join().expect("every sandbox is added"), old)
    });
    old.signal(Signal::SIGTERM);
    for (sandbox, ip) in &sandboxes {
        sandbox.call(b.at(8080)).assert_served("b", *ip);
    }
    let daemon = lab.daemon(1);
    let count = |name: &str, labels: &[(&str, &str)]| daemon.metric(name, labels);
    assert_eq!(count("adit_pods", &[("state", "enrolled")]), 40.0);
    let (passed, new) = (
        count("adit_handover_pods", &[]),
        count("adit_enrolments_total", &[]),
    );
    assert!(
        passed >= 5.0 && new > 0.0 && passed + new == 40.0,
        "{passed} {new}"
    );
    // The next daemon knows of the sandboxes before it: one that goes is let go at once.
    runtime.del(&sandboxes[0].0);
    within(Duration::from_secs(5), "it is given up", || {
        match lab.daemon(1).metric("adit_pods", &[("state", "enrolled")]) {
            39.0 => Ok(()),
            other => Err(other),
        }
    });
}

/// Starts the daemon of node 1 against an API server; gives how to start another.
fn watching(lab: &mut Lab, kubeconfig: &str) {
    let launch = lab.launch(1).source("kube");
    let daemon = launch.args(&["--kubeconfig", kubeconfig]).start();
    lab.install(1, daemon);
}

#[test]
fn the_mark_of_a_captured_pod_stays_through_an_upgrade() {
    let mut lab = lab();
    let server = server(&lab);
    let pod = Pod::new("mesh", "a");
    server.put(pod.object(&[]));
    let kubeconfig = lab.dir().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig("{}")).expect("it is writable");
    let kubeconfig = kubeconfig.to_string_lossy().into_owned();
    watching(&mut lab, &kubeconfig);
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&pod);
    within(SOON, "the pod starts", || runtime.add(&sandbox));
    let enabled = json!("enabled");
    eventually(SOON, "it is marked", || mark(&server, "a") == enabled);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut seen = Vec::<Value>::new();
            while !stop.load(Ordering::Relaxed) {
                let now = mark(&server, "a");
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
                thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        let next = |launch: crate::support::Launch| {
            launch.source("kube").args(&["--kubeconfig", &kubeconfig])
        };
        let mut old = lab.relieve(1, next);
        // Longer than a pod may be without a word before its mark is taken away.
        thread::sleep(Duration::from_secs(7));
        old.signal(Signal::SIGTERM);
        old.await_end(SOON);
        // And back again, from one that dies.
        let old = lab.relieve(1, next);
        lab.exchange(1, old).kill();
        lab.daemon(1).says(&["taking the pods back"]);
        thread::sleep(Duration::from_secs(7));
        stop.store(true, Ordering::Relaxed);
        let seen = looking.join().expect("it does not panic");
        assert_eq!(seen, [enabled]);
    });
    assert!(sandbox.is_captured());
}
