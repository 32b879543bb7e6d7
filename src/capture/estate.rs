//! What of a capture passes from one daemon to the next, while both live.
//!
//! The listeners themselves pass: a socket is one, however many processes hold it, so what waits in
//! it to be accepted waits on, and the rules that lead there need not change. Beside them goes what
//! the next daemon could not find out by itself ([`Estate`]). The rest it asks the kernel, as
//! always.
//!
//! In three steps, because until the last moment the other daemon may go on as before: [`inherit()`]
//! changes nothing that it would miss; then this daemon accepts; then [`Capture::settle_in`] makes
//! the capture as this daemon wants it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::capture::enrol::{Capture, Options, Slot, addresses, belongs, inode, loopback, workers};
use crate::capture::existing::{Before, Connection, Sockets, Treated};
use crate::capture::noted::Noted;
use crate::capture::rules::{Mode, Rules, name_in};
use crate::capture::{Drift, Error, Port};
use crate::mesh::Family;
use crate::sys::netlink;
use crate::sys::netns::Netns;
use crate::sys::sockdiag;
use crate::sys::socket::{self, Listener, MARK_MASK, OWN_MARK};

/// What the next daemon is told of a pod under capture, beside its listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estate {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether there are IPv6 listeners.
    pub v6: bool,
    /// The name of the rules that stand.
    pub rules: String,
    /// The rules' generation when they were last as they should be.
    pub generation: u32,
    /// Connections that live on uncaptured.
    pub kept: Vec<Connection>,
    /// How many older connections were reset.
    pub reset: usize,
}

/// Every place that a listener of ours may have.
type Places = [(Port, Family); 6];

fn places() -> Places {
    let [out, inn, tunnel] = Port::ALL;
    let (v4, v6) = (Family::V4, Family::V6);
    [
        (out, v4),
        (out, v6),
        (inn, v4),
        (inn, v6),
        (tunnel, v4),
        (tunnel, v6),
    ]
}

impl Capture {
    /// What the next daemon is to know; `None` for a pod that is being left.
    #[must_use]
    pub fn estate(&self) -> Option<Estate> {
        (self.mode == Mode::Full).then(|| Estate {
            addresses: self.addresses.clone(),
            v6: self.v6,
            rules: name_in(&self.noted.listing).unwrap_or_default().to_owned(),
            generation: self.noted.generation,
            kept: self.treated.kept.clone(),
            reset: self.treated.reset,
        })
    }

    /// Those of `listeners` that are this capture's, in the order in which they began to listen: by
    /// their place in it they are found (`sys::socket::steer`).
    #[must_use]
    pub fn in_order(&self, listeners: Vec<OwnedFd>) -> Vec<OwnedFd> {
        let place = |fd: &OwnedFd| {
            let inode = inode(fd).ok()?;
            self.slots.iter().position(|slot| slot.inode == inode)
        };
        let known = listeners.into_iter();
        let mut known: Vec<_> = known.filter_map(|fd| Some((place(&fd)?, fd))).collect();
        known.sort_by_key(|(place, _)| *place);
        known.into_iter().map(|(_, fd)| fd).collect()
    }

    /// Whether nobody carries a connection of the pod, neither this daemon nor the one before: the
    /// kernel lists the sockets of both.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`].
    pub fn is_quiet(&self) -> Result<bool, Error> {
        let listing = Error::kernel("list connections");
        let mut all = sockdiag::connections(&self.netns).map_err(listing)?;
        // What nobody holds any more only waits for late packets.
        all.retain(|socket| socket.inode != 0);
        let own = addresses(&self.netns)?;
        Ok(Sockets::new(&all, &own).carried().next().is_none())
    }

