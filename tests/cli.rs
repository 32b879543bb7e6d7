//! The `adit` program from outside: what it says to a person who types, and its exit status.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

struct Said {
    status: Option<i32>,
    out: String,
    err: String,
}

/// Runs `adit` with nothing in its environment.
fn adit(arguments: &[&str]) -> Said {
    said(
        Command::new(env!("CARGO_BIN_EXE_adit"))
            .env_clear()
            .args(arguments),
    )
}

fn said(command: &mut Command) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("adit runs");
    Said {
        status: status.code(),
        out: String::from_utf8(stdout).expect("text"),
        err: String::from_utf8(stderr).expect("text"),
    }
}

/// Checks that a call is refused with exit status 2 and one message that holds `parts`.
#[track_caller]
fn refused(arguments: &[&str], parts: &[&str]) {
    let said = adit(arguments);
    assert_eq!(
        said.status,
        Some(2),
        "{arguments:?}: {}{}",
        said.out,
        said.err
    );
    assert_eq!(said.out, "", "{arguments:?}");
    for part in parts {
        assert!(
            said.err.contains(part),
            "{arguments:?}: no {part:?} in {}",
            said.err
        );
    }
}

#[test]
fn help_and_version_are_answers() {
    let help = adit(&["--help"]);
    assert_eq!(help.status, Some(0), "{}", help.err);
    for word in [
        "node",
        "status",
        "workloads",
        "services",
        "policies",
        "certificates",
        "connections",
        "explain",
        "check",
    ] {
        assert!(help.out.contains(word), "no {word} in {}", help.out);
    }
    let version = format!("adit {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(adit(&["version"]).out, version);
    assert_eq!(adit(&["--version"]).out, version);
}

#[test]
fn a_runtime_finds_a_plugin_whatever_the_arguments() {
    for arguments in [&[][..], &["cni"], &["node"]] {
        let version = said(
            Command::new(env!("CARGO_BIN_EXE_adit"))
                .env_clear()
                .env("CNI_COMMAND", "VERSION")
                .args(arguments),
        );
        assert_eq!(version.status, Some(0), "{}", version.err);
        assert!(version.out.contains("supportedVersions"), "{}", version.out);
    }
    refused(&["cni"], &["uninstall"]);
    refused(&["cni", "uninstall"], &["--cni-bin-dir", "--cni-conf-dir"]);
    refused(
        &["node", "--cni-bin-dir", "/opt/cni/bin"],
        &["--cni-conf-dir"],
    );
}

#[test]
fn every_flag_of_the_node_is_told_with_its_twin_and_default() {
    let help = adit(&["node", "--help"]).out;
    for (flag, twin, default) in [
        ("--node", "ADIT_NODE", "NODE_NAME"),
        ("--source", "ADIT_SOURCE", ""),
        ("--ca", "ADIT_CA", "dir:PATH"),
        (
            "--trust-domain",
            "ADIT_TRUST_DOMAIN",
            "[default: cluster.local]",
        ),
        (
            "--cluster-domain",
            "ADIT_CLUSTER_DOMAIN",
            "[default: cluster.local]",
        ),
        (
            "--root-namespace",
            "ADIT_ROOT_NAMESPACE",
            "[default: adit-system]",
        ),
        ("--workers", "ADIT_WORKERS", ""),
        ("--same-node", "ADIT_SAME_NODE", "[default: direct]"),
        (
            "--tunnel-congestion",
            "ADIT_TUNNEL_CONGESTION",
            "[default: auto]",
        ),
        ("--existing", "ADIT_EXISTING", "[default: keep]"),
        (
            "--enrol-label",
            "ADIT_ENROL_LABEL",
            "adit.mesh/mode=ambient",
        ),
        ("--run-dir", "ADIT_RUN_DIR", "[default: /run/adit]"),
        ("--admin", "ADIT_ADMIN", "[default: 127.0.0.1:15000]"),
        ("--metrics", "ADIT_METRICS", "[default: [::]:15020]"),
        ("--ready", "ADIT_READY", "[default: [::]:15021]"),
        ("--drain", "ADIT_DRAIN", "[default: 30s]"),
        ("--cert-validity", "ADIT_CERT_VALIDITY", "[default: 24h]"),
        ("--log", "ADIT_LOG", "[default: info]"),
        ("--log-format", "ADIT_LOG_FORMAT", "[default: text]"),
    ] {
        for part in [flag, &format!("[env: {twin}]"), default] {
            assert!(help.contains(part), "no {part:?} in {help}");
        }
    }
}

#[test]
fn a_slip_is_told_with_its_mend() {
    refused(&[], &["Usage"]);
    refused(&["nod"], &["nod", "node"]);
    refused(&["node", "--sorce", "x"], &["--sorce", "--source"]);
    refused(&["node", "--same-node", "tcp"], &["tcp", "direct", "hbone"]);
    refused(
        &["node", "--tunnel-congestion", "a control"],
        &["auto", "system", "cubic"],
    );
    refused(&["node", "--existing", "drop"], &["drop", "keep", "reset"]);
    refused(&["node", "--workers", "0"], &["--workers", "1..=256"]);
    refused(&["node", "--drain", "30"], &["--drain", "30s"]);
    refused(&["node", "--ready", "15021"], &["--ready", "ADDRESS:PORT"]);
    refused(
        &["node", "--ca", "/var/lib/ca"],
        &["--ca", "dir:/var/lib/ca"],
    );
    refused(
        &["node", "--ca", "https://ca"],
        &["--ca", "https://HOST:PORT"],
    );
    refused(
        &["node", "--trust-domain", "Acme Inc"],
        &["--trust-domain", "a-z"],
    );
    refused(
        &["node", "--root-namespace", "A"],
        &["--root-namespace", "a-z"],
    );
    refused(
        &["node", "--enrol-label", "mesh"],
        &["--enrol-label", "KEY=VALUE"],
    );
    refused(&["node", "--log", "loud"], &["--log", "loud", "info"]);
    refused(&["node", "--log-format", "xml"], &["xml", "text", "json"]);
    refused(
        &["status", "--admin", "localhost"],
        &["--admin", "unix:PATH"],
    );
    refused(&["workloads", "-o", "yaml"], &["yaml", "table", "json"]);
    refused(&["check"], &["cannot check the cluster", "--kubeconfig"]);
    refused(
        &["check", "--source", "/no/such.yaml"],
        &["/no/such.yaml", "No such file"],
    );
    refused(&["explain", "shop/web"], &["DST:PORT"]);
}

#[test]
fn a_daemon_is_not_started_on_half_a_configuration() {
    let ca = ["--ca", "dir:/nonexistent"];
    let node = |more: &[&'static str]| [&["node"], more].concat();
    refused(
        &node(&["--source", "/", ca[0], ca[1]]),
        &["--node NAME", "NODE_NAME"],
    );
    refused(&node(&["--node", "n", ca[0], ca[1]]), &["--source FILE"]);
    refused(&node(&["--node", "n", "--source", "/"]), &["--ca dir:PATH"]);
    let gone = ["--node", "n", "--source", "/no/such.yaml", ca[0], ca[1]];
    refused(&node(&gone), &["/no/such.yaml", "No such file"]);
    let kube = ["--node", "n", "--source", "kube", ca[0], ca[1]];
    refused(
        &node(&kube),
        &["no API server", "--kubeconfig", "KUBECONFIG"],
    );
    let both = ["--node", "n", "--source", "kube,/tmp", ca[0], ca[1]];
    refused(&node(&both), &["kube stands alone"]);
    let hasty = [&kube[..], &["--watch-silence", "500ms"]].concat();
    refused(&node(&hasty), &["--watch-silence", "1s or more"]);
    let gone = [&kube[..], &["--kubeconfig", "/no/such"]].concat();
    refused(&node(&gone), &["kubeconfig", "/no/such", "No such file"]);
    refused(&["check", "--source", "kube"], &["kube is for a node"]);
    let short = [
        "--node",
        "n",
        "--source",
        "/",
        ca[0],
        ca[1],
        "--cert-validity",
        "1s",
    ];
    refused(&node(&short), &["--cert-validity", "10s"]);
}

#[test]
fn the_environment_counts_and_flags_win() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.env_clear().env("ADIT_DRAIN", "soon").arg("node");
    let wrong = said(&mut command);
    assert_eq!(wrong.status, Some(2));
    assert!(
        wrong.err.contains("soon") && wrong.err.contains("--drain"),
        "{}",
        wrong.err
    );

    // All that is missing is told at once; with NODE_NAME the node's name is not.
    command.env("NODE_NAME", "n1").args(["--drain", "1s"]);
    let right = said(&mut command);
    assert!(right.err.contains("--source"), "{}", right.err);
    assert!(!right.err.contains("--node"), "{}", right.err);
}

#[test]
fn a_node_that_is_not_there_is_told_with_the_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("text");
    let said = adit(&["status", "--run-dir", path]);
    assert_eq!(said.status, Some(1));
    assert_eq!(said.out, "");
    assert!(
        said.err.starts_with("adit: cannot reach a node at unix:"),
        "{}",
        said.err
    );
    assert!(
        said.err.contains("admin.sock") && said.err.contains("--admin"),
        "{}",
        said.err
    );
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
}

