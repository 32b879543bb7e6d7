//! From one daemon to the next, while both live: nobody who calls a pod, or is called by one, may
//! notice. And what becomes of it when either dies on the way.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, send};
use serde_json::json;

use crate::RELOAD;
use crate::support::{Daemon, Lab, Namespace, Outcome, Played, Pod, eventually, holds_for, within};

/// What no packet between nodes may hold in clear.
const WORDS: &[u8] = b"what only the two of them may read";

/// Callers that never rest; each call is a connection of its own, from its first byte to its last.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// As many callers at once on each way.
    fn begin(ways: &[(&Pod, &Pod)], callers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let all = ways
            .iter()
            .flat_map(|way| std::iter::repeat_n(*way, callers));
        let callers = all.map(|(from, to)| {
            let (from, to) = (from.clone(), to.clone());
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            std::thread::spawn(move || {
                let mut faults = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    match call(&from, &to) {
                        Ok(()) => _ = served.fetch_add(1, Ordering::Relaxed),
                        Err(fault) => faults.push(format!(
                            "{} to {} after {:?}: {fault}",
                            from.name(),
                            to.name(),
                            begin.elapsed()
                        )),
                    }
                }
                faults
            })
        });
        Self {
            callers: callers.collect(),
            stop,
            served,
        }
    }

    /// How many calls were served so far.
    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until `more` calls were served.
    #[track_caller]
    fn goes_on(&self, more: usize) {
        let until = self.served() + more;
        eventually(Duration::from_secs(20), "calls are served", || {
            self.served() >= until
        });
    }

    /// Stops, and panics if a single call was not served to its end.
    #[track_caller]
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let faults: Vec<_> = self
            .callers
            .into_iter()
            .flat_map(|caller| caller.join().expect("callers do not panic"))
            .collect();
        let served = self.served.load(Ordering::Relaxed);
        assert!(
            faults.is_empty(),
            "{} calls failed beside {served}: {faults:#?}",
            faults.len()
        );
        served
    }
}

/// One call: who answers is greeted, echoes, and ends as it should.
fn call(from: &Pod, to: &Pod) -> Result<(), String> {
    let conn = from
        .try_dial(to.at(8080))
        .map_err(|e| format!("dialling: {e}"))?;
    let line = conn
        .line()
        .map_err(|e| format!("waiting for its name: {e}"))?;
    if !line.starts_with(&format!("{} {}", to.name(), from.ip())) {
        return Err(format!("another answered: {line}"));
    }
    conn.echoes(WORDS).map_err(|e| format!("the echo: {e}"))?;
    conn.finish();
    match conn.ending() {
        Outcome::Closed => Ok(()),
        other => Err(format!("its end: {other:?}")),
    }
}

/// `a` and `c` on node 1, `b` on node 2, each with a server.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    pub(crate) c: Pod,
    _servers: [crate::support::Server; 3],
}

impl World {
    pub(crate) fn new() -> Self {
        let mut lab = Lab::new();
        let (a, b, c) = (lab.pod(1, "a"), lab.pod(2, "b"), lab.pod(1, "c"));
        lab.start_with(|launch| launch.drain("20s"));
        let _servers = [a.greet(8080), b.greet(8080), c.greet(8080)];
        Self {
            lab,
            a,
            b,
            c,
            _servers,
        }
    }

    /// Out of node 1, into it, and within it.
    fn ways(&self) -> [(&Pod, &Pod); 3] {
        [(&self.a, &self.b), (&self.b, &self.a), (&self.a, &self.c)]
    }

    #[track_caller]
    fn all_served(&self, times: usize) {
        for (from, to) in self.ways() {
            for n in 0..times {
                if let Err(fault) = call(from, to) {
                    panic!("call {n} of {} to {}: {fault}", from.name(), to.name());
                }
            }
        }
    }

    #[track_caller]
    pub(crate) fn soon_served(&self) {
        for (from, to) in self.ways() {
            within(Duration::from_secs(10), "calls are served again", || {
                call(from, to)
            });
        }
    }
}

/// Loses the first packet of everybody who dials the pod's tunnel port: each is under way for the
/// second after which a kernel tries again, and so at every moment some are.
fn lose_first_packets(pod: &Pod) {
    pod.netns().nft(
        "table ip lossy {
            set seen { type ipv4_addr . inet_service; flags dynamic,timeout; timeout 3s; }
            chain pre {
                type filter hook prerouting priority raw; policy accept;
                tcp dport 15008 tcp flags & (syn | ack) == syn ip saddr . tcp sport @seen accept
                tcp dport 15008 tcp flags & (syn | ack) == syn add @seen { ip saddr . tcp sport } drop
            }
        }",
    );
}

