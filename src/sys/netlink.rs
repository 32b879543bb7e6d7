//! Netlink, as far as it is needed: ask, and read the answers to the end.
//!
//! A netlink socket, like any other, belongs to the namespace in which it was made; so one is
//! opened per visit to a pod and closed after it. [`route`](crate::sys::route),
//! [`sockdiag`](crate::sys::sockdiag) and [`generation`] speak over it. Everything blocks, for
//! microseconds: the kernel answers before `send` returns.

use std::io;
use std::io::ErrorKind;

use netlink_sys::Socket;

use crate::sys::netns::Netns;

/// This message asks for something.
const REQUEST: u16 = 0x1;
/// Say when it is done, or why not.
const ACK: u16 = 0x4;
/// Answer with everything there is.
const DUMP: u16 = 0x300;
/// Make it if it is not there.
const CREATE: u16 = 0x400;
/// Fail with `EEXIST` if it is there.
const EXCLUSIVE: u16 = 0x200;

const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// One message of an answer.
#[derive(Debug)]
pub struct Message {
    /// Its type, a number of the protocol that was asked.
    pub kind: u16,
    /// What follows the netlink header.
    pub payload: Vec<u8>,
}

/// A conversation with the kernel inside one namespace.
#[derive(Debug)]
pub struct Netlink(Socket);

impl Netlink {
    /// Opens a conversation over `protocol` (`NETLINK_…`) inside `netns`.
    ///
    /// # Errors
    ///
    /// As `socket(2)` and as [`Netns::enter`]; `EPROTONOSUPPORT` when the kernel lacks it.
    pub fn open(netns: &Netns, protocol: isize) -> io::Result<Self> {
        let socket = netns.enter(|| Socket::new(protocol))??;
        Ok(Self(socket))
    }

    /// Asks for one thing and returns the first message of the answer.
    ///
    /// # Errors
    ///
    /// What the kernel answered; `UnexpectedEof` when it answered nothing.
    pub fn ask(&self, kind: u16, payload: &[u8]) -> io::Result<Message> {
        self.send(kind, REQUEST, payload)?;
        let mut first = None;
        self.receive(|message| {
            first.get_or_insert(message);
            true
        })?;
        first.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    /// Asks for everything there is of a kind.
    ///
    /// # Errors
    ///
    /// What the kernel answered.
    pub fn dump(&self, kind: u16, payload: &[u8]) -> io::Result<Vec<Message>> {
        self.send(kind, REQUEST | DUMP, payload)?;
        let mut all = Vec::new();
        self.receive(|message| {
            all.push(message);
            false
        })?;
        Ok(all)
    }

    /// Tells the kernel to change something and waits until it has.
    ///
    /// # Errors
    ///
    /// What the kernel answered.
    pub fn tell(&self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK, payload)?;
        self.receive(|_| false)
    }

    /// Tells the kernel to make something that must not exist yet.
    ///
    /// # Errors
    ///
    /// What the kernel answered; `EEXIST` when it exists.
    pub fn create(&self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK | CREATE | EXCLUSIVE, payload)?;
        self.receive(|_| false)
    }

    fn send(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Sequence and port numbers stay zero: this socket has one question open at a time.
        message.extend([0; 8]);
        message.extend(payload);
        self.0.send(&message, 0).map(drop)
    }

    /// Reads messages until the kernel says that there are no more, or `last` says so.
    fn receive(&self, mut last: impl FnMut(Message) -> bool) -> io::Result<()> {
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some((kind, payload, after)) = split(rest) {
                match kind {
                    DONE => return status(payload),
                    ERROR => return status(payload),
                    NOOP => {}
                    _ => {
                        let payload = payload.to_vec();
                        if last(Message { kind, payload }) {
                            return Ok(());
                        }
                    }
                }
                rest = after;
            }
        }
    }
}

/// The type and payload of the first message in `bytes`, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let kind = u16_at(bytes, 4)?;
    let payload = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, after))
}

/// `struct nlmsgerr`, and the number at the end of a dump: zero or a negated `errno`.
fn status(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map(u32::cast_signed) {
        None | Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
    }
}

/// The attributes in `bytes`, as type and value; ends at the first that is cut short.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number of two bytes at `at`, in the machine's order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// The number of four bytes at `at`, in the machine's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// How often the nf_tables rules of `netns` have been changed, by anyone.
///
/// A change of rules changes this number, and nothing else does: whoever has verified the rules
/// once need not do so again while it stays (`NFT_MSG_GETGEN`).
///
/// # Errors
///
/// `EPROTONOSUPPORT` or `EOPNOTSUPP` on a kernel without nf_tables, `EPERM` without
/// `CAP_NET_ADMIN`.
pub fn generation(netns: &Netns) -> io::Result<u32> {
    const NFT_MSG_GETGEN: u16 = 16;
    const NFTA_GEN_ID: u16 = 1;
    let netlink = Netlink::open(netns, netlink_sys::protocols::NETLINK_NETFILTER)?;
    let answer = netlink.ask(nftables(NFT_MSG_GETGEN), &nfgenmsg(0))?;
    attributes(answer.payload.get(4..).unwrap_or_default())
        .find(|(kind, _)| *kind == NFTA_GEN_ID)
        .and_then(|(_, value)| Some(u32::from_be_bytes(value.try_into().ok()?)))
        .ok_or_else(|| ErrorKind::InvalidData.into())
}

/// Whether `netns` has an nf_tables table of family `inet` by this name.
///
/// # Errors
///
/// As [`generation`].
pub fn has_table(netns: &Netns, name: &str) -> io::Result<bool> {
    const NFT_MSG_GETTABLE: u16 = 1;
    const NFTA_TABLE_NAME: u16 = 1;
    const NFPROTO_INET: u8 = 1;
    let netlink = Netlink::open(netns, netlink_sys::protocols::NETLINK_NETFILTER)?;
    let mut request = nfgenmsg(NFPROTO_INET).to_vec();
    let length = u16::try_from(4 + name.len() + 1).map_err(io::Error::other)?;
    request.extend(length.to_ne_bytes());
    request.extend(NFTA_TABLE_NAME.to_ne_bytes());
    request.extend(name.as_bytes());
    request.resize(4 + usize::from(length).next_multiple_of(4), 0);
    match netlink.ask(nftables(NFT_MSG_GETTABLE), &request) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The type of a message to the nf_tables subsystem.
const fn nftables(message: u16) -> u16 {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    NFNL_SUBSYS_NFTABLES << 8 | message
}

/// `struct nfgenmsg`: a family, version 0, no resource.
const fn nfgenmsg(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}
