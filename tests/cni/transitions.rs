//! What changes while something is under way: each transition ends in the right state of the
//! kernel, whatever came between.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::marks::{MARK, becomes, launch, mark, server, start};
use crate::processes::Group;
use crate::runtime::{Pod, Runtime, Sandbox, lab};
use crate::support::{Lab, Listener, Outcome, eventually, holds_for, within};

const SOON: Duration = Duration::from_secs(15);
/// Below what an enrolment waits for a loopback, and with room for a busy machine.
const PROMPTLY: Duration = Duration::from_millis(2500);

/// A sandbox with an address, as the plugins before us leave it, and their result.
fn sandbox(pod: &Pod, number: u8) -> (Sandbox, IpAddr, String) {
    let sandbox = Sandbox::new(pod);
    let ip = IpAddr::from([10, 2, 1, number]);
    sandbox.netns.ip(&format!(
        "link add eth0 type veth peer name other\nlink set eth0 up\naddr add {ip}/24 dev eth0\n"
    ));
    (
        sandbox,
        ip,
        format!(r#"{{"ips":[{{"address":"{ip}/24"}}]}}"#),
    )
}

/// Lets whoever captures the sandbox wait: it is as if it was just made.
fn without_loopback(sandbox: &Sandbox) {
    sandbox
        .netns
        .ip("addr del 127.0.0.1/8 dev lo\nlink set lo down\n");
}

fn with_loopback(sandbox: &Sandbox) {
    sandbox
        .netns
        .ip("link set lo up\naddr replace 127.0.0.1/8 dev lo\n");
}

fn states(lab: &mut Lab) -> Vec<String> {
    let dump = lab.daemon(1).dump();
    let pods = dump["pods"].as_array().cloned().unwrap_or_default();
    let state = |pod: &Value| pod["state"].as_str().unwrap_or_default().to_owned();
    pods.iter().map(state).collect()
}

#[test]
fn a_pod_that_gets_another_sandbox_while_it_is_captured_is_captured_there() {
    let mut lab = lab();
    let pod = Pod::new("mesh", "a");
    lab.cluster.put(pod.object(&[]));
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let (first, _, result) = sandbox(&pod, 2);
    let before = first.netns.state();
    without_loopback(&first);
    thread::scope(|scope| {
        let lost = scope.spawn(|| runtime.ask("ADD", Some(&first), Some(&result), &[]));
        eventually(SOON, "it is begun", || states(&mut lab) == ["pending"]);
        thread::sleep(Duration::from_millis(200));
        let (second, _, result) = sandbox(&pod, 3);
        let begin = Instant::now();
        let added = runtime.ask("ADD", Some(&second), Some(&result), &[]);
        assert_eq!(&added.expect("the second is the pod's"), &result);
        assert!(begin.elapsed() < PROMPTLY, "{:?}", begin.elapsed());
        assert!(second.is_captured());
        lost.join()
            .expect("it ends")
            .expect_err("it is not the pod's any more");
        with_loopback(&first);
        holds_for(
            Duration::from_secs(1),
            "the second alone is captured",
            || second.is_captured() && first.netns.state() == before,
        );
        assert_eq!(states(&mut lab), ["enrolled"]);
    });
}

#[test]
fn a_pod_that_is_deleted_while_it_is_captured_leaves_nothing() {
    let mut lab = lab();
    let (gone, removed) = (Pod::new("mesh", "gone"), Pod::new("mesh", "removed"));
    for pod in [&gone, &removed] {
        lab.cluster.put(pod.object(&[]));
    }
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let sandboxes = [sandbox(&gone, 2), sandbox(&removed, 3)];
    let before: Vec<_> = sandboxes.iter().map(|one| one.0.netns.state()).collect();
    for (sandbox, ..) in &sandboxes {
        without_loopback(sandbox);
    }
    thread::scope(|scope| {
        let runtime = &runtime;
        let adding: Vec<_> = sandboxes
            .iter()
            .map(|(one, _, result)| {
                scope.spawn(move || runtime.ask("ADD", Some(one), Some(result), &[]))
            })
            .collect();
        eventually(SOON, "both are begun", || {
            states(&mut lab) == ["pending", "pending"]
        });
        thread::sleep(Duration::from_millis(200));
        let begin = Instant::now();
        // Of one the object goes, of the other the runtime takes the sandbox away.
        lab.cluster.remove("Pod", "mesh", "gone");
        lab.publish();
        let del = runtime.ask("DEL", Some(&sandboxes[1].0), None, &[]);
        del.expect("a pod can always end");
        eventually(
            SOON,
            "nothing is under way for the one that is gone",
            || states(&mut lab) == ["pending"],
        );
        assert!(begin.elapsed() < PROMPTLY, "{:?}", begin.elapsed());
        for adding in adding {
            adding
                .join()
                .expect("it ends")
                .expect_err("there is no pod");
        }
    });
    for (sandbox, ..) in &sandboxes {
        with_loopback(sandbox);
    }
    holds_for(Duration::from_secs(1), "nothing is left", || {
        let now = sandboxes.iter().map(|one| one.0.netns.state());
        now.eq(before.iter().cloned())
    });
    // Nobody waits for a pod whose sandbox went.
    eventually(SOON, "the daemon is ready", || {
        lab.daemon(1).ready().is_ok_and(|(status, _)| status == 200)
    });
}

#[test]
fn a_node_that_was_started_again_believes_no_mark() {
    let mut lab = lab();
    let server = server(&lab);
    let names = ["found", "late"];
    let pods = names.map(|name| Pod::new("mesh", name));
    let sandboxes: Vec<_> = pods
        .iter()
        .zip(2..)
        .map(|(pod, n)| sandbox(pod, n))
        .collect();
    for (pod, (_, ip, _)) in pods.iter().zip(&sandboxes) {
        // As the node before left it: the same UID and address, and a mark.
        let mut object = pod.object(&[*ip]);
        object["metadata"]["annotations"] = json!({ MARK: "enabled" });
        server.put(object);
    }
    let group = |pod: &Pod| Group::unified(&format!("kubepods/pod{}/c", pod.uid));
    let groups = [group(&pods[0]), group(&pods[1])];
    let _running = groups[0].run(Some(&sandboxes[0].0.netns), &["sleep", "1000"]);
    let daemon = launch(&lab, &server).spawn();
    lab.install(1, daemon);
    eventually(SOON, "what runs is captured", || {
        sandboxes[0].0.is_captured()
    });
    // Its mark is true again, and that of the other is taken away until it is.
    becomes(&server, "late", &Value::Null);
    assert_eq!(mark(&server, "found"), "enabled");
    assert!(!sandboxes[1].0.is_captured());
    let _late = groups[1].run(Some(&sandboxes[1].0.netns), &["sleep", "1000"]);
    eventually(SOON, "it is captured once it runs", || {
        sandboxes[1].0.is_captured()
    });
    becomes(&server, "late", &json!("enabled"));
}

#[test]
fn a_namespace_that_is_labelled_again_and_again_ends_as_it_says_last() {
    const PODS: u8 = 20;
    let mut lab = Lab::one_node();
    lab.namespace("late", &[]);
    let pods: Vec<_> = (0..PODS)
        .map(|n| Pod::new("late", &format!("p{n}")))
        .collect();
    let mut running = Vec::new();
    let mut sandboxes = Vec::new();
    for (pod, number) in pods.iter().zip(2..) {
        let (sandbox, ip, _) = sandbox(pod, number);
        lab.cluster.put(pod.object(&[ip]));
        let group = Group::unified(&format!("kubepods/burstable/pod{}/c", pod.uid));
        running.push((group.run(Some(&sandbox.netns), &["sleep", "1000"]), group));
        sandboxes.push(sandbox);
    }
    let before: Vec<_> = sandboxes.iter().map(|one| one.netns.state()).collect();
    lab.start();
    let label = |lab: &mut Lab, value| {
        lab.cluster
            .label("Namespace", "", "late", "adit.mesh/mode", value);
        lab.publish();
    };
    // Each comes while what the one before called for is under way.
    for (value, pause) in [
        (Some("ambient"), 300),
        (None, 300),
        (Some("ambient"), 600),
        (Some("ambeint"), 350),
        (Some("ambient"), 900),
        (Some("none"), 450),
        (Some("ambient"), 0),
    ] {
        label(&mut lab, value);
        thread::sleep(Duration::from_millis(pause));
    }
    eventually(SOON, "all are captured", || {
        states(&mut lab) == vec!["enrolled"; PODS.into()]
    });
    assert!(sandboxes.iter().all(Sandbox::is_captured));
    label(&mut lab, Some("none"));
    within(SOON, "all are as they were found", || {
        let now: Vec<_> = sandboxes.iter().map(|one| one.netns.state()).collect();
        if now == before {
            Ok(())
        } else {
            Err(states(&mut lab))
        }
    });
    eventually(SOON, "nobody is of the mesh", || {
        states(&mut lab).is_empty()
    });
}

#[test]
fn what_labels_and_runtimes_make_of_a_pod_is_told() {
    let mut lab = lab();
    let server = server(&lab);
    let (typo, kata) = (Pod::new("mesh", "typo"), Pod::new("mesh", "kata"));
    let mut object = typo.object(&[]);
    object["metadata"]["labels"] = json!({ "adit.mesh/mode": "nnoe" });
    server.put(object);
    let mut object = kata.object(&[]);
    object["spec"]["runtimeClassName"] = json!("kata-qemu");
    server.put(object);
    server.put(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "shop", "labels": { "adit.mesh/mode": "ambeint" } },
    }));
    start(&mut lab, &server);
    let runtime = Runtime::new(&lab);
    // It starts, for nothing of ours could capture it; and nobody says that it is captured.
    let (sandbox, _, result) = sandbox(&kata, 2);
    let added = runtime.ask("ADD", Some(&sandbox), Some(&result), &[]);
    assert_eq!(added.expect("it starts"), result);
    assert!(!sandbox.is_captured());
    assert_eq!(lab.daemon(1).pod("mesh/kata").0, "unsupported");
    assert_eq!(mark(&server, "kata"), Value::Null);
    for (metric, label) in [
        ("adit_pods", ("state", "unsupported")),
        ("adit_mislabelled", ("kind", "pod")),
        ("adit_mislabelled", ("kind", "namespace")),
    ] {
        eventually(SOON, metric, || {
            lab.daemon(1).metric(metric, &[label]) == 1.0
        });
    }
    lab.daemon(1).says(&["shop", "ambeint"]);
    for (pod, reason, words) in [
        ("kata", "SandboxedRuntime", "cannot be captured"),
        ("typo", "UnknownLabelValue", "nnoe"),
    ] {
        let event = within(SOON, "an event", || {
            let events = server.objects("v1", "Event");
            let mut ours = events
                .iter()
                .filter(|e| e["involvedObject"]["name"] == pod && e["reason"] == reason);
            ours.next().cloned().ok_or(events.clone())
        });
        let message = event["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{event}");
    }
}

