//! Limits of the process.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::sysinfo::sysinfo;

/// Raises the soft limit on open descriptors to the hard one: a node's connections take several
/// each, and the soft limit of most systems is meant for programs with `select(2)`.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Not being able to is no fault: the limit in force then holds.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How many descriptors this process may have open now.
#[must_use]
pub fn descriptor_limit() -> u64 {
    // Where the system does not say, what every system grants (POSIX `OPEN_MAX` of Linux).
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// How much memory there is for this process, in bytes: the least of the machine's and its control
/// groups' limits (`memory.max`; `memory.limit_in_bytes` under version 1); `None` if the system does
/// not say.
#[must_use]
pub fn memory() -> Option<u64> {
    let limits = of_groups("memory", "memory.max", "memory.limit_in_bytes");
    let limits = limits.iter().filter_map(|text| text.trim().parse().ok());
    limits.chain(sysinfo().map(|all| all.ram_total())).min()
}

/// Whether a control group of this process has a quota of processor time (`cpu.max`,
/// Documentation/admin-guide/cgroup-v2.rst; `cpu.cfs_quota_us` under version 1).
#[must_use]
pub fn has_cpu_quota() -> bool {
    let quotas = of_groups("cpu", "cpu.max", "cpu.cfs_quota_us");
    quotas.iter().any(|text| is_quota(text))
}

/// What stands in a controller's file in the control groups of this process, its own first; the file
/// is named as version 2 and as version 1 name it.
fn of_groups(controller: &str, second: &str, first: &str) -> Vec<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_line = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (mount, file) = match controllers {
            "" => (PathBuf::from("/sys/fs/cgroup"), second),
            _ if controllers.split(',').any(|one| one == controller) => {
                (Path::new("/sys/fs/cgroup").join(controller), first)
            }
            _ => return None,
        };
        // A limit of a group above holds as well. In a container the path may be the host's, and
        // then only the top is to be seen, which is the container's own.
        let own = mount.join(path.trim_start_matches('/'));
        let all = own
            .ancestors()
            .take_while(|group| group.starts_with(&mount));
        let texts = all.filter_map(|group| fs::read_to_string(group.join(file)).ok());
        Some(texts.collect::<Vec<_>>())
    };
    groups.lines().filter_map(of_line).flatten().collect()
}

/// Whether `text` of `cpu.max` or `cpu.cfs_quota_us` names a quota.
fn is_quota(text: &str) -> bool {
    text.split_whitespace()
        .next()
        .is_some_and(|quota| quota.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_quota() {
        assert!(is_quota("200000 100000\n"));
        assert!(is_quota("50000\n"));
        assert!(!is_quota("max 100000\n"));
        assert!(!is_quota("-1\n"));
        assert!(!is_quota(""));
    }
}
