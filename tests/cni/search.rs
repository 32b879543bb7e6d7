//! Pods that no plugin has told of are found by their processes.

use std::time::Duration;

use serde_json::json;

use crate::processes::Group;
use crate::runtime::Pod as Named;
use crate::support::{Lab, Pod, eventually, holds_for};

/// Long enough for one more attempt with back-off.
const FOUND: Duration = Duration::from_secs(15);

/// A pod of the mesh on node 1, whose network namespace nobody tells; and its UID.
fn untold(lab: &mut Lab, name: &str) -> (Pod, String) {
    let pod = lab.pod(1, name);
    let uid = Named::new("mesh", name).uid;
    lab.cluster.edit("Pod", "mesh", name, |object| {
        object["metadata"]["annotations"] = json!({});
        object["metadata"]["uid"] = json!(uid);
    });
    (pod, uid)
}

/// The group that systemd would be asked for, for a container of containerd.
fn systemd(uid: &str) -> Group {
    let uid = uid.replace('-', "_");
    let slice =
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
    Group::unified(&format!("{slice}/cri-containerd-0123456789abcdef.scope"))
}

const SLEEP: [&str; 2] = ["sleep", "1000"];

#[test]
fn running_pods_are_found_whatever_made_their_groups() {
    let mut lab = Lab::one_node();
    let (one, first) = untold(&mut lab, "one");
    let (two, second) = untold(&mut lab, "two");
    let (three, third) = untold(&mut lab, "three");
    let groups = [
        systemd(&first),
        Group::legacy(&format!("kubepods/besteffort/pod{second}/0123456789abcdef")),
        Group::unified(&format!(
            "kubepods/pod{third}/crio-0123456789abcdef/init.scope"
        )),
    ];
    let _processes: Vec<_> = groups
        .iter()
        .zip([&one, &two, &three])
        .map(|(group, pod)| group.run(Some(pod.netns()), &SLEEP))
        .collect();
    lab.start();
    for pod in [&one, &two, &three] {
        assert!(pod.has_rules(), "{}", pod.name());
        assert_eq!(lab.daemon(1).pod(&pod.id()).0, "enrolled");
    }
    let _server = two.greet(8080);
    one.call(two.at(8080)).assert_served("two", one.ip());
}

#[test]
fn processes_elsewhere_do_not_mislead() {
    let mut lab = Lab::one_node();
    let (pod, uid) = untold(&mut lab, "a");
    let other = lab.plain_pod(1, "other");
    let group = systemd(&uid);
    // Older than the pod's own: the runtime's helper on the node's network, somebody who went to
    // another pod's, somebody with a namespace of his own.
    let _on_node = group.run(None, &SLEEP);
    let _visitor = group.run(Some(other.netns()), &SLEEP);
    let _alone = group.run(None, &["unshare", "--net", "sleep", "1000"]);
    lab.publish();
    let mut daemon = lab.launch(1).spawn();
    eventually(FOUND, "it says that it has not found it", || {
        daemon.runs()
            && daemon.http(15000, "GET", "/pods").is_ok()
            && daemon
                .pod("mesh/a")
                .1
                .contains("network namespace that has its address")
    });
    assert!(!pod.has_rules() && !other.has_rules());
    let (status, why) = daemon.ready().expect("it answers");
    assert_eq!(status, 503, "{why}");
    let failures = [("reason", "namespace_not_found")];
    assert!(daemon.metric("adit_enrol_failures_total", &failures) > 0.0);
    // The pod's first process comes late; it is looked for again.
    let _own = group.run(Some(pod.netns()), &SLEEP);
    eventually(FOUND, "it is found", || {
        daemon.pod("mesh/a").0 == "enrolled"
    });
    assert!(pod.has_rules() && !other.has_rules());
    assert_eq!(daemon.ready().expect("it answers").0, 200);
}

#[test]
fn a_namespace_of_two_pods_is_nobody_s() {
    let mut lab = Lab::one_node();
    let (pod, first) = untold(&mut lab, "a");
    let second = Named::new("mesh", "b");
    lab.cluster.put(second.object(&pod.ips()));
    let (one, two) = (systemd(&first), systemd(&second.uid));
    let _one = one.run(Some(pod.netns()), &SLEEP);
    let _two = two.run(Some(pod.netns()), &SLEEP);
    lab.publish();
    let daemon = lab.launch(1).spawn();
    eventually(FOUND, "both are told", || {
        let told = |id: &str| daemon.pod(id).1.contains("also that of pod");
        daemon.http(15000, "GET", "/pods").is_ok() && told("mesh/a") && told("mesh/b")
    });
    holds_for(Duration::from_secs(2), "it is left alone", || {
        !pod.has_rules()
    });
}

#[test]
fn a_sandbox_that_is_made_again_under_the_same_uid_is_followed() {
    let mut lab = Lab::one_node();
    let (pod, uid) = untold(&mut lab, "a");
    let group = systemd(&uid);
    let before = group.run(Some(pod.netns()), &SLEEP);
    lab.start();
    assert!(pod.has_rules());
    drop(before);
    let pod = lab.replace_netns(pod);
    let _after = group.run(Some(pod.netns()), &SLEEP);
    eventually(FOUND, "the new one is captured", || {
        pod.has_rules() && lab.daemon(1).pod("mesh/a").0 == "enrolled"
    });
}
