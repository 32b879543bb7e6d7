//! Whatever the API server does, what was last read stands, and what happened meanwhile is caught
//! up with.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::bed::{Bed, MENDED, SOON, namespace, pod, policy};
use crate::support::apiserver::{ApiServer, Break, Call, Fault, Options, Resource};
use crate::support::{Lab, Outcome, eventually, holds_for};

/// The daemon has read a pod `a`.
fn reading(change: impl FnOnce(&mut Options)) -> (Bed, ApiServer) {
    let (mut bed, api) = Bed::fake(change);
    api.put(namespace("shop", true));
    api.put(pod("a", 1));
    bed.start(&api.kubeconfig("{}"));
    bed.sees(SOON, &["a"]);
    (bed, api)
}

fn remove(api: &ApiServer, name: &str) {
    api.remove("v1", "Pod", "shop", name);
}

fn authorization_policies(version: &str) -> Resource {
    Resource::new(
        "security.istio.io",
        version,
        "authorizationpolicies",
        "AuthorizationPolicy",
    )
}

/// After this break of the running watches, what happens is seen all the same.
fn goes_on_after(how: Break) {
    let (bed, api) = reading(|_| {});
    assert!(api.break_watches("pods", how) > 0);
    api.put(pod("b", 2));
    remove(&api, "a");
    api.put(pod("c", 3));
    bed.sees(MENDED, &["b", "c"]);
    bed.becomes_ready(SOON);
}

#[test]
fn a_watch_that_ends_goes_on() {
    goes_on_after(Break::End);
}

#[test]
fn a_watch_that_breaks_off_in_a_line_goes_on() {
    goes_on_after(Break::MidLine);
}

#[test]
fn a_watch_that_falls_silent_is_opened_anew() {
    goes_on_after(Break::Stall);
}

#[test]
fn a_watch_whose_version_is_gone_lists_anew() {
    goes_on_after(Break::Gone);
}

#[test]
fn a_watch_that_is_told_of_an_error_goes_on() {
    goes_on_after(Break::Error(500));
}

#[test]
fn a_line_that_is_no_json_is_left_behind() {
    goes_on_after(Break::Garbage);
}

#[test]
fn a_watch_goes_on_from_where_it_was_without_listing_anew() {
    let (bed, api) = reading(|_| {});
    let lists = api.count("pods", Call::Stream) + api.count("pods", Call::List);
    api.break_watches("pods", Break::MidLine);
    api.put(pod("b", 2));
    bed.sees(MENDED, &["a", "b"]);
    let now = api.count("pods", Call::Stream) + api.count("pods", Call::List);
    assert_eq!(lists, now, "{:?}", api.requests());
}

#[test]
fn lists_are_streamed_and_trimmed_where_the_server_has_that() {
    let (_bed, api) = reading(|_| {});
    let lists = |call| {
        let requests = api.requests().into_iter();
        let all = requests.filter(|r| r.call == call && r.status == 200);
        all.map(|r| (r.resource, r.partial))
            .collect::<BTreeSet<_>>()
    };
    let streamed = lists(Call::Stream);
    for (resource, partial) in [
        ("namespaces", true),
        ("nodes", true),
        ("pods", false),
        ("services", false),
        ("endpointslices", false),
    ] {
        let one = (resource.to_owned(), partial);
        assert!(streamed.contains(&one), "{one:?} in {streamed:?}");
    }
    assert_eq!(lists(Call::List), BTreeSet::new());
}

#[test]
fn what_happens_before_a_streamed_list_ends_belongs_to_it() {
    // The server's cache is behind: it shows `b` and an old `a`, and then what came of them.
    let (mut bed, api) = Bed::fake(|options| options.behind = 3);
    api.put(namespace("shop", true));
    api.put(pod("a", 1));
    api.put(pod("b", 2));
    api.put(pod("a", 3));
    remove(&api, "b");
    api.put(pod("c", 4));
    bed.start(&api.kubeconfig("{}"));
    bed.sees(SOON, &["a", "c"]);
    assert_eq!(bed.pod("a")["ips"], json!(["10.9.0.3"]));
    assert_eq!(api.count("pods", Call::List), 0, "it is still a list");
    api.put(pod("d", 5));
    bed.sees(SOON, &["a", "c", "d"]);
}

#[test]
fn a_bookmark_moves_a_watch_on() {
    let (bed, api) = reading(|options| options.gone_as_status = true);
    // Time passes for the cluster, and not for its pods.
    for n in 0..5 {
        api.put(namespace(&format!("other-{n}"), false));
    }
    std::thread::sleep(Duration::from_millis(1500));
    api.compact();
    api.break_watches("pods", Break::End);
    api.put(pod("b", 2));
    bed.sees(MENDED, &["a", "b"]);
    assert_eq!(bed.metric("adit_source_relists_total", "pod"), 0.0);
}