    /// Makes an inherited capture this daemon's own: listeners for workers that have none yet, and
    /// rules as this version writes them, if they are others or have changed meanwhile. What it
    /// made is to be had by [`Capture::take_listeners`].
    ///
    /// # Errors
    ///
    /// As [`Capture::repair`].
    pub fn settle_in(&mut self) -> Result<(), Error> {
        if self.noted.listing.is_empty() {
            let standing = std::mem::take(&mut self.noted);
            // Noted anew: this daemon has not read them yet.
            self.note()?;
            let same = standing.generation == self.noted.generation
                && name_in(&self.noted.listing) == Some(&*self.rules().name());
            if !same {
                return self.renew(&Before::Captured(self.treated.kept.clone()));
            }
        }
        self.listen()?;
        match self.verify_inside() {
            Err(drift) if drift.repairable() => self.repair(),
            Err(drift) => Err(Error::NotHeld(Box::new(drift))),
            Ok(()) => Ok(()),
        }
    }

    /// The rules that this daemon would write now.
    fn rules(&self) -> Rules<'_> {
        Rules {
            mode: self.mode,
            v6: self.v6,
            connections: &self.treated.kept,
            held: false,
        }
    }

    /// Deals `listeners` out to the workers. Every one of them gets somebody who accepts there: a
    /// listener that nobody serves would swallow its share of the connections.
    fn deal(&mut self, listeners: Vec<Listener>) -> Result<(), Error> {
        let all = sockdiag::listeners(&self.netns).map_err(Error::kernel("list listeners"))?;
        let alive: HashMap<_, _> = all.iter().map(|socket| (socket.inode, socket)).collect();
        let mut dealt = HashMap::new();
        for listener in listeners {
            let inode = inode(&listener).map_err(Error::NoListener)?;
            let known = alive.get(&inode).copied().filter(|socket| {
                socket.mark & MARK_MASK == OWN_MARK
                    && listener.local_addr().is_ok_and(|addr| addr == socket.local)
            });
            let at = known.map(|socket| socket.local);
            let place = places()
                .into_iter()
                .find(|(port, family)| at == Some(loopback(*port, *family)));
            let Some((port, family)) = place else {
                return Err(Error::NoListener(std::io::ErrorKind::NotFound.into()));
            };
            let count: &mut usize = dealt.entry((port, family)).or_default();
            let worker = *count % self.options.workers;
            *count += 1;
            if *count == 1 && port == Port::Tunnel {
                let of = u16::try_from(self.options.workers).unwrap_or(1);
                socket::steer(&listener, family == Family::V6, of).map_err(Error::NoListener)?;
            }
            let slot = Slot {
                worker,
                port,
                family,
                inode,
            };
            self.hold(slot, listener);
        }
        Ok(())
    }
}

/// Takes over a pod under capture from a daemon that still serves it. `listeners` are all that it
/// has there, in their order. Nothing of the capture changes.
///
/// # Errors
///
/// The namespace is not the pod's, or what came are not its listeners; see [`Error`]. What was
/// handed over is closed, which the other daemon does not notice.
pub fn inherit(
    netns: &Netns,
    estate: Estate,
    listeners: Vec<OwnedFd>,
    options: &Options,
) -> Result<Capture, Error> {
    belongs(netns, &estate.addresses)?;
    let listeners: Result<Vec<_>, _> = listeners.into_iter().map(Listener::adopt).collect();
    let mut capture = Capture {
        netns: netns.clone(),
        addresses: estate.addresses,
        options: *options,
        v6: estate.v6,
        mode: Mode::Full,
        slots: Vec::new(),
        noted: Noted {
            listing: "".into(),
            generation: estate.generation,
        },
        written: None,
        fresh: workers(options.workers),
        treated: Treated {
            kept: estate.kept,
            reset: estate.reset,
        },
    };
    capture.deal(listeners.map_err(Error::NoListener)?)?;
    let standing = netlink::has_table(netns, crate::capture::TABLE);
    if standing.map_err(Error::kernel("look for rules"))? {
        Ok(capture)
    } else {
        Err(Error::NotHeld(Box::new(Drift::Rules)))
    }
}