#[test]
fn nobody_notices_an_upgrade_under_load() {
    let mut world = World::new();
    let wire = world.lab.tap_link();
    let live: Vec<_> = world
        .ways()
        .iter()
        .map(|(from, to)| from.dial_greeter(to.at(8080)))
        .collect();
    lose_first_packets(&world.c);
    let load = Load::begin(&world.ways(), 6);
    load.goes_on(50);
    let rules = world.a.netns().run("nft", &["list", "ruleset"]);
    let mut before = world.lab.relieve(1, |launch| launch.drain("20s"));
    let said = before.says(&["handed over"]);
    assert!(said.contains("\"pods\":2"), "{said}");
    load.goes_on(100);
    assert!(before.runs(), "it is left alive, and so it lives");
    before.signal(Signal::SIGTERM);
    load.goes_on(100);
    holds_for(
        Duration::from_secs(1),
        "connections from before live",
        || live.iter().all(|conn| conn.echoes(WORDS).is_ok()),
    );
    assert!(before.runs(), "it drains");
    let after = world.a.netns().run("nft", &["list", "ruleset"]);
    assert_eq!(rules, after, "the rules have not changed");
    for conn in live {
        conn.finish();
        assert_eq!(conn.ending(), Outcome::Closed);
    }
    assert!(before.await_end(Duration::from_secs(5)).success());
    before.says(&["the last connection from before the hand-over has ended"]);
    load.goes_on(100);
    let served = load.end();
    assert!(served > 300, "{served}");
    world.all_served(10);
    let daemon = world.lab.daemon(1);
    daemon.says(&["the daemon before this one is gone"]);
    assert!(daemon.metric("adit_handovers_total", &[("outcome", "inherited")]) == 1.0);
    assert!(daemon.metric("adit_handover_pods", &[]) == 2.0);
    assert!(daemon.metric("adit_capture_repairs_total", &[]) == 0.0);
    let packets = wire.packets();
    assert!(packets.len() > 1000, "{}", packets.len());
    let clear = packets.iter().filter(|packet| packet.contains(WORDS));
    assert_eq!(clear.count(), 0, "packets in clear");
}

#[test]
fn the_time_to_drain_bounds_what_is_left_with_the_one_before() {
    let mut world = World::new();
    let live = world.a.dial_greeter(world.b.at(8080));
    let mut before = world.lab.relieve(2, |launch| launch);
    let live_here = world.b.dial_greeter(world.a.at(8080));
    before.signal(Signal::SIGTERM);
    holds_for(Duration::from_secs(2), "it drains", || {
        live.echoes(WORDS).is_ok()
    });
    before.signal(Signal::SIGTERM);
    before.await_end(Duration::from_secs(3));
    assert_eq!(live.ending(), Outcome::Reset);
    live_here.echoes(WORDS).expect("it is the next daemon's");
    world.all_served(3);
}

#[test]
fn the_next_daemon_may_have_more_workers_or_fewer() {
    let mut world = World::new();
    for workers in ["1", "3", "2", "5", "1"] {
        let load = Load::begin(&world.ways(), 1);
        let before = world
            .lab
            .relieve(1, |launch| launch.args(&["--workers", workers]));
        load.goes_on(30);
        drop(before);
        load.goes_on(30);
        load.end();
        // Every listener has somebody who accepts, whichever the kernel chooses.
        world.all_served(30);
    }
}

#[test]
fn ten_upgrades_leave_nothing_behind() {
    let mut world = World::new();
    world.all_served(3);
    let inodes = |world: &World| world.a.netns().run("ss", &["-Htln"]);
    let (listeners, mut open) = (inodes(&world), Vec::new());
    let mut first = None;
    for _ in 0..10 {
        let mut before = world.lab.relieve(1, |launch| launch);
        before.signal(Signal::SIGTERM);
        before.await_end(Duration::from_secs(10));
        world.all_served(3);
        let rules = world.a.netns().run("nft", &["list", "ruleset"]);
        assert_eq!(*first.get_or_insert_with(|| rules.clone()), rules);
        world
            .lab
            .daemon(1)
            .says(&["the daemon before this one is gone"]);
        open.push(world.lab.daemon(1).descriptors());
    }
    assert_eq!(listeners, inodes(&world));
    let (least, most) = (open.iter().min(), open.iter().max());
    let spread = most.expect("ten") - least.expect("ten");
    assert!(spread <= 10, "{open:?}");
}

