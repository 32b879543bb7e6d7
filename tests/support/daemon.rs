//! One `adit node` in a node's namespace: started, asked, and ended in every way.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use super::namespace::Namespace;
use super::wait::{eventually, poll, within};

/// The program under test; `ADIT_BIN` names another, as benchmarks do.
pub(crate) fn program() -> String {
    std::env::var("ADIT_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_adit").to_owned())
}

/// How long a daemon may take until its pods are served.
const START: Duration = Duration::from_secs(20);

/// How a daemon is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) node: String,
    pub(crate) sources: Vec<PathBuf>,
    pub(crate) ca: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) drain: String,
    /// Further arguments of the daemon.
    pub(crate) args: Vec<String>,
    /// Further arguments of the `setpriv` that starts it.
    pub(crate) privileges: Vec<String>,
}

impl Launch {
    /// Adds arguments.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&a| a.to_owned()));
        self
    }

    /// Reads objects from here, and from nowhere else.
    pub(crate) fn source(mut self, path: impl Into<PathBuf>) -> Self {
        self.sources = vec![path.into()];
        self
    }

    /// How long live connections are waited for after SIGTERM.
    pub(crate) fn drain(mut self, time: &str) -> Self {
        time.clone_into(&mut self.drain);
        self
    }

    /// Keeps its authority in another directory.
    pub(crate) fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = path.into();
        self
    }

    /// Starts it through `setpriv` with these arguments.
    pub(crate) fn privileges(mut self, args: &[&str]) -> Self {
        self.privileges.extend(args.iter().map(|&a| a.to_owned()));
        self
    }

    fn command(&self) -> Command {
        // nsenter and setpriv replace themselves, so that the child's id is the daemon's own; and
        // the kernel ends it with the test, however that ends.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.namespace.path().display()))
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(&self.privileges)
            .args([&program(), "node", "--node", &self.node])
            .args(["--drain", &self.drain, "--log-format", "json"])
            .arg("--run-dir")
            .arg(&self.run_dir);
        if !self.args.iter().any(|arg| arg == "--workers") {
            command.args(["--workers", "2"]);
        }
        if !self.args.iter().any(|arg| arg == "--ca") {
            let directory = format!("dir:{}", self.ca.display());
            command.arg("--ca").arg(directory);
        }
        for source in &self.sources {
            command.arg("--source").arg(source);
        }
        command.args(&self.args);
        clean(&mut command);
        command
    }

    /// Starts it and does not wait.
    pub(crate) fn spawn(self) -> Daemon {
        std::fs::create_dir_all(&self.run_dir).expect("the lab's directory is writable");
        let mut options = File::options();
        let log = options.create(true).append(true).open(&self.log);
        let log = log.expect("the lab's directory is writable");
        let begin = log.metadata().map_or(0, |m| m.len());
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor is free"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("nsenter (util-linux) cannot be run: {e}"));
        Daemon {
            launch: self,
            child,
            begin,
        }
    }

    /// Starts it and waits until every pod of its node is served.
    #[track_caller]
    pub(crate) fn start(self) -> Daemon {
        let mut daemon = self.spawn();
        daemon.await_ready();
        daemon
    }

    /// Starts it and waits for it to end by itself.
    #[track_caller]
    pub(crate) fn finish(self, deadline: Duration) -> Finished {
        let mut daemon = self.spawn();
        let status = daemon.await_end(deadline);
        Finished {
            status,
            answer: String::new(),
            output: daemon.log(),
        }
    }
}

/// What a program that has ended leaves.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// What it printed as its answer, where that stood apart.
    pub(crate) answer: String,
    /// Everything it printed.
    pub(crate) output: String,
}

/// Runs `adit` with these arguments in this namespace, or in the test's own.
#[track_caller]
pub(crate) fn adit(namespace: Option<&Namespace>, args: &[&str]) -> Finished {
    let mut command = match namespace {
        None => Command::new(program()),
        Some(namespace) => {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net={}", namespace.path().display()))
                .arg(program());
            command
        }
    };
    clean(&mut command);
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.expect("the program under test is built");
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let aside = String::from_utf8_lossy(&output.stderr);
    Finished {
        status: output.status,
        output: format!("{answer}{aside}"),
        answer,
    }
}

/// Takes away what could steer the program from outside the test.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy().into_owned();
        if known.starts_with("ADIT_") || known == "NODE_NAME" || known == "RUST_LOG" {
            command.env_remove(name);
        }
    }
}

