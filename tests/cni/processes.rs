//! Processes in control groups, as kubelet and its runtimes place them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Namespace, eventually};

/// Where the hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";

/// A control group below a root of the test's own; it goes with its processes when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    /// The topmost directory that the test has made.
    top: PathBuf,
}

impl Group {
    /// Makes `path` in the hierarchy of version 2.
    pub(crate) fn unified(path: &str) -> Self {
        let root = ["unified", ""]
            .map(|sub| Path::new(ROOT).join(sub))
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists())
            .expect("the tests need control groups of version 2 (hybrid or alone)");
        Self::new(&root, path)
    }

    /// Makes `path` in a hierarchy of version 1 where there is one, else in that of version 2.
    pub(crate) fn legacy(path: &str) -> Self {
        let pids = Path::new(ROOT).join("pids");
        if pids.join("cgroup.procs").exists() {
            Self::new(&pids, path)
        } else {
            Self::unified(path)
        }
    }

    fn new(root: &Path, path: &str) -> Self {
        // Its own top, so that tests side by side do not remove each other's.
        let unique = format!("adit-test-{}-{:x}", std::process::id(), fnv(path));
        let top = root.join(unique);
        let path = top.join(path);
        fs::create_dir_all(&path).expect("the tests need root and writable control groups");
        Self { path, top }
    }

    /// Where a process writes itself into it.
    pub(crate) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Starts a command in this group and in that network namespace.
    pub(crate) fn run(&self, netns: Option<&Namespace>, command: &[&str]) -> Process {
        let mut all = Command::new("sh");
        all.arg("-c")
            .arg("echo $$ >\"$0\" && exec \"$@\"")
            .arg(self.procs());
        if let Some(netns) = netns {
            all.arg("nsenter")
                .arg(format!("--net={}", netns.path().display()));
        }
        let child = all
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh can be run");
        let process = Process(child);
        eventually(Duration::from_secs(5), "the process runs", || {
            let comm = fs::read_to_string(format!("/proc/{}/comm", process.0.id()));
            let on_the_way = ["sh", "nsenter", "setpriv", "unshare"];
            comm.is_ok_and(|comm| !on_the_way.contains(&comm.trim()))
        });
        process
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // From the inside out; what a process still holds goes a moment later.
        for _ in 0..50 {
            for path in self
                .path
                .ancestors()
                .take_while(|p| p.starts_with(&self.top))
            {
                let _ = fs::remove_dir(path);
            }
            if !self.top.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
