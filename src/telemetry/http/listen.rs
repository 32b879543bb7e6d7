//! Listeners of the daemon's own servers: TCP, and unix sockets that a dead daemon may have left.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot listen on {addr}")]
    Address {
        /// The address.
        addr: SocketAddr,
        /// `EADDRINUSE`, `EADDRNOTAVAIL`, …
        #[source]
        cause: io::Error,
    },
    /// Another process serves on the socket.
    #[error("another process serves on {path:?}: stop it, or give this daemon its own --run-dir")]
    Served {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has the path.
    #[error("{path:?} exists and is no socket: move it away")]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path:?}")]
    Path {
        /// The socket.
        path: PathBuf,
        /// Why: often a directory that is missing or not ours.
        #[source]
        cause: io::Error,
    },
}

/// Why a server of ours is not there, and the flag that mends it.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {purpose}: free the address, or choose another with {flag}")]
pub struct Unserved {
    purpose: &'static str,
    flag: &'static str,
    #[source]
    cause: Error,
}

impl Error {
    /// Says what would have been served, and which flag chooses the place.
    pub fn of(self, purpose: &'static str, flag: &'static str) -> Unserved {
        Unserved {
            purpose,
            flag,
            cause: self,
        }
    }
}

/// A socket that listens. A unix socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Listener(Inner);

#[derive(Debug)]
pub(crate) enum Inner {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a unix socket.
    Unix(UnixListener, SocketFile),
}

/// The file of a unix socket, removed when dropped unless another daemon has replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Listens on a TCP address. `[::]` takes IPv4 as well, and falls back to `0.0.0.0` on a
    /// machine without IPv6.
    ///
    /// # Errors
    ///
    /// [`Error::Address`].
    pub fn tcp(addr: SocketAddr) -> Result<Self, Error> {
        let listening = listen(addr).or_else(|cause| {
            let no_ipv6 = matches!(
                cause.raw_os_error(),
                Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
            );
            if no_ipv6 && addr.is_ipv6() && addr.ip().is_unspecified() {
                listen((Ipv4Addr::UNSPECIFIED, addr.port()).into())
            } else {
                Err(cause)
            }
        });
        let listener = listening.map_err(|cause| Error::Address { addr, cause })?;
        Ok(Self(Inner::Tcp(listener)))
    }

    /// Listens on a unix socket that its owner alone may use (0600). A socket on which nobody
    /// serves any more is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Served`], [`Error::NoSocket`], [`Error::Path`].
    pub fn unix(path: &Path) -> Result<Self, Error> {
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(Error::NoSocket {
                    path: path.to_owned(),
                });
            }
            if UnixStream::connect(path).is_ok() {
                return Err(Error::Served {
                    path: path.to_owned(),
                });
            }
        }
        Self::unix_instead(path)
    }

    /// The same, in the place of whoever serves there: what he has accepted stays his.
    ///
    /// # Errors
    ///
    /// [`Error::Path`].
    pub fn unix_instead(path: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Path {
            path: path.to_owned(),
            cause,
        };
        // Made aside and moved into place: nobody can connect before the mode is right.
        let aside = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).map_err(failed)?;
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = inode(&aside).map_err(failed)?;
        fs::rename(&aside, path).map_err(failed)?;
        let file = SocketFile {
            path: path.to_owned(),
            inode,
        };
        Ok(Self(Inner::Unix(listener, file)))
    }

    /// The address of a TCP listener, with the port that the kernel chose for port 0.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Inner::Tcp(listener) => listener.local_addr().ok(),
            Inner::Unix(..) => None,
        }
    }

    /// The socket of a TCP listener, for a server of another kind.
    #[must_use]
    pub fn into_tcp(self) -> Option<TcpListener> {
        match self.0 {
            Inner::Tcp(listener) => Some(listener),
            Inner::Unix(..) => None,
        }
    }

    pub(crate) fn into_inner(self) -> Inner {
        self.0
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::symlink_metadata(path)?.ino())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");

        let first = Listener::unix(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Listener::unix(&path);
        assert!(matches!(second, Err(Error::Served { .. })), "{second:?}");
        drop(first);
        assert!(!path.exists(), "an orderly end leaves nothing");

        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a killed daemon leaves its socket");
        let third = Listener::unix(&path).unwrap();
        let replaced = Inner::Unix(UnixListener::bind(dir.path().join("x")).unwrap(), {
            SocketFile {
                path: path.clone(),
                inode: 0,
            }
        });
        drop(replaced);
        assert!(path.exists(), "the end of another's socket is not ours");
        drop(third);
    }

    #[test]
    fn what_is_no_socket_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "mine").unwrap();
        let listener = Listener::unix(&path);
        assert!(matches!(listener, Err(Error::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let listener = Listener::unix(&dir.path().join("absent/admin.sock"));
        assert!(matches!(listener, Err(Error::Path { .. })));
    }

    #[test]
    fn a_taken_port_is_named() {
        let first = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = first.tcp_addr().unwrap();
        let second = Listener::tcp(addr).unwrap_err();
        assert_eq!(second.to_string(), format!("cannot listen on {addr}"));
    }
}
