//! Kubelet's probes pass where plain connections are refused, and nobody else's do.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::processes::{Group, Process};
use crate::support::{Lab, Listener, Outcome, eventually, run};

/// Reads one address a line and says what came of a call there. Listens on 10250, as kubelet does.
const KUBELET: &str = r"
import socket, sys
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); l.bind(('', 10250)); l.listen()
print('ready', flush=True)
for line in sys.stdin:
    ip, port = line.split()
    try:
        s = socket.create_connection((ip, int(port)), 5); s.settimeout(5)
        got = s.recv(100); s.close()
        print('served' if got else 'ended', flush=True)
    except OSError as e:
        print('failed', flush=True)
";

/// Something that calls itself kubelet, whatever it is.
struct Prober(Process);

impl Prober {
    /// On node 1, under this name, listening on that port.
    fn new(lab: &Lab, group: &Group, name: &str, port: u16) -> Self {
        Self::running(lab, group, name, port, KUBELET)
    }

    fn running(lab: &Lab, group: &Group, name: &str, port: u16, script: &str) -> Self {
        let directory = lab.dir().join(name);
        fs::create_dir_all(&directory).expect("it is writable");
        let program = directory.join(name);
        let python = "import sys, os; print(os.path.realpath(sys.executable))";
        let python = run("python3", &["-c", python]);
        let _ = std::os::unix::fs::symlink(python.trim(), &program);
        let script = script.replace("10250", &port.to_string());
        let program = program.to_string_lossy().into_owned();
        let netns = lab.node(1).netns();
        let process = group.run(Some(netns), &[&program, "-u", "-c", &script]);
        let mut prober = Self(process);
        assert_eq!(prober.line(), "ready");
        prober
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let output = self.0.0.stdout.as_mut().expect("it is piped");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it speaks");
        line.trim().to_owned()
    }

    fn call(&mut self, to: SocketAddr) -> String {
        let input = self.0.0.stdin.as_mut().expect("it is piped");
        writeln!(input, "{} {}", to.ip(), to.port()).expect("it reads");
        self.line()
    }
}

fn refuse_everybody(lab: &mut Lab) {
    lab.cluster.put(json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": "strict", "namespace": "mesh" },
        "spec": { "mtls": { "mode": "STRICT" } },
    }));
    lab.cluster.put(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "nothing", "namespace": "mesh" }, "spec": {},
    }));
}

#[test]
fn kubelet_s_probes_pass_under_strict_and_nothing_else_from_the_node_does() {
    let mut lab = Lab::new();
    let pod = lab.pod(1, "a");
    let stranger = lab.stranger(2, "far");
    refuse_everybody(&mut lab);
    let service = Group::unified("system.slice/kubelet.service");
    let mut kubelet = Prober::new(&lab, &service, "kubelet", 10250);
    lab.start_with(|launch| launch.args(&["--log", "info,access=debug"]));
    let _server = pod.greet(8080);
    let to = pod.at(8080);
    for to in [to, SocketAddr::new(pod.v6(), 8080)] {
        eventually(Duration::from_secs(12), "the probe passes", || {
            kubelet.call(to) == "served"
        });
    }
    let record = lab.daemon(1).record("the probe", |r| r.is("path", "probe"));
    assert!(record.is("dst.addr", &to.to_string()));
    // Others of the node, root or not, are not kubelet.
    let other = Group::unified("system.slice/other.service");
    let mut pretender = Prober::new(&lab, &other, "worker", 0);
    assert_eq!(pretender.call(to), "failed");
    // One that calls itself so in a pod on the node's network is not either.
    drop(pretender);
    let contained = Group::unified(
        "kubepods.slice/kubepods-pod00000000_b29f_41e7_9350_000000000001.slice/crio-1.scope",
    );
    let mut impostor = Prober::new(&lab, &contained, "kubelet", 0);
    assert_eq!(impostor.call(to), "failed");
    drop(impostor);
    // Nor is what the node passes on under its own address: even from kubelet's own port, on which
    // kubelet listens.
    lab.node(1).netns().nft(&format!(
        "table ip nat {{
            chain pre {{ type nat hook prerouting priority dstnat; ip daddr 10.0.0.1 tcp dport 8080 dnat to {to}; }}
            chain post {{ type nat hook postrouting priority srcnat; ip daddr {} tcp dport 8080 iifname eth0 snat to 10.1.1.1:10250; }}
        }}",
        to.ip(),
    ));
    let through: SocketAddr = "10.0.0.1:8080".parse().expect("an address");
    let outcome = stranger.call_for(through, Duration::from_secs(3));
    assert!(!format!("{outcome:?}").contains("Served"), "{outcome:?}");
    lab.daemon(1).record("it came from kubelet's port", |r| {
        r.is("src.addr", "10.1.1.1:10250") && !r.text("reason").is_empty()
    });
    // Kubelet is started again: another process, another group.
    drop(kubelet);
    drop(service);
    let service = Group::unified("system.slice/kubelet.service");
    let mut kubelet = Prober::new(&lab, &service, "kubelet", 10250);
    eventually(Duration::from_secs(12), "it is known again", || {
        kubelet.call(to) == "served"
    });
}

