//! The next daemon of a node as a test plays it, word by word, so that it can fall silent or die at
//! any of them.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg,
    send, socket,
};
use serde_json::{Value, json};

/// A descriptor that came with a message.
#[derive(Debug)]
pub(crate) struct Received(RawFd);

impl Drop for Received {
    fn drop(&mut self) {
        let _ = nix::unistd::close(self.0);
    }
}

/// A next daemon as the test plays it.
#[derive(Debug)]
pub(crate) struct Played(OwnedFd);

impl Played {
    /// Says hello to the daemon of this run directory, and gives its answer.
    pub(crate) fn greet(run_dir: &Path, versions: &[u32]) -> (Self, Value) {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        );
        let played = Self(fd.expect("a descriptor is free"));
        let path = UnixAddr::new(&run_dir.join("handover.sock")).expect("it is short");
        connect(played.0.as_raw_fd(), &path).expect("the daemon listens");
        played.say(&json!({
            "versions": versions, "wants": "pods", "program": "9.9.9", "process": 4711,
            "node": "node1", "network": 1,
        }));
        let answer = played.hear().0;
        (played, answer)
    }

    /// Says a word.
    pub(crate) fn say(&self, word: &Value) {
        let text = word.to_string();
        send(self.0.as_raw_fd(), text.as_bytes(), MsgFlags::MSG_NOSIGNAL).expect("it is there");
    }

    /// Hears the next one, with what came beside it.
    pub(crate) fn hear(&self) -> (Value, Vec<Received>) {
        let mut bytes = vec![0; 256 * 1024];
        let mut beside = cmsg_space!([i32; 253]);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.0.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut beside), flags).expect("a message");
        let mut descriptors = Vec::new();
        for one in message.cmsgs().expect("there was room") {
            if let ControlMessageOwned::ScmRights(fds) = one {
                descriptors.extend(fds.into_iter().map(Received));
            }
        }
        let length = message.bytes;
        let word = serde_json::from_slice(&bytes[..length]).unwrap_or(Value::Null);
        (word, descriptors)
    }

    /// Everything up to `complete`.
    pub(crate) fn inventory(&self) -> (usize, Vec<Received>) {
        self.say(&json!({ "say": "inventory" }));
        let (mut pods, mut all) = (0, Vec::new());
        loop {
            let (word, beside) = self.hear();
            all.extend(beside);
            match word["say"].as_str() {
                Some("pod") => pods += 1,
                Some("complete") => return (pods, all),
                _ => {}
            }
        }
    }
}

impl AsRawFd for Played {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
