//! Network namespaces of the tests: made, entered, and removed whatever happens.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// What every name of the tests begins with; the process id follows.
const PREFIX: &str = "tests-";

static COUNTER: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A named network namespace. Its name goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    file: File,
    /// Whether the name is this value's to remove.
    owned: bool,
}

impl Namespace {
    /// Makes an empty namespace with its loopback up and address checks that take no time.
    pub(crate) fn new(purpose: &str) -> Self {
        SWEEP.call_once(sweep);
        let id = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::named(format!("{PREFIX}{}-{id}-{purpose}", std::process::id()))
    }

    fn named(name: String) -> Self {
        run("ip", &["netns", "add", &name]);
        let file = File::open(Path::new(NAMES).join(&name)).expect("ip netns add left a name");
        let namespace = Self {
            name,
            file,
            owned: true,
        };
        namespace.sysctl("ipv6/conf/all/accept_dad", "0");
        namespace.sysctl("ipv6/conf/default/accept_dad", "0");
        namespace.ip("link set lo up");
        namespace
    }

    /// Puts a new, empty namespace behind the same name; the old one lives on only through what
    /// still holds it.
    pub(crate) fn replace(&mut self) {
        run("ip", &["netns", "del", &self.name]);
        // The new name is in place before the old value goes, which must not take it away.
        self.owned = false;
        *self = Self::named(self.name.clone());
    }

    /// The path by which a daemon finds it.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Its name, as `ip netns exec` takes it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread that stands in the namespace: sockets it makes belong there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .expect("entering a network namespace needs root");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs `ip` commands, one a line, in one process.
    #[track_caller]
    pub(crate) fn ip(&self, lines: &str) {
        feed("ip", &["-n", &self.name, "-batch", "-"], lines);
    }

    /// Loads an nftables script.
    #[track_caller]
    pub(crate) fn nft(&self, script: &str) {
        feed(
            "ip",
            &["netns", "exec", &self.name, "nft", "-f", "-"],
            script,
        );
    }

    /// What a program prints when run in the namespace; panics when it fails.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(args);
        run("ip", &all)
    }

    /// Writes `/proc/sys/net/KEY` as the namespace has it.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| std::fs::write(&path, value))
            .unwrap_or_else(|e| panic!("cannot set {}: {e}", path.display()));
    }

    /// Everything that capture could leave behind: rules, routes of every table, and listeners.
    pub(crate) fn state(&self) -> String {
        let parts: [(&str, &[&str]); 6] = [
            ("nft", &["list", "ruleset"]),
            ("ip", &["rule"]),
            ("ip", &["-6", "rule"]),
            ("ip", &["route", "show", "table", "all"]),
            ("ip", &["-6", "route", "show", "table", "all"]),
            ("ss", &["-Hltn"]),
        ];
        let mut state = String::new();
        for (program, args) in parts {
            let text = self.run(program, args);
            state += &format!("# {program} {}\n{text}", args.join(" "));
        }
        state
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .stderr(Stdio::null())
            .status();
    }
}

/// Removes the namespaces of test processes that are gone.
fn sweep() {
    let Ok(names) = std::fs::read_dir(NAMES) else {
        return;
    };
    for name in names
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
    {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip")
                .args(["netns", "del", &name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// Runs a program to its end and gives what it printed; panics when it fails.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program} cannot be run ({e}); ./scripts/test installs it"));
    finished(program, args, &output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program with `input` on its standard input; panics when it fails.
#[track_caller]
fn feed(program: &str, args: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} cannot be run ({e}); ./scripts/test installs it"));
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin
        .write_all(input.as_bytes())
        .expect("the program reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    finished(program, args, &output);
}

#[track_caller]
fn finished(program: &str, args: &[&str], output: &Output) {
    assert!(
        output.status.success(),
        "{program} {} failed ({}); the tests need root\n{}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}