/// A running daemon. It is killed when dropped; its log is shown when the test has failed.
#[derive(Debug)]
pub(crate) struct Daemon {
    launch: Launch,
    child: Child,
    /// Where in the log its own words begin.
    begin: u64,
}

impl Daemon {
    /// How it was started.
    pub(crate) fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal. After SIGSTOP it returns when the last thread has stopped.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid is positive");
        kill(Pid::from_raw(pid), signal).expect("it is our child");
        if signal == Signal::SIGSTOP {
            eventually(Duration::from_secs(5), "every thread stands still", || {
                let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
                tasks.expect("it runs").flatten().all(|task| {
                    let stat = std::fs::read_to_string(task.path().join("stat"));
                    stat.is_ok_and(|s| s.rsplit_once(')').is_some_and(|(_, s)| s.starts_with(" T")))
                })
            });
        }
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub(crate) fn await_end(&mut self, deadline: Duration) -> ExitStatus {
        let ended = poll(deadline, || self.child.try_wait().expect("it is our child"));
        ended.unwrap_or_else(|| panic!("the daemon did not end within {deadline:?}"))
    }

    /// Waits until it says that every pod of its node is served.
    #[track_caller]
    pub(crate) fn await_ready(&mut self) {
        let end = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                panic!(
                    "the daemon of {} ended at its start: {status}, signal {:?}",
                    self.launch.node,
                    status.signal()
                );
            }
            let answer = self.ready();
            if matches!(answer, Ok((200, _))) {
                return;
            }
            assert!(
                Instant::now() < end,
                "the daemon of {} is not ready after {START:?}: {answer:?}",
                self.launch.node
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Status and body of its readiness.
    pub(crate) fn ready(&self) -> std::io::Result<(u16, String)> {
        self.http(15021, "GET", "/healthz/ready")
    }

    /// Asks one of its ports on the node's loopback.
    pub(crate) fn http(
        &self,
        port: u16,
        method: &str,
        path: &str,
    ) -> std::io::Result<(u16, String)> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
        let stream = self.launch.namespace.enter(connect)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        ask(stream, method, path)
    }

    /// Asks its admin address; panics unless it answers with 200.
    #[track_caller]
    pub(crate) fn admin(&self, method: &str, path: &str) -> String {
        match self.http(15000, method, path) {
            Ok((200, body)) => body,
            other => panic!("{method} {path} gave {other:?}"),
        }
    }

    /// Asks its admin socket.
    pub(crate) fn admin_socket(&self, method: &str, path: &str) -> std::io::Result<(u16, String)> {
        let stream = UnixStream::connect(self.launch.run_dir.join("admin.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        ask(stream, method, path)
    }

    /// Its configuration dump.
    #[track_caller]
    pub(crate) fn dump(&self) -> Value {
        serde_json::from_str(&self.admin("GET", "/config_dump")).expect("the dump is JSON")
    }

    /// State and error of a pod of its node, given as `NAMESPACE/NAME`; the state is empty for one
    /// that it does not hold.
    #[track_caller]
    pub(crate) fn pod(&self, id: &str) -> (String, String) {
        let all: Value = serde_json::from_str(&self.admin("GET", "/pods")).expect("it is JSON");
        let text = |pod: &Value, field: &str| pod[field].as_str().unwrap_or_default().to_owned();
        let mut pods = all.as_array().into_iter().flatten();
        let pod = pods.find(|p| format!("{}/{}", text(p, "namespace"), text(p, "name")) == id);
        pod.map_or_else(Default::default, |p| (text(p, "state"), text(p, "error")))
    }

    /// Its metrics, parsed.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Vec<Sample> {
        match self.http(15020, "GET", "/metrics") {
            Ok((200, body)) => body.lines().filter_map(Sample::parse).collect(),
            other => panic!("the metrics gave {other:?}"),
        }
    }

    /// The sum of the series of `name` that carry all of `labels`.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let all = self.metrics();
        let fits = all.iter().filter(|s| s.name == name && s.carries(labels));
        // Not sum(): that of nothing is minus zero.
        fits.fold(0.0, |sum, s| sum + s.value)
    }

