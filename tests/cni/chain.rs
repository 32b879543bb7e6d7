//! What the plugin does while the daemon is there.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::runtime::{Pod, Runtime, Sandbox, lab};
use crate::support::{eventually, within};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_pod_of_the_mesh_is_captured_before_anything_runs_in_it() {
    let mut lab = lab();
    let b = lab.pod(2, "b");
    let pod = Pod::new("mesh", "a");
    // The API server knows the pod and its node; its address nobody can know yet.
    lab.cluster.put(pod.object(&[]));
    let spec = json!({ "mtls": { "mode": "STRICT" } });
    lab.cluster.put(json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": { "name": "strict", "namespace": "mesh" }, "spec": spec,
    }));
    lab.start_with(|launch| launch);
    let _server = b.greet(8080);
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&pod);
    let added = runtime.add(&sandbox).expect("the chain succeeds");
    assert!(sandbox.is_captured());
    assert_eq!(added.results[0], added.results[1], "byte for byte");
    assert_eq!(lab.daemon(1).pod("mesh/a").0, "enrolled");
    // The first connection that the pod makes is encrypted: plain ones are refused.
    sandbox.call(b.at(8080)).assert_served("b", added.ips()[0]);
    let record = lab
        .daemon(2)
        .record("b is called", |r| r.is("direction", "inbound"));
    assert!(record.is("src.identity", "spiffe://cluster.local/ns/mesh/sa/a"));
    // When the address becomes known, nothing happens to the pod.
    lab.cluster.put(pod.object(&added.ips()));
    lab.publish();
    eventually(SOON, "the index has the address", || {
        let dump = lab.daemon(1).dump();
        let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
        let mut ours = workloads.iter().filter(|w| w["name"] == "a");
        ours.any(|w| !w["ips"].as_array().is_none_or(Vec::is_empty))
    });
    assert_eq!(lab.daemon(1).metric("adit_enrolments_total", &[]), 1.0);
    sandbox.call(b.at(8080)).assert_served("b", added.ips()[0]);
}

#[test]
fn a_pod_outside_the_mesh_is_let_go_at_once() {
    let mut lab = lab();
    let pod = Pod::new("plain", "p");
    lab.cluster.put(pod.object(&[]));
    lab.start();
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&pod);
    let added = runtime.add(&sandbox).expect("the chain succeeds");
    assert!(!sandbox.is_captured());
    // Its label comes while it runs: nobody need look for its namespace.
    lab.cluster.put(pod.object(&added.ips()));
    lab.cluster
        .label("Namespace", "", "plain", "adit.mesh/mode", Some("ambient"));
    lab.publish();
    eventually(SOON, "it is captured", || sandbox.is_captured());
    lab.cluster
        .label("Namespace", "", "plain", "adit.mesh/mode", None);
    lab.publish();
    eventually(SOON, "it is left", || !sandbox.is_captured());
}

#[test]
fn a_pod_that_the_index_does_not_know_yet_is_waited_for() {
    let mut lab = lab();
    lab.start();
    let runtime = Runtime::new(&lab);
    let pod = Pod::new("mesh", "late");
    let sandbox = Sandbox::new(&pod);
    thread::scope(|scope| {
        let added = scope.spawn(|| runtime.add(&sandbox));
        thread::sleep(Duration::from_millis(500));
        assert!(!added.is_finished());
        lab.cluster.put(pod.object(&[]));
        lab.publish();
        let done = added.join().expect("it ends");
        done.expect("the chain succeeds");
    });
    assert!(sandbox.is_captured());
    // The pod of that name before this one does not pass for it.
    let next = Pod::new("mesh", "late");
    let fault = runtime.add(&Sandbox::new(&next)).expect_err("it waits");
    assert_eq!(fault.code(), 100);
    assert!(fault.text().contains("API server"), "{}", fault.text());
}

#[test]
fn a_pod_that_nobody_tells_of_is_judged_by_its_namespace() {
    let mut lab = lab();
    lab.start();
    let runtime = Runtime::new(&lab);
    let begin = Instant::now();
    let outside = Sandbox::new(&Pod::new("plain", "static"));
    runtime.add(&outside).expect("nothing speaks for the mesh");
    assert!(begin.elapsed() < Duration::from_secs(6));
    for namespace in ["mesh", "nowhere"] {
        let fault = runtime.add(&Sandbox::new(&Pod::new(namespace, "x")));
        let fault = fault.expect_err("it may be of the mesh");
        assert!(fault.text().contains(namespace), "{}", fault.text());
    }
    // The daemon's own never wait, though it has not heard of their namespace either.
    let own = Sandbox::new(&Pod::new("adit-system", "own"));
    runtime.add(&own).expect("its own pods start");
}