/// Kubelet lets a pod run on for its time of grace after its object was deleted by force, and whoever gives
/// up a node calls its pods failed without asking it.
#[test]
fn a_pod_that_is_over_to_the_api_server_and_runs_on_stays_shut() {
    let mut lab = lab();
    let server = server(&lab);
    let stranger = lab.stranger(2, "stranger");
    let pods = ["gone", "failed"].map(|name| Pod::new("mesh", name));
    for pod in &pods {
        server.put(pod.object(&[]));
    }
    start(&mut lab, &server);
    let runtime = Runtime::new(&lab);
    let _called = stranger.greet(8080);
    let running = pods.each_ref().map(|pod| {
        let sandbox = Sandbox::new(pod);
        let added = within(SOON, "the pod starts", || runtime.add(&sandbox));
        let ip = added.ips()[0];
        server.put(pod.object(&[ip]));
        let app = Listener::wildcard(&sandbox.netns, false, 8080).greet(&pod.name);
        (sandbox, ip, app)
    });
    for (sandbox, ip, _) in &running {
        let at = (*ip, 8080).into();
        stranger
            .call(at)
            .assert_served(&sandbox.pod.name, stranger.ip());
        sandbox
            .call(stranger.at(8080))
            .assert_served("stranger", *ip);
    }
    server.remove("v1", "Pod", "mesh", "gone");
    server.edit("v1", "Pod", "mesh", "failed", |pod| {
        pod["status"]["phase"] = json!("Failed");
    });
    eventually(SOON, "the daemon has let them go", || {
        states(&mut lab).is_empty()
    });
    for (sandbox, ip, _) in &running {
        let name = &sandbox.pod.name;
        let rules = sandbox.netns.run("nft", &["list", "ruleset"]);
        assert!(rules.contains("config_full"), "{name}: {rules}");
        let (to, patience) = ((*ip, 8080).into(), Duration::from_secs(2));
        let inward = stranger.call_for(to, patience);
        assert!(!inward.served(), "{name} answers {inward:?}");
        let outward = Outcome::of_call(&sandbox.netns, stranger.at(8080), patience);
        assert!(!outward.served(), "{name} is answered {outward:?}");
        let del = runtime.ask("DEL", Some(sandbox), None, &[]);
        del.expect("a pod can always end");
    }
}