    /// Everything this process has printed.
    pub(crate) fn log(&self) -> String {
        let all = std::fs::read(&self.launch.log).unwrap_or_default();
        let begin = usize::try_from(self.begin).expect("a log fits into memory");
        String::from_utf8_lossy(&all[begin.min(all.len())..]).into_owned()
    }

    /// The lines of its log.
    pub(crate) fn lines(&self) -> Vec<Record> {
        self.log().lines().filter_map(Record::parse).collect()
    }

    /// The access records of connections that have ended.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut lines = self.lines();
        lines.retain(Record::ends_connection);
        lines
    }

    /// Waits for the access record that `fits`.
    #[track_caller]
    pub(crate) fn record(&self, wanted: &str, fits: impl Fn(&Record) -> bool) -> Record {
        within(Duration::from_secs(5), wanted, || {
            let records = self.records();
            match records.iter().find(|r| fits(r)) {
                Some(record) => Ok(record.clone()),
                None => Err(records),
            }
        })
    }

    /// Waits for a line of the log that holds all of `words`.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) -> String {
        within(
            Duration::from_secs(10),
            &format!("a log line with {words:?}"),
            || {
                let log = self.log();
                let line = log.lines().find(|l| words.iter().all(|w| l.contains(w)));
                line.map(str::to_owned).ok_or("no such line")
            },
        )
    }

    /// Seconds of processor time it has used.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.expect("it runs");
        let after_name = stat.rsplit_once(')').expect("proc(5)").1;
        let field = |n: usize| after_name.split_whitespace().nth(n)?.parse::<f64>().ok();
        // utime and stime, fields 14 and 15 of proc(5), in ticks of 1/100 s.
        (field(11).expect("a number") + field(12).expect("a number")) / 100.0
    }

    /// How many descriptors it holds open.
    pub(crate) fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        open.expect("it runs").count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!(
                "--- log of the daemon of {}:\n{}",
                self.launch.node,
                tail.join("\n")
            );
        }
    }
}

/// One HTTP/1.1 exchange over a stream that is then closed.
fn ask(mut stream: impl Read + Write, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: adit\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let bad = || std::io::Error::other(format!("not HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        dechunk(body)
    } else {
        body.to_owned()
    };
    Ok((status.ok_or_else(bad)?, body))
}

/// The content of a chunked body (RFC 9112 §7.1).
fn dechunk(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some((chunk, rest)) = rest.split_at_checked(size) else {
            break;
        };
        content += chunk;
        body = rest.trim_start_matches("\r\n");
        if size == 0 {
            break;
        }
    }
    content
}

/// One series of the metrics.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let mut rest = labels.strip_suffix('}')?;
        let mut pairs = Vec::new();
        while let Some((key, tail)) = rest.split_once("=\"") {
            let (value, tail) = tail.split_once('"')?;
            pairs.push((key.to_owned(), value.to_owned()));
            rest = tail.trim_start_matches(',');
        }
        Some(Self {
            name: name.to_owned(),
            labels: pairs,
            value: value.parse().ok()?,
        })
    }

    /// The value of a label.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        let pair = self.labels.iter().find(|(k, _)| k == key);
        pair.map(|(_, v)| v.as_str())
    }

    /// Whether it carries all of `labels`.
    pub(crate) fn carries(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(k, v)| self.label(k) == Some(*v))
    }
}

/// One line of the log, with its fields.
#[derive(Clone, Debug)]
pub(crate) struct Record(Map<String, Value>);

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let Value::Object(mut all) = serde_json::from_str(line).ok()? else {
            return None;
        };
        if let Some(Value::Object(fields)) = all.remove("fields") {
            all.extend(fields);
        }
        Some(Self(all))
    }

    /// A field as text; empty when it is not there.
    pub(crate) fn text(&self, field: &str) -> String {
        match self.0.get(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// Whether the field has this value.
    pub(crate) fn is(&self, field: &str, value: &str) -> bool {
        self.text(field) == value
    }

    /// Whether the record says all of this.
    pub(crate) fn has(&self, fields: &[(&str, &str)]) -> bool {
        fields.iter().all(|(field, value)| self.is(field, value))
    }

    /// Whether it is the access record of a connection that has ended.
    fn ends_connection(&self) -> bool {
        self.0.contains_key("direction") && self.0.contains_key("duration")
    }
}

/// A directory of the lab for one daemon.
pub(crate) fn run_dir(root: &Path, node: &str) -> PathBuf {
    root.join("run").join(node)
}