#[test]
fn a_next_daemon_that_never_gets_ready_is_not_missed() {
    let mut world = World::new();
    let load = Load::begin(&world.ways(), 1);
    // Nobody signs its certificates.
    let launch = world.lab.successor(1);
    let mut next = launch.args(&["--ca", "https://127.0.0.1:1"]).spawn();
    next.says(&["another daemon runs"]);
    load.goes_on(50);
    let ready = within(Duration::from_secs(5), "it answers", || next.ready());
    assert_eq!(ready.0, 503, "the port is the next one's: {ready:?}");
    next.kill();
    let daemon = world.lab.daemon(1);
    daemon.says(&["going on as before"]);
    daemon.await_ready();
    load.goes_on(50);
    load.end();
}

#[test]
fn an_old_daemon_that_dies_on_the_way_leaves_its_pods_to_the_next() {
    for wait in [0, 20, 60, 100, 140, 180, 240] {
        let mut world = World::new();
        let next = world.lab.successor(1).spawn();
        next.says(&["another daemon runs"]);
        std::thread::sleep(Duration::from_millis(wait));
        let mut before = world.lab.exchange(1, next);
        before.kill();
        world.lab.daemon(1).await_ready();
        world.soon_served();
        world.all_served(10);
    }
}

#[test]
fn a_next_daemon_that_dies_when_it_serves_gives_its_pods_back() {
    let mut world = World::new();
    let live = world.a.dial_greeter(world.b.at(8080));
    let beside = world.a.dial_greeter(world.c.at(8080));
    for round in 0..3 {
        let before = world.lab.relieve(1, |launch| launch);
        world.all_served(2);
        let mut next = world.lab.exchange(1, before);
        if round == 1 {
            next.signal(Signal::SIGTERM);
            next.await_end(Duration::from_secs(10));
        } else {
            next.kill();
        }
        world.lab.daemon(1).await_ready();
        world.soon_served();
        world.all_served(10);
        live.echoes(WORDS).expect("it was never handed over");
        beside.echoes(WORDS).expect("it was never handed over");
    }
}

#[test]
fn the_one_before_takes_back_only_what_nobody_serves() {
    let mut world = World::new();
    let live = world.a.dial_greeter(world.b.at(8080));
    let mut first = world.lab.relieve(1, |launch| launch);
    let mut second = world.lab.relieve(1, |launch| launch);
    second.kill();
    holds_for(Duration::from_secs(2), "the third serves", || {
        world.a.call(world.b.at(8080)).served()
    });
    assert!(!first.log().contains("taking the pods back"));
    live.echoes(WORDS).expect("the first carries it");
    world.lab.daemon(1).kill();
    first.says(&["taking the pods back"]);
    world.soon_served();
    live.echoes(WORDS).expect("the first carries it");
    assert!(first.runs());
}

#[test]
fn a_daemon_told_to_end_waits_for_the_next_that_has_come() {
    let mut world = World::new();
    let load = Load::begin(&world.ways(), 2);
    let next = world.lab.successor(1).spawn();
    next.says(&["another daemon runs"]);
    world.lab.daemon(1).signal(Signal::SIGTERM);
    next.says(&["taken over"]);
    let mut before = world.lab.exchange(1, next);
    before.await_end(Duration::from_secs(10));
    load.goes_on(50);
    load.end();
}

#[test]
fn a_changed_policy_reaches_what_the_one_before_still_carries() {
    let mut world = World::new();
    let far = world.a.dial_greeter(world.b.at(8080));
    let before = world.lab.relieve(2, |launch| launch);
    far.echoes(WORDS).expect("it goes on");
    world.lab.cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata:\n  name: nobody\n  namespace: mesh\nspec:\n  action: DENY\n  rules:\n  - {}\n",
    );
    world.lab.publish();
    let begin = Instant::now();
    assert_eq!(far.ending(), Outcome::Reset);
    assert!(begin.elapsed() < RELOAD, "{:?}", begin.elapsed());
    let record = before.record("the cut is recorded", |r| r.is("direction", "inbound"));
    assert_eq!(crate::reason(&record), "policy_changed");
}

