//! Many minutes of mixed connections through two daemons, with every byte compared, and a look at
//! what is left afterwards: descriptors, threads, namespaces, memory.
//!
//!     cargo bench --bench soak -- --minutes 10
//!
//! The daemons' certificates are short-lived, so that they are renewed many times under the open
//! connections, and the objects change all the time.

#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the daemon; this stands outside of it"
)]

#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    reason = "the benchmarks share it, and each uses its own part"
)]
mod support;

mod pattern;
mod tally;
mod traffic;
mod watch;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

use support::adit::Daemons;
use support::net::{Net, Pod};
use support::netns;
use tally::Tally;
use watch::{Snapshot, Watch};

/// Carries mixed connections for some time and looks at what is left.
#[derive(Debug, Parser)]
struct Args {
    /// How long, after a tenth of it (at most a minute) to get warm.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Where the choices begin; a run is told apart by it, not repeated.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tasks that make one connection after the other, for each path and family.
    #[arg(long, default_value_t = 4)]
    callers: usize,
    /// Connections that are idle but for a message now and then, for each path and family.
    #[arg(long, default_value_t = 10)]
    idle: usize,
    /// A further argument of the daemons, as --adit-arg=--same-node=hbone; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    adit_arg: Vec<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// From one pod to another, in words.
struct Way {
    name: &'static str,
    from: Arc<Pod>,
    to: Arc<Pod>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "namespaces need root: run this as root"
    );
    ensure!(args.minutes > 0.0, "no time");
    netns::sweep();
    let outcome = soak(&args);
    let left = netns::own();
    let mut out = std::io::stdout().lock();
    writeln!(out, "network namespaces left: {left}")?;
    let mut failures = outcome?;
    if left > 0 {
        failures.push("network namespaces are left".to_owned());
    }
    for failure in &failures {
        writeln!(out, "FAILED: {failure}")?;
    }
    if failures.is_empty() {
        writeln!(out, "soak passed")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "soak failed")?;
    Ok(ExitCode::FAILURE)
}

/// Runs the whole and gives what was found wrong.
fn soak(args: &Args) -> Result<Vec<String>> {
    let directory = tempfile::Builder::new().prefix("adit-soak-").tempdir()?;
    let mut net = Net::create(None)?;
    let (one, two) = (net.pod(1, "one", true)?, net.pod(2, "two", true)?);
    let beside = net.pod(1, "beside", true)?;
    let (plain, far) = (net.pod(1, "plain", false)?, net.pod(2, "far", false)?);
    let way = |name, from: &Arc<Pod>, to: &Arc<Pod>| {
        let (from, to) = (Arc::clone(from), Arc::clone(to));
        Way { name, from, to }
    };
    let ways = [
        way("tunnel", &one, &two),
        way("tunnel back", &two, &one),
        way("same node", &one, &beside),
        way("plain in, far", &far, &one),
        way("plain in, near", &plain, &beside),
        way("plain out", &two, &plain),
    ];
    let tally = Arc::new(Tally::default());
    for pod in [&one, &two, &beside, &plain] {
        traffic::serve(&pod.netns, &tally)?;
    }
    let mut daemon_args = vec!["--cert-validity=2m".to_owned(), "--drain=2s".to_owned()];
    daemon_args.extend_from_slice(&args.adit_arg);
    let mut daemons = Daemons::start(&net, directory.path(), &daemon_args)?;

    let time = Duration::from_secs_f64(args.minutes * 60.0);
    let warm = (time / 10).clamp(Duration::from_secs(5), Duration::from_secs(60));
    say(&format!("{warm:.0?} to get warm"))?;
    run(
        args,
        &net,
        &ways,
        &tally,
        &daemons,
        warm,
        &mut Watch::default(),
    )?;
    let before = settle(&net, &daemons, &tally)?;
    let made = tally.connections();
    say(&format!(
        "{made} connections made; now {time:.0?} that count"
    ))?;
    let mut watch = Watch::default();
    run(args, &net, &ways, &tally, &daemons, time, &mut watch)?;
    let after = settle(&net, &daemons, &tally)?;
    report(&tally, &before, &after, &watch)?;

    tally.balance();
    watch::compare(&before, &after, &watch, &tally);
    finish(&mut daemons, directory.path(), &tally)?;
    Ok(tally.failures())
}

