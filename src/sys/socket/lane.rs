//! Which worker's listener takes a connection of this very daemon.
//!
//! Listeners that share an address are a group, in the order in which they began to listen, and the
//! kernel spreads connections over it by a hash. A connection from another pod of this node is
//! better taken by the worker that dialled it: then both its ends are one thread's, and nothing that
//! passes between them wakes another. So the dialling side chooses a port that names the worker, and
//! a filter on the group reads it. Tunnels to other nodes come from such ports, too: they are few and
//! carry much, and a hash would often give two workers' tunnels to one worker there, and none to
//! another. All other connections come from ports that the filter leaves to the hash. When a
//! listener was lost and made again, the order is another one: connections then change their worker
//! on the way, as they would without all this.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;

use crate::sys::socket::Listener;
use crate::sys::socket::dial::{ABOVE, BELOW};

/// One worker among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Which, from 0.
    pub index: u16,
    /// How many there are, at least one.
    pub of: u16,
}

impl Lane {
    /// The only one.
    pub const ALONE: Self = Self { index: 0, of: 1 };

    /// The port among `length` from `begin` on that names this worker, and is `turn`'s.
    pub(crate) fn port(self, begin: u16, length: u64, turn: u64) -> u16 {
        /// A prime, and so no divisor of the ranges' lengths: the way leads to every port. In leaps,
        /// because who met a port that somebody uses should not meet that one's neighbours next.
        const LEAP: u64 = 1999;
        let (index, of) = (u64::from(self.index), u64::from(self.of.max(1)));
        let first = (index + of - u64::from(begin) % of) % of;
        let slots = (length.saturating_sub(first)).div_ceil(of).max(1);
        let offset = first + turn * LEAP % slots * of;
        begin + u16::try_from(offset).expect("shorter than all ports")
    }
}

/// Lets the group of `listener`, in which `of` workers have listened in their order, follow the
/// ports of dials from this node.
///
/// # Errors
///
/// As `setsockopt(2)`.
pub fn steer(listener: &Listener, v6: bool, of: u16) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    let mut program = program(v6, of.max(1));
    let filter = libc::sock_fprog {
        len: program.len().try_into().expect("it is short"),
        filter: program.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&filter)).expect("it is short");
    // SAFETY: `filter` and the program it points to outlive the call, which copies both.
    let done = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the source port modulo `of` where the port is one of ours, else what is no index. A packet
/// with options before its TCP head is misread, and goes to some worker.
fn program(v6: bool, of: u16) -> [libc::sock_filter; 7] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
    let step = |code: u32, jt, jf, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a code has 16 bits"),
        jt,
        jf,
        k,
    };
    let head = if v6 { 40 } else { 20 };
    let net = libc::SKF_NET_OFF.cast_unsigned();
    [
        step(LOAD, 0, 0, net.wrapping_add(head)),
        step(AT_LEAST, 2, 0, (*ABOVE.start()).into()),
        step(AT_LEAST, 3, 0, u32::from(*BELOW.end()) + 1),
        step(AT_LEAST, 0, 2, (*BELOW.start()).into()),
        step(MODULO, 0, 0, of.into()),
        step(libc::BPF_RET | BPF_A, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ]
}

/// `BPF_A` of `linux/filter.h`: the accumulator is the result.
const BPF_A: u32 = 0x10;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::sys::netns::Netns;
    use crate::sys::socket::{connect_announced, listener};

    #[test]
    fn every_port_has_its_turn_and_names_its_worker() {
        for of in [1_u16, 2, 3, 7, 8, 64, 256] {
            for range in [ABOVE, BELOW] {
                let length = range.clone().count() as u64;
                let mut all = HashSet::new();
                for index in 0..of {
                    let lane = Lane { index, of };
                    for turn in 0..length {
                        let port = lane.port(*range.start(), length, turn);
                        assert!(
                            range.contains(&port) && port % of == index,
                            "{lane:?} {port}"
                        );
                        all.insert(port);
                    }
                }
                assert_eq!(all.len() as u64, length, "{of}");
            }
        }
    }

    #[tokio::test]
    async fn a_dial_arrives_at_the_worker_that_it_names() {
        let netns = Netns::current().unwrap();
        for ip in ["127.0.0.1", "::1"] {
            let ip: std::net::IpAddr = ip.parse().unwrap();
            let first = listener(&netns, (ip, 0).into(), 64).expect("needs root");
            let to = socket2::SockRef::from(&first).local_addr().unwrap();
            let to = to.as_socket().unwrap();
            let mut group = vec![first];
            group.extend((1..3).map(|_| listener(&netns, to, 64).unwrap()));
            steer(&group[0], ip.is_ipv6(), 3).unwrap();
            let group: Vec<_> = group.into_iter().map(|l| l.accepting().unwrap()).collect();
            for index in [0, 1, 2, 2, 1, 0, 0] {
                let lane = Lane { index, of: 3 };
                let (_dialled, local) =
                    connect_announced(&netns, ip, to, lane, Some).await.unwrap();
                let accepting = group[usize::from(index)].accept();
                let accepted = tokio::time::timeout(std::time::Duration::from_secs(2), accepting);
                assert_eq!(accepted.await.expect("its own worker's").unwrap().1, local);
            }
        }
    }
}
