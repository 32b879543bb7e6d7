//! What the tests stand on: the fake API server answers these questions as a real one does.

use http::Method;
use serde_json::{Value, json};

use crate::bed::{Bed, namespace, pod};
use crate::support::Kubernetes;

const PODS: &str = "/api/v1/namespaces/shop/pods";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";

/// A cluster with a namespace, and how it is asked.
fn cluster() -> (Bed, Kubernetes) {
    let (bed, cluster) = Bed::beside();
    cluster.apply(&namespace("shop", true));
    (bed, cluster)
}

#[track_caller]
fn ask(
    at: &(Bed, Kubernetes),
    method: Method,
    path: &str,
    body: Option<Value>,
    code: u16,
) -> Value {
    let answer = at.1.ask(method.clone(), path, body.as_ref());
    let (found, body) = answer.expect("an answer");
    assert_eq!(found, code, "{method} {path}: {body}");
    body
}

fn secret(value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "root", "namespace": "shop" },
        "type": "Opaque", "data": { "key": value },
    })
}

#[test]
fn what_is_there_is_not_created_again() {
    let at = cluster();
    ask(&at, Method::POST, SECRETS, Some(secret("b25l")), 201);
    let refused = ask(&at, Method::POST, SECRETS, Some(secret("dHdv")), 409);
    assert_eq!(refused["reason"], "AlreadyExists");
    let path = format!("{SECRETS}/root");
    assert_eq!(
        ask(&at, Method::GET, &path, None, 200)["data"]["key"],
        "b25l"
    );
    ask(&at, Method::GET, &format!("{SECRETS}/none"), None, 404);
    ask(&at, Method::DELETE, &format!("{SECRETS}/none"), None, 404);
}

#[test]
fn an_older_version_is_not_written_against() {
    let at = cluster();
    let path = format!("{SECRETS}/root");
    let first = ask(&at, Method::POST, SECRETS, Some(secret("b25l")), 201);
    let mut second = first.clone();
    second["data"]["key"] = json!("dHdv");
    let written = ask(&at, Method::PUT, &path, Some(second.clone()), 200);
    assert_ne!(
        first["metadata"]["resourceVersion"],
        written["metadata"]["resourceVersion"]
    );
    assert_eq!(first["metadata"]["uid"], written["metadata"]["uid"]);
    let mut late = first;
    late["data"]["key"] = json!("bGF0ZQ==");
    let refused = ask(&at, Method::PUT, &path, Some(late), 409);
    assert_eq!(refused["reason"], "Conflict");
}

#[test]
fn a_write_that_changes_nothing_makes_no_version() {
    let at = cluster();
    let path = format!("{SECRETS}/root");
    let first = ask(&at, Method::POST, SECRETS, Some(secret("b25l")), 201);
    let same = json!({ "data": { "key": "b25l" } });
    let written = ask(&at, Method::PATCH, &path, Some(same), 200);
    assert_eq!(
        first["metadata"]["resourceVersion"],
        written["metadata"]["resourceVersion"]
    );
}

#[test]
fn a_status_is_written_through_its_subresource_alone() {
    let at = cluster();
    let created = ask(&at, Method::POST, PODS, Some(pod("a", 1)), 201);
    assert_eq!(created["status"]["phase"], "Pending", "{created}");
    let path = format!("{PODS}/a");
    let change = json!({
        "metadata": { "labels": { "app": "b" } },
        "status": { "phase": "Failed" },
    });
    let changed = ask(&at, Method::PATCH, &path, Some(change), 200);
    assert_eq!(changed["metadata"]["labels"]["app"], "b");
    assert_eq!(changed["status"]["phase"], "Pending");
    let change = json!({
        "metadata": { "annotations": { "ambient.istio.io/redirection": "enabled" } },
        "spec": { "nodeName": "elsewhere" },
        "status": { "phase": "Running" },
    });
    let changed = ask(
        &at,
        Method::PATCH,
        &format!("{path}/status"),
        Some(change),
        200,
    );
    assert_eq!(changed["status"]["phase"], "Running");
    assert_eq!(changed["spec"]["nodeName"], "there");
    let annotations = &changed["metadata"]["annotations"];
    assert_eq!(annotations["ambient.istio.io/redirection"], "enabled");
}

#[test]
fn a_patch_for_another_of_the_same_name_is_refused_for_its_uid() {
    let at = cluster();
    ask(&at, Method::POST, PODS, Some(pod("a", 1)), 201);
    let path = format!("{PODS}/a/status");
    let meant = json!({ "metadata": {
        "uid": "11111111-1111-4111-8111-111111111111",
        "annotations": { "ambient.istio.io/redirection": "enabled" },
    } });
    let refused = ask(&at, Method::PATCH, &path, Some(meant), 422);
    assert_eq!(refused["details"]["causes"][0]["field"], "metadata.uid");
}

#[test]
fn a_list_in_pages_shows_one_moment() {
    let at = cluster();
    for (name, last) in [("a", 1), ("b", 2), ("c", 3)] {
        ask(&at, Method::POST, PODS, Some(pod(name, last)), 201);
    }
    let first = ask(&at, Method::GET, &format!("{PODS}?limit=2"), None, 200);
    let next = first["metadata"]["continue"]
        .as_str()
        .expect("there is more")
        .to_owned();
    let now = json!({ "gracePeriodSeconds": 0 });
    ask(&at, Method::DELETE, &format!("{PODS}/c"), Some(now), 200);
    let path = format!("{PODS}?limit=2&continue={}", next.replace('=', "%3D"));
    let second = ask(&at, Method::GET, &path, None, 200);
    assert_eq!(second["items"][0]["metadata"]["name"], "c");
    let versions = [&first, &second].map(|page| page["metadata"]["resourceVersion"].clone());
    assert_eq!(versions[0], versions[1]);
}

#[test]
fn selectors_select() {
    let at = cluster();
    for (name, last) in [("a", 1), ("b", 2)] {
        ask(&at, Method::POST, PODS, Some(pod(name, last)), 201);
    }
    let names = |query: &str| {
        let list = ask(&at, Method::GET, &format!("{PODS}?{query}"), None, 200);
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let name = |item: &Value| {
            item["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        items.iter().map(name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names("labelSelector=app%3Da"), "a");
    assert_eq!(names("labelSelector=app!%3Da"), "b");
    assert_eq!(
        names("labelSelector=app%20in%20(a,b),app%20notin%20(b)"),
        "a"
    );
    assert_eq!(names("labelSelector=!app"), "");
    assert_eq!(names("fieldSelector=spec.nodeName%3Dthere"), "a b");
    assert_eq!(
        names("fieldSelector=metadata.name%3Db,status.phase%3DPending"),
        "b"
    );
    ask(
        &at,
        Method::GET,
        &format!("{PODS}?fieldSelector=spec.image%3Dx"),
        None,
        400,
    );
}

#[test]
fn a_kind_that_is_not_defined_is_not_found() {
    let at = cluster();
    let path = "/apis/security.istio.io/v1/authorizationpolicies";
    ask(&at, Method::GET, path, None, 404);
    let definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/\
                      authorizationpolicies.security.istio.io";
    ask(&at, Method::GET, definition, None, 404);
    at.1.define_policies();
    ask(&at, Method::GET, path, None, 200);
    ask(&at, Method::GET, definition, None, 200);
}

#[test]
fn a_token_that_nobody_gave_out_is_nobodys() {
    let at = cluster();
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": { "token": "made up", "audiences": ["adit"] },
    });
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = ask(&at, Method::POST, path, Some(review), 201);
    assert_ne!(answer["status"]["authenticated"], true, "{answer}");
}