/// Carries connections for so long, changes the objects meanwhile, and looks at the daemons.
fn run(
    args: &Args,
    net: &Net,
    ways: &[Way],
    tally: &Arc<Tally>,
    daemons: &Daemons,
    time: Duration,
    watch: &mut Watch,
) -> Result<()> {
    tally.begin();
    let mut callers = Vec::new();
    for (number, way) in (0..).zip(ways) {
        for to in [way.to.v4, way.to.v6] {
            let plan = traffic::Plan {
                to: SocketAddr::new(to, traffic::PORT),
                seed: args
                    .seed
                    .wrapping_mul(31)
                    .wrapping_add(number * 2 + u64::from(to.is_ipv6())),
                way: way.name,
                callers: args.callers,
                idle: args.idle,
            };
            callers.push(traffic::call(&way.from.netns, plan, tally)?);
        }
    }
    let begin = Instant::now();
    let mut last = begin;
    for round in 0_u64.. {
        if begin.elapsed() >= time {
            break;
        }
        std::thread::sleep(Duration::from_secs(1).min(time));
        change(net, &daemons.source, round)?;
        watch.sample(begin.elapsed(), daemons)?;
        if last.elapsed() > Duration::from_secs(30) {
            last = Instant::now();
            let (done, failed) = (tally.connections(), tally.failures().len());
            let seconds = begin.elapsed().as_secs();
            say(&format!(
                "{seconds} s: {done} connections, {failed} failures"
            ))?;
        }
    }
    tally.end();
    for caller in callers {
        ensure!(caller.join().is_ok(), "a caller panicked");
    }
    Ok(())
}

/// Puts other objects in the place of the file: a pod and a policy that come and go, and bind nobody
/// that is called.
fn change(net: &Net, source: &Path, round: u64) -> Result<()> {
    let mut objects = net.objects();
    let items = objects["items"]
        .as_array_mut()
        .context("a List has items")?;
    if round % 2 == 1 {
        items.push(passing_pod(round));
    }
    if round % 3 == 1 {
        items.push(json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "passing", "namespace": "mesh" },
            "spec": {
                "action": "DENY",
                "rules": [{ "to": [{ "operation": { "ports": [(10_000 + round % 1000).to_string()] } }] }],
            },
        }));
    }
    let new = source.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(&objects)?)?;
    std::fs::rename(&new, source)?;
    Ok(())
}

fn passing_pod(round: u64) -> Value {
    let ip = format!("10.1.2.{}", 100 + round % 100);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "passing", "namespace": "plain", "uid": format!("passing-{round}") },
        "spec": { "nodeName": "node2", "serviceAccountName": "passing", "containers": [] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    })
}

/// Waits until nothing is carried any more, and takes down what the daemons hold.
fn settle(net: &Net, daemons: &Daemons, tally: &Tally) -> Result<Vec<Snapshot>> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let snapshots = watch::snapshots(net, daemons)?;
        let carried: f64 = snapshots.iter().map(|s| s.connections + s.streams).sum();
        if carried == 0.0 && tally.served() == 0 {
            // Descriptors are closed and memory is given back a moment later.
            std::thread::sleep(Duration::from_secs(2));
            return watch::snapshots(net, daemons);
        }
        if Instant::now() > end {
            tally.fail(format!(
                "{carried} connections and streams are still carried a minute after the last"
            ));
            return Ok(snapshots);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn report(tally: &Tally, before: &[Snapshot], after: &[Snapshot], watch: &Watch) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}", tally.table())?;
    write!(out, "{}", watch::table(before, after, watch))?;
    Ok(())
}

/// Ends the daemons, and reads their logs for what they must never say.
fn finish(daemons: &mut Daemons, directory: &Path, tally: &Tally) -> Result<()> {
    for program in &mut daemons.programs {
        if !program.runs() {
            tally.fail(format!("a daemon ended:\n{}", program.words()));
            continue;
        }
        match program.end(Duration::from_secs(10)) {
            Ok(status) if status.success() => {}
            Ok(status) => tally.fail(format!(
                "a daemon ended with {status}:\n{}",
                program.words()
            )),
            Err(error) => tally.fail(error.to_string()),
        }
    }
    for node in ["node1", "node2"] {
        let log = std::fs::read_to_string(directory.join(format!("{node}.log")))?;
        let bad = log
            .lines()
            .find(|l| l.contains("panicked") || l.contains(" ERROR "));
        if let Some(line) = bad {
            tally.fail(format!("{node} says: {line}"));
        }
    }
    Ok(())
}

fn say(words: &str) -> Result<()> {
    writeln!(std::io::stderr(), "soak: {words}")?;
    Ok(())
}