#[test]
fn a_pod_s_own_label_counts() {
    let mut lab = lab();
    let mut inside = Pod::new("plain", "inside");
    inside.labels = vec![("adit.mesh/mode".into(), "ambient".into())];
    let mut outside = Pod::new("mesh", "outside");
    outside.labels = vec![("adit.mesh/mode".into(), "none".into())];
    lab.cluster.put(inside.object(&[]));
    lab.cluster.put(outside.object(&[]));
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let (inside, outside) = (Sandbox::new(&inside), Sandbox::new(&outside));
    runtime.add(&inside).expect("the chain succeeds");
    runtime.add(&outside).expect("the chain succeeds");
    assert_eq!((inside.is_captured(), outside.is_captured()), (true, false));
}

#[test]
fn a_sandbox_that_goes_is_given_up_and_its_successor_is_captured() {
    let mut lab = lab();
    let pod = Pod::new("mesh", "a");
    lab.cluster.put(pod.object(&[]));
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let first = Sandbox::new(&pod);
    runtime.add(&first).expect("the chain succeeds");
    let again = runtime.ask(
        "ADD",
        Some(&first),
        Some(r#"{"ips":[{"address":"10.2.1.2/24"}]}"#),
        &[],
    );
    assert!(again.is_ok(), "the same sandbox again: {again:?}");
    assert_eq!(lab.daemon(1).metric("adit_enrolments_total", &[]), 1.0);
    runtime.del(&first);
    runtime.del(&first);
    // Nothing waits for a pod whose sandbox was removed.
    eventually(SOON, "the daemon is ready", || {
        lab.daemon(1).ready().is_ok_and(|(status, _)| status == 200)
    });
    let second = Sandbox::new(&pod);
    runtime.add(&second).expect("the chain succeeds");
    assert!(second.is_captured());
    assert_eq!(lab.daemon(1).pod("mesh/a").0, "enrolled");
    // The end of the first comes once more, late, and does nothing to the second.
    runtime.del(&first);
    assert_eq!(lab.daemon(1).pod("mesh/a").0, "enrolled");
    // The runtime has lost the second without a word, and makes a third.
    let third = Sandbox::new(&pod);
    runtime.add(&third).expect("the chain succeeds");
    assert!(third.is_captured());
    within(SOON, "it is served there", || {
        let dump = lab.daemon(1).dump();
        let pods = dump["pods"].as_array().cloned().unwrap_or_default();
        match &pods[..] {
            [one] if one["state"] == "enrolled" => Ok(()),
            _ => Err(pods),
        }
    });
}

#[test]
fn a_loopback_that_the_runtime_makes_meanwhile_is_waited_for() {
    let mut lab = lab();
    let pod = Pod::new("mesh", "a");
    lab.cluster.put(pod.object(&[]));
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&pod);
    // As it is in a namespace that was just made.
    sandbox
        .netns
        .ip("addr del 127.0.0.1/8 dev lo\nlink set lo down\n");
    thread::scope(|scope| {
        let added = scope.spawn(|| runtime.add(&sandbox));
        thread::sleep(Duration::from_millis(700));
        assert!(!added.is_finished());
        sandbox.netns.ip("link set lo up\n");
        let done = added.join().expect("it ends");
        done.expect("the chain succeeds");
    });
    assert!(sandbox.is_captured());
}

#[test]
fn garbage_is_collected() {
    let mut lab = lab();
    let (kept, lost) = (Pod::new("mesh", "kept"), Pod::new("mesh", "lost"));
    for pod in [&kept, &lost] {
        lab.cluster.put(pod.object(&[]));
    }
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab).version("1.1.0");
    let kept = Sandbox::new(&kept);
    let lost = Sandbox::new(&lost);
    let add = |sandbox: &Sandbox, ip: &str| {
        let previous = json!({ "ips": [{ "address": format!("{ip}/24") }] }).to_string();
        sandbox.netns.ip(&format!(
            "link add eth0 type veth peer name other\nlink set eth0 up\naddr add {ip}/24 dev eth0\n"
        ));
        runtime.ask("ADD", Some(sandbox), Some(&previous), &[])
    };
    add(&kept, "10.2.1.2").expect("it succeeds");
    add(&lost, "10.2.1.3").expect("it succeeds");
    let valid = json!([{ "containerID": kept.id, "ifname": "eth0" }]);
    let gc = runtime.ask("GC", None, None, &[("cni.dev/valid-attachments", valid)]);
    assert_eq!(gc.expect("it succeeds"), "");
    eventually(SOON, "the lost one is left", || !lost.is_captured());
    assert!(kept.is_captured());
    assert_eq!(lab.daemon(1).pod("mesh/kept").0, "enrolled");
}

