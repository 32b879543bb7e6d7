//! Finds the network namespaces of pods that nobody has handed over: by their processes.
//!
//! One look through `/proc` serves all pods that are sought. A process counts for a pod by its
//! control groups, which the pod cannot choose ([`cgroup`]); its network namespace
//! counts if it is not the node's and has the pod's addresses. Processes of a pod may stand in
//! other namespaces (`unshare -n`, `nsenter`), so the one of the oldest process is taken. Two pods
//! in one namespace are an error of both.

pub(super) mod cgroup;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::capture::enrol::addresses;
use crate::capture::find::cgroup::{Uid, pod_of};
use crate::sys::netns::Netns;

/// A pod that is sought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Its UID.
    pub uid: Arc<str>,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Why a pod's namespace was not found.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Its UID is not one by which kubelet names control groups.
    #[error("its UID cannot be that of control groups")]
    NoUid,
    /// It has no address yet by which to know its namespace.
    #[error("its addresses are not known yet")]
    NoAddress,
    /// Nothing of it runs, or what runs is not to be seen.
    #[error(
        "no process of it is to be seen: none runs yet, or the daemon does not see the node's \
         processes (hostPID)"
    )]
    NoProcess,
    /// It is on the node's network, or pretends to be.
    #[error("its processes are in the node's network namespace")]
    Node,
    /// None of its processes is where its address is.
    #[error("no process of it is in a network namespace that has its address {0}")]
    Elsewhere(IpAddr),
    /// Another pod has the same namespace: nobody can tell whose traffic it is.
    #[error("its network namespace is also that of pod {0}")]
    Shared(Arc<str>),
    /// It cannot be looked at.
    #[error(
        "cannot look at {0}: the daemon needs CAP_SYS_PTRACE and an unconfined AppArmor profile"
    )]
    Denied(PathBuf, #[source] io::Error),
    /// No process can be looked at.
    #[error("cannot list processes in {0}")]
    Proc(PathBuf, #[source] io::Error),
}

/// Finds the namespace of each of `pods` by the processes that `proc` shows, which is `/proc`.
pub fn find(proc: &Path, pods: &[Sought]) -> HashMap<Arc<str>, Result<Netns, Missing>> {
    let by_uid = pods.iter().enumerate();
    let by_uid: HashMap<_, _> = by_uid
        .filter_map(|(at, pod)| Some((Uid::parse(&pod.uid)?, at)))
        .collect();
    let mut seen: Vec<_> = pods.iter().map(|_| Seen::default()).collect();
    if let Err(error) = look(proc, &by_uid, &mut seen) {
        let missing = |pod: &Sought| {
            let cause = io::Error::new(error.kind(), error.to_string());
            (pod.uid.clone(), Err(Missing::Proc(proc.to_owned(), cause)))
        };
        return pods.iter().map(missing).collect();
    }
    let node = nodes(proc);
    let found = pods.iter().zip(seen).map(|(pod, seen)| {
        let known = Uid::parse(&pod.uid).ok_or(Missing::NoUid);
        let found = known.and_then(|_| seen.choose(&pod.addresses, &node));
        (pod.uid.clone(), found)
    });
    apart(found.collect())
}

/// What was seen of one pod.
#[derive(Default)]
struct Seen {
    candidates: Vec<Candidate>,
    denied: Option<(PathBuf, io::Error)>,
}

/// A namespace in which a process of the pod stands.
struct Candidate {
    /// When the oldest process in it began, in ticks since boot.
    began: u64,
    /// Device and inode: what tells it from the others of this look.
    identity: (u64, u64),
    file: File,
}

impl Seen {
    fn add(&mut self, process: &Path) {
        match Candidate::of(process) {
            Ok(Some(new)) => {
                let mut same = self.candidates.iter_mut();
                match same.find(|old| old.identity == new.identity) {
                    Some(old) => old.began = old.began.min(new.began),
                    None => self.candidates.push(new),
                }
            }
            // It has ended meanwhile.
            Ok(None) => {}
            Err(error) => self.denied = Some((process.to_owned(), error)),
        }
    }

    fn choose(mut self, pod: &[IpAddr], node: &[Netns]) -> Result<Netns, Missing> {
        let &first = pod.first().ok_or(Missing::NoAddress)?;
        self.candidates.sort_by_key(|candidate| candidate.began);
        let mut missing = match self.denied {
            Some((process, cause)) => Missing::Denied(process, cause),
            None => Missing::NoProcess,
        };
        for candidate in self.candidates {
            let Ok(netns) = Netns::from_fd(candidate.file.into()) else {
                continue;
            };
            if node.contains(&netns) {
                missing = match missing {
                    Missing::NoProcess => Missing::Node,
                    missing => missing,
                };
                continue;
            }
            let own = addresses(&netns).unwrap_or_default();
            match pod.iter().find(|ip| !own.contains(&ip.to_canonical())) {
                None => return Ok(netns),
                Some(_) => missing = Missing::Elsewhere(first),
            }
        }
        Err(missing)
    }
}

impl Candidate {
    fn of(process: &Path) -> io::Result<Option<Self>> {
        let Some(began) = began(process) else {
            return Ok(None);
        };
        let file = match File::open(process.join("ns/net")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Err(_) => return Ok(None),
        };
        let metadata = file.metadata()?;
        // Another process may have got the number meanwhile.
        Ok((self::began(process) == Some(began)).then_some(Self {
            began,
            identity: (metadata.dev(), metadata.ino()),
            file,
        }))
    }
}

fn look(proc: &Path, wanted: &HashMap<Uid, usize>, seen: &mut [Seen]) -> io::Result<()> {
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = entry.path();
        let Ok(cgroup) = fs::read_to_string(process.join("cgroup")) else {
            continue;
        };
        if let Some(&at) = pod_of(&cgroup).and_then(|uid| wanted.get(&uid)) {
            seen[at].add(&process);
        }
    }
    Ok(())
}

/// When a process began, in ticks since boot: field 22 of `stat`, the 20th behind the name, which
/// may hold anything.
pub(in crate::capture) fn began(process: &Path) -> Option<u64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// The namespaces that are no pod's: the daemon's and the node's.
pub(in crate::capture) fn nodes(proc: &Path) -> Vec<Netns> {
    let here = Netns::current().ok();
    here.into_iter()
        .chain(Netns::open(&proc.join("1/ns/net")))
        .collect()
}

/// Refuses a namespace to all pods that share it.
fn apart(
    mut found: HashMap<Arc<str>, Result<Netns, Missing>>,
) -> HashMap<Arc<str>, Result<Netns, Missing>> {
    let mut owners = HashMap::<u64, Vec<Arc<str>>>::new();
    for (uid, netns) in &found {
        if let Ok(netns) = netns {
            owners.entry(netns.cookie()).or_default().push(uid.clone());
        }
    }
    for shared in owners.into_values().filter(|owners| owners.len() > 1) {
        for (at, uid) in shared.iter().enumerate() {
            let other = shared[(at + 1) % shared.len()].clone();
            found.insert(uid.clone(), Err(Missing::Shared(other)));
        }
    }
    found
}
