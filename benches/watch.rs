//! The index over a watch, at scale: a daemon, and a fake API server with 100,000 pods.
//!
//! Prints, once each, what the project promises: seconds until a daemon has read everything, its
//! resident memory, and how long one changed pod takes from the server's store to the published
//! index. Then what a list anew costs, and what the daemon uses while nothing happens. All of it
//! twice: with streaming lists and with lists in pages. The pods are as the API shows them, some
//! 4 kB each. Server and daemon share the machine; the server's time is in the seconds, too.
//!
//! `cargo bench --bench watch`, as root; `ADIT_BIN` names another program.

#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the daemon; this stands outside of it"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::Namespace;
use support::apiserver::{ApiServer, Break, Call, Options, Synthetic};

const SIZE: Synthetic = Synthetic {
    pods: 100_000,
    services: 5_000,
    nodes: 1_000,
    namespaces: 100,
};
/// What issue and README promise.
const MEMORY: f64 = 150.0;
const SYNC: f64 = 20.0;
const CHANGE: f64 = 10.0;

fn main() -> ExitCode {
    let mut missed = Vec::new();
    for streaming in [true, false] {
        let namespace = Arc::new(Namespace::new("bench"));
        let api = ApiServer::start(Options {
            namespace: Some(namespace.clone()),
            streaming,
            ..Options::default()
        });
        let begin = Instant::now();
        api.load(SIZE.objects());
        let how = if streaming {
            "streaming lists"
        } else {
            "lists in pages"
        };
        say(&format!(
            "{how}: {} pods, {} services, {} nodes; the server is filled in {:.1} s",
            SIZE.pods,
            SIZE.services,
            SIZE.nodes,
            begin.elapsed().as_secs_f64()
        ));
        run(&api, &namespace, &mut missed);
    }
    for what in &missed {
        say(&format!("MISSED: {what}"));
    }
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(api: &ApiServer, namespace: &Namespace, missed: &mut Vec<String>) {
    let daemon = Daemon::start(api, namespace);
    let begin = Instant::now();
    daemon.until("ready", |daemon| daemon.ready());
    let (sync, memory, peak) = (
        begin.elapsed().as_secs_f64(),
        daemon.memory("VmRSS"),
        daemon.memory("VmHWM"),
    );
    let objects = daemon.metric("adit_index_objects{kind=\"pod\"}");
    assert_eq!(
        objects,
        f64::from(SIZE.pods),
        "it says it is ready, and is not"
    );
    say(&format!(
        "  synced in {sync:.2} s ({:.2} s of its CPU), {memory:.0} MB resident, peak {peak:.0} MB",
        daemon.cpu()
    ));
    promise(missed, "sync, s", sync, SYNC);
    promise(missed, "resident, MB", memory, MEMORY);
    promise(missed, "peak, MB", peak, MEMORY);

    let mut times: Vec<f64> = (0..300).map(|turn| change(api, &daemon, turn)).collect();
    times.sort_by(f64::total_cmp);
    let at = |q: usize| times[(times.len() - 1) * q / 100];
    say(&format!(
        "  one changed pod: {:.2} ms at the median, {:.2} ms at the 99th percentile, {:.2} ms at most",
        at(50),
        at(99),
        at(100)
    ));
    promise(missed, "one change, 99th percentile, ms", at(99), CHANGE);

    // One at a time, and nobody asks meanwhile.
    for (what, field) in [
        ("that mean something", "labels"),
        ("that mean nothing", "annotations"),
    ] {
        let (cpu, count) = (daemon.cpu(), 2000);
        for turn in 0..count {
            let mut pod = SIZE.pod(turn * 47 + u32::from(field == "annotations"));
            pod["metadata"][field]["turn"] = format!("u{turn}").into();
            api.put(pod);
            std::thread::sleep(Duration::from_millis(2));
        }
        say(&format!(
            "  {count} changes {what}, one after the other: {:.0} µs of its CPU each",
            (daemon.cpu() - cpu) * 1e6 / f64::from(count)
        ));
    }

    let (cpu, begin) = (daemon.cpu(), Instant::now());
    let lists = api.count("pods", Call::Stream) + api.count("pods", Call::List);
    api.compact();
    api.break_watches("pods", Break::Gone);
    daemon.until("listed anew", |daemon| {
        daemon.metric("adit_source_relists_total{kind=\"pod\"}") >= 1.0
            && api.count("pods", Call::Stream) + api.count("pods", Call::List) > lists
            && daemon.metric("adit_source_connected{kind=\"pod\"}") == 1.0
    });
    say(&format!(
        "  listed anew in {:.2} s ({:.2} s of its CPU), {:.0} MB resident, peak {:.0} MB",
        begin.elapsed().as_secs_f64(),
        daemon.cpu() - cpu,
        daemon.memory("VmRSS"),
        daemon.memory("VmHWM")
    ));
    promise(
        missed,
        "peak when listed anew, MB",
        daemon.memory("VmHWM"),
        MEMORY,
    );

    let cpu = daemon.cpu();
    std::thread::sleep(Duration::from_secs(10));
    say(&format!(
        "  idle: {:.2} % of a processor, {:.0} MB resident",
        (daemon.cpu() - cpu) * 10.0,
        daemon.memory("VmRSS")
    ));
}

/// Milliseconds from the server's store to the published index. The daemon counts a change, applies
/// and publishes it in one step, and answers for its metrics before or after that, not between.
fn change(api: &ApiServer, daemon: &Daemon, turn: u32) -> f64 {
    let counter = "adit_source_changes_total";
    let before = daemon.metric(counter);
    let mut pod = SIZE.pod(turn * 331);
    pod["metadata"]["labels"]["turn"] = format!("t{turn}").into();
    let begin = Instant::now();
    api.put(pod);
    while daemon.metric(counter) <= before {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "the change is never seen"
        );
    }
    begin.elapsed().as_secs_f64() * 1e3
}

