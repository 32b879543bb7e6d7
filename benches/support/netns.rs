//! Network namespaces of the benchmarks: made, entered, and removed.
//!
//! Names begin with the benchmark's process id, so that runs stand beside one another, and what a
//! killed run has left goes with the next one.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// What every name begins with; the process id follows.
const PREFIX: &str = "bench-";

/// A named network namespace; its name goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace with its loopback up and IPv6 addresses that need no check.
    pub(crate) fn create(purpose: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{purpose}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let file = File::open(Path::new(NAMES).join(&name))?;
        let netns = Self { name, file };
        netns.sysctl("ipv6/conf/all/accept_dad", "0")?;
        netns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns exec` takes it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The path by which others open it.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` on a thread of its own that stands in the namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let file = self.file.try_clone()?;
        Ok(std::thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter its own namespaces");
            work()
        }))
    }

    /// Runs `work` in the namespace and waits for it.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).expect("root may enter its own namespaces");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs `ip` commands, one a line.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run ip (package iproute2)")?;
        let mut stdin = child.stdin.take().context("it is piped")?;
        stdin.write_all(lines.as_bytes())?;
        drop(stdin);
        ensure!(child.wait()?.success(), "ip failed on:\n{lines}");
        Ok(())
    }

    /// Writes `/proc/sys/net/KEY` as the namespace has it.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.enter(|| std::fs::write(&path, value))
            .with_context(|| format!("cannot set {}", path.display()))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

/// How many namespaces of benchmarks there are, of this process alone.
pub(crate) fn own() -> usize {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    names().filter(|name| name.starts_with(&prefix)).count()
}

/// Removes the namespaces of processes that are gone.
pub(crate) fn sweep() {
    for name in names() {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let gone = |pid: &str| {
            pid.bytes().all(|b| b.is_ascii_digit()) && !Path::new("/proc").join(pid).exists()
        };
        if owner.is_some_and(gone) {
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}

fn names() -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        status.success(),
        "{program} {} failed; this needs root",
        args.join(" ")
    );
    Ok(())
}
