//! What the plugin does while the daemon is away.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::runtime::{Pod, Runtime, Sandbox, lab, namespaces};
use crate::support::{Lab, eventually, run};

/// Whether a pod of each of these namespaces starts.
fn starts<const N: usize>(runtime: &Runtime, namespaces: [&str; N]) -> [bool; N] {
    namespaces.map(|namespace| {
        let sandbox = Sandbox::new(&Pod::new(namespace, "p"));
        match runtime.ask(
            "ADD",
            Some(&sandbox),
            Some(r#"{"ips":[{"address":"10.2.1.9/24"}]}"#),
            &[],
        ) {
            Ok(_) => true,
            Err(fault) => {
                assert_eq!(fault.code(), 11, "the runtime is told to try again");
                false
            }
        }
    })
}

const ALL: [&str; 5] = ["mesh", "plain", "nowhere", "kube-system", "adit-system"];

fn away() -> (Lab, Runtime) {
    let mut lab = lab();
    lab.namespace("adit-system", &[]);
    lab.start();
    let runtime = Runtime::new(&lab);
    lab.daemon(1).kill();
    (lab, runtime)
}

#[test]
fn pods_of_the_mesh_wait_and_all_others_start() {
    let (lab, runtime) = away();
    assert_eq!(starts(&runtime, ALL), [false, true, false, true, true]);
    let file = namespaces(&lab);
    let mode = fs::metadata(&file)
        .expect("the daemon left it")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // What could be somebody else's is not believed; nor is what is not there.
    let nothing = [false, false, false, true, true];
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("it is ours");
    assert_eq!(starts(&runtime, ALL), nothing);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    chown(&file, Some(65534), None).expect("we are root");
    assert_eq!(starts(&runtime, ALL), nothing);
    chown(&file, Some(0), None).expect("we are root");
    let text = fs::read_to_string(&file).expect("it is there");
    let mut old: Value = serde_json::from_str(&text).expect("it is JSON");
    old["boot"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(&file, old.to_string()).expect("it is ours");
    assert_eq!(starts(&runtime, ALL), nothing);
    fs::write(&file, &text[..text.len() / 2]).expect("it is ours");
    assert_eq!(starts(&runtime, ALL), nothing);
    fs::remove_file(&file).expect("it is ours");
    assert_eq!(starts(&runtime, ALL), nothing);
}

#[test]
fn the_file_follows_labels() {
    let mut lab = lab();
    lab.start();
    let said = |lab: &Lab| -> Value {
        let text = fs::read_to_string(namespaces(lab)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    eventually(Duration::from_secs(5), "it is written", || {
        said(&lab)["enrolled"] == json!(["mesh"]) && said(&lab)["others"] == json!(["plain"])
    });
    lab.cluster
        .label("Namespace", "", "mesh", "adit.mesh/mode", None);
    // One labelled pod makes its namespace one of which the next pod may be labelled as well.
    let mut pod = Pod::new("plain", "p");
    pod.labels = vec![("adit.mesh/mode".into(), "ambient".into())];
    lab.cluster.put(pod.object(&[]));
    lab.publish();
    eventually(Duration::from_secs(5), "it follows", || {
        said(&lab)["enrolled"] == json!(["plain"]) && said(&lab)["others"] == json!(["mesh"])
    });
}

#[test]
fn a_daemon_that_stands_still_holds_up_the_mesh_alone() {
    let mut lab = lab();
    lab.start();
    let runtime = Runtime::new(&lab);
    lab.daemon(1).signal(Signal::SIGSTOP);
    let begin = Instant::now();
    assert_eq!(starts(&runtime, ["kube-system"]), [true]);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "it is not even asked"
    );
    assert_eq!(starts(&runtime, ["plain", "mesh"]), [true, false]);
    let begin = Instant::now();
    let sandbox = Sandbox::new(&Pod::new("mesh", "p"));
    runtime
        .ask("DEL", Some(&sandbox), None, &[])
        .expect("a pod can always end");
    assert!(begin.elapsed() < Duration::from_secs(5));
    lab.daemon(1).signal(Signal::SIGCONT);
}

#[test]
fn the_network_counts_as_ready_unless_the_chain_says_otherwise() {
    let (_lab, runtime) = away();
    let mut runtime = runtime.version("1.1.0");
    assert_eq!(runtime.ask("STATUS", None, None, &[]).expect("it is"), "");
    runtime.entry()["gate"] = json!(true);
    let fault = runtime
        .ask("STATUS", None, None, &[])
        .expect_err("it is not");
    assert_eq!(fault.code(), 50);
}

#[test]
fn a_daemon_that_is_back_takes_pods_again() {
    let (mut lab, runtime) = away();
    let pod = Pod::new("mesh", "a");
    lab.cluster.put(pod.object(&[]));
    lab.publish();
    let sandbox = Sandbox::new(&pod);
    assert_eq!(runtime.add(&sandbox).expect_err("it waits").code(), 11);
    let launch = lab.daemon(1).launch().clone();
    let daemon = launch.spawn();
    lab.install(1, daemon);
    // As kubelet does: another sandbox, until one is taken.
    let done = crate::support::within(Duration::from_secs(20), "it is taken", || {
        let sandbox = Sandbox::new(&pod);
        runtime.add(&sandbox).map(|_| sandbox)
    });
    assert!(done.is_captured());
}

#[test]
fn nonsense_on_the_socket_harms_nobody() {
    let mut lab = lab();
    lab.start();
    let socket = lab.dir().join("run/node1/cni.sock");
    let mode = fs::metadata(&socket).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert!(UnixStream::connect(&socket).is_err(), "it is no stream");
    // Messages that are no JSON, of another shape, without a namespace, and none at all.
    let script = "import socket,sys\n\
        for m in (b'x', b'{}', b'[]', b'{\"verb\":\"add\"}', b'\\xff'*1000, b'{\"verb\":\"gc\",\"network\":\"pods\",\"left\":[]}', None):\n\
        \x20   s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n\
        \x20   m and s.send(m); m and s.recv(1000); s.close()\n";
    run("python3", &["-c", script, &socket.to_string_lossy()]);
    // Who is not root is not even let in.
    let denied = "import socket,sys,os\nos.setuid(65534)\n\
        s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
        try: s.connect(sys.argv[1])\n\
        except PermissionError: sys.exit(0)\n\
        sys.exit(1)\n";
    run("python3", &["-c", denied, &socket.to_string_lossy()]);
    let pod = Pod::new("mesh", "a");
    lab.cluster.put(pod.object(&[]));
    lab.publish();
    let sandbox = Sandbox::new(&pod);
    Runtime::new(&lab)
        .add(&sandbox)
        .expect("the chain succeeds");
}
