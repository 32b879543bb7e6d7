//! Looks at the machine that this runs on, by what a daemon itself would use.

use std::fs;
use std::path::Path;

use crate::api::ask::Target;
use crate::capture::{Kubelet, probe};
use crate::check::facts::ThisNode;
use crate::sys::netns::Netns;
use crate::sys::sockdiag::{self, Process};

/// What is found. Blocks, for up to some seconds. `daemon` is asked unless there is none yet.
pub(super) fn look(daemon: &Target) -> ThisNode {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let listed = Netns::scratch().and_then(|netns| sockdiag::connections(&netns));
    ThisNode {
        kernel: kernel.trim().to_owned(),
        capture: probe().map_err(chain),
        sock_diag: listed.map(drop).map_err(chain),
        capabilities: capabilities(),
        kubelet: Kubelet::new(Path::new("/proc"))
            .refresh()
            .map(|by| match by {
                Process::Cgroup(_) => "its control group",
                Process::User(_) => "its user",
            }),
        daemon: ask(daemon),
    }
}

fn ask(daemon: &Target) -> Result<(crate::api::Status, Vec<crate::api::Certificate>), String> {
    let status = daemon.ask("/status").map_err(chain)?;
    let certificates = daemon.ask("/certificates").map_err(chain)?;
    let status = serde_json::from_value(status).map_err(chain)?;
    Ok((status, serde_json::from_value(certificates).map_err(chain)?))
}

/// The effective capabilities (proc_pid_status(5)).
fn capabilities() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(chain)?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.ok_or_else(|| "/proc/self/status does not name them".to_owned())
}

/// An error with its causes, on one line.
fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