#[test]
fn a_watch_that_is_refused_for_a_while_goes_on_from_where_it_was() {
    let (bed, api) = reading(|_| {});
    for (code, name) in [(429, "b"), (500, "c"), (503, "d"), (504, "e")] {
        api.fail("pods", Call::Watch, 2, Fault::Status(code, None));
        api.break_watches("pods", Break::End);
        api.put(pod(name, u8::try_from(code % 250).expect("it is less")));
        eventually(MENDED, &format!("after {code}"), || {
            bed.pods().contains(name)
        });
    }
    assert_eq!(bed.metric("adit_source_relists_total", "pod"), 0.0);
    assert!(bed.metric("adit_source_errors_total", "pod") >= 8.0);
}

/// History is gone while the daemon is away; the server says so in either way.
fn compacted(as_status: bool) {
    let (bed, mut api) = reading(|options| options.gone_as_status = as_status);
    for last in 2..10 {
        api.put(pod(&format!("p{last}"), last));
    }
    eventually(SOON, "all are there", || bed.pods().len() == 9);
    api.stop();
    for last in 3..10 {
        remove(&api, &format!("p{last}"));
    }
    api.put(pod("b", 20));
    api.compact();
    api.resume();
    bed.sees(MENDED, &["a", "b", "p2"]);
    assert!(bed.metric("adit_source_relists_total", "pod") >= 1.0);
    assert!(bed.metric("adit_source_errors_total", "pod") >= 1.0);
}

#[test]
fn a_history_that_is_gone_is_listed_anew() {
    compacted(false);
}

#[test]
fn a_history_that_is_refused_is_listed_anew() {
    compacted(true);
}

#[test]
fn a_server_without_streaming_lists_is_listed_in_pages() {
    let (mut bed, api) = Bed::fake(|options| options.streaming = false);
    api.put(namespace("shop", true));
    let mut names = BTreeSet::new();
    for n in 0..1200 {
        let name = format!("p{n}");
        let mut pod = pod(&name, 1);
        pod["status"] =
            json!({ "phase": "Running", "podIP": format!("10.8.{}.{}", n / 250, n % 250 + 1) });
        api.put(pod);
        names.insert(name);
    }
    bed.start(&api.kubeconfig("{}"));
    assert_eq!(bed.pods(), names);
    assert!(
        api.count("pods", Call::List) >= 3,
        "{:?}",
        api.count("pods", Call::List)
    );
    api.put(pod("late", 7));
    eventually(SOON, "the late one is seen", || bed.pods().contains("late"));
}

/// The second list breaks off in its middle, in one way or another: nothing is removed by that.
fn partial(streaming: bool, fault: Fault) {
    let (mut bed, api) = Bed::fake(|options| options.streaming = streaming);
    api.put(namespace("shop", true));
    for n in 0..700 {
        let mut pod = pod(&format!("p{n:03}"), 1);
        pod["status"] =
            json!({ "phase": "Running", "podIP": format!("10.8.{}.{}", n / 250, n % 250 + 1) });
        api.put(pod);
    }
    bed.start(&api.kubeconfig("{}"));
    assert_eq!(bed.pods().len(), 700);
    // Two are gone while nobody looks, and from now on no list comes to its end.
    let (skip, call) = if streaming {
        (0, Call::Stream)
    } else {
        (1, Call::List)
    };
    api.fail_after(skip, "pods", call, 1000, fault);
    api.fail("pods", Call::Watch, 1, Fault::Status(410, None));
    api.break_watches("pods", Break::Gone);
    remove(&api, "p000");
    remove(&api, "p650");
    eventually(MENDED, "a list has failed", || {
        bed.metric("adit_source_errors_total", "pod") >= 3.0
    });
    holds_for(Duration::from_secs(1), "nothing is removed", || {
        bed.pods().len() == 700
    });
    bed.becomes_ready(SOON);
    api.heal();
    api.break_watches("pods", Break::End);
    eventually(MENDED, "the two are gone", || bed.pods().len() == 698);
}

#[test]
fn a_list_whose_second_page_fails_removes_nothing() {
    partial(false, Fault::Status(500, None));
}

#[test]
fn a_list_whose_second_page_is_gone_removes_nothing() {
    partial(false, Fault::Status(410, None));
}

#[test]
fn a_list_whose_second_page_breaks_off_removes_nothing() {
    partial(false, Fault::Half);
}