#[test]
fn pods_that_come_and_go_meanwhile_are_captured_and_let_go() {
    let mut world = World::new();
    let gone = world.lab.pod(1, "gone");
    world.lab.publish();
    eventually(Duration::from_secs(10), "it is captured", || {
        gone.has_rules()
    });
    let before = world.lab.relieve(1, |launch| launch);
    let new = world.lab.pod(1, "new");
    world.lab.cluster.edit("Pod", "mesh", "gone", |pod| {
        pod["metadata"]["labels"]["adit.mesh/mode"] = json!("none");
    });
    world.lab.publish();
    eventually(Duration::from_secs(10), "it is captured", || {
        new.has_rules()
    });
    within(Duration::from_secs(5), "it is served", || {
        call(&new, &world.b)
    });
    eventually(Duration::from_secs(10), "it is let go", || {
        !gone.has_rules()
    });
    drop(before);
    world.all_served(3);
}

#[test]
fn a_daemon_in_a_namespace_of_its_own_is_relieved_as_well() {
    let mut world = World::new();
    let apart = Arc::new(Namespace::new("daemon"));
    let mut launch = world.lab.successor(1);
    launch.namespace = apart;
    let load = Load::begin(&world.ways(), 1);
    let mut next = launch.spawn();
    next.says(&["taken over"]);
    next.await_ready();
    let before = world.lab.exchange(1, next);
    let ready = before.ready().expect("its own port is its own");
    assert_eq!(ready.0, 503, "{ready:?}");
    assert!(ready.1.contains("the next daemon"), "{ready:?}");
    load.goes_on(50);
    drop(before);
    load.goes_on(50);
    load.end();
}

#[test]
fn what_waits_while_nobody_accepts_is_not_lost_when_the_next_daemon_dies_then() {
    let mut world = World::new();
    let run_dir = world.lab.launch(1).run_dir;
    let (next, answer) = Played::greet(&run_dir, &[1]);
    assert_eq!(answer["say"], "welcome", "{answer}");
    let (pods, descriptors) = next.inventory();
    // A namespace, and two workers' listeners on three ports in two families.
    assert_eq!((pods, descriptors.len()), (2, 2 * 13));
    next.say(&json!({ "say": "take" }));
    assert_eq!(next.hear().0["say"], "yours");
    let waiting: Vec<_> = world
        .ways()
        .iter()
        .flat_map(|(from, to)| {
            let dial = || from.dial(to.at(8080));
            std::iter::repeat_with(dial).take(20).collect::<Vec<_>>()
        })
        .collect();
    let idle = world.a.dial(world.b.at(8080));
    idle.patience(Duration::from_millis(500));
    assert_eq!(idle.ending(), Outcome::Silence, "nobody accepts");
    drop((next, descriptors));
    world.lab.daemon(1).says(&["going on as before"]);
    for conn in waiting {
        let line = conn.line().expect("it waited, and is served");
        assert!(line.contains(' '), "{line}");
        conn.echoes(WORDS).expect("it is served");
    }
    world.all_served(5);
}

#[test]
fn a_next_daemon_that_falls_silent_is_left_behind() {
    let mut world = World::new();
    let run_dir = world.lab.launch(1).run_dir;
    let (next, _) = Played::greet(&run_dir, &[1]);
    let (_, descriptors) = next.inventory();
    next.say(&json!({ "say": "take" }));
    assert_eq!(next.hear().0["say"], "yours");
    world.lab.daemon(1).says(&["going on as before"]);
    world.all_served(5);
    let late = send(
        next.as_raw_fd(),
        br#"{"say":"serving"}"#,
        MsgFlags::MSG_NOSIGNAL,
    );
    assert_eq!(
        late,
        Err(nix::errno::Errno::EPIPE),
        "it learns that it is not the next"
    );
    drop(descriptors);
    world.all_served(5);
}

#[test]
fn a_next_daemon_of_an_unknown_version_is_turned_away() {
    let mut world = World::new();
    let run_dir = world.lab.launch(1).run_dir;
    let (_next, answer) = Played::greet(&run_dir, &[7, 8]);
    assert_eq!(answer["say"], "refused", "{answer}");
    let reason = answer["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("version 1") && reason.contains("[7, 8]"),
        "{reason}"
    );
    world.lab.daemon(1).says(&["turned away"]);
    world.all_served(2);
    let before: Daemon = world.lab.relieve(1, |launch| launch);
    drop(before);
    world.all_served(2);
}
