//! The files: what may stand in them, and how changes take effect.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::RELOAD;
use crate::support::{Lab, eventually, to_yaml, within};

#[test]
fn changes_take_effect_within_a_second() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (vip, _) = lab.service("web").port("http", 80, 8080).to(&[&a]).add();
    lab.start();
    let _servers = [a.greet(8080), b.greet(8080), b.listen(9090).greet("b9090")];
    let expect = |wanted: &str, to: SocketAddr, by: Option<&str>| {
        within(RELOAD, wanted, || {
            // An address that is not known yet leads nowhere, and slowly.
            let outcome = a.call_for(to, Duration::from_millis(300));
            if outcome.by() == by {
                Ok(())
            } else {
                Err(outcome)
            }
        });
    };
    expect("at first", (vip, 80).into(), Some("a"));

    lab.cluster
        .edit("EndpointSlice", "mesh", "web-ipv4", |slice| {
            slice["endpoints"][0]["addresses"][0] = json!(b.v4());
            slice["endpoints"][0]["targetRef"]["name"] = json!("b");
        });
    lab.publish();
    expect("another endpoint", (vip, 80).into(), Some("b"));

    lab.cluster.edit("EndpointSlice", "mesh", "web-ipv4", |s| {
        s["ports"][0]["port"] = json!(9090)
    });
    lab.cluster.edit("Service", "mesh", "web", |s| {
        s["spec"]["ports"][0]["targetPort"] = json!(9090)
    });
    lab.publish();
    expect("another target port", (vip, 80).into(), Some("b9090"));

    let (second, _) = lab.service("second").port("http", 80, 8080).to(&[&b]).add();
    lab.publish();
    expect("another service", (second, 80).into(), Some("b"));

    for slice in ["web-ipv4", "web-ipv6"] {
        lab.cluster.remove("EndpointSlice", "mesh", slice);
    }
    lab.publish();
    expect("no endpoint", (vip, 80).into(), None);
}

#[test]
fn a_change_is_seen_whole_or_not_at_all() {
    let mut lab = Lab::new();
    let a = lab.pod(1, "a");
    let pods = [lab.pod(2, "b1"), lab.pod(2, "b2")];
    let (vip, _) = lab
        .service("web")
        .port("http", 80, 8080)
        .to(&[&pods[0]])
        .add();
    lab.start();
    let _servers = [pods[0].greet(8080), pods[1].greet(8080)];
    // The service keeps its address while its endpoint and its port move together and back.
    let moves = std::thread::spawn({
        let a = a.clone();
        move || {
            let end = Instant::now() + Duration::from_secs(3);
            let calls =
                std::iter::from_fn(|| (Instant::now() < end).then(|| a.call((vip, 80).into())));
            calls.collect::<Vec<_>>()
        }
    });
    let mut turn = 0;
    while !moves.is_finished() {
        turn += 1;
        let pod = &pods[turn % 2];
        let text: String = lab
            .cluster
            .objects()
            .into_iter()
            .map(|mut object| {
                if object["kind"] == "EndpointSlice" {
                    let ip = if object["addressType"] == "IPv4" {
                        pod.v4()
                    } else {
                        pod.v6()
                    };
                    object["endpoints"][0]["addresses"][0] = json!(ip);
                    object["endpoints"][0]["targetRef"]["name"] = json!(pod.name());
                }
                to_yaml(&object) + "---\n"
            })
            .collect();
        lab.cluster.publish_text(&text);
        std::thread::sleep(Duration::from_millis(300));
    }
    let outcomes = moves.join().expect("it does not panic");
    let failed: Vec<_> = outcomes.iter().filter(|o| !o.served()).collect();
    assert!(failed.is_empty(), "{failed:?} of {} calls", outcomes.len());
    for pod in &pods {
        assert!(
            outcomes.iter().any(|o| o.by() == Some(pod.name())),
            "the change was seen"
        );
    }
}

#[test]
fn a_file_that_does_not_parse_changes_nothing_and_is_named() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (vip, _) = lab.service("web").port("http", 80, 8080).to(&[&b]).add();
    lab.start();
    let _server = b.greet(8080);
    let good = lab.cluster.yaml();
    let lines = good.lines().count();
    lab.cluster.publish_text(&format!(
        "{good}---\nkind: Pod\nmetadata: [unclosed\n  name: {{\n"
    ));
    let said = lab
        .daemon(1)
        .says(&["cluster.yaml", "error"].map(|w| if w == "error" { "line" } else { w }));
    let named = (lines..=lines + 5).any(|line| said.contains(&line.to_string()));
    assert!(named, "the line, about {}, is in: {said}", lines + 3);
    let problems = lab.daemon(1).metric("adit_source_problems", &[]);
    assert!(problems >= 1.0, "{problems}");
    assert!(
        lab.daemon(1).dump().to_string().contains("cluster.yaml"),
        "the dump tells it"
    );
    a.call((vip, 80).into()).assert_served("b", a.ip());
    assert!(a.has_rules());

    lab.publish();
    eventually(RELOAD, "the problem is over", || {
        lab.daemon(1).metric("adit_source_problems", &[]) == 0.0
    });
    a.call((vip, 80).into()).assert_served("b", a.ip());
}

