//! The table of pods, through all its turns.

use super::*;

fn pod(uid: &str, netns: &str) -> Wanted {
    Wanted {
        uid: uid.into(),
        name: format!("ns/{uid}").into(),
        place: Place::Path(netns.into()),
        ips: SmallVec::from_slice(&["10.0.0.1".parse().unwrap()]),
    }
}

fn at(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

/// Pods that are wanted, and whose enrolment is under way.
fn asked_for(wanted: Vec<Wanted>, t: Instant) -> Pods {
    let mut pods = Pods::new(Duration::from_secs(30));
    pods.want(wanted, t);
    pods.due(t);
    pods
}

#[test]
fn a_wanted_pod_is_enrolled_once() {
    let t = Instant::now();
    let mut pods = Pods::new(Duration::from_secs(30));
    pods.want(vec![pod("a", "/a")], t);
    assert_eq!(pods.waiting().count(), 1);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
    assert!(pods.due(t).is_empty(), "one action at a time");
    pods.done("a", Outcome::Enrolled, t);
    pods.want(vec![pod("a", "/a")], t);
    assert!(pods.due(at(t, 60_000)).is_empty());
    assert_eq!(pods.waiting().count(), 0);
}

#[test]
fn a_failure_is_retried_with_growing_waits_and_holds_no_other_up() {
    let t = Instant::now();
    let mut pods = Pods::new(Duration::from_secs(30));
    pods.want(vec![pod("a", "/a"), pod("b", "/b")], t);
    assert_eq!(pods.due(t).len(), 2);
    pods.done("b", Outcome::Enrolled, t);
    let mut now = t;
    let mut waits = Vec::new();
    for _ in 0..8 {
        pods.done("a", Outcome::Failed("port taken".into()), now);
        let waiting: Vec<_> = pods.waiting().map(|entry| &*entry.wanted().uid).collect();
        assert_eq!(waiting, ["a"]);
        let from = now;
        while pods.due(now).is_empty() {
            now += Duration::from_millis(250);
        }
        waits.push((now - from).as_millis());
    }
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
}

#[test]
fn a_pod_no_longer_wanted_drains_and_is_released() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a")], t);
    pods.done("a", Outcome::Enrolled, t);
    pods.want(vec![], t);
    assert_eq!(pods.due(t), vec![Action::Drain("a".into())]);
    pods.done("a", Outcome::Draining, t);
    assert!(pods.due(at(t, 29_999)).is_empty());
    assert_eq!(pods.due(at(t, 30_000)), vec![Action::Release("a".into())]);
    pods.done("a", Outcome::Released, at(t, 30_000));
    assert_eq!(pods.entries().count(), 0);
}

#[test]
fn a_pod_that_is_over_stays_so_until_it_is_wanted_again() {
    let t = Instant::now();
    let mut pods = Pods::new(Duration::from_secs(30));
    let all = ["gone", "left", "back"].map(|uid| pod(uid, "/x"));
    pods.want(all.to_vec(), t);
    pods.due(t);
    for uid in ["gone", "left", "back"] {
        pods.done(uid, Outcome::Enrolled, t);
    }
    let over = |pods: &Pods| ["gone", "left", "back"].map(|uid| pods.is_over(uid));
    pods.end(|_| true);
    assert_eq!(over(&pods), [false; 3], "all are wanted");
    pods.want(vec![], t);
    pods.end(|uid| uid != "left");
    assert_eq!(over(&pods), [true, false, true]);
    assert_eq!(pods.due(t).len(), 3);
    for uid in ["gone", "left", "back"] {
        pods.done(uid, Outcome::Draining, t);
    }
    // One that was let out stays out, and what the API server took back by mistake is captured still.
    pods.want(vec![pod("back", "/x")], t);
    pods.end(|_| true);
    assert_eq!(over(&pods), [true, false, false]);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("back", "/x"))]);
}

#[test]
fn an_inherited_pod_is_left_alone_while_it_is_wanted_where_it_is() {
    let t = Instant::now();
    let mut pods = Pods::new(Duration::from_secs(30));
    for uid in ["a", "b", "c"] {
        pods.inherit(pod(uid, "/x"), t);
    }
    pods.want(vec![pod("a", "/x"), pod("b", "/y")], t);
    let actions = pods.due(t);
    assert_eq!(
        actions,
        vec![Action::Abandon("b".into()), Action::Drain("c".into())]
    );
    assert!(!pods.is_idle());
    pods.done("b", Outcome::Released, t);
    pods.done("c", Outcome::Draining, t);
    assert!(pods.is_idle());
    pods.begin_anew(t);
    let actions = pods.due(t);
    let expected = [pod("a", "/x"), pod("b", "/y")].map(Action::Enrol);
    assert_eq!(actions, expected, "and c drains on");
}

