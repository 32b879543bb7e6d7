//! Limits of the process.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit on open descriptors to the hard one: a node's connections take several
/// each, and the soft limit of most systems is meant for programs with `select(2)`.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Not being able to is no fault: the limit in force then holds.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Whether a control group of this process has a quota of processor time (`cpu.max`,
/// Documentation/admin-guide/cgroup-v2.rst; `cpu.cfs_quota_us` under version 1).
#[must_use]
pub fn has_cpu_quota() -> bool {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().any(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            return false;
        };
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "cpu.max"),
            _ if controllers.split(',').any(|one| one == "cpu") => {
                ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us")
            }
            _ => return false,
        };
        // A quota of a group above holds as well. In a container the path may be the host's, and
        // then only the top is to be seen, which is the container's own.
        let own = PathBuf::from(mount).join(path.trim_start_matches('/'));
        own.ancestors()
            .take_while(|group| group.starts_with(mount))
            .any(|group| limits(group, file))
    })
}

fn limits(group: &Path, file: &str) -> bool {
    fs::read_to_string(group.join(file)).is_ok_and(|text| is_quota(&text))
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
