//! Tells kubelet's probes from other plain connections, by asking the kernel for the socket at
//! their other end.
//!
//! Kubelet's address is the node's, and so is that of much that the node only passes on
//! (kube-proxy masquerades). But what kubelet dials has a socket in the node's network namespace,
//! with exactly the two addresses that the pod sees, made by a process in kubelet's control group;
//! where the system has no hierarchy of version 2, by kubelet's user.
//!
//! Everything here blocks, for some tens of microseconds, or milliseconds when kubelet has to be
//! found anew.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::capture::enrol::addresses;
use crate::capture::find::cgroup::{is_contained, unified};
use crate::capture::find::{began, nodes};
use crate::sys::netns::Netns;
use crate::sys::sockdiag::{self, Owner, Process};

/// By these names kubelet runs: alone, in microk8s, in k3s and its kin.
const NAMES: [&str; 6] = [
    "kubelet",
    "kubelite",
    "k3s-server",
    "k3s-agent",
    "rke2",
    "k0s",
];
/// How often, at most, kubelet is looked for because a socket was not its.
const AGAIN: Duration = Duration::from_secs(1);
/// How long nobody is recognised after somebody was not: what a node passes on may be much, and each
/// question costs time.
const PAUSE: Duration = Duration::from_millis(10);

/// What is known of this node's kubelet.
#[derive(Debug)]
pub struct Kubelet {
    proc: PathBuf,
    /// The node's own addresses.
    addresses: RwLock<HashSet<IpAddr>>,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    looked: Option<Instant>,
    /// When a connection last was somebody else's.
    other: Option<Instant>,
    all: Vec<Running>,
}

/// A process that is kubelet.
#[derive(Clone, Debug)]
struct Running {
    directory: PathBuf,
    began: u64,
    process: Process,
    netns: Netns,
}

impl Kubelet {
    /// Nothing is known yet; `proc` is where processes are seen, `/proc`.
    #[must_use]
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            addresses: RwLock::default(),
            found: Mutex::default(),
        }
    }

    /// Whether an address is the node's, as of the last [`refresh`](Self::refresh).
    #[must_use]
    pub fn is_node(&self, ip: IpAddr) -> bool {
        let addresses = self.addresses.read();
        addresses.is_ok_and(|addresses| addresses.contains(&ip))
    }

    /// Looks again at the node's addresses, and for kubelet if it does not run any more as it did.
    /// Returns how kubelet is known; `None` while it is not.
    pub fn refresh(&self) -> Option<Process> {
        let own = nodes(&self.proc)
            .iter()
            .filter_map(|netns| addresses(netns).ok())
            .flatten()
            .filter(|ip| !ip.is_loopback())
            .collect();
        if let Ok(mut addresses) = self.addresses.write() {
            *addresses = own;
        }
        let mut found = self.found();
        let there = |one: &Running| began(&one.directory) == Some(one.began);
        if found.all.is_empty() || !found.all.iter().all(there) {
            self.look(&mut found);
        }
        found.all.first().map(|one| one.process)
    }

    /// The socket at the other end of a plain connection from `source` to `destination`, if it is
    /// kubelet's, and by what that was told.
    pub fn attest(&self, source: SocketAddr, destination: SocketAddr) -> Option<(Owner, Process)> {
        let all = self.found().all.clone();
        let attested = holder(&all, source, destination);
        let mut found = self.found();
        let lately = found.looked.is_some_and(|at| at.elapsed() < AGAIN);
        if attested.is_some() || lately {
            return attested;
        }
        // It may have been started again since: its control group is another one then.
        self.look(&mut found);
        holder(&found.all, source, destination)
    }

    /// Whether it is worth to ask [`Kubelet::recognises`] now.
    #[must_use]
    pub fn is_curious(&self) -> bool {
        let found = self.found.try_lock();
        found.is_ok_and(|found| found.is_curious())
    }

    /// Whether a plain connection from `source` to `destination` is kubelet's, for who would only
    /// like to know: one that is not told from others counts as theirs.
    #[must_use]
    pub fn recognises(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        // Asked without the lock: probes of other pods come at the same time.
        let all = self.found.try_lock().map(|found| found.all.clone());
        let is = all.is_ok_and(|all| holder(&all, source, destination).is_some());
        if !is {
            self.found().other = Some(Instant::now());
        }
        is
    }

    fn look(&self, found: &mut Found) {
        found.looked = Some(Instant::now());
        let nodes = nodes(&self.proc);
        let entries = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        found.all = entries
            .filter_map(|entry| self.kubelet(&entry.path(), &nodes))
            .collect();
    }

    /// What `directory` of `/proc` tells, if it is that of kubelet: of its name, on the node's
    /// network, and in no pod or container, where a name proves nothing.
    fn kubelet(&self, directory: &Path, nodes: &[Netns]) -> Option<Running> {
        let name = fs::read_to_string(directory.join("comm")).ok()?;
        if !NAMES.contains(&name.trim_end()) {
            return None;
        }
        let began = began(directory)?;
        let cgroup = fs::read_to_string(directory.join("cgroup")).ok()?;
        let netns = Netns::open(&directory.join("ns/net")).ok()?;
        if is_contained(&cgroup) || !nodes.contains(&netns) {
            return None;
        }
        let process = match unified(&cgroup).map(below_root) {
            // Its user says less, and only where there is no better answer.
            None | Some("") => Process::User(fs::metadata(directory).ok()?.uid()),
            Some(path) => Process::Cgroup(self.group(path)?),
        };
        Some(Running {
            directory: directory.to_owned(),
            began,
            process,
            netns,
        })
    }

    /// The id of a control group of version 2, which is the inode of its directory.
    fn group(&self, below: &str) -> Option<u64> {
        let host = self.proc.join("1/root/sys/fs/cgroup");
        [host, PathBuf::from("/sys/fs/cgroup")]
            .iter()
            .flat_map(|root| [root.clone(), root.join("unified")])
            .filter(|root| {
                let kind = statfs(root).map(|fs| fs.filesystem_type());
                kind == Ok(CGROUP2_SUPER_MAGIC)
            })
            .find_map(|root| fs::metadata(root.join(below)).ok())
            .map(|group| group.ino())
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn is_curious(&self) -> bool {
        !self.all.is_empty() && self.other.is_none_or(|at| at.elapsed() > PAUSE)
    }
}

fn holder(
    kubelets: &[Running],
    source: SocketAddr,
    destination: SocketAddr,
) -> Option<(Owner, Process)> {
    kubelets.iter().find_map(|kubelet| {
        let owner = sockdiag::owner(&kubelet.netns, source, destination).ok()??;
        owner
            .is(kubelet.process)
            .then_some((owner, kubelet.process))
    })
}

/// The path of a control group from the root. Seen from a namespace of control groups it leads up
/// first, and kubelet's has nothing in common with ours but the root.
fn below_root(mut path: &str) -> &str {
    while let Some(rest) = path.strip_prefix("/..") {
        path = rest;
    }
    path.trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_told_from_the_root() {
        for (path, below) in [
            (
                "/system.slice/kubelet.service",
                "system.slice/kubelet.service",
            ),
            (
                "/../../../system.slice/kubelet.service",
                "system.slice/kubelet.service",
            ),
            (
                "/kubelet.slice/kubelet.service",
                "kubelet.slice/kubelet.service",
            ),
            ("/", ""),
            ("/..", ""),
            ("", ""),
        ] {
            assert_eq!(below_root(path), below);
        }
    }
}
