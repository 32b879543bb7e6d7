//! What the API's JSON is read as.

use super::*;
use serde_json::json;

fn read(kind: Kind, value: &Value) -> Line {
    line(kind, &value.to_string(), &mut Interner::default()).expect("a line")
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": "shop", "uid": "u1", "resourceVersion": "42",
            "annotations": { "adit.mesh/netns": "/proc/1/ns/net" },
            "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
        },
        "spec": { "nodeName": "n1", "serviceAccountName": "web", "containers": [] },
        "status": { "phase": "Running", "podIPs": [{ "ip": ip }] },
    })
}

#[test]
fn an_event_is_an_object_and_a_version() {
    let event = json!({ "type": "ADDED", "object": pod("a", "10.0.0.1") });
    let Line::Upsert(item, version) = read(Kind::Pod, &event) else {
        panic!("no object");
    };
    assert_eq!((item.version, &*version), (42, "42"));
    assert_eq!(item.key.expect("a name").to_string(), "Pod shop/a");
    let Ok(Some(Object::Pod(pod))) = item.object else {
        panic!("no pod");
    };
    assert_eq!(&*pod.service_account, "web");
    assert_eq!(pod.netns, None, "who may annotate must not lead the daemon");
}

#[test]
fn metadata_alone_makes_namespaces_and_nodes() {
    let object = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "name": "shop", "resourceVersion": "7", "labels": { "a": "b" } },
    });
    let event = json!({ "type": "MODIFIED", "object": object });
    let Line::Upsert(item, _) = read(Kind::Namespace, &event) else {
        panic!("no object");
    };
    assert!(matches!(item.object, Ok(Some(Object::Namespace(_)))));
    let Line::Upsert(item, _) = read(Kind::Node, &event) else {
        panic!("no object");
    };
    assert!(matches!(item.object, Ok(Some(Object::Node(_)))));
}

#[test]
fn a_wrong_object_is_held_back_alone() {
    let list = json!({
        "kind": "PodList", "metadata": { "resourceVersion": "9", "continue": "abc" },
        "items": [pod("a", "10.0.0.1"), pod("b", "not an address"), pod("c", "10.0.0.3")],
    });
    let page = page(Kind::Pod, &list.to_string(), &mut Interner::default()).expect("a page");
    assert_eq!((&*page.version, page.next.as_deref()), ("9", Some("abc")));
    let right: Vec<_> = page.items.iter().map(|item| item.object.is_ok()).collect();
    assert_eq!(right, [true, false, true]);
    let key = page.items[1].key.as_ref().expect("a name");
    assert_eq!(&*key.name, "b");
}

#[test]
fn an_empty_list_has_a_version() {
    let text = r#"{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":null}"#;
    let page = page(Kind::Pod, text, &mut Interner::default()).expect("a page");
    assert_eq!(
        (page.items.len(), &*page.version, page.next),
        (0, "9", None)
    );
}

#[test]
fn bookmarks_and_errors_are_told_apart() {
    let bookmark = |annotations: Value| {
        json!({ "type": "BOOKMARK", "object": { "kind": "Pod", "metadata": {
            "resourceVersion": "8", "creationTimestamp": null, "annotations": annotations } } })
    };
    let end = json!({ "k8s.io/initial-events-end": "true" });
    for (annotations, is_end) in [(Value::Null, false), (end, true)] {
        for kind in [Kind::Pod, Kind::Namespace, Kind::AuthorizationPolicy] {
            match read(kind, &bookmark(annotations.clone())) {
                Line::Bookmark { version, end } => assert_eq!((&*version, end), ("8", is_end)),
                other => panic!("{other:?}"),
            }
        }
    }
    let status =
        json!({ "kind": "Status", "status": "Failure", "code": 410, "message": "too old" });
    for kind in [Kind::Pod, Kind::Namespace, Kind::PeerAuthentication] {
        match read(kind, &json!({ "type": "ERROR", "object": status })) {
            Line::Error { code: 410, message } => assert_eq!(message, "too old"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_no_line_is_an_error() {
    let check = |text: &str| {
        let read = line(Kind::Pod, text, &mut Interner::default());
        assert!(read.is_err(), "{text}");
    };
    check("{");
    check("[]");
    check(r#"{"type":"ADDED"}"#);
    check(r#"{"type":"RENAMED","object":{}}"#);
}

#[test]
fn a_policy_is_never_lost_to_its_shape() {
    let object = json!({
        "metadata": { "name": "p", "namespace": "shop", "resourceVersion": "5" },
        "spec": { "rules": "not a list" },
    });
    let event = json!({ "type": "ADDED", "object": object });
    let Line::Upsert(item, _) = read(Kind::AuthorizationPolicy, &event) else {
        panic!("no object");
    };
    assert!(matches!(
        item.object,
        Ok(Some(Object::AuthorizationPolicy(_)))
    ));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        for kind in [Kind::Pod, Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::PeerAuthentication] {
            let mut interner = Interner::default();
            let _ = line(kind, &text, &mut interner);
            let _ = page(kind, &text, &mut interner);
        }
    }
}
