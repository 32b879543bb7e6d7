//! Which congestion control a socket has.
//!
//! One that paces (BBR) sends each packet by a timer, at a rate that it has estimated. That is worth
//! its cost on a long path, where many bytes are under way and a loss takes long to be repaired. On
//! a hop that never leaves the node there is nothing to estimate, and between two nodes of one zone
//! a loss is repaired within a round trip; there the timer is a cost alone, and it was the greatest
//! of all. Where a namespace's own choice does not pace, it is left alone everywhere.
//!
//! The kernel never takes pacing back from a connection that once had it (`sk_pacing_status`). So
//! every socket that could do without begins without, and is given it when its path is known.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use socket2::{Domain, SockRef, Socket, Type};

use crate::sys::netns::Netns;

/// What replaces one that paces: the kernel's usual choice, and the one that no kernel lacks.
const INSTEAD: [&str; 2] = ["cubic", "reno"];
/// A round trip from which on a path is long.
const LONG: Duration = Duration::from_millis(1);
/// The longest name, `TCP_CA_NAME_MAX` of `net/tcp.h` without its end.
const NAME: usize = 15;

/// The congestion control of tunnels between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// The system's, unless it paces and the path is short: then one that does not.
    #[default]
    Auto,
    /// The system's.
    System,
    /// This one.
    Named(Arc<str>),
}

impl Congestion {
    /// Reads `auto`, `system` or a name.
    ///
    /// # Errors
    ///
    /// What to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
        match text {
            "auto" => Ok(Self::Auto),
            "system" => Ok(Self::System),
            name if (1..=NAME).contains(&name.len()) && name.bytes().all(legal) => {
                Ok(Self::Named(name.into()))
            }
            _ => Err("write auto, system or a name, for example cubic".to_owned()),
        }
    }

    /// Asks the kernel whether it has what is named; it may load a module for that.
    ///
    /// # Errors
    ///
    /// The name, and what the kernel said: `ENOENT` when there is none.
    pub fn probe(&self) -> Result<(), (Arc<str>, io::Error)> {
        let Self::Named(name) = self else {
            return Ok(());
        };
        let set =
            || Socket::new(Domain::IPV4, Type::STREAM, None)?.set_tcp_congestion(name.as_bytes());
        set().map_err(|error| (name.clone(), error))
    }

    /// Gives a tunnel's connected socket, which belongs to `netns`, what its path asks for.
    pub fn settle(&self, netns: &Netns, socket: &SockRef<'_>) {
        let name = match self {
            Self::Named(name) => name.as_bytes(),
            // Nothing was replaced here, so nothing is to be put back.
            Self::Auto | Self::System if netns.congestion().is_none_or(Known::is_kept) => return,
            Self::Auto if round_trip(socket).is_some_and(|time| time < LONG) => return,
            Self::Auto | Self::System => netns.congestion().map_or(&[][..], |known| &known.system),
        };
        // It was there when it was asked for. A tunnel with another one is still a tunnel.
        let _ = socket.set_tcp_congestion(name);
    }
}

/// What a namespace gives its sockets, found when the first one is made there.
#[derive(Debug)]
pub(crate) struct Known {
    system: Vec<u8>,
    instead: Option<&'static str>,
}

impl Known {
    /// `socket` is new in its namespace.
    fn of(socket: &Socket) -> Self {
        let mut system = socket.tcp_congestion().unwrap_or_default();
        system.retain(|byte| *byte != 0);
        let has = |name: &&str| socket.set_tcp_congestion(name.as_bytes()).is_ok();
        let instead = paces(&system).then(|| INSTEAD.into_iter().find(has));
        Self {
            system,
            instead: instead.flatten(),
        }
    }

    fn is_kept(&self) -> bool {
        self.instead.is_none()
    }
}

fn paces(name: &[u8]) -> bool {
    name.starts_with(b"bbr")
}

/// Takes pacing from a new socket of `netns`.
pub(crate) fn unpaced(netns: &Netns, socket: &Socket) {
    let known = netns.congestion_or(|| Known::of(socket));
    if let Some(instead) = known.instead {
        // It was there for the first socket. Without it, bytes are paced and arrive.
        let _ = socket.set_tcp_congestion(instead.as_bytes());
    }
}

/// The smoothed round trip of a connection; of a fresh one, that of its handshake.
fn round_trip(socket: &SockRef<'_>) -> Option<Duration> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: `info` and `length` are valid for writes of the sizes given, and outlive the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let known = done == 0 && info.tcpi_rtt > 0;
    known.then(|| Duration::from_micros(info.tcpi_rtt.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_a_word_or_a_name() {
        let check = |text: &str, expect: Option<Congestion>| {
            assert_eq!(Congestion::parse(text).ok(), expect, "{text}");
        };
        check("auto", Some(Congestion::Auto));
        check("system", Some(Congestion::System));
        check("cubic", Some(Congestion::Named("cubic".into())));
        check("", None);
        check("cubic reno", None);
        check("a_name_that_is_too_long", None);
    }

    #[test]
    fn only_what_the_kernel_has_can_be_named() {
        let probe = |text: &str| Congestion::parse(text).unwrap().probe();
        assert!(probe("auto").is_ok() && probe("system").is_ok() && probe("reno").is_ok());
        let (name, error) = probe("no_such_control").unwrap_err();
        assert_eq!(&*name, "no_such_control");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn only_what_paces_is_replaced() {
        assert!(paces(b"bbr") && paces(b"bbr3"));
        assert!(!paces(b"cubic") && !paces(b"") && !paces(b"dctcp"));
    }
}
