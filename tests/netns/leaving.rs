//! Pods that leave the mesh while two daemons live: what the one before carries of theirs runs on as
//! it would with one, and nothing is kept for longer than that.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::handover::World;
use crate::support::{Outcome, Pod, eventually, holds_for};

const SOON: Duration = Duration::from_secs(5);

/// Takes `a` out of the mesh.
fn leave(world: &mut World) {
    world.lab.cluster.edit("Pod", "mesh", "a", |pod| {
        pod["metadata"]["labels"]["adit.mesh/mode"] = json!("none");
    });
    world.lab.publish();
}

#[track_caller]
fn is_left(pod: &Pod) {
    eventually(SOON, "the pod is left", || {
        let table = pod.netns().run("nft", &["list", "tables"]);
        let listeners = pod.netns().run("ss", &["-Htln"]);
        !table.contains("adit") && !listeners.contains("1500")
    });
}

#[test]
fn a_pod_without_connections_is_left_at_once() {
    let mut world = World::new();
    let live = world.b.dial_greeter(world.c.at(8080));
    let mut before = world.lab.relieve(1, |launch| launch.drain("20s"));
    leave(&mut world);
    is_left(&world.a);
    live.echoes(b"x").expect("others are not concerned");
    assert!(before.runs());
}

#[test]
fn what_the_daemon_before_carries_ends_before_its_pod_is_left() {
    let mut world = World::new();
    let (out, into) = (
        world.a.dial_greeter(world.b.at(8080)),
        world.b.dial_greeter(world.a.at(8080)),
    );
    let before = world.lab.relieve(1, |launch| launch.drain("20s"));
    leave(&mut world);
    let records = |world: &mut World| world.lab.daemon(1).records().len();
    eventually(SOON, "what is new passes by", || {
        let before = records(&mut world);
        world.a.call(world.b.at(8080)).served() && records(&mut world) == before
    });
    for live in [out, into] {
        holds_for(Duration::from_secs(2), "it goes on", || {
            live.echoes(b"what was begun").is_ok()
        });
        assert!(world.a.has_rules());
        live.finish();
        assert_eq!(live.ending(), Outcome::Closed);
    }
    is_left(&world.a);
    drop(before);
}

#[test]
fn the_time_to_drain_ends_what_the_daemon_before_carries() {
    let mut world = World::new();
    let live = world.a.dial_greeter(world.b.at(8080));
    // The one before has been given twenty seconds, and the next one three.
    let mut before = world.lab.relieve(1, |launch| launch.drain("3s"));
    let begin = Instant::now();
    leave(&mut world);
    live.patience(Duration::from_secs(15));
    assert_eq!(live.ending(), Outcome::Reset);
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    is_left(&world.a);
    assert!(before.runs());
}
