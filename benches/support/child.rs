//! Programs in namespaces, and what they cost by `/proc`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::Netns;

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `command` in `netns`; what it prints goes to `log`.
    ///
    /// The kernel ends it with the thread that calls this, which therefore is the main one.
    pub(crate) fn start(
        name: &str,
        netns: &Netns,
        program: &Path,
        args: &[String],
        log: &Path,
    ) -> Result<Self> {
        let out = File::create(log)?;
        let mut command = Command::new("nsenter");
        for (variable, _) in std::env::vars_os() {
            let known = variable.to_string_lossy();
            if known.starts_with("ADIT_") || known == "NODE_NAME" || known == "RUST_LOG" {
                command.env_remove(&variable);
            }
        }
        // nsenter and setpriv replace themselves: the child's id is the program's.
        let child = command
            .arg(format!("--net={}", netns.path().display()))
            .args(["setpriv", "--pdeathsig", "KILL"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("cannot run nsenter (package util-linux)")?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until `ready`; fails with the program's last words when it ends before, or after 20 s.
    pub(crate) fn await_ready(&mut self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended at its start ({status}):\n{}",
                    self.name,
                    self.words()
                );
            }
            if Instant::now() > end {
                bail!("{} is not ready after 20 s:\n{}", self.name, self.words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end and waits; gives its exit status, or kills it when that takes too long.
    pub(crate) fn end(&mut self, patience: Duration) -> Result<std::process::ExitStatus> {
        kill(Pid::from_raw(self.pid().try_into()?), Signal::SIGTERM)?;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("{} did not end within {patience:?}", self.name)
    }

    /// The end of what it has printed.
    pub(crate) fn words(&self) -> String {
        let all = std::fs::read(&self.log).unwrap_or_default();
        let all = String::from_utf8_lossy(&all).into_owned();
        let lines: Vec<_> = all.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that a process has used, in user and kernel mode (fields 14 and 15 of proc(5)).
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    let (_, fields) = stat.rsplit_once(')').context("proc(5) has it so")?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // USER_HZ is 100 on every architecture that we run on.
    Ok(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
}

/// Resident memory of a process, in bytes.
pub(crate) fn rss(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next());
    Ok(1024 * kibibytes.context("a process has VmRSS")?.parse::<u64>()?)
}

/// How many descriptors a process holds open.
pub(crate) fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// How many threads a process has.
pub(crate) fn threads(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count())
}
