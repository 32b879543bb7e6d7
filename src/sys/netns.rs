//! Network namespaces: opened, told apart, and entered for a moment.
//!
//! A socket belongs to the namespace in which its creator stood at `socket(2)`, for ever. So the
//! daemon enters a pod's namespace only to create sockets and leaves at once. Namespaces are told
//! apart by their cookie (`SO_NETNS_COOKIE`, Linux 5.14), never by inode: inode numbers are used
//! again at once when a namespace goes.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};

use crate::sys::socket::Known;

thread_local! {
    /// The namespace this thread belongs to, opened once.
    static HOME: OnceCell<OwnedFd> = const { OnceCell::new() };
}

/// An open network namespace. It exists as long as one clone of this does.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    cookie: u64,
    congestion: OnceLock<Known>,
}

impl Netns {
    /// Opens the namespace that `path` names (`/var/run/netns/…`, `/proc/PID/ns/net`).
    ///
    /// # Errors
    ///
    /// The path cannot be opened, or is not a network namespace (`EINVAL`).
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// Takes over a descriptor of a namespace, as handed over by another process.
    ///
    /// # Errors
    ///
    /// The descriptor is not a network namespace (`EINVAL`).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let cookie = within(fd.as_fd(), current_cookie)??;
        Ok(Self(Arc::new(Inner {
            fd,
            cookie,
            congestion: OnceLock::new(),
        })))
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a namespace that nobody else knows: with nothing in it but `lo`, which is down. It
    /// goes when the last clone of this goes.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub fn scratch() -> io::Result<Self> {
        // A thread of its own, because the thread that unshares cannot come back by itself.
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Self::current()
            });
            made.join()
                .unwrap_or_else(|_| Err(io::Error::other("thread panicked")))
        })
    }

    /// The kernel's name for this namespace: never used twice while the system runs.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.0.cookie
    }

    /// The congestion control of the namespace's sockets, if it was asked for before.
    pub(crate) fn congestion(&self) -> Option<&Known> {
        self.0.congestion.get()
    }

    /// The same, found by `find` if it was not.
    pub(crate) fn congestion_or(&self, find: impl FnOnce() -> Known) -> &Known {
        self.0.congestion.get_or_init(find)
    }

    /// Runs `work` inside the namespace, on this thread, and comes back.
    ///
    /// `work` must not wait, spawn or panic: sockets it creates belong to the namespace, and so
    /// would threads. When the way back is barred the process aborts, because everything this
    /// thread did from then on would happen in a pod.
    ///
    /// # Errors
    ///
    /// The namespace could not be entered (no `CAP_SYS_ADMIN`); `work` did not run.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        within(self.0.fd.as_fd(), work)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.cookie() == other.cookie()
    }
}

impl Eq for Netns {}

/// Leaves the namespace when dropped, also when the work panics.
struct WayBack(libc::c_int);

impl Drop for WayBack {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open in HOME for as long as this thread lives; setns(2) has
        // no memory effects.
        if unsafe { libc::setns(self.0, libc::CLONE_NEWNET) } != 0 {
            eprintln!(
                "adit: cannot leave a pod's network namespace: {}",
                io::Error::last_os_error()
            );
            std::process::abort();
        }
    }
}

fn within<T>(fd: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    HOME.with(|home| {
        if home.get().is_none() {
            let _ = home.set(File::open("/proc/thread-self/ns/net")?.into());
        }
        let back = home.get().expect("set above").as_raw_fd();
        setns(fd, CloneFlags::CLONE_NEWNET)?;
        let _back = WayBack(back);
        Ok(work())
    })
}

/// The cookie of the namespace this thread stands in.
fn current_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("eight fits");
    // SAFETY: `cookie` and `len` are valid for writes of the sizes given, and outlive the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;