/// Answers one request on `DIR/admin.sock` with JSON, and returns the request's first line.
fn answer_once(dir: &tempfile::TempDir, body: &str) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(dir.path().join("admin.sock")).expect("a socket");
    let body = body.to_owned();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.extend(byte);
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).expect("taken");
        let head = String::from_utf8(head).expect("text");
        head.lines().next().expect("a line").to_owned()
    })
}

#[test]
fn lists_are_tables_for_people_and_json_for_programs() {
    let body = r#"[
        {"uid": "1", "namespace": "shop", "name": "web", "identity": "spiffe://d/ns/shop/sa/web",
         "node": "n1", "zone": "", "ips": ["10.0.0.1"], "owner": "deployment/web",
         "enrolled": true, "later": "field"},
        {"uid": "2", "namespace": "other", "name": "db", "identity": "spiffe://d/ns/other/sa/db",
         "node": "n1", "zone": "", "ips": [], "owner": "pod/db", "enrolled": false,
         "bypass": "not_labelled"}]"#;
    for (more, expect) in [
        (
            &["-n", "shop"][..],
            "NAMESPACE  NAME  ADDRESS   NODE  MESH      IDENTITY\n\
             shop       web   10.0.0.1  n1    enrolled  spiffe://d/ns/shop/sa/web\n",
        ),
        (
            &["-n", "other"][..],
            "NAMESPACE  NAME  ADDRESS  NODE  MESH          IDENTITY\n\
             other      db    -        n1    not_labelled  spiffe://d/ns/other/sa/db\n",
        ),
        (&["-o", "json"][..], "\"later\": \"field\""),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let asked = answer_once(&dir, body);
        let path = dir.path().to_str().expect("text");
        let said = adit(&[&["workloads", "--run-dir", path], more].concat());
        assert_eq!(said.status, Some(0), "{}", said.err);
        assert!(said.out.contains(expect), "{more:?}:\n{}", said.out);
        assert_eq!(asked.join().expect("answered"), "GET /workloads HTTP/1.1");
    }
}

