//! Files: what a poll finds, keeps and reports.

use super::*;
use crate::source::{Change, Object};
use std::os::unix::fs::symlink;

/// A directory of files and what [`Files`] makes of it. Files are put in place by renaming, so
/// that they need not settle.
struct Bench {
    dir: tempfile::TempDir,
    files: Files,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(vec![dir.path().to_owned()]);
        Self { dir, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let new = self.path(".new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// Polls and shows changes as `+Kind ns/name` or `-Kind ns/name`, problems as
    /// `file:line: object: message`, cut to the words before the first `;`.
    fn poll(&mut self) -> (Vec<String>, Vec<String>) {
        let poll = self.files.poll();
        let changes = poll.changes.iter().map(|change| match change {
            Change::Upsert(object) => format!("+{}", show(object)),
            Change::Remove(key) => format!("-{key}"),
        });
        let problems = poll.problems.iter().map(|problem| {
            let text = problem.to_string();
            let text = text.replace(&format!("{}/", self.dir.path().display()), "");
            text.split(';').next().unwrap().to_owned()
        });
        (changes.collect(), problems.collect())
    }

    #[track_caller]
    fn check(&mut self, changes: &[&str], problems: &[&str]) {
        let (got_changes, got_problems) = self.poll();
        assert_eq!(got_changes, changes, "{got_problems:?}");
        assert_eq!(got_problems, problems);
    }
}

fn show(object: &Object) -> String {
    match object {
        Object::Namespace(o) => format!("Namespace {}", o.name),
        Object::Node(o) => format!("Node {}", o.name),
        Object::Pod(o) => format!("Pod {}/{}", o.namespace, o.name),
        Object::Service(o) => format!("Service {}/{}", o.namespace, o.name),
        Object::EndpointSlice(o) => format!("EndpointSlice {}/{}", o.namespace, o.name),
        Object::AuthorizationPolicy(_) => "AuthorizationPolicy".to_owned(),
        Object::PeerAuthentication(_) => "PeerAuthentication".to_owned(),
    }
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\nstatus:\n  \
         podIPs:\n  - ip: {ip}\n"
    )
}

fn settle() {
    std::thread::sleep(SETTLE + Duration::from_millis(20));
}

#[test]
fn changes_are_exactly_what_changed() {
    let mut bench = Bench::new();
    bench.check(&[], &[]);
    let (a, b, c) = (
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2"),
        pod("c", "10.0.0.3"),
    );
    bench.put("x.yaml", &format!("{a}---\n{b}"));
    bench.check(&["+Pod shop/a", "+Pod shop/b"], &[]);
    bench.check(&[], &[]);
    bench.put("x.yaml", &format!("# moved\n{a}---\n{c}---\n{b}"));
    bench.check(&["+Pod shop/c"], &[]);
    bench.put("x.yaml", &format!("{}---\n{c}", pod("a", "10.0.0.9")));
    bench.check(&["+Pod shop/a", "-Pod shop/b"], &[]);
    bench.put(
        "y.yml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n",
    );
    bench.check(&["+Node n1"], &[]);
}

#[test]
fn a_list_is_read_item_by_item_in_yaml_and_json() {
    let mut bench = Bench::new();
    bench.put(
        "x.yaml",
        "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: a\n\
         - apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: shop\nkind: List\n",
    );
    bench.check(&["+Pod default/a", "+Namespace shop"], &[]);
    bench.put(
        "y.json",
        r#"{"apiVersion": "v1", "kind": "PodList", "items": [
            {"metadata": {"name": "b", "labels": null}, "status": {"podIP": "fd00::1"}},
            {"metadata": {"name": "c"}, "spec": {"nodeName": "n1", "containers": [{}]}}]}
           {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}"#,
    );
    bench.check(&["+Pod default/b", "+Pod default/c", "+Node n1"], &[]);
    bench.put(
        "z.yaml",
        "{kind: List, items: [{kind: Pod, metadata: {name: d}}, {kind: Node, metadata: {name: m}}]}",
    );
    bench.check(&["+Pod default/d", "+Node m"], &[]);
}

