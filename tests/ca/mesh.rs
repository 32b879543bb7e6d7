//! Daemons that carry traffic under certificates of `adit control`.

use std::sync::Arc;
use std::time::Duration;

use crate::bed::{Bed, Control, replace};
use crate::support::{Lab, Namespace, Pod, eventually, holds_for, within};

/// A lab whose authority is a replica of `adit control` on node 1, with the pods that it knows.
struct Mesh {
    lab: Lab,
    bed: Bed,
    control: Control,
}

impl Mesh {
    fn new(pods: impl FnOnce(&mut Lab) -> Vec<Pod>) -> (Self, Vec<Pod>) {
        let mut lab = Lab::new();
        let pods = pods(&mut lab);
        let bed = Bed::within(Some(shared(&lab)));
        for pod in &pods {
            place(&bed, pod);
        }
        bed.node("node1");
        bed.node("node2");
        let control = bed.start("control", &["--name", "10.0.0.1"]);
        for node in ["node1", "node2"] {
            replace(
                &bed.path(&format!("{node}.token")),
                &format!("{node}-token"),
            );
        }
        replace(&bed.path("root.pem"), &bed.bundle());
        (Self { lab, bed, control }, pods)
    }

    /// Starts both daemons with further arguments.
    fn start(&mut self, args: &[&str]) {
        let ca = format!("https://10.0.0.1:{}", self.control.address().port());
        let root = self.bed.path("root.pem").display().to_string();
        let dir = self.bed.place.dir.path().display().to_string();
        self.lab.start_with(|launch| {
            let token = format!("{dir}/{}.token", launch.node);
            launch
                .args(&["--ca", &ca, "--ca-root", &root, "--ca-token", &token])
                .args(args)
        });
    }
}

/// Node 1's namespace, once more.
fn shared(lab: &Lab) -> Arc<Namespace> {
    lab.launch(1).namespace
}

fn place(bed: &Bed, pod: &Pod) {
    let node = format!("node{}", pod.node());
    bed.pod(
        &node,
        pod.namespace(),
        pod.name(),
        &pod.spec().service_account,
    );
}

#[test]
fn two_nodes_carry_traffic_under_the_clusters_authority() {
    let (mut mesh, pods) = Mesh::new(|lab| vec![lab.pod(1, "a"), lab.pod(2, "b")]);
    let [a, b] = &pods[..] else { unreachable!() };
    mesh.start(&[]);
    let _servers = [a.greet(8080), b.greet(8080)];
    a.call(b.at(8080)).assert_served("b", a.ip());
    b.call(a.at(8080)).assert_served("a", b.ip());
    eventually(Duration::from_secs(3), "it went through a tunnel", || {
        let tunnels = "adit_tunnels_opened_total";
        mesh.lab
            .daemon(1)
            .metric(tunnels, &[("direction", "outbound")])
            >= 1.0
    });

    // A pod that comes later.
    let c = mesh.lab.pod(2, "c");
    place(&mesh.bed, &c);
    mesh.lab.publish();
    let _server = c.greet(8080);
    eventually(Duration::from_secs(10), "the new pod is reached", || {
        a.call(c.at(8080)).served()
    });

    // One that the authority does not know on this node gets none, and the daemon says why.
    let d = mesh.lab.pod(1, "d");
    mesh.lab.publish();
    within(Duration::from_secs(10), "the refusal is told", || {
        let lines = mesh.lab.daemon(1).lines();
        let told = lines.iter().any(|l| {
            l.is("identity", &d.identity()) && l.text("error").contains("mesh/d runs on node node1")
        });
        if told { Ok(()) } else { Err("no such line") }
    });
    place(&mesh.bed, &d);
    let _server = d.greet(8080);
    eventually(Duration::from_secs(15), "it is retried", || {
        b.call(d.at(8080)).served()
    });
}

#[test]
fn certificates_are_renewed_and_outlast_an_authority_that_is_away() {
    let (mut mesh, pods) = Mesh::new(|lab| vec![lab.pod(1, "a"), lab.pod(2, "b")]);
    let [a, b] = &pods[..] else { unreachable!() };
    mesh.start(&["--cert-validity", "30s"]);
    let _server = b.greet(8080);
    let live = a.dial_greeter(b.at(8080));
    let issued = |mesh: &mut Mesh| {
        mesh.lab
            .daemon(1)
            .metric("adit_certificates_issued_total", &[])
    };
    within(
        Duration::from_secs(30),
        "a renewal, with traffic all the while",
        || {
            live.echoes(b"still alive")
                .expect("the connection outlives its certificate");
            a.call(b.at(8080)).assert_served("b", a.ip());
            let count = issued(&mut mesh);
            if count >= 2.0 { Ok(()) } else { Err(count) }
        },
    );
    let ports = mesh.control.ports();
    mesh.control.kill();
    within(
        Duration::from_secs(25),
        "the failed renewal is told, with what to do",
        || {
            // Whichever node's renewal comes first: to wait for both may outlast a certificate.
            let told = (1..=2).any(|node| {
                mesh.lab.daemon(node).lines().iter().any(|l| {
                    l.is("level", "WARN")
                        && l.text("error").contains("cannot connect to the authority")
                })
            });
            if told { Ok(()) } else { Err("no such line") }
        },
    );
    holds_for(
        Duration::from_secs(1),
        "the valid certificate is kept",
        || a.call(b.at(8080)).served(),
    );
    let before = issued(&mut mesh);
    mesh.control = mesh.bed.spawn_at("second", ports, &["--name", "10.0.0.1"]);
    mesh.control.await_ready();
    within(Duration::from_secs(30), "renewals go on", || {
        let count = issued(&mut mesh);
        if count > before { Ok(()) } else { Err(count) }
    });
    a.call(b.at(8080)).assert_served("b", a.ip());
    live.echoes(b"and on")
        .expect("the connection has seen nothing of it");
}
