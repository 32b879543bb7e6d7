//! Messages between processes of one machine, with descriptors beside the bytes if need be: unix
//! sockets of the kind `SOCK_SEQPACKET` (unix(7)), which keep the bounds of messages.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket,
};
use socket2::SockRef;
use tokio::io::unix::AsyncFd;

/// How many may wait to be accepted.
const BACKLOG: i32 = 256;
/// Most descriptors beside one message: what the kernel lets pass (`SCM_MAX_FD` of `net/scm.h`).
pub const MOST_DESCRIPTORS: usize = 253;

/// Takes conversations at a path. The path goes when this is dropped, unless another listener has
/// taken it meanwhile.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Listens at `path`, for root alone (mode 0600), in the place of whatever stood there: there
    /// is no moment in which nobody does. Accepting does not wait.
    ///
    /// # Errors
    ///
    /// As `socket(2)`, `bind(2)` and `rename(2)`; `EINVAL` for a path of more than 100 bytes.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let fd = new(SockFlag::SOCK_NONBLOCK)?;
        let _ = fs::remove_file(&aside);
        bind(fd.as_raw_fd(), &UnixAddr::new(&aside)?)?;
        let placed = fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))
            .and_then(|()| Ok(listen(&fd, Backlog::new(BACKLOG)?)?))
            .and_then(|()| inode(&aside))
            .and_then(|inode| fs::rename(&aside, path).map(|()| inode))
            .inspect_err(|_| _ = fs::remove_file(&aside))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
            inode: placed,
        })
    }

    /// The same, but the path stays when this is dropped, and leads nowhere (`ECONNREFUSED`). To
    /// look whose it is and to remove it are two steps: for a listener that goes at the very moment
    /// at which another takes its place, they are one too many.
    #[must_use]
    pub fn leaving_its_path(mut self) -> Self {
        // No file has this number.
        self.inode = 0;
        self
    }

    /// The same on this runtime.
    ///
    /// # Errors
    ///
    /// As `epoll_ctl(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn waiting(self) -> io::Result<Waiting<Self>> {
        Waiting::new(self)
    }

    /// Takes the next conversation; `WouldBlock` when none waits.
    ///
    /// # Errors
    ///
    /// As `accept(2)`.
    pub fn accept(&self) -> io::Result<Packets> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = accept4(self.fd.as_raw_fd(), flags)?;
        // SAFETY: the descriptor was made by the call above, and nobody else has it.
        Ok(Packets(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// A listener or a conversation on a runtime: what would wait is waited for there.
#[derive(Debug)]
pub struct Waiting<S: AsRawFd>(AsyncFd<S>);

impl<S: AsRawFd> Waiting<S> {
    fn new(socket: S) -> io::Result<Self> {
        // SAFETY: a `Listener` or `Packets` owns its descriptor, says the same one for as long as
        // it lives, and is not let out of here.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Does `step` as soon as it need not wait.
    async fn next<T>(&self, mut step: impl FnMut(&S) -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(done) = ready.try_io(|socket| step(socket.get_ref())) {
                return done;
            }
        }
    }
}

impl Waiting<Listener> {
    /// Takes the next conversation.
    ///
    /// # Errors
    ///
    /// As `accept(2)`.
    pub async fn accept(&self) -> io::Result<Waiting<Packets>> {
        Waiting::new(self.next(Listener::accept).await?)
    }
}

impl Waiting<Packets> {
    /// Begins a conversation with who listens at `path`, without waiting for it.
    ///
    /// # Errors
    ///
    /// As [`Packets::connect`]; `WouldBlock` when too many wait there already.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = new(SockFlag::SOCK_NONBLOCK)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(Packets(fd))
    }

    /// As [`Packets::receive`].
    ///
    /// # Errors
    ///
    /// As [`Packets::receive`].
    pub async fn receive(&self, room: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        self.next(|packets| packets.receive(room)).await
    }

    /// As [`Packets::receive_all`].
    ///
    /// # Errors
    ///
    /// As [`Packets::receive_all`].
    pub async fn receive_all(&self, room: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.next(|packets| packets.receive_all(room)).await
    }

    /// As [`Packets::send_all`]; waits while the other end has too much to read.
    ///
    /// # Errors
    ///
    /// As [`Packets::send_all`].
    pub async fn send_all(&self, message: &[u8], beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(done) = ready.try_io(|socket| socket.get_ref().send_all(message, beside)) {
                return done;
            }
        }
    }

    /// The conversation, to say something or to ask who is there.
    #[must_use]
    pub fn packets(&self) -> &Packets {
        self.0.get_ref()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// One conversation.
#[derive(Debug)]
pub struct Packets(OwnedFd);

impl Packets {
    /// Begins a conversation with who listens at `path`. Nothing in it waits longer than
    /// `patience`, and then fails with `WouldBlock`.
    ///
    /// # Errors
    ///
    /// As `connect(2)`: `ENOENT` and `ECONNREFUSED` when nobody listens there.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        let fd = new(SockFlag::empty())?;
        let socket = SockRef::from(&fd);
        socket.set_write_timeout(Some(patience))?;
        socket.set_read_timeout(Some(patience))?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self(fd))
    }

    /// Changes how long receiving may wait.
    ///
    /// # Errors
    ///
    /// As `setsockopt(2)`; `EINVAL` for no time at all.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        SockRef::from(&self.0).set_read_timeout(Some(patience))
    }

    /// Sends one message whole, with a descriptor beside it.
    ///
    /// # Errors
    ///
    /// As [`Packets::send_all`].
    pub fn send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.send_all(message, descriptor.as_slice())
    }

    /// Sends one message whole, with at most [`MOST_DESCRIPTORS`] beside it.
    ///
    /// # Errors
    ///
    /// As `sendmsg(2)`: `EMSGSIZE` when it is too large, `EPIPE` when nobody is there any more.
    pub fn send_all(&self, message: &[u8], beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let descriptors: Vec<_> = beside.iter().map(AsRawFd::as_raw_fd).collect();
        let beside = [ControlMessage::ScmRights(&descriptors)];
        let beside = if descriptors.is_empty() {
            &[]
        } else {
            &beside[..]
        };
        let bytes = [IoSlice::new(message)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), &bytes, beside, flags, None)?;
        Ok(())
    }

    /// Receives one message of at most `room` bytes, with the descriptor beside it; empty when the
    /// conversation is over.
    ///
    /// # Errors
    ///
    /// As [`Packets::receive_all`]; `InvalidData` when several descriptors came, which are closed.
    pub fn receive(&self, room: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let (bytes, mut descriptors) = self.receive_all(room)?;
        if descriptors.len() > 1 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((bytes, descriptors.pop()))
    }

    /// Receives one message of at most `room` bytes, with all descriptors beside it; empty when the
    /// conversation is over.
    ///
    /// # Errors
    ///
    /// As `recvmsg(2)`; `InvalidData` when the message is larger, or not all of its descriptors
    /// could be had; what came is closed.
    pub fn receive_all(&self, room: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; room];
        let mut beside = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.0.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut beside), flags)?;
        let mut descriptors = Vec::new();
        for beside in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = beside {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else has
                // them.
                descriptors.extend(fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
            }
        }
        let cut = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
        let (length, whole) = (message.bytes, !message.flags.intersects(cut));
        if !whole {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes.truncate(length);
        Ok((bytes, descriptors))
    }

    /// Takes nothing more: who sends from now on is told that nobody is there (`EPIPE`). What was
    /// sent before can still be received.
    ///
    /// # Errors
    ///
    /// As `shutdown(2)`.
    pub fn stop_receiving(&self) -> io::Result<()> {
        SockRef::from(&self.0).shutdown(Shutdown::Read)
    }

    /// Whether this process is at the other end as well.
    #[must_use]
    pub fn is_own(&self) -> bool {
        let peer = getsockopt(&self.0, PeerCredentials);
        peer.is_ok_and(|peer| u32::try_from(peer.pid()) == Ok(std::process::id()))
    }

    /// The user id of the process at the other end, when it connected.
    ///
    /// # Errors
    ///
    /// As `getsockopt(2)`.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Ok(getsockopt(&self.0, PeerCredentials)?.uid())
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Packets {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn new(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::symlink_metadata(path)?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn messages_keep_their_bounds_and_bring_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let would_block = listener.accept().unwrap_err();
        assert_eq!(would_block.kind(), io::ErrorKind::WouldBlock);
        let near = Packets::connect(&path, Duration::from_secs(5)).unwrap();
        let far = listener.accept().unwrap();
        let file = dir.path().join("text");
        fs::write(&file, "inside").unwrap();
        let file = fs::File::open(file).unwrap();
        near.send(b"one", Some(file.as_fd())).unwrap();
        near.send(b"two", None).unwrap();
        let (bytes, descriptor) = far.receive(100).unwrap();
        let mut text = String::new();
        fs::File::from(descriptor.unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!((&bytes[..], &*text), (&b"one"[..], "inside"));
        let (bytes, descriptor) = far.receive(100).unwrap();
        assert_eq!((&bytes[..], descriptor.is_none()), (&b"two"[..], true));
        assert_eq!(far.peer_uid().unwrap(), nix::unistd::getuid().as_raw());
        assert!(near.is_own() && far.is_own());
        near.send(b"too long", None).unwrap();
        let cut = far.receive(3).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::InvalidData);
        drop(near);
        assert!(far.receive(100).unwrap().0.is_empty());
    }

    #[test]
    fn many_descriptors_come_beside_one_message_and_after_the_stop_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = Listener::bind(&path).unwrap();
        let near = Packets::connect(&path, Duration::from_secs(5)).unwrap();
        let far = listener.accept().unwrap();
        let file = fs::File::open(dir.path()).unwrap();
        let many = [file.as_fd(); MOST_DESCRIPTORS];
        near.send_all(b"all", &many).unwrap();
        near.send_all(b"two", &many[..2]).unwrap();
        let (bytes, descriptors) = far.receive_all(100).unwrap();
        assert_eq!((&bytes[..], descriptors.len()), (&b"all"[..], 253));
        let several = far.receive(100).unwrap_err();
        assert_eq!(several.kind(), io::ErrorKind::InvalidData);
        near.send(b"before", None).unwrap();
        far.stop_receiving().unwrap();
        let late = near.send(b"after", None).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(far.receive(100).unwrap().0, b"before");
        assert!(far.receive(100).unwrap().0.is_empty());
    }

    #[test]
    fn a_listener_that_was_replaced_leaves_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let first = Listener::bind(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        let _near = Packets::connect(&path, Duration::from_secs(5)).unwrap();
        second.accept().unwrap();
        drop(second);
        assert!(!path.exists());
        drop(Listener::bind(&path).unwrap().leaving_its_path());
        let gone = Packets::connect(&path, Duration::from_secs(5)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
        drop(Listener::bind(&path).unwrap());
        let gone = Packets::connect(&path, Duration::from_secs(5)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
