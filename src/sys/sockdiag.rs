//! The TCP sockets of a namespace, as the kernel lists them, and their end by force.
//!
//! `NETLINK_SOCK_DIAG` (sock_diag(7)) sees every socket of a namespace, whoever owns it. It is how
//! capture knows the connections that were there before it, and whether its listeners still are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc;

use crate::sys::netlink::{Netlink, attributes, u32_at};
use crate::sys::netns::Netns;

/// The state of a TCP socket (`include/net/tcp_states.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Both sides may send.
    Established,
    /// The peer has asked, and has not yet confirmed our answer.
    SynReceived,
    /// This side, or both, have closed, and the end is under way.
    Closing,
    /// The peer has closed; this side may still send.
    CloseWait,
    /// Taking connections.
    Listen,
}

impl State {
    fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            3 | 12 => Self::SynReceived,
            // FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING.
            4 | 5 | 9 | 11 => Self::Closing,
            8 => Self::CloseWait,
            10 => Self::Listen,
            _ => return None,
        })
    }
}

/// The states of a connection that carries bytes, or may: all but `SYN_SENT`, `TIME_WAIT`, `CLOSE`.
const CONNECTED: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;
/// `LISTEN` alone.
const LISTENING: u32 = 1 << 10;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Where `struct inet_diag_msg` has its `struct inet_diag_sockid`, and how long that is.
const ID: std::ops::Range<usize> = 4..52;
/// The length of `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// A TCP socket of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Its own address, canonical.
    pub local: SocketAddr,
    /// Its peer's address, canonical; unspecified for a listener.
    pub remote: SocketAddr,
    /// Where it stands in its life.
    pub state: State,
    /// Its packet mark (`SO_MARK`).
    pub mark: u32,
    /// Its inode, as `fstat(2)` says it to the owner of a descriptor; 0 while nobody has accepted.
    pub inode: u32,
    name: Name,
}

/// The kernel's own name for a socket, with its cookie: never that of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    family: u8,
    id: [u8; 48],
}

/// Lists the connections of `netns`, of both families.
///
/// # Errors
///
/// As `socket(2)` and `recv(2)`; `ENOENT` on a kernel without `INET_DIAG`.
pub fn connections(netns: &Netns) -> io::Result<Vec<Tcp>> {
    list(netns, CONNECTED)
}

/// Lists the listeners of `netns`, of both families.
///
/// # Errors
///
/// As [`connections`].
pub fn listeners(netns: &Netns) -> io::Result<Vec<Tcp>> {
    list(netns, LISTENING)
}

