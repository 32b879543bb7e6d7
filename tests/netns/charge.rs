//! Who serves a node's pods when several daemons could: one alone, whatever dies and begins at the
//! same moment.

use std::collections::BTreeSet;
use std::fs::File;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::handover::World;
use crate::support::{Lab, Pod, holds_for, within};

const SOON: Duration = Duration::from_secs(15);

/// The processes that listen for what a pod sends.
fn serving(pod: &Pod) -> BTreeSet<u32> {
    let sockets = pod.netns().run("ss", &["-Htlnp", "sport = :15001"]);
    let processes = sockets.split("pid=").skip(1);
    let number = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    processes.filter_map(number).collect()
}

/// Waits until one process serves the pod, alone and for good. While pods pass, two of them hold the
/// same sockets.
#[track_caller]
fn one_alone_serves(pod: &Pod) -> u32 {
    within(SOON, "one process serves, and stays the only one", || {
        let first = serving(pod);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let now = serving(pod);
            if now.len() != 1 || now != first {
                return Err((first, now));
            }
            sleep(Duration::from_millis(100));
        }
        Ok(first.into_iter().next().expect("there is one"))
    })
}

/// Takes the lock of a node's run directory, as a daemon would.
fn lock(lab: &Lab) -> File {
    let path = lab.launch(1).run_dir.join("lock");
    let file = File::open(path).expect("every daemon has taken it");
    within(SOON, "the lock is free", || file.try_lock());
    file
}

#[test]
fn a_daemon_that_is_alone_holds_the_lock() {
    let mut world = World::new();
    let path = world.lab.launch(1).run_dir.join("lock");
    let file = File::open(path).expect("the daemon has made it");
    let held = || file.try_lock().is_err();
    assert!(held());
    for _ in 0..2 {
        let mut before = world.lab.relieve(1, |launch| launch);
        assert!(held(), "it has passed");
        before.kill();
        assert!(held(), "the next one has it");
    }
    world.lab.daemon(1).kill();
    within(SOON, "it is free", || file.try_lock());
}

#[test]
fn nobody_serves_without_the_lock() {
    let mut world = World::new();
    let first = world.lab.relieve(1, |launch| launch);
    first.signal(Signal::SIGSTOP);
    world.lab.daemon(1).kill();
    let held = lock(&world.lab);
    first.signal(Signal::SIGCONT);
    let third = world.lab.successor(1).spawn();
    holds_for(Duration::from_secs(3), "nobody serves", || {
        serving(&world.a).is_empty()
    });
    assert!(!first.log().contains("taking the pods back"));
    drop(held);
    let found = one_alone_serves(&world.a);
    assert!([first.pid(), third.pid()].contains(&found));
    world.soon_served();
}

#[test]
fn one_that_finds_the_lock_taken_says_by_whom_it_is_kept_from_serving() {
    let mut world = World::new();
    world.lab.daemon(1).kill();
    let _held = lock(&world.lab);
    // As it stands after an upgrade, there is nobody to ask.
    let finished = world.lab.successor(1).finish(Duration::from_secs(20));
    assert!(!finished.status.success(), "{finished:?}");
    let said = finished.output;
    assert!(said.contains("another daemon holds the lock in"), "{said}");
}

#[test]
fn of_one_that_takes_back_and_one_that_starts_one_alone_serves() {
    let mut world = World::new();
    let _first = world.lab.relieve(1, |launch| launch);
    // The first sees the end at once, and a process needs a few milliseconds to start.
    for wait in [0, 3, 10, 30] {
        let next = world.lab.successor(1);
        world.lab.daemon(1).signal(Signal::SIGKILL);
        sleep(Duration::from_millis(wait));
        let mut next = next.spawn();
        next.await_ready();
        world.lab.exchange(1, next).kill();
        // If the first was quicker, it hands over to the one that has started.
        let found = one_alone_serves(&world.a);
        assert_eq!(found, world.lab.daemon(1).pid());
        world.soon_served();
    }
}

#[test]
fn of_one_that_takes_back_and_one_that_was_to_be_next_one_alone_serves() {
    for _ in 0..3 {
        let mut world = World::new();
        let first = world.lab.relieve(1, |launch| launch);
        // It has said hello to the second, and nobody signs its certificates.
        let launch = world.lab.successor(1);
        let third = launch.args(&["--ca", "https://127.0.0.1:1"]).spawn();
        third.says(&["another daemon runs"]);
        world.lab.daemon(1).kill();
        let found = one_alone_serves(&world.a);
        assert!([first.pid(), third.pid()].contains(&found));
    }
}