#[test]
fn an_idle_pod_is_released_before_the_deadline() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a")], t);
    pods.done("a", Outcome::Enrolled, t);
    pods.want(vec![], t);
    pods.due(t);
    pods.done("a", Outcome::Draining, t);
    pods.idle("a", at(t, 100));
    assert_eq!(pods.due(at(t, 100)), vec![Action::Release("a".into())]);
}

#[test]
fn a_pod_wanted_again_while_it_drains_is_enrolled_anew() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a")], t);
    pods.done("a", Outcome::Enrolled, t);
    pods.want(vec![], t);
    pods.due(t);
    pods.want(vec![pod("a", "/a")], t);
    assert!(pods.due(t).is_empty(), "the drain is still under way");
    pods.done("a", Outcome::Draining, t);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
}

#[test]
fn a_replaced_namespace_is_abandoned_then_enrolled() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a")], t);
    pods.done("a", Outcome::Enrolled, t);
    pods.drifted("a", "another namespace stands at its path", t);
    assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
    pods.done("a", Outcome::Released, t);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
    pods.done("a", Outcome::Enrolled, t);
    pods.want(vec![pod("a", "/elsewhere")], t);
    assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
    pods.done("a", Outcome::Released, t);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/elsewhere"))]);
}

#[test]
fn a_pod_removed_while_it_enrols_is_drained_when_done_and_forgotten_when_failed() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a"), pod("b", "/b")], t);
    pods.want(vec![], t);
    let given_up = ["a", "b"].map(|uid| Action::GiveUp(uid.into()));
    assert_eq!(pods.due(t), given_up);
    assert!(pods.due(t).is_empty(), "it is told once");
    pods.done("a", Outcome::Enrolled, t);
    pods.done("b", Outcome::Failed("gone".into()), t);
    assert_eq!(pods.due(t), vec![Action::Drain("a".into())]);
    assert_eq!(pods.entries().count(), 1);
}

#[test]
fn a_place_that_changes_while_the_pod_enrols_is_followed() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/old")], t);
    pods.want(vec![pod("a", "/new")], t);
    assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
    pods.done("a", Outcome::Enrolled, t);
    assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
    pods.done("a", Outcome::Released, t);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/new"))]);
    pods.want(vec![pod("a", "/newer")], t);
    assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
    pods.done("a", Outcome::Failed("given up".into()), t);
    assert_eq!(pods.waiting().next().unwrap().last_error(), None);
    let at_once = vec![Action::Enrol(pod("a", "/newer"))];
    assert_eq!(pods.due(t), at_once, "what failed was for another place");
    pods.done("a", Outcome::Failed("port taken".into()), t);
    assert!(pods.due(t).is_empty(), "this one is its own");
}

#[test]
fn a_pod_wanted_again_while_it_is_given_up_is_enrolled_at_once() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a")], t);
    pods.want(vec![], t);
    assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
    pods.want(vec![pod("a", "/a")], t);
    assert!(pods.due(t).is_empty());
    pods.done("a", Outcome::Failed("given up".into()), t);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/a"))]);
}

#[test]
fn a_sandbox_that_goes_while_its_pod_enrols_is_given_up() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a")], t);
    pods.without_sandbox("a", t);
    assert_eq!(pods.due(t), vec![Action::GiveUp("a".into())]);
    pods.done("a", Outcome::Failed("given up".into()), t);
    assert!(pods.due(at(t, 9_999)).is_empty());
    assert_eq!(pods.due(at(t, 10_000)).len(), 1);
}

#[test]
fn a_pod_whose_sandbox_went_is_given_up_and_looked_for_later() {
    let t = Instant::now();
    let mut pods = asked_for(vec![pod("a", "/a")], t);
    pods.done("a", Outcome::Enrolled, t);
    pods.without_sandbox("a", t);
    let sought = Wanted {
        place: Place::Search,
        ..pod("a", "")
    };
    pods.want(vec![sought.clone()], t);
    assert_eq!(pods.due(t), vec![Action::Abandon("a".into())]);
    pods.done("a", Outcome::Released, t);
    assert_eq!(pods.waiting().count(), 0, "nobody waits for what is going");
    assert!(pods.due(at(t, 9_999)).is_empty());
    assert_eq!(pods.due(at(t, 10_000)), vec![Action::Enrol(sought)]);
    pods.done("a", Outcome::Failed("no process".into()), t);
    assert_eq!(pods.waiting().count(), 1, "it is still said to run");
    pods.want(vec![pod("a", "/b")], t);
    assert_eq!(pods.due(t), vec![Action::Enrol(pod("a", "/b"))]);
}