/// A cluster of two pods, of which the web server alone may call the database, on its port.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {adit.mesh/mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n1, serviceAccountName: web}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n2, serviceAccountName: db}
status: {phase: Running, podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: db-callers, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
    to: [{operation: {ports: ["5432"]}}]
"#;

/// Writes `more` behind the cluster into a file of a directory that lives as long as the result.
fn file(more: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("cluster.yaml");
    std::fs::write(&path, format!("{CLUSTER}{more}")).expect("written");
    (dir, path.to_str().expect("text").to_owned())
}

#[test]
fn files_are_checked_without_a_node() {
    let check = |more: &str, status: i32, parts: &[&str]| {
        let (_dir, path) = file(more);
        let said = adit(&["check", "--source", &path]);
        assert_eq!(said.status, Some(status), "{}{}", said.out, said.err);
        for part in parts {
            assert!(said.out.contains(part), "no {part:?} in {}", said.out);
        }
    };
    check(
        "",
        0,
        &["2 workloads (2 enrolled)", "1 policies; problems: 0"],
    );
    let kind = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n";
    check(kind, 0, &["note: ", "Deployment", "problems: 0"]);
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: bad, namespace: shop}\n\
               status: {podIPs: [{ip: x.y}]}\n";
    check(
        pod,
        1,
        &[
            "problem: ",
            "cluster.yaml:",
            "Pod shop/bad",
            "x.y",
            "problems: 1",
        ],
    );
    check("---\nkind: [\n", 1, &["problem: ", "cluster.yaml:"]);
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                  metadata: {name: odd, namespace: shop}\n";
    let odd = format!("{policy}spec: {{action: MAYBE}}\n");
    check(
        &odd,
        1,
        &["problem: AuthorizationPolicy shop/odd: refuses", "MAYBE"],
    );
    let http = "spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}\n";
    check(
        &format!("{policy}{http}"),
        0,
        &["notice: ", "methods", "problems: 0"],
    );
}

#[test]
fn a_connection_is_explained_without_a_node() {
    let (_dir, path) = file("");
    let explain = |to: &str, more: &[&str]| {
        adit(&[&["explain", "shop/web", to, "--source", &path], more].concat())
    };
    let allowed = explain("shop/db:5432", &[]);
    assert_eq!(allowed.status, Some(0), "{}", allowed.err);
    assert!(allowed.out.starts_with("permitted: "), "{}", allowed.out);
    assert!(
        allowed.out.contains("shop/db-callers, rules[0]"),
        "{}",
        allowed.out
    );
    assert!(
        allowed.out.contains("tunnel to 10.0.1.1:5432"),
        "{}",
        allowed.out
    );

    let refused = explain("10.0.1.1:80", &["-o", "json"]);
    assert_eq!(
        refused.status,
        Some(0),
        "a refusal is an answer: {}",
        refused.err
    );
    let json: serde_json::Value = serde_json::from_str(&refused.out).expect("JSON");
    assert_eq!(json["verdict"]["permitted"], false);
    assert_eq!(json["verdict"]["reason"], "not_allowed");

    let unknown = explain("shop/nobody:80", &[]);
    assert_eq!(unknown.status, Some(1));
    assert!(unknown.err.contains("shop/nobody"), "{}", unknown.err);
}