/// Ends `sockets` of `netns` at once: their owners see `ECONNABORTED`, their peers a reset.
/// Returns how many were still there to be ended.
///
/// # Errors
///
/// `EOPNOTSUPP` on a kernel without `INET_DIAG_DESTROY`, `EPERM` without `CAP_NET_ADMIN`.
pub fn destroy<'a>(netns: &Netns, sockets: impl IntoIterator<Item = &'a Tcp>) -> io::Result<usize> {
    let netlink = Netlink::open(netns, netlink_sys::protocols::NETLINK_SOCK_DIAG)?;
    let mut ended = 0;
    for socket in sockets {
        let request = request(socket.name.family, u32::MAX, &socket.name.id);
        match netlink.tell(SOCK_DESTROY, &request) {
            Ok(()) => ended += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// Who holds the socket of a connection. Only the kernel's answer makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    local: SocketAddr,
    remote: SocketAddr,
    user: Option<u32>,
    cgroup: Option<u64>,
}

/// By what a process is known as the owner of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    /// The id of its control group of version 2: the inode of the group's directory.
    Cgroup(u64),
    /// Its user id, where it has no group of its own.
    User(u32),
}

impl Owner {
    /// Whether the socket is that of a connection between these two, from here to there.
    #[must_use]
    pub fn connects(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        (self.local, self.remote) == (local, remote)
    }

    /// Whether the socket was made by such a process.
    #[must_use]
    pub fn is(&self, process: Process) -> bool {
        match process {
            Process::Cgroup(id) => self.cgroup == Some(id),
            Process::User(id) => self.user == Some(id),
        }
    }
}

/// Who holds the connection from `local` to `remote` in `netns`; `None` when no socket there is
/// that of just this connection: it only passes through, or is over.
///
/// # Errors
///
/// As [`connections`].
pub fn owner(netns: &Netns, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Owner>> {
    let Some((family, id)) = name(local, remote) else {
        return Ok(None);
    };
    let netlink = Netlink::open(netns, netlink_sys::protocols::NETLINK_SOCK_DIAG)?;
    match netlink.ask(SOCK_DIAG_BY_FAMILY, &request(family, u32::MAX, &id)) {
        Ok(message) => Ok(read_owner(&message.payload).filter(|o| o.connects(local, remote))),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asked for one connection, the kernel answers with a listener on its port if there is no other
/// socket, or with what waits for late packets, which nobody holds: both are none.
fn read_owner(message: &[u8]) -> Option<Owner> {
    let socket = read(message)?;
    if !matches!(
        socket.state,
        State::Established | State::Closing | State::CloseWait
    ) {
        return None;
    }
    let cgroup = attributes(message.get(MESSAGE..)?)
        .find(|(kind, _)| *kind == INET_DIAG_CGROUP_ID)
        .and_then(|(_, value)| Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)));
    // A socket that its process has closed counts as root's, whoever it was.
    let user = (socket.inode != 0).then_some(u32_at(message, 64)?);
    Some(Owner {
        local: socket.local,
        remote: socket.remote,
        user,
        cgroup,
    })
}

/// `struct inet_diag_sockid` of a connection, with any cookie; `None` between two families.
fn name(local: SocketAddr, remote: SocketAddr) -> Option<(u8, [u8; 48])> {
    const ANY_COOKIE: [u8; 8] = [0xff; 8];
    let mut id = [0; 48];
    id[0..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    id[40..48].copy_from_slice(&ANY_COOKIE);
    let family = match (local.ip(), remote.ip()) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            id[4..8].copy_from_slice(&local.octets());
            id[20..24].copy_from_slice(&remote.octets());
            libc::AF_INET
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            id[4..20].copy_from_slice(&local.octets());
            id[20..36].copy_from_slice(&remote.octets());
            libc::AF_INET6
        }
        _ => return None,
    };
    Some((u8::try_from(family).ok()?, id))
}

fn list(netns: &Netns, states: u32) -> io::Result<Vec<Tcp>> {
    let netlink = Netlink::open(netns, netlink_sys::protocols::NETLINK_SOCK_DIAG)?;
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).expect("address families are small");
        let messages = match netlink.dump(SOCK_DIAG_BY_FAMILY, &request(family, states, &[0; 48])) {
            Ok(messages) => messages,
            // A kernel without IPv6 has no such sockets.
            Err(error) if absent(&error) && i32::from(family) == libc::AF_INET6 => continue,
            Err(error) => return Err(error),
        };
        all.extend(messages.iter().filter_map(|message| read(&message.payload)));
    }
    Ok(all)
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EAFNOSUPPORT)
    )
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let protocol = u8::try_from(libc::IPPROTO_TCP).expect("six fits");
    let mut request = vec![family, protocol, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request
}

/// Reads a `struct inet_diag_msg`; `None` if it is of a state that was not asked for.
fn read(message: &[u8]) -> Option<Tcp> {
    let &[family, state, ..] = message else {
        return None;
    };
    let id: [u8; 48] = message.get(ID)?.try_into().ok()?;
    let mark = attributes(message.get(MESSAGE..)?)
        .find(|(kind, _)| *kind == INET_DIAG_MARK)
        .and_then(|(_, value)| u32_at(value, 0));
    Some(Tcp {
        local: address(family, &id, 0, 4)?,
        remote: address(family, &id, 2, 20)?,
        state: State::of(state)?,
        mark: mark.unwrap_or(0),
        inode: u32_at(message, 68)?,
        name: Name { family, id },
    })
}

