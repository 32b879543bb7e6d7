//! Which of a pod's connections are carried by us, and which were there before us. Pure.
//!
//! A connection that we carry has two sockets in the pod: the application's, and ours, which has
//! the same two addresses the other way round. The application's socket without such a twin is a
//! *stray*: it was open before capture began, or was opened while the rules were away.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::sys::sockdiag::{State, Tcp};
use crate::sys::socket::{MARK_MASK, OWN_MARK};

/// What to do with the connections that are open when capture begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// They live on as they are, uncaptured, until they end.
    #[default]
    Keep,
    /// They are reset.
    Reset,
}

/// What was done with the connections that were open when capture began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Treated {
    /// Those that live on uncaptured.
    pub kept: Vec<Connection>,
    /// How many were reset.
    pub reset: usize,
}

/// The two ends of a TCP connection, as the pod's own socket has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Connection {
    /// The application's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

impl Connection {
    pub(crate) fn of(socket: &Tcp) -> Self {
        Self {
            local: socket.local,
            remote: socket.remote,
        }
    }

    /// The same connection as its other end has it.
    fn reversed(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
        }
    }
}

/// What ruled the pod until now, which decides what its strays are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing: every stray was there before us.
    Nothing,
    /// Rules that captured everything but these. Another stray is the rest of a connection that
    /// we carried, and must not get out in clear; or was opened while the rules were away.
    Captured(Vec<Connection>),
    /// Rules that captured nothing new, and still carried these. Another stray was opened
    /// meanwhile; one of these is the rest of a connection that we carried.
    Draining(Vec<Connection>),
}

impl Before {
    /// Whether new strays can appear until the next rules stand.
    pub(crate) fn lets_pass(&self) -> bool {
        !matches!(self, Self::Captured(_))
    }

    /// Whether this stray may live on uncaptured.
    pub(crate) fn spares(&self, stray: &Tcp) -> bool {
        match self {
            Self::Nothing => true,
            Self::Captured(kept) => kept.contains(&Connection::of(stray)),
            Self::Draining(carried) => !carried.contains(&Connection::of(stray)),
        }
    }
}

/// Whether neither side has begun to end this connection.
pub(crate) fn whole(socket: &Tcp) -> bool {
    matches!(socket.state, State::Established | State::SynReceived)
}

/// All sockets of a pod, and the addresses that are its own.
#[derive(Debug)]
pub(crate) struct Sockets<'a> {
    all: &'a [Tcp],
    own: &'a [IpAddr],
}

impl<'a> Sockets<'a> {
    pub(crate) fn new(all: &'a [Tcp], own: &'a [IpAddr]) -> Self {
        Self { all, own }
    }

    /// The application's connections to elsewhere that we do not carry.
    pub(crate) fn strays(&self) -> impl Iterator<Item = &'a Tcp> {
        let ours: HashSet<_> = self.carried().collect();
        self.leaving()
            .filter(move |socket| !ours.contains(&Connection::of(socket)))
    }

    /// The application's sockets of connections that we carry.
    pub(crate) fn carried_sockets(&self) -> impl Iterator<Item = &'a Tcp> {
        let ours: HashSet<_> = self.carried().collect();
        self.leaving()
            .filter(move |socket| ours.contains(&Connection::of(socket)))
    }

    /// The connections that we carry, as the application has them. Found by our own sockets: only
    /// those have an address that is not the pod's.
    pub(crate) fn carried(&self) -> impl Iterator<Item = Connection> {
        self.all
            .iter()
            .filter(|socket| !self.is_own(socket.local.ip()) && self.is_own(socket.remote.ip()))
            .map(|socket| Connection::of(socket).reversed())
    }

    fn leaving(&self) -> impl Iterator<Item = &'a Tcp> {
        let own = self.own;
        let is_own = move |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
        self.all.iter().filter(move |socket| {
            socket.mark & MARK_MASK != OWN_MARK
                && is_own(socket.local.ip())
                && !is_own(socket.remote.ip())
        })
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.own.contains(&ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "10.0.0.2:40000";
    const WEB: &str = "10.0.0.2:80";
    const FAR: &str = "10.0.0.9:443";

    fn of(sockets: &[(&str, &str, u32)]) -> Vec<Tcp> {
        let imagined =
            |&(local, remote, mark)| Tcp::imagined(local, remote, State::Established, mark);
        sockets.iter().map(imagined).collect()
    }

    fn check(sockets: &[(&str, &str, u32)], strays: &[&str], carried: &[&str]) {
        let all = of(sockets);
        let own = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let sockets = Sockets::new(&all, &own);
        let named = |socket: &Tcp| format!("{} {}", socket.local, socket.remote);
        assert_eq!(sockets.strays().map(named).collect::<Vec<_>>(), strays);
        assert_eq!(
            sockets.carried_sockets().map(named).collect::<Vec<_>>(),
            carried
        );
    }

    #[test]
    fn strays_are_what_has_no_twin() {
        check(&[], &[], &[]);
        check(&[(POD, FAR, 0)], &["10.0.0.2:40000 10.0.0.9:443"], &[]);
        check(
            &[("[fd00::2]:1", "[fd00::9]:2", 0)],
            &["[fd00::2]:1 [fd00::9]:2"],
            &[],
        );
        // Captured on its way out: its twin stands for the far end.
        check(
            &[(POD, FAR, 0), (FAR, POD, OWN_MARK)],
            &[],
            &["10.0.0.2:40000 10.0.0.9:443"],
        );
        // The twin of a connection that has ended says no mark.
        check(
            &[(POD, FAR, 0), (FAR, POD, 0)],
            &[],
            &["10.0.0.2:40000 10.0.0.9:443"],
        );
        // Captured on its way in: ours to the client, ours to the application, and its own.
        check(
            &[
                (WEB, "10.0.0.9:5000", OWN_MARK),
                ("10.0.0.9:61000", WEB, OWN_MARK),
                (WEB, "10.0.0.9:61000", 0),
            ],
            &[],
            &["10.0.0.2:80 10.0.0.9:61000"],
        );
        // Within the pod, and our own to elsewhere.
        check(
            &[
                (POD, WEB, 0),
                (WEB, POD, 0),
                ("127.0.0.1:1", "127.0.0.1:2", 0),
            ],
            &[],
            &[],
        );
        check(&[("10.0.0.2:41000", "10.0.0.8:15008", OWN_MARK)], &[], &[]);
        // Other bits of the mark are not ours.
        check(&[(POD, FAR, 0xf000 | OWN_MARK)], &[], &[]);
        check(&[(POD, FAR, 0xf000)], &["10.0.0.2:40000 10.0.0.9:443"], &[]);
    }

    #[test]
    fn what_was_before_decides_what_a_stray_is() {
        let stray = Tcp::imagined(POD, FAR, State::Established, 0);
        let ending = Tcp::imagined(POD, FAR, State::CloseWait, 0);
        let known = vec![Connection::of(&stray)];
        assert!(Before::Nothing.spares(&stray) && Before::Nothing.spares(&ending));
        assert!(!Before::Captured(Vec::new()).spares(&stray));
        assert!(Before::Captured(known.clone()).spares(&stray));
        assert!(Before::Captured(known.clone()).spares(&ending));
        assert!(Before::Draining(Vec::new()).spares(&stray));
        // The rest of one that was carried: its next bytes would go out in clear.
        assert!(!Before::Draining(known).spares(&ending));
    }
}
