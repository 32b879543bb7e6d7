//! What is said of the machine that it runs on.

use std::sync::Arc;

use serde_json::Value;

use crate::bed::{Bed, adit, finding};
use crate::support::{Launch, Namespace};

#[test]
fn a_machine_is_looked_at_before_anything_is_installed() {
    let bed = Bed::bare(|_| {});
    let (_, answer) = bed.findings(&["--pre", "--node-local"]);
    for name in [
        "a connection can be captured",
        "sockets can be listed",
        "this process has the capabilities",
    ] {
        let found = finding(&answer, name);
        assert_eq!(
            found["state"], "pass",
            "as root on a kernel that can: {found}"
        );
        assert_eq!(found["group"], "this node");
    }
    let none = finding(&answer, "the API server is of");
    assert_eq!(none["state"], "pass", "the cluster is looked at as well");
}

#[test]
fn a_machine_is_looked_at_though_no_cluster_can_be() {
    let bed = Bed::bare(|_| {});
    let mut bed = bed;
    bed.api.stop();
    let said = bed.check(&["--pre", "--node-local"]);
    assert_eq!(said.status, Some(2), "{}{}", said.out, said.err);
    assert!(
        said.out
            .contains("this node\n  ✓ a connection can be captured"),
        "{}",
        said.out
    );
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
}

#[test]
fn a_machine_alone_is_looked_at_where_nobody_tells_of_a_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = dir.path().to_str().expect("it is text");
    let said = adit(&["--pre", "--node-local", "--run-dir", run, "-o", "json"]);
    assert_eq!(said.status, Some(0), "{}{}", said.out, said.err);
    let answer: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(answer["ok"], true, "{answer:#}");
    assert_eq!(
        finding(&answer, "a connection can be captured")["state"],
        "pass"
    );
    let all = answer["findings"].as_array().expect("a list");
    let others: Vec<_> = all.iter().filter(|f| f["group"] != "this node").collect();
    let groups: Vec<_> = others.iter().filter_map(|f| f["group"].as_str()).collect();
    assert_eq!(
        groups,
        [
            "kubernetes",
            "network",
            "labels",
            "pods",
            "policies",
            "network policies"
        ]
    );
    for other in others {
        assert_eq!(other["state"], "skipped", "{other}");
        let why = other["found"].as_str().unwrap_or_default();
        assert!(why.contains("give --kubeconfig"), "{other}");
    }
    // What fails here fails: after an installation there is to be a daemon.
    let said = adit(&["--node-local", "--run-dir", run]);
    assert_eq!(said.status, Some(1), "{}{}", said.out, said.err);
    assert!(said.out.contains("✗ the daemon serves"), "{}", said.out);
    assert!(said.out.contains("1 failed, 8 skipped"), "{}", said.out);
}

#[test]
fn where_a_daemon_runs_it_is_asked_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("cluster.yaml"), "").expect("written");
    let launch = Launch {
        namespace: Arc::new(Namespace::new("check")),
        node: "here".to_owned(),
        sources: vec![path("cluster.yaml")],
        ca: path("ca"),
        run_dir: path("run"),
        log: path("log"),
        drain: "1s".to_owned(),
        args: Vec::new(),
        privileges: Vec::new(),
    };
    let daemon = launch.start();
    let bed = Bed::sound();
    let kubeconfig = bed.kubeconfig();
    let run = path("run");
    let arguments = [
        "-o",
        "json",
        "--kubeconfig",
        kubeconfig.to_str().expect("it is text"),
        "--run-dir",
        run.to_str().expect("it is text"),
    ];
    let ask = || -> Value { serde_json::from_str(&adit(&arguments).out).expect("JSON") };
    let answer = ask();
    assert_eq!(
        finding(&answer, "the daemon serves")["found"],
        "0 pods captured"
    );
    assert_eq!(finding(&answer, "the daemon is of")["state"], "pass");
    assert_eq!(
        finding(&answer, "the certificates of this")["state"],
        "pass"
    );
    drop(daemon);
    let answer = ask();
    let gone = finding(&answer, "the daemon serves");
    assert_eq!(gone["state"], "fail", "{gone}");
    assert!(
        gone["found"]
            .as_str()
            .is_some_and(|why| why.contains("cannot reach")),
        "{gone}"
    );
}
