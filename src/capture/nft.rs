//! Runs the `nft` program inside a pod's namespace.
//!
//! Text goes in and comes out; what it says is made in [`rules`](crate::capture::rules). The
//! program, not netlink spoken from here, because it turns one text into one transaction and its
//! messages name the line that the kernel did not like.

use std::io;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::capture::Error;
use crate::capture::rules::TABLE;
use crate::sys::netns::Netns;

/// Where `nft` is looked for: along `PATH`, and where distributions put it.
const PLACES: [&str; 4] = ["nft", "/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"];

/// What went wrong with the `nft` program.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not installed.
    #[error("there is no nft program (install the nftables package)")]
    Missing,
    /// It could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It ran, and refused.
    #[error("nft says: {0}")]
    Refused(String),
}

/// Commits a transaction: all of it, or nothing.
pub(crate) fn commit(netns: &Netns, transaction: &str) -> Result<(), Error> {
    run(netns, &["-f", "-"], transaction)
        .map(drop)
        .map_err(|cause| Error::Rules {
            doing: "write",
            cause,
        })
}

/// Our table as the kernel has it, without counters and without the elements of sets; `None` if
/// there is none.
pub(crate) fn table(netns: &Netns) -> Result<Option<String>, Error> {
    listing(netns, &["-s", "-t", "list", "table", "inet", TABLE])
}

/// One set of our table with its elements; `None` if there is none.
pub(crate) fn set(netns: &Netns, name: &str) -> Result<Option<String>, Error> {
    listing(netns, &["-n", "list", "set", "inet", TABLE, name])
}

fn listing(netns: &Netns, arguments: &[&str]) -> Result<Option<String>, Error> {
    match run(netns, arguments, "") {
        Ok(text) => Ok(Some(text)),
        Err(Failure::Refused(said)) if said.contains("No such file or directory") => Ok(None),
        Err(cause) => Err(Error::Rules {
            doing: "read",
            cause,
        }),
    }
}

fn run(netns: &Netns, arguments: &[&str], input: &str) -> Result<String, Failure> {
    // A thread of its own: it waits while it stands inside the pod.
    let output = std::thread::scope(|scope| {
        let inside = scope.spawn(|| netns.enter(|| spawn(arguments, input)));
        inside
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("thread panicked")))
    });
    let output = output.map_err(Failure::Run)??;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Failure::Refused(brief(&output)))
    }
}

fn spawn(arguments: &[&str], input: &str) -> Result<Output, Failure> {
    for place in PLACES {
        let spawned = Command::new(place)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Failure::Run(error)),
        };
        let mut stdin = child.stdin.take().expect("it was piped");
        // If it ends without having read everything, what it says is more than a broken pipe.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        return child.wait_with_output().map_err(Failure::Run);
    }
    Err(Failure::Missing)
}

/// What `nft` complains of, on one line, without the rules it quotes.
fn brief(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let complaint: Vec<_> = said
        .lines()
        .filter(|line| line.contains("rror"))
        .take(3)
        .map(str::trim)
        .collect();
    if complaint.is_empty() {
        format!("{} ({})", said.trim(), output.status)
    } else {
        complaint.join("; ")
    }
}