#[test]
fn check_tells_whether_a_pod_is_as_it_was_left() {
    let mut lab = lab();
    let pod = Pod::new("mesh", "a");
    lab.cluster.put(pod.object(&[]));
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&pod);
    let added = runtime.add(&sandbox).expect("the chain succeeds");
    let result = added.results[1].clone();
    let check = |sandbox| runtime.ask("CHECK", Some(sandbox), Some(&result), &[]);
    assert_eq!(check(&sandbox).expect("it is"), "");
    let other = Sandbox::new(&pod);
    assert_eq!(check(&other).expect_err("it is another").code(), 100);
}

#[test]
fn a_namespace_belongs_to_one_pod() {
    let mut lab = lab();
    let (a, thief) = (Pod::new("mesh", "a"), Pod::new("mesh", "thief"));
    for pod in [&a, &thief] {
        lab.cluster.put(pod.object(&[]));
    }
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let mut sandbox = Sandbox::new(&a);
    let added = runtime.add(&sandbox).expect("the chain succeeds");
    sandbox.pod = thief;
    sandbox.id += "0";
    let fault = runtime.ask("ADD", Some(&sandbox), Some(&added.results[0]), &[]);
    let fault = fault.expect_err("it is a's");
    assert!(
        fault.text().contains("network namespace"),
        "{}",
        fault.text()
    );
    // Nor does a pod get a namespace that has not its address.
    let lost = Pod::new("mesh", "lost");
    lab.cluster.put(lost.object(&[]));
    lab.publish();
    let empty = Sandbox::new(&lost);
    let fault = runtime.ask("ADD", Some(&empty), Some(&added.results[0]), &[]);
    let fault = fault.expect_err("it has no address");
    assert!(fault.text().contains("address"), "{}", fault.text());
    assert!(!empty.is_captured());
}

#[test]
fn what_the_runtime_gets_wrong_is_told_by_the_book() {
    let mut lab = lab();
    lab.start();
    let runtime = Runtime::new(&lab);
    let sandbox = Sandbox::new(&Pod::new("plain", "p"));
    let check = |verb: &str, sandbox: Option<&Sandbox>, previous, code: u64| {
        let fault = runtime.ask(verb, sandbox, previous, &[]).expect_err(verb);
        assert_eq!(fault.code(), code, "{verb}: {}", fault.text());
        assert_eq!(fault.0["cniVersion"], "1.0.0");
        assert!(fault.0["msg"].is_string());
    };
    check("ADD", Some(&sandbox), None, 7);
    check("ADD", None, Some("{}"), 4);
    check("FROB", None, None, 4);
    let old = Runtime::new(&lab).version("0.2.0");
    let fault = old.ask("ADD", Some(&sandbox), Some("{}"), &[]);
    assert_eq!(fault.expect_err("too old").code(), 1);
    let versions = runtime.ask("VERSION", None, None, &[]).expect("it does");
    let versions: Value = serde_json::from_str(&versions).expect("it is JSON");
    let spoken = versions["supportedVersions"].as_array().cloned();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        assert!(spoken.iter().flatten().any(|v| v == version), "{versions}");
    }
    // DEL of what never was is no failure, with or without a namespace.
    runtime
        .ask("DEL", Some(&sandbox), None, &[])
        .expect("DEL succeeds");
    // Who is no pod goes through.
    let mut stranger = Sandbox::new(&Pod::new("", ""));
    stranger.pod.uid = String::new();
    let previous = r#"{ "ips" : [] }"#;
    let passed = runtime.ask("ADD", Some(&stranger), Some(previous), &[]);
    assert_eq!(passed.expect("it is none of ours"), previous);
}

