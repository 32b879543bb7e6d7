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

use std::fs;
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

/// Which ones there are, by their names.
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// A congestion control that the kernel does not give.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel gives no congestion control {name:?}: load its module (modprobe tcp_{name}), or \
     choose system, auto or one that is there ({there})"
)]
pub struct NoSuchCongestion {
    name: Arc<str>,
    there: String,
    #[source]
    cause: io::Error,
}

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

    /// Asks the kernel whether it has what is named; it may load a module for that. What it has, it
    /// gives to sockets of every namespace: which one users may choose without `CAP_NET_ADMIN`
    /// (`net.ipv4.tcp_allowed_congestion_control`) does not bind us.
    ///
    /// # Errors
    ///
    /// [`NoSuchCongestion`].
    pub fn probe(&self) -> Result<(), NoSuchCongestion> {
        let Self::Named(name) = self else {
            return Ok(());
        };
        let set =
            || Socket::new(Domain::IPV4, Type::STREAM, None)?.set_tcp_congestion(name.as_bytes());
        set().map_err(|cause| NoSuchCongestion {
            name: name.clone(),
            there: fs::read_to_string(AVAILABLE).map_or_else(
                |_| format!("see {AVAILABLE}"),
                |there| there.trim_end().to_owned(),
            ),
            cause,
        })
    }

    /// Gives a tunnel's connected socket, which belongs to `netns`, what its path asks for.
    pub fn settle(&self, netns: &Netns, socket: &SockRef<'_>) {
        let chosen = self.choose(netns.congestion(), || round_trip(socket));
        if let Some(name) = chosen {
            // It was there when it was asked for. A tunnel with another one is still a tunnel.
            let _ = socket.set_tcp_congestion(name);
        }
    }

    /// What a socket needs that has what [`unpaced`] has left it with; `None` if that is right. A
    /// path of unknown length is taken for a long one.
    fn choose<'a>(
        &'a self,
        known: Option<&'a Known>,
        round_trip: impl FnOnce() -> Option<Duration>,
    ) -> Option<&'a [u8]> {
        let replaced = known.filter(|known| known.instead.is_some());
        match self {
            Self::Named(name) => Some(name.as_bytes()),
            Self::System => replaced.map(|known| &*known.system),
            Self::Auto => replaced
                .filter(|_| round_trip().is_none_or(|time| time >= LONG))
                .map(|known| &*known.system),
        }
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
        let error = probe("no_such_control").unwrap_err();
        assert!(error.to_string().contains("\"no_such_control\""));
        assert!(error.to_string().contains("reno"), "{error}");
        assert_eq!(error.cause.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn only_a_long_path_is_paced_unless_asked() {
        let paced = Known {
            system: b"bbr".to_vec(),
            instead: Some("cubic"),
        };
        let other = Known {
            system: b"dctcp".to_vec(),
            instead: None,
        };
        let check = |asked: &str, known, time: Option<u64>, expect: Option<&str>| {
            let asked = Congestion::parse(asked).unwrap();
            let chosen = asked.choose(known, || time.map(Duration::from_micros));
            assert_eq!(
                chosen,
                expect.map(str::as_bytes),
                "{asked:?} {known:?} {time:?}"
            );
        };
        check("auto", Some(&paced), Some(80), None);
        check("auto", Some(&paced), Some(999), None);
        check("auto", Some(&paced), Some(1000), Some("bbr"));
        check("auto", Some(&paced), None, Some("bbr"));
        check("auto", Some(&other), Some(20_000), None);
        check("auto", None, Some(20_000), None);
        check("system", Some(&paced), Some(80), Some("bbr"));
        check("system", Some(&other), Some(80), None);
        check("reno", Some(&paced), Some(20_000), Some("reno"));
        check("reno", None, Some(80), Some("reno"));
    }

    #[test]
    fn only_what_paces_is_replaced() {
        assert!(paces(b"bbr") && paces(b"bbr3"));
        assert!(!paces(b"cubic") && !paces(b"") && !paces(b"dctcp"));
    }
}
