//! Asks the daemon of this node: one message, one answer, by a deadline.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::api::plugin::{Answer, LARGEST, Request, SOCKET};
use crate::sys::seqpacket::Packets;

/// Why there is no answer to act by.
#[derive(Debug)]
pub(crate) enum Unreachable {
    /// Nobody listens.
    Away(PathBuf, io::Error),
    /// Nobody answered in time.
    Late(Duration),
    /// The conversation broke, or the answer makes no sense.
    Broken(String),
    /// It answered that it cannot tell.
    Unsure(String),
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(path, cause) => {
                write!(f, "it cannot be reached at {}: {cause}", path.display())
            }
            Self::Late(patience) => write!(f, "it has not answered within {patience:?}"),
            Self::Broken(what) => write!(f, "it cannot be understood: {what}"),
            Self::Unsure(why) => write!(f, "it cannot tell: {why}"),
        }
    }
}

/// Asks the daemon whose run directory this is; `netns` goes with the message.
pub(crate) fn ask(
    run_dir: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    until: Instant,
) -> Result<Answer, Unreachable> {
    let path = run_dir.join(SOCKET);
    let begin = Instant::now();
    let patience = left(begin, until);
    let message = serde_json::to_vec(request).map_err(|e| Unreachable::Broken(e.to_string()))?;
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Unreachable::Late(patience),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => {
            Unreachable::Away(path.clone(), error)
        }
        _ => Unreachable::Broken(error.to_string()),
    };
    let daemon = Packets::connect(&path, patience).map_err(failed)?;
    daemon.send(&message, netns).map_err(failed)?;
    let rest = left(Instant::now(), until);
    daemon.set_patience(rest).map_err(failed)?;
    let (answer, _) = daemon.receive(LARGEST).map_err(failed)?;
    if answer.is_empty() {
        return Err(Unreachable::Broken("it hung up".to_owned()));
    }
    serde_json::from_slice(&answer).map_err(|error| Unreachable::Broken(error.to_string()))
}

/// The kernel takes no time at all for all time.
fn left(now: Instant, until: Instant) -> Duration {
    until
        .saturating_duration_since(now)
        .max(Duration::from_millis(1))
}