#[test]
fn an_invalid_object_is_named_and_harms_no_other() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    lab.start();
    let _server = b.greet(8080);
    let (vip, _) = lab.service("good").port("http", 80, 8080).to(&[&b]).add();
    let mut text = lab.cluster.yaml();
    let line = text.lines().count() + 2;
    let _ = write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: broken\n  namespace: mesh\nspec:\n  clusterIPs: [10.96.0.300]\n  ports: [{{port: 70000}}]\n"
    );
    lab.cluster.publish_text(&text);
    let said = lab.daemon(1).says(&["cluster.yaml", "mesh/broken"]);
    let named = (line..line + 9).any(|line| said.contains(&line.to_string()));
    assert!(named, "a line from {line} on is in: {said}");
    assert!(lab.daemon(1).metric("adit_source_problems", &[]) >= 1.0);
    assert!(
        lab.daemon(1).dump().to_string().contains("broken"),
        "the dump tells it"
    );
    within(RELOAD, "the good one is there", || {
        let outcome = a.call_for((vip, 80).into(), Duration::from_secs(3));
        if outcome.by() == Some("b") {
            Ok(())
        } else {
            Err(outcome)
        }
    });
}

#[test]
fn an_object_that_becomes_invalid_keeps_its_last_valid_form() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (vip, _) = lab.service("web").port("http", 80, 8080).to(&[&b]).add();
    lab.start();
    let _server = b.greet(8080);
    lab.cluster.edit("Service", "mesh", "web", |s| {
        s["spec"]["ports"][0]["port"] = json!("eighty")
    });
    lab.publish();
    lab.daemon(1).says(&["mesh/web"]);
    a.call((vip, 80).into()).assert_served("b", a.ip());
}

#[test]
fn what_kubectl_prints_loads_as_it_is() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (vip, _) = lab.service("web").port("http", 80, 8080).to(&[&b]).add();
    // What the tests leave out and kubectl prints: the fields that the server adds.
    let items: Vec<_> = lab
        .cluster
        .objects()
        .into_iter()
        .map(|mut object| {
            let metadata = &mut object["metadata"];
            metadata["creationTimestamp"] = json!("2026-01-02T03:04:05Z");
            metadata["resourceVersion"] = json!("123456");
            metadata["generation"] = json!(1);
            metadata["managedFields"] = json!([{
                "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kubectl", "operation": "Update",
                "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {} } } },
            }]);
            metadata["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = json!("{\"kind\":\"Pod\"}\n");
            if object["kind"] == "Pod" {
                object["spec"]["tolerations"] = json!([{ "key": "node.kubernetes.io/not-ready", "tolerationSeconds": 300 }]);
                object["status"]["containerStatuses"] = json!([{ "name": "app", "ready": true, "restartCount": 0, "started": true }]);
            }
            object
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "items": items, "kind": "List", "metadata": { "resourceVersion": "" } });
    lab.start();
    let _server = b.greet(8080);
    for (form, text) in [("YAML", to_yaml(&list)), ("JSON", list.to_string())] {
        let file = lab.dir().join(format!("list.{}", form.to_lowercase()));
        std::fs::write(&file, text).expect("the lab's directory is writable");
        lab.daemon(1).kill();
        let daemon = lab.launch(1).source(&file).start();
        lab.install(1, daemon);
        a.call((vip, 80).into()).assert_served("b", a.ip());
        let faults: Vec<_> = lab
            .daemon(1)
            .lines()
            .into_iter()
            .filter(|l| ["WARN", "ERROR"].contains(&l.text("level").as_str()))
            .collect();
        assert!(faults.is_empty(), "{form}: {faults:?}");
    }
}

#[test]
fn other_kinds_are_skipped_with_a_note() {
    let mut lab = Lab::one_node();
    lab.pod(1, "a");
    lab.cluster.apply("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: mesh}\nspec: {replicas: 3}\n");
    lab.start();
    lab.daemon(1).says(&["Deployment"]);
    let notes = lab.daemon(1).dump()["sources"]["notes"].to_string();
    assert!(notes.contains("Deployment"), "{notes}");
    assert!(
        lab.daemon(1).metric("adit_source_problems", &[]) == 0.0,
        "it is no fault"
    );
}

#[test]
fn several_sources_and_directories_are_read_as_one() {
    let mut lab = Lab::new();
    let (a, b) = (lab.pod(1, "a"), lab.pod(2, "b"));
    let (vip, _) = lab.service("web").port("http", 80, 8080).to(&[&b]).add();
    lab.publish();
    let dir = lab.dir().join("objects");
    std::fs::create_dir(&dir).expect("the lab's directory is writable");
    let write = |name: &str, kinds: &[&str]| {
        let objects = lab
            .cluster
            .objects()
            .into_iter()
            .filter(|o| kinds.contains(&o["kind"].as_str().unwrap_or_default()));
        let text: String = if name.ends_with("json") {
            json!({ "kind": "List", "apiVersion": "v1", "items": objects.collect::<Vec<_>>() })
                .to_string()
        } else {
            objects.map(|o| to_yaml(&o) + "---\n").collect()
        };
        let path = dir.join(name);
        std::fs::write(&path, text).expect("the directory is writable");
        path
    };
    write("pods.yaml", &["Pod"]);
    write("nodes.yml", &["Node", "Namespace"]);
    write("services.json", &["Service"]);
    std::fs::write(dir.join("README.txt"), "no: [object").expect("the directory is writable");
    let single = lab.dir().join("slices.yaml");
    std::fs::rename(write("slices.yaml", &["EndpointSlice"]), &single).expect("one directory");
    let mut launch = lab.launch(1);
    launch.sources = vec![dir.clone(), single];
    let daemon = launch.start();
    lab.install(1, daemon);
    let daemon = lab.launch(2).start();
    lab.install(2, daemon);
    let _server = b.greet(8080);
    a.call((vip, 80).into()).assert_served("b", a.ip());

    std::fs::remove_file(dir.join("services.json")).expect("it is there");
    eventually(RELOAD, "the service is gone with its file", || {
        !a.call_for((vip, 80).into(), Duration::from_secs(2))
            .served()
    });
}