#[test]
fn a_list_that_hangs_up_removes_nothing() {
    partial(true, Fault::Hangup);
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let (mut bed, api) = Bed::fake(|_| {});
    api.put(namespace("shop", true));
    api.put(pod("a", 1));
    api.fail("pods", Call::Any, 1, Fault::Status(429, Some(3)));
    let begin = std::time::Instant::now();
    bed.start(&api.kubeconfig("{}"));
    bed.sees(SOON, &["a"]);
    assert!(
        begin.elapsed() >= Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    let throttled = [("kind", "pod"), ("reason", "throttled")];
    assert_eq!(
        bed.daemon().metric("adit_source_errors_total", &throttled),
        1.0
    );
}

#[test]
fn a_rotated_token_is_read_anew() {
    let (mut bed, api) = Bed::fake(|options| {
        options.tls = true;
        options.tokens = BTreeSet::from(["first".to_owned()]);
    });
    api.put(namespace("shop", true));
    api.put(pod("a", 1));
    let token = bed.path("token");
    std::fs::write(&token, "first").expect("the directory is writable");
    bed.start(&api.kubeconfig(&format!("{{tokenFile: {}}}", token.display())));
    bed.sees(SOON, &["a"]);
    api.options(|options| options.tokens = BTreeSet::from(["second".to_owned()]));
    api.break_watches("", Break::End);
    api.put(pod("b", 2));
    // With the old token nothing comes, and nothing goes.
    eventually(MENDED, "the token is refused", || {
        let refused = [("kind", "pod"), ("reason", "unauthorized")];
        bed.daemon().metric("adit_source_errors_total", &refused) >= 1.0
    });
    bed.sees(SOON, &["a"]);
    std::fs::write(&token, "second").expect("the directory is writable");
    bed.sees(MENDED, &["a", "b"]);
}

#[test]
fn an_api_that_is_away_at_the_start_is_waited_for() {
    let (mut bed, mut api) = Bed::fake(|_| {});
    api.put(namespace("shop", true));
    api.put(pod("a", 1));
    api.stop();
    bed.spawn(&api.kubeconfig("{}"));
    bed.waits_for(&[
        "Pod cannot be watched",
        "does not answer",
        "Connection refused",
    ]);
    bed.daemon()
        .says(&["source has a problem", "Pod cannot be watched"]);
    assert_eq!(bed.metric("adit_source_connected", "pod"), 0.0);
    api.resume();
    bed.becomes_ready(MENDED);
    bed.sees(SOON, &["a"]);
    assert_eq!(bed.metric("adit_source_connected", "pod"), 1.0);
}

#[test]
fn an_api_that_goes_away_leaves_everything_as_it_was() {
    let (bed, mut api) = reading(|_| {});
    api.stop();
    bed.daemon()
        .says(&["Pod cannot be watched", "what was last read stands"]);
    bed.sees(SOON, &["a"]);
    assert!(
        matches!(bed.daemon().ready(), Ok((200, _))),
        "readiness is about traffic"
    );
    let status = bed.daemon().admin("GET", "/status");
    assert!(
        status.contains("\"connected\":false") || status.contains("\"connected\": false"),
        "{status}"
    );
    api.put(pod("b", 2));
    api.resume();
    bed.sees(MENDED, &["a", "b"]);
    bed.daemon().says(&["source problem is gone"]);
}

#[test]
fn nothing_is_published_before_every_kind_has_been_read() {
    let (mut bed, api) = Bed::fake(|_| {});
    api.put(namespace("shop", true));
    api.put(pod("a", 1));
    api.install(authorization_policies("v1"));
    api.put(policy("only-web", "web"));
    api.fail(
        "authorizationpolicies",
        Call::Any,
        1000,
        Fault::Status(503, None),
    );
    bed.spawn(&api.kubeconfig("{}"));
    bed.waits_for(&["AuthorizationPolicy cannot be watched", "503"]);
    assert_eq!(
        bed.pods(),
        BTreeSet::new(),
        "its policies are not known yet"
    );
    api.heal();
    bed.becomes_ready(MENDED);
    bed.sees(SOON, &["a"]);
    bed.lists(SOON, "/policies", &["only-web"]);
}

#[test]
fn a_defined_kind_that_is_not_served_yet_is_waited_for() {
    let (mut bed, api) = Bed::fake(|_| {});
    api.install(authorization_policies("v1"));
    api.fail(
        "authorizationpolicies",
        Call::Any,
        1000,
        Fault::Status(404, None),
    );
    bed.spawn(&api.kubeconfig("{}"));
    bed.waits_for(&["authorizationpolicies.security.istio.io", "not served yet"]);
    api.heal();
    bed.becomes_ready(MENDED);
}

#[test]
fn an_older_version_of_the_policies_will_do() {
    let (mut bed, api) = Bed::fake(|_| {});
    api.install(authorization_policies("v1beta1"));
    let mut old = policy("only-web", "web");
    old["apiVersion"] = json!("security.istio.io/v1beta1");
    api.put(old);
    bed.start(&api.kubeconfig("{}"));
    bed.lists(SOON, "/policies", &["only-web"]);
}

#[test]
fn policies_are_not_lost_to_a_definition_that_vanishes_unseen() {
    let (mut bed, mut api) = Bed::fake(|_| {});
    api.install(authorization_policies("v1"));
    api.put(namespace("shop", true));
    api.put(policy("only-web", "web"));
    bed.start(&api.kubeconfig("{}"));
    bed.lists(SOON, "/policies", &["only-web"]);
    api.stop();
    api.uninstall("authorizationpolicies.security.istio.io");
    api.compact();
    api.resume();
    bed.daemon()
        .says(&["does not know AuthorizationPolicy any more", "stand"]);
    bed.lists(SOON, "/policies", &["only-web"]);
}

#[test]
fn policies_go_with_a_definition_that_is_removed() {
    let (mut bed, api) = Bed::fake(|_| {});
    api.install(authorization_policies("v1"));
    api.put(namespace("shop", true));
    api.put(policy("only-web", "web"));
    bed.start(&api.kubeconfig("{}"));
    bed.lists(SOON, "/policies", &["only-web"]);
    api.uninstall("authorizationpolicies.security.istio.io");
    bed.lists(SOON, "/policies", &[]);
}

#[test]
fn a_missing_permission_is_named() {
    let (mut bed, api) = Bed::fake(|_| {});
    api.fail("endpointslices", Call::Any, 1000, Fault::Status(403, None));
    bed.spawn(&api.kubeconfig("{}"));
    bed.waits_for(&[
        "EndpointSlice cannot be watched",
        "403",
        "grant list and watch",
    ]);
}

#[test]
fn a_wrong_object_is_held_back_alone() {
    let (bed, api) = reading(|_| {});
    let mut wrong = pod("a", 1);
    wrong["status"] = json!({ "phase": "Running", "podIP": "none of these" });
    api.put(wrong);
    api.put(pod("b", 2));
    bed.sees(SOON, &["a", "b"]);
    assert_eq!(
        bed.pod("a")["ips"],
        json!(["10.9.0.1"]),
        "its last good version"
    );
    let problems = bed.daemon().admin("GET", "/problems");
    assert!(problems.contains("Pod shop/a"), "{problems}");
    api.put(pod("a", 5));
    eventually(SOON, "it is right again", || {
        bed.pod("a")["ips"] == json!(["10.9.0.5"])
    });
    let problems = bed.daemon().admin("GET", "/problems");
    assert!(!problems.contains("Pod shop/a"), "{problems}");
}

#[test]
fn an_annotation_does_not_lead_the_daemon_into_a_namespace() {
    let (bed, api) = reading(|_| {});
    let mut local = pod("local", 9);
    local["spec"]["nodeName"] = json!("here");
    local["metadata"]["annotations"] = json!({ "adit.mesh/netns": bed.namespace.path() });
    api.put(local);
    bed.sees(SOON, &["a", "local"]);
    let pods = bed.daemon().admin("GET", "/pods");
    assert!(!pods.contains(bed.namespace.name()), "{pods}");
}

#[test]
fn captured_pods_fail_closed_while_the_api_is_away() {
    let mut lab = Lab::one_node();
    let (a, b) = (lab.pod(1, "a"), lab.pod(1, "b"));
    lab.start();
    let _server = b.greet(8080);
    assert!(a.call(b.at(8080)).served());
    lab.daemon(1).kill();
    let config = lab.dir().join("kubeconfig");
    let away = "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
                clusters:\n- name: it\n  cluster: {server: \"http://127.0.0.1:9\"}\n\
                contexts:\n- name: it\n  context: {cluster: it, user: it}\n\
                users:\n- name: it\n  user: {}\n";
    std::fs::write(&config, away).expect("the lab's directory is writable");
    let config = config.to_str().expect("it is text").to_owned();
    let daemon = lab
        .launch(1)
        .source("kube")
        .args(&["--kubeconfig", &config])
        .spawn();
    lab.install(1, daemon);
    lab.daemon(1)
        .says(&["cannot be watched", "pods are served only once"]);
    let late = a.call_for(b.at(8080), Duration::from_secs(1));
    assert!(!late.served() && late != Outcome::Closed, "{late:?}");
    assert!(a.has_rules() && b.has_rules());
}