#[test]
fn every_version_is_spoken_from_the_first_word_to_the_last() {
    let mut lab = lab();
    let versions = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    let pods = versions.map(|version| Pod::new("mesh", &format!("v{}", version.replace('.', "-"))));
    for pod in &pods {
        lab.cluster.put(pod.object(&[]));
    }
    lab.start_with(|launch| launch);
    for (number, (version, pod)) in (2..).zip(versions.iter().zip(&pods)) {
        let runtime = Runtime::new(&lab).version(version);
        let sandbox = Sandbox::new(pod);
        sandbox.netns.ip(&format!(
            "link add eth0 type veth peer name other\nlink set eth0 up\naddr add 10.2.1.{number}/24 dev eth0\n"
        ));
        let ask = |verb: &str, previous: Option<&str>, more: &[(&str, Value)]| {
            runtime
                .ask(verb, Some(&sandbox), previous, more)
                .unwrap_or_else(|fault| panic!("{version} {verb}: {}", fault.text()))
        };
        let spoken: Value = serde_json::from_str(&ask("VERSION", None, &[])).expect("JSON");
        assert_eq!(spoken["cniVersion"], *version);
        // As no printer of ours would write it: what we do not know, and in another order.
        let previous = format!(
            "{{ \"cniVersion\":\"{version}\" ,\t\"later\":[1.50,1e3,\"\\u00e9\"],\n \"ips\" : \
             [ {{\"version\":\"4\",\"address\":\"10.2.1.{number}/24\",\"interface\":0}} ], \
             \"interfaces\":[{{\"name\":\"eth0\",\"sandbox\":\"{}\"}}],\"dns\":{{}}}}",
            sandbox.netns.path().display()
        );
        assert_eq!(ask("ADD", Some(&previous), &[]), previous, "byte for byte");
        assert!(sandbox.is_captured(), "{version}");
        if *version != "0.3.1" {
            assert_eq!(ask("CHECK", Some(&previous), &[]), "");
        }
        if *version == "1.1.0" {
            let valid = json!([{ "containerID": sandbox.id, "ifname": "eth0" }]);
            let gc = runtime.ask("GC", None, None, &[("cni.dev/valid-attachments", valid)]);
            assert_eq!(gc.expect("it succeeds"), "");
            assert_eq!(runtime.ask("STATUS", None, None, &[]).expect("it is"), "");
            assert!(sandbox.is_captured(), "{version}");
        }
        assert_eq!(ask("DEL", Some(&previous), &[]), "");
        eventually(SOON, "it is left", || !sandbox.is_captured());
    }
}

#[test]
fn a_whole_node_starts_at_once() {
    const PODS: usize = 110;
    let mut lab = lab();
    let pods: Vec<_> = (0..PODS)
        .map(|n| Pod::new("mesh", &format!("p{n}")))
        .collect();
    for pod in &pods {
        lab.cluster.put(pod.object(&[]));
    }
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let ready: Vec<_> = pods
        .iter()
        .map(|pod| {
            let sandbox = Sandbox::new(pod);
            let n = pod.name[1..].parse::<u8>().expect("few pods") + 2;
            sandbox.netns.ip(&format!(
                "link add eth0 type veth peer name other\nlink set eth0 up\naddr add 10.2.1.{n}/24 dev eth0\n"
            ));
            let previous = format!(r#"{{"ips":[{{"address":"10.2.1.{n}/24"}}]}}"#);
            (sandbox, previous)
        })
        .collect();
    let begin = Instant::now();
    thread::scope(|scope| {
        for (sandbox, previous) in &ready {
            let runtime = &runtime;
            scope.spawn(move || {
                let added = runtime.ask("ADD", Some(sandbox), Some(previous), &[]);
                assert_eq!(&added.expect("it succeeds"), previous);
                assert!(sandbox.is_captured());
            });
        }
    });
    eprintln!("{PODS} at once: {:?}", begin.elapsed());
    // And one after the other, beside all these.
    let mut times: Vec<_> = (0..20)
        .map(|n| {
            let (sandbox, previous) = &ready[n];
            runtime
                .ask("DEL", Some(sandbox), None, &[])
                .expect("it succeeds");
            eventually(SOON, "it is left", || !sandbox.is_captured());
            let begin = Instant::now();
            runtime
                .ask("ADD", Some(sandbox), Some(previous), &[])
                .expect("it succeeds");
            begin.elapsed()
        })
        .collect();
    times.sort();
    eprintln!(
        "one beside {PODS}: median {:?}, longest {:?}",
        times[10], times[19]
    );
    let lines = lab.daemon(1).lines();
    let mut answers: Vec<_> = lines
        .iter()
        .filter(|line| line.is("answer", "enrolled"))
        .filter_map(|line| {
            line.text("duration")
                .trim_end_matches("ms")
                .parse::<u32>()
                .ok()
        })
        .skip(PODS)
        .collect();
    answers.sort_unstable();
    eprintln!("in the daemon, ms: {answers:?}");
    assert_eq!(lab.daemon(1).ready().expect("it answers").0, 200);
}