fn promise(missed: &mut Vec<String>, what: &str, found: f64, bound: f64) {
    if found > bound {
        missed.push(format!("{what}: {found:.1}, promised {bound:.1}"));
    }
}

/// `adit node` in the namespace; ended when dropped.
struct Daemon<'n> {
    child: Child,
    namespace: &'n Namespace,
    _dir: tempfile::TempDir,
}

impl<'n> Daemon<'n> {
    fn start(api: &ApiServer, namespace: &'n Namespace) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = dir.path().join("kubeconfig");
        std::fs::write(&config, api.kubeconfig("{}")).expect("the directory is writable");
        let own = env!("CARGO_BIN_EXE_adit");
        let program = std::env::var("ADIT_BIN").unwrap_or_else(|_| own.to_owned());
        let child = Command::new("nsenter")
            .arg(format!("--net={}", namespace.path().display()))
            .args(["setpriv", "--pdeathsig", "KILL", &program])
            .args([
                "node",
                "--node",
                "bench",
                "--workers",
                "2",
                "--source",
                "kube",
            ])
            .arg("--kubeconfig")
            .arg(&config)
            .arg("--ca")
            .arg(format!("dir:{}", dir.path().join("ca").display()))
            .arg("--run-dir")
            .arg(dir.path().join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter (util-linux) can be run");
        Self {
            child,
            namespace,
            _dir: dir,
        }
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            assert!(begin.elapsed() < Duration::from_secs(120), "never {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ready(&self) -> bool {
        self.get(15021, "/healthz/ready")
            .starts_with("HTTP/1.1 200")
    }

    /// The value of one series, named as it is written; 0 where there is none yet.
    fn metric(&self, series: &str) -> f64 {
        let text = self.get(15020, "/metrics");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(series));
        lines
            .find_map(|rest| rest.trim().parse().ok())
            .unwrap_or(0.0)
    }

    fn get(&self, port: u16, path: &str) -> String {
        let connect = || TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let Ok(mut stream) = self.namespace.enter(connect) else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n");
        let mut text = Vec::new();
        let answered = stream.write_all(request.as_bytes());
        let _ = answered.and_then(|()| std::io::Read::read_to_end(&mut stream, &mut text));
        String::from_utf8_lossy(&text).into_owned()
    }

    /// A line of its status in MB.
    fn memory(&self, line: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find(|l| l.starts_with(line)).expect("line");
        let kib = line.split_whitespace().nth(1).expect("a number");
        kib.parse::<f64>().expect("a number") * 1024.0 / 1e6
    }

    /// Seconds of CPU that it has used.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("it runs");
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|t| t.parse::<u64>().expect("a number")).sum();
        ticks as f64 / 100.0
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("stdout");
}