#[test]
fn other_kinds_are_noted_once() {
    let mut bench = Bench::new();
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: x\n";
    let knative = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: x\n";
    bench.put(
        "x.yaml",
        &format!("{deployment}---\n{deployment}---\n{knative}"),
    );
    let notes = bench.files.poll().notes;
    let expect = [
        "apps/v1 Deployment is not read, here and elsewhere",
        "serving.knative.dev/v1 Service is not read, here and elsewhere",
    ];
    let notes: Vec<_> = notes
        .iter()
        .map(|n| n.split_once(": ").unwrap().1)
        .collect();
    assert_eq!(notes, expect);
    bench.put("y.yaml", deployment);
    assert!(bench.files.poll().notes.is_empty());
}

#[test]
fn a_malformed_file_changes_nothing_until_it_is_mended() {
    let mut bench = Bench::new();
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    bench.put("x.yaml", &format!("{a}---\n{b}"));
    bench.put("y.json", r#"{"kind": "Node", "metadata": {"name": "n1"}}"#);
    bench.check(&["+Pod shop/a", "+Pod shop/b", "+Node n1"], &[]);
    bench.put(
        "x.yaml",
        &format!("{}---\nkind: Pod\nspec: [\n", pod("c", "10.0.0.3")),
    );
    bench.put(
        "y.json",
        "{\"kind\": \"Node\",\n \"metadata\": {\"name\": }}",
    );
    bench.check(
        &[],
        &[
            "x.yaml:11: unclosed bracket '['",
            "y.json:2: expected value",
        ],
    );
    bench.check(
        &[],
        &[
            "x.yaml:11: unclosed bracket '['",
            "y.json:2: expected value",
        ],
    );
    bench.put("x.yaml", &a);
    bench.put("y.json", r#"{"kind": "Node", "metadata": {"name": "n1"}}"#);
    bench.check(&["-Pod shop/b"], &[]);
}

#[test]
fn an_invalid_object_holds_back_itself_alone() {
    let mut bench = Bench::new();
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    bench.put("x.yaml", &format!("{a}---\n{b}"));
    bench.check(&["+Pod shop/a", "+Pod shop/b"], &[]);
    let bad = pod("a", "10.0.0.300");
    bench.put("x.yaml", &format!("{bad}---\n{}", pod("b", "10.0.0.4")));
    let problem = "x.yaml:8: Pod shop/a: \"10.0.0.300\" is not an IP address";
    bench.check(&["+Pod shop/b"], &[problem]);
    bench.check(&[], &[problem]);
    // The object moves down, and so does the line.
    bench.put("x.yaml", &format!("# one\n{bad}"));
    bench.check(
        &["-Pod shop/b"],
        &["x.yaml:9: Pod shop/a: \"10.0.0.300\" is not an IP address"],
    );
    bench.put("x.yaml", &a);
    bench.check(&["+Pod shop/a"], &[]);
    bench.put("x.yaml", &bad);
    bench.check(
        &[],
        &["x.yaml:8: Pod shop/a: \"10.0.0.300\" is not an IP address"],
    );
    bench.put("x.yaml", "# nothing left\n");
    bench.check(&["-Pod shop/a"], &[]);
}

#[test]
fn while_an_object_has_no_name_nothing_of_its_file_is_removed() {
    let mut bench = Bench::new();
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    bench.put("x.yaml", &format!("{a}---\n{b}"));
    bench.check(&["+Pod shop/a", "+Pod shop/b"], &[]);
    let nameless = b.replace("name: b", "name: ");
    let new = pod("a", "10.0.0.3");
    bench.put("x.yaml", &format!("{new}---\n{nameless}"));
    bench.check(
        &["+Pod shop/a"],
        &["x.yaml:10: Pod: metadata.name is missing"],
    );
    bench.put("x.yaml", &format!("{new}---\n{nameless}---\nmetadata:\n"));
    bench.check(
        &[],
        &[
            "x.yaml:10: Pod: metadata.name is missing",
            "x.yaml:19: it has no kind",
        ],
    );
    bench.put("x.yaml", &new);
    bench.check(&["-Pod shop/b"], &[]);
}

#[test]
fn of_two_places_the_first_counts_and_the_other_takes_over() {
    let mut bench = Bench::new();
    let ip = |bench: &mut Bench, expect: &[&str]| {
        let poll = bench.files.poll();
        let ips = poll.changes.iter().map(|change| match change {
            Change::Upsert(Object::Pod(pod)) => pod.ips[0].to_string(),
            other => format!("{other:?}").split('(').next().unwrap().to_owned(),
        });
        assert_eq!(ips.collect::<Vec<_>>(), expect);
        poll.problems.len()
    };
    bench.put(
        "m.yaml",
        &format!("{}---\n{}", pod("a", "10.0.0.2"), pod("a", "10.0.0.3")),
    );
    assert_eq!(ip(&mut bench, &["10.0.0.2"]), 1);
    bench.put("z.yaml", &pod("a", "10.0.0.4"));
    assert_eq!(ip(&mut bench, &[]), 2);
    bench.put("a.yaml", &pod("a", "10.0.0.1"));
    assert_eq!(ip(&mut bench, &["10.0.0.1"]), 3);
    // The second place in m.yaml goes, unseen.
    bench.put("m.yaml", &pod("a", "10.0.0.2"));
    assert_eq!(ip(&mut bench, &[]), 2);
    bench.put("a.yaml", &pod("other", "10.0.0.1"));
    assert_eq!(ip(&mut bench, &["10.0.0.1", "Remove", "10.0.0.2"]), 1);
    bench.put("m.yaml", "# gone\n");
    assert_eq!(ip(&mut bench, &["Remove", "10.0.0.4"]), 0);
}

#[test]
fn a_vanished_file_takes_its_objects_on_the_second_poll() {
    let mut bench = Bench::new();
    bench.put("x.yaml", &pod("a", "10.0.0.1"));
    bench.check(&["+Pod shop/a"], &[]);
    bench.remove("x.yaml");
    bench.check(&[], &[]);
    bench.check(&["-Pod shop/a"], &[]);
    bench.put("x.yaml", &pod("a", "10.0.0.1"));
    bench.check(&["+Pod shop/a"], &[]);
}

#[test]
fn an_empty_file_counts_on_the_second_poll() {
    let mut bench = Bench::new();
    bench.put("x.yaml", &pod("a", "10.0.0.1"));
    bench.check(&["+Pod shop/a"], &[]);
    bench.put("x.yaml", "");
    bench.check(&[], &[]);
    bench.put("x.yaml", &pod("a", "10.0.0.1"));
    bench.check(&[], &[]);
    bench.put("x.yaml", "");
    bench.check(&[], &[]);
    bench.check(&["-Pod shop/a"], &[]);
    bench.check(&[], &[]);
}

#[test]
fn a_file_written_in_place_settles_first() {
    let mut bench = Bench::new();
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    bench.put("x.yaml", &format!("{a}---\n{b}"));
    settle();
    bench.check(&["+Pod shop/a", "+Pod shop/b"], &[]);
    std::fs::write(bench.path("x.yaml"), &a).unwrap();
    bench.check(&[], &[]);
    std::fs::write(
        bench.path("x.yaml"),
        format!("{a}---\n{}", pod("c", "10.0.0.3")),
    )
    .unwrap();
    bench.check(&[], &[]);
    settle();
    bench.check(&["+Pod shop/c", "-Pod shop/b"], &[]);
    bench.check(&[], &[]);
}

#[test]
fn a_rewrite_of_equal_size_right_after_a_reading_is_seen() {
    let mut bench = Bench::new();
    bench.put("x.yaml", &pod("a", "10.0.0.1"));
    for round in 2..30 {
        bench.poll();
        let before = std::fs::metadata(bench.path("x.yaml")).unwrap();
        std::fs::write(
            bench.path("x.yaml"),
            pod("a", &format!("10.0.0.{}", round % 10)),
        )
        .unwrap();
        let times = std::fs::FileTimes::new().set_modified(before.modified().unwrap());
        let file = std::fs::File::options()
            .write(true)
            .open(bench.path("x.yaml"))
            .unwrap();
        file.set_times(times).unwrap();
        settle();
        bench.check(&["+Pod shop/a"], &[]);
    }
}

#[test]
fn a_path_that_was_asked_for_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.yaml");
    let files = Files::new(vec![path.clone()]);
    let mut bench = Bench { dir, files };
    let missing = "cluster.yaml: there is no such file or directory";
    bench.check(&[], &[missing]);
    bench.put("cluster.yaml", &pod("a", "10.0.0.1"));
    bench.check(&["+Pod shop/a"], &[]);
    bench.remove("cluster.yaml");
    for _ in 0..4 {
        bench.check(&[], &[missing]);
    }
    bench.put("cluster.yaml", &pod("b", "10.0.0.1"));
    bench.check(&["+Pod shop/b", "-Pod shop/a"], &[]);
}

#[test]
fn a_mounted_config_map_is_followed_through_its_links() {
    let mut bench = Bench::new();
    let version = |name: &str, text: &str| {
        std::fs::create_dir(bench.path(name)).unwrap();
        std::fs::write(bench.path(name).join("x.yaml"), text).unwrap();
    };
    version("..1", &pod("a", "10.0.0.1"));
    version("..2", &pod("b", "10.0.0.1"));
    symlink("..1", bench.path("..data")).unwrap();
    symlink("..data/x.yaml", bench.path("x.yaml")).unwrap();
    bench.put(".hidden.yaml", "nonsense: [");
    bench.put("notes.txt", "nonsense: [");
    symlink("nowhere", bench.path("broken.yaml")).unwrap();
    bench.check(&["+Pod shop/a"], &[]);
    symlink("..2", bench.path("..data_tmp")).unwrap();
    std::fs::rename(bench.path("..data_tmp"), bench.path("..data")).unwrap();
    bench.check(&["+Pod shop/b", "-Pod shop/a"], &[]);
}

#[test]
fn problems_are_the_same_arc_while_they_last() {
    let mut bench = Bench::new();
    bench.put("x.yaml", "kind: Pod\nmetadata: {}\n");
    let first = bench.files.poll().problems;
    let second = bench.files.poll().problems;
    assert_eq!(first.len(), 1);
    assert!(Arc::ptr_eq(&first, &second), "{first:?} {second:?}");
}

#[test]
fn every_kind_is_read_as_kubectl_prints_it() {
    let mut bench = Bench::new();
    bench.put("x.yaml", include_str!("cluster.yaml"));
    let poll = bench.files.poll();
    assert_eq!(&*poll.problems, []);
    let objects = poll.changes.into_iter().map(|change| match change {
        Change::Upsert(object) => object,
        Change::Remove(key) => panic!("{key} is removed"),
    });
    let objects: Vec<_> = objects.collect();
    let shown: Vec<_> = objects.iter().map(show).collect();
    let expect = [
        "Namespace shop",
        "Node node-a",
        "Pod shop/cart-7d9f8b6c5-x2x4z",
        "Service shop/cart",
        "EndpointSlice shop/cart-8xk2p",
    ];
    assert_eq!(shown, expect);
    let Object::Pod(pod) = &objects[2] else {
        panic!("the third is the pod")
    };
    assert_eq!(pod.ips.len(), 2);
    assert_eq!(&*pod.owner.name, "cart");
    assert_eq!(&*pod.owner.kind, "deployment");
    assert_eq!(&*pod.service_account, "cart");
    assert_eq!(&*pod.node, "node-a");
    assert_eq!(pod.created, 20_260_105_100_122);
    assert_eq!(pod.netns.as_deref(), Some("/run/netns/cart"));
    let Object::EndpointSlice(slice) = &objects[4] else {
        panic!("the fifth is the slice")
    };
    assert_eq!(slice.endpoints.len(), 2);
    assert_eq!(&*slice.endpoints[0].zone, "zone-1");
    assert_eq!(slice.ports[0].port, Some(8080));
}

#[test]
fn quick_and_thorough_readings_are_alike() {
    // The same objects in JSON, in flow style and as kubectl prints them.
    let mut bench = Bench::new();
    bench.put("x.yaml", include_str!("cluster.yaml"));
    let block = bench.files.poll().changes;
    let value: serde_json::Value = serde_saphyr::from_str(include_str!("cluster.yaml")).unwrap();
    for (name, text) in [
        ("x.json", value.to_string()),
        ("x.json", serde_json::to_string_pretty(&value).unwrap()),
        ("x.yaml", format!("# flow\n{value}")),
        ("x.yaml", format!("--- {value}")),
    ] {
        let mut bench = Bench::new();
        bench.put(name, &text);
        assert_eq!(bench.files.poll().changes, block, "{name}");
    }
}