/// The address in a `struct inet_diag_sockid` whose port and IP stand at these places.
fn address(family: u8, id: &[u8; 48], port: usize, ip: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([id[port], id[port + 1]]);
    let ip = match i32::from(family) {
        libc::AF_INET => {
            let bytes: [u8; 4] = id.get(ip..ip + 4)?.try_into().ok()?;
            IpAddr::V4(Ipv4Addr::from(bytes))
        }
        libc::AF_INET6 => {
            let bytes: [u8; 16] = id.get(ip..ip + 16)?.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    // An IPv6 socket that speaks IPv4 has mapped addresses; its packets are IPv4.
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
impl Tcp {
    /// A socket that the kernel does not have.
    pub(crate) fn imagined(local: &str, remote: &str, state: State, mark: u32) -> Self {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        let name = Name {
            family: 0,
            id: [0; 48],
        };
        Self {
            local,
            remote,
            state,
            mark,
            inode: 0,
            name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_field_by_field() {
        // An IPv6 socket that speaks IPv4: [::ffff:10.0.0.2]:80 to [::ffff:10.0.0.1]:40000.
        let mut message = vec![10, 1, 0, 0];
        message.extend(80_u16.to_be_bytes());
        message.extend(40_000_u16.to_be_bytes());
        for host in [2, 1] {
            message.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, host]);
        }
        message.extend([0; 12]);
        message.extend([0; 16]);
        message.extend(77_u32.to_ne_bytes());
        message.extend(8_u16.to_ne_bytes());
        message.extend(INET_DIAG_MARK.to_ne_bytes());
        message.extend(0x539_u32.to_ne_bytes());
        let socket = read(&message).unwrap();
        assert_eq!(socket.local, "10.0.0.2:80".parse().unwrap());
        assert_eq!(socket.remote, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(socket.state, State::Established);
        assert_eq!((socket.inode, socket.mark), (77, 0x539));
        for cut in 0..MESSAGE {
            assert_eq!(read(&message[..cut]), None);
        }
    }

    #[test]
    fn only_a_connection_that_somebody_holds_has_an_owner() {
        let message = |state: u8, inode: u32| {
            let mut message = vec![2, state, 0, 0];
            let (local, remote) = ("10.0.0.1:40000", "10.0.0.2:80");
            message.extend(
                name(local.parse().unwrap(), remote.parse().unwrap())
                    .unwrap()
                    .1,
            );
            message.extend([0; 12]);
            message.extend(7_u32.to_ne_bytes());
            message.extend(inode.to_ne_bytes());
            message.extend(12_u16.to_ne_bytes());
            message.extend(INET_DIAG_CGROUP_ID.to_ne_bytes());
            message.extend(4242_u64.to_ne_bytes());
            message
        };
        let owner = read_owner(&message(1, 5)).unwrap();
        assert!(owner.is(Process::Cgroup(4242)) && owner.is(Process::User(7)));
        assert!(!owner.is(Process::Cgroup(1)) && !owner.is(Process::User(0)));
        let [one, two] = ["10.0.0.1:40000", "10.0.0.2:80"].map(|a| a.parse().unwrap());
        assert!(owner.connects(one, two) && !owner.connects(two, one));
        // Closed by its process: nobody's but still of its group.
        let closed = read_owner(&message(4, 0)).unwrap();
        assert!(closed.is(Process::Cgroup(4242)) && !closed.is(Process::User(7)));
        // A listener, a time-wait, one that is being made.
        for state in [10, 6, 2] {
            assert_eq!(read_owner(&message(state, 5)), None);
        }
        for cut in 0..MESSAGE {
            assert_eq!(read_owner(&message(1, 5)[..cut]), None);
        }
    }
}
