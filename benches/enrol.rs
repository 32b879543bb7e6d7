//! Enrolment: what a pod waits for before it starts, and a namespace that joins with all its pods.
//!
//! Prints, once each, what the project promises: CNI ADD with 110 pods on the node (executed as a
//! runtime does, program start included), 110 at once, those 110 handed over to the next daemon, the
//! label of a namespace with 100 running pods, and the processor time that a daemon with 100 pods takes while nothing happens. The pods
//! of the label are found by their processes; no plugin has told of them.
//!
//! `cargo bench --bench enrol`, as root; it needs `containernetworking-plugins`.

#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the daemon; this stands outside of it"
)]

#[path = "../tests/cni/processes.rs"]
#[allow(dead_code, reason = "each program uses its own part")]
mod processes;
#[path = "../tests/cni/runtime.rs"]
#[allow(dead_code, reason = "each program uses its own part")]
mod runtime;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use processes::Group;
use runtime::{Pod, Runtime, Sandbox};
use serde_json::Value;
use support::{Lab, eventually};

/// What the issue promises.
const ADD: Duration = Duration::from_millis(50);
const LABEL: Duration = Duration::from_secs(3);
const IDLE: f64 = 1.0;

const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut missed = Vec::new();
    adding(&mut missed);
    labelling(&mut missed);
    for what in &missed {
        say(&format!("missed: {what}"));
    }
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn say(what: &str) {
    let _ = writeln!(std::io::stdout(), "{what}");
}

/// A sandbox with an address, as the plugins before us leave it, and their result.
fn sandbox(pod: &Pod, number: u8) -> (Sandbox, IpAddr, String) {
    let sandbox = Sandbox::new(pod);
    let ip = IpAddr::from([10, 2, 1, number]);
    sandbox.netns.ip(&format!(
        "link add eth0 type veth peer name other\nlink set eth0 up\naddr add {ip}/24 dev eth0\n"
    ));
    let result = format!(r#"{{"ips":[{{"address":"{ip}/24"}}]}}"#);
    (sandbox, ip, result)
}

fn adding(missed: &mut Vec<String>) {
    const PODS: u8 = 110;
    const TIMES: usize = 200;
    let mut lab = Lab::one_node();
    let pods: Vec<_> = (0..=PODS)
        .map(|n| Pod::new("mesh", &format!("p{n}")))
        .collect();
    for pod in &pods {
        lab.cluster.put(pod.object(&[]));
    }
    lab.start_with(|launch| launch);
    let runtime = Runtime::new(&lab);
    let sandboxes: Vec<_> = pods.iter().zip(2..).map(|(p, n)| sandbox(p, n)).collect();
    let add = |sandbox: &Sandbox, result: &str| {
        let added = runtime.ask("ADD", Some(sandbox), Some(result), &[]);
        added.expect("the pod is captured");
    };
    let begin = Instant::now();
    thread::scope(|scope| {
        for (sandbox, _, result) in &sandboxes[1..] {
            scope.spawn(move || add(sandbox, result));
        }
    });
    say(&format!(
        "{PODS} pods at once: all captured after {:.2?}",
        begin.elapsed()
    ));
    let (again, _, result) = &sandboxes[0];
    let mut times: Vec<_> = (0..TIMES)
        .map(|_| {
            let begin = Instant::now();
            add(again, result);
            let took = begin.elapsed();
            runtime
                .ask("DEL", Some(again), None, &[])
                .expect("a pod can always end");
            eventually(SOON, "it is left", || !again.is_captured());
            took
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| times[(TIMES * percent / 100).min(TIMES - 1)];
    say(&format!(
        "CNI ADD beside {PODS} pods: p50 {:.1?}, p99 {:.1?} of {TIMES}",
        at(50),
        at(99)
    ));
    if at(99) >= ADD {
        missed.push(format!("p99 of CNI ADD is not below {ADD:?}"));
    }
    handing_over(&mut lab);
}

/// All pods pass to another daemon, again and again.
fn handing_over(lab: &mut Lab) {
    const TIMES: usize = 9;
    let handed = || {
        let before = lab.relieve(1, |launch| launch);
        let line = before.says(&["handed over"]);
        serde_json::from_str(&line).expect("the log is JSON")
    };
    let lines: Vec<Value> = std::iter::repeat_with(handed).take(TIMES).collect();
    let times = |field: &str, unit: &str| {
        let number = |line: &Value| line[field].as_str()?.strip_suffix(unit)?.parse().ok();
        let mut all: Vec<u64> = lines.iter().filter_map(number).collect();
        all.sort_unstable();
        format!(
            "p50 {} {unit}, longest {} {unit}",
            all[TIMES / 2],
            all[TIMES - 1]
        )
    };
    let of = |field: &str| lines[0][field].as_u64().unwrap_or_default();
    say(&format!(
        "hand-over of {} pods with {} listeners: {}; nobody accepts for {} ({TIMES} times)",
        of("pods"),
        of("listeners"),
        times("duration", "ms"),
        times("paused", "us"),
    ));
}

fn labelling(missed: &mut Vec<String>) {
    const PODS: u8 = 100;
    let mut lab = Lab::one_node();
    lab.namespace("late", &[]);
    let pods: Vec<_> = (0..PODS)
        .map(|n| Pod::new("late", &format!("p{n}")))
        .collect();
    let mut running = Vec::new();
    for (pod, number) in pods.iter().zip(2..) {
        let (sandbox, ip, _) = sandbox(pod, number);
        lab.cluster.put(pod.object(&[ip]));
        let group = Group::unified(&format!("kubepods/burstable/pod{}/c", pod.uid));
        let process = group.run(Some(&sandbox.netns), &["sleep", "1000"]);
        running.push((process, group, sandbox));
    }
    lab.start();
    lab.cluster
        .label("Namespace", "", "late", "adit.mesh/mode", Some("ambient"));
    let begin = Instant::now();
    lab.publish();
    eventually(SOON, "all are captured", || {
        let enrolled = [("state", "enrolled")];
        lab.daemon(1).metric("adit_pods", &enrolled) >= f64::from(PODS)
    });
    let took = begin.elapsed();
    say(&format!(
        "label of a namespace with {PODS} pods: all captured after {took:.2?}"
    ));
    if took >= LABEL {
        missed.push(format!("the label took {LABEL:?} or longer"));
    }
    thread::sleep(Duration::from_secs(5));
    let (begin, before) = (Instant::now(), lab.daemon(1).cpu());
    thread::sleep(Duration::from_secs(30));
    let used = (lab.daemon(1).cpu() - before) / begin.elapsed().as_secs_f64() * 100.0;
    say(&format!(
        "daemon with {PODS} pods while nothing happens: {used:.2} % of a core"
    ));
    if used >= IDLE {
        missed.push(format!("an idle daemon takes {IDLE} % of a core or more"));
    }
}
