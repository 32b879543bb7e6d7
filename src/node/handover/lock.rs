//! The lock of a node's run directory: whoever serves the node's pods holds it, and nobody else.
//!
//! The conversation of two daemons says who is the next one. This is for those who do not talk: one
//! that takes its pods back because it finds nobody at the socket, and one that starts at that very
//! moment and finds nobody either.
//!
//! It is a lock on an open file (`flock(2)`), which ends with the last descriptor of that, however
//! its process ends. In a hand-over the open file itself passes, so that there is no moment in which
//! a third could have it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait before trying again.
const AGAIN: Duration = Duration::from_millis(50);

/// Held by the daemon whose the pods are.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock of `run_dir`; `None` while another process has it.
    ///
    /// # Errors
    ///
    /// As `open(2)` and `flock(2)`.
    pub(crate) fn take(run_dir: &Path) -> io::Result<Option<Self>> {
        let path = path(run_dir);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).mode(0o600);
        loop {
            let file = open.open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Who left the node for good has taken the file away, perhaps since it was opened.
            let here = fs::metadata(&path).map(|now| now.ino());
            if here.is_ok_and(|here| file.metadata().is_ok_and(|ours| ours.ino() == here)) {
                return Ok(Some(Self(file)));
            }
        }
    }

    /// The same, and waits for it, for at most `patience`: a process that dies answers no more
    /// before it has let go of everything.
    ///
    /// # Errors
    ///
    /// As [`Lock::take`].
    pub(crate) async fn wait(run_dir: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let until = Instant::now() + patience;
        loop {
            match Self::take(run_dir)? {
                None if Instant::now() < until => tokio::time::sleep(AGAIN).await,
                done => return Ok(done),
            }
        }
    }

    /// What another daemon had, and passed on.
    pub(super) fn passed(fd: OwnedFd) -> Self {
        Self(fd.into())
    }

    /// Another descriptor of the same lock, for the next daemon: it is let go when both are closed.
    ///
    /// # Errors
    ///
    /// As `fcntl(2)`: no descriptor is free.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Takes the file away as well, for a node that is left for good.
    pub(crate) fn remove(self, run_dir: &Path) {
        let _ = fs::remove_file(path(run_dir));
    }
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_until_its_last_descriptor_goes() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap().unwrap();
        assert!(Lock::take(dir.path()).unwrap().is_none());
        let next = Lock::passed(first.share().unwrap());
        drop(first);
        assert!(Lock::take(dir.path()).unwrap().is_none(), "it has passed");
        drop(next);
        assert!(Lock::take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn it_is_the_lock_of_the_file_that_stands_there() {
        let dir = tempfile::tempdir().unwrap();
        let gone = Lock::take(dir.path()).unwrap().unwrap();
        gone.remove(dir.path());
        assert!(!path(dir.path()).exists());
        let next = Lock::take(dir.path()).unwrap();
        assert!(next.is_some() && path(dir.path()).exists());
    }
}
