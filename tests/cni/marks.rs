//! What the daemon tells the API server of its pods.

use std::time::Duration;

use serde_json::{Value, json};

use crate::runtime::{Pod, Runtime, Sandbox, lab};
use crate::support::apiserver::{ApiServer, Options};
use crate::support::{Lab, Launch, within};

const SOON: Duration = Duration::from_secs(15);
pub(crate) const MARK: &str = "ambient.istio.io/redirection";

/// The daemon of node 1 as it is started against this server.
pub(crate) fn launch(lab: &Lab, server: &ApiServer) -> Launch {
    let kubeconfig = lab.dir().join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig("{}")).expect("it is writable");
    let kubeconfig = kubeconfig.to_string_lossy().into_owned();
    let launch = lab.launch(1).source("kube");
    launch.args(&["--kubeconfig", &kubeconfig])
}

/// Starts the daemon of node 1 against this server.
pub(crate) fn start(lab: &mut Lab, server: &ApiServer) {
    let daemon = launch(lab, server).start();
    lab.install(1, daemon);
}

pub(crate) fn server(lab: &Lab) -> ApiServer {
    let server = ApiServer::start(Options {
        namespace: Some(lab.node(1).share_netns()),
        ..Options::default()
    });
    server.put(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "mesh", "labels": { "adit.mesh/mode": "ambient" } },
    }));
    server
}

pub(crate) fn mark(server: &ApiServer, name: &str) -> Value {
    let pod = server.object("v1", "Pod", "mesh", name);
    pod.map_or(Value::Null, |pod| {
        pod["metadata"]["annotations"][MARK].clone()
    })
}

#[track_caller]
pub(crate) fn becomes(server: &ApiServer, name: &str, expect: &Value) {
    within(SOON, &format!("the mark of {name} is {expect}"), || {
        let found = mark(server, name);
        if found == *expect { Ok(()) } else { Err(found) }
    });
}

#[test]
fn a_pod_is_marked_while_it_is_captured() {
    let mut lab = lab();
    let server = server(&lab);
    let (pod, stale) = (Pod::new("mesh", "a"), Pod::new("mesh", "stale"));
    server.put(pod.object(&[]));
    // It was captured before the node was started again, and nothing of it runs now.
    let mut before = stale.object(&["10.2.1.77".parse().expect("an address")]);
    before["metadata"]["annotations"] = json!({ MARK: "enabled" });
    server.put(before);
    // Another left the mesh while no daemon ran.
    server.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "plain" } }));
    let mut left = Pod::new("plain", "left").object(&["10.2.1.78".parse().expect("an address")]);
    left["metadata"]["annotations"] = json!({ MARK: "enabled" });
    server.put(left);
    let daemon = launch(&lab, &server).spawn();
    lab.install(1, daemon);
    becomes(&server, "stale", &Value::Null);
    let left = || server.object("v1", "Pod", "plain", "left");
    within(SOON, "the mark is gone", || match left() {
        Some(pod) if pod["metadata"]["annotations"][MARK].is_null() => Ok(()),
        other => Err(other),
    });
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&pod);
    let added = within(SOON, "the pod starts", || runtime.add(&sandbox));
    becomes(&server, "a", &json!("enabled"));
    assert!(!added.ips().is_empty());
    // People read at the pod why the other one is not captured.
    let event = within(SOON * 2, "an event", || {
        let events = server.objects("v1", "Event");
        let mut ours = events
            .iter()
            .filter(|e| e["involvedObject"]["name"] == "stale");
        ours.next().cloned().ok_or(events.clone())
    });
    let message = event["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("network namespace was not found"),
        "{event}"
    );
    // The namespace leaves the mesh.
    server.edit("v1", "Namespace", "", "mesh", |namespace| {
        namespace["metadata"]["labels"] = json!({});
    });
    becomes(&server, "a", &Value::Null);
    within(SOON, "it is left", || {
        if sandbox.is_captured() {
            Err("it is captured")
        } else {
            Ok(())
        }
    });
}

#[test]
fn another_pod_of_the_same_name_is_not_marked() {
    let mut lab = lab();
    let server = server(&lab);
    let pod = Pod::new("mesh", "a");
    server.put(pod.object(&[]));
    start(&mut lab, &server);
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&pod);
    within(SOON, "the pod starts", || runtime.add(&sandbox));
    becomes(&server, "a", &json!("enabled"));
    server.remove("v1", "Pod", "mesh", "a");
    server.put(Pod::new("mesh", "a").object(&[]));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(mark(&server, "a"), Value::Null);
    // Nor is it tried again for ever to take the mark of the first from the second.
    let log = lab.daemon(1).log();
    assert!(!log.contains("pod not marked"), "{log}");
}