/// As a `tcpSocket` probe: connects, and does nothing else.
const CONNECTS: &str = r"
import socket, sys
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); l.bind(('', 10250)); l.listen()
print('ready', flush=True)
for line in sys.stdin:
    ip, port = line.split()
    try:
        socket.create_connection((ip, int(port)), 3).close()
        print('well', flush=True)
    except OSError as e:
        print(type(e).__name__, flush=True)
";

#[test]
fn a_probe_that_only_connects_sees_whether_the_application_listens() {
    const CLOSED: &str = "ConnectionRefusedError";
    let mut lab = Lab::new();
    let pod = lab.pod(1, "a");
    let stranger = lab.stranger(2, "far");
    refuse_everybody(&mut lab);
    let service = Group::unified("system.slice/kubelet.service");
    let mut kubelet = Prober::running(&lab, &service, "kubelet", 10250, CONNECTS);
    lab.start();
    let addresses = [pod.at(8080), SocketAddr::new(pod.v6(), 8080)];
    for to in addresses {
        assert_eq!(kubelet.call(to), CLOSED);
        // Whoever asks is told the same, and nobody is told of a port of ours.
        let outcome = stranger.call_for(to, Duration::from_secs(3));
        assert_eq!(outcome, Outcome::Refused);
        assert_eq!(kubelet.call(SocketAddr::new(to.ip(), 15006)), CLOSED);
    }
    // What listens for the pod itself does not listen for kubelet.
    let local = "127.0.0.1:8080".parse().expect("an address");
    let inside = Listener::open(pod.netns(), local).expect("the port is free");
    assert_eq!(kubelet.call(pod.at(8080)), CLOSED);
    drop(inside);
    let server = pod.greet(8080);
    for to in addresses {
        assert_eq!(kubelet.call(to), "well");
        // The port is open to nobody else for that.
        let outcome = stranger.call_for(to, Duration::from_secs(3));
        assert!(!format!("{outcome:?}").contains("Served"), "{outcome:?}");
    }
    drop(server);
    for to in addresses {
        eventually(Duration::from_secs(5), "it has ended", || {
            kubelet.call(to) == CLOSED
        });
    }
    // So also while no daemon runs; and what listens is not reached by anybody.
    lab.daemon(1).kill();
    assert_eq!(kubelet.call(pod.at(8080)), CLOSED);
    let _server = pod.greet(8080);
    assert_eq!(kubelet.call(pod.at(8080)), "TimeoutError");
}

#[test]
fn probes_that_go_well_are_not_in_the_access_log_unless_asked_for() {
    let mut lab = Lab::new();
    let (open, strict) = (lab.pod(1, "open"), lab.pod(1, "strict"));
    lab.cluster.put(json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": "strict", "namespace": "mesh" },
        "spec": {
            "selector": { "matchLabels": { "app": "strict" } },
            "mtls": { "mode": "STRICT" },
        },
    }));
    let service = Group::unified("system.slice/kubelet.service");
    let mut kubelet = Prober::new(&lab, &service, "kubelet", 10250);
    lab.start();
    let _servers = [open.greet(8080), strict.greet(8080)];
    let _rude = open.listen(8081).serve(crate::support::Conn::reset);
    let known = |lab: &mut Lab| lab.daemon(1).metric("adit_kubelet_known", &[]) == 1.0;
    eventually(Duration::from_secs(12), "kubelet is known", || {
        known(&mut lab)
    });
    for _ in 0..5 {
        for pod in [&open, &strict] {
            assert_eq!(kubelet.call(pod.at(8080)), "served");
        }
    }
    assert_eq!(kubelet.call(open.at(8081)), "failed");
    // Others of the node are recorded, and after them everything that was before.
    let other = Group::unified("system.slice/other.service");
    let mut other = Prober::new(&lab, &other, "worker", 0);
    assert_eq!(other.call(open.at(8080)), "served");
    assert_eq!(other.call(strict.at(8080)), "failed");
    lab.daemon(1)
        .record("it is refused", |r| r.is("reason", "denied"));
    let from_node = |lab: &mut Lab| {
        let records = lab.daemon(1).records();
        let ours = records.iter().filter(|r| r.is("direction", "inbound"));
        let told = |r: &crate::support::Record| (r.text("path"), r.text("reason"));
        ours.map(told).collect::<Vec<_>>()
    };
    let mut found = from_node(&mut lab);
    found.sort();
    let expect = [("plain", ""), ("plain", "denied"), ("probe", "reset")];
    let expect = expect.map(|(path, reason)| (path.to_owned(), reason.to_owned()));
    assert_eq!(found, expect);
    let labels = [
        ("destination_workload", "open"),
        ("reporter", "destination"),
    ];
    let opened = lab
        .daemon(1)
        .metric("istio_tcp_connections_opened_total", &labels);
    assert_eq!(opened, 7.0, "all are counted");
    lab.daemon(1).kill();
    let daemon = lab.launch(1).args(&["--log", "info,access=debug"]).start();
    lab.install(1, daemon);
    eventually(Duration::from_secs(12), "kubelet is known", || {
        known(&mut lab)
    });
    for pod in [&open, &strict] {
        assert_eq!(kubelet.call(pod.at(8080)), "served");
        let to = pod.at(8080).to_string();
        lab.daemon(1).record("it was asked for", |r| {
            r.is("path", "probe") && r.is("dst.addr", &to)
        });
    }
}
