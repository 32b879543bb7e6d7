//! Puts a pod under capture and lets it go again.
//!
//! A pod is a namespace that has the pod's addresses. What is done to it happens in an order in
//! which every moment is safe, and is undone in the opposite order when a step fails; unless the
//! pod was under capture before, by a daemon that died: then it stays cut off.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use crate::capture::commit::{before, connections, end};
use crate::capture::existing::{Before, Existing, Sockets, Treated};
use crate::capture::nft;
use crate::capture::noted::{Noted, Written};
use crate::capture::rules::{LOOP, Mode, Rules, TABLE};
use crate::capture::{Error, Port, WorkerListeners};
use crate::mesh::Family;
use crate::sys::netlink;
use crate::sys::netns::Netns;
use crate::sys::route::{self, Routing};
use crate::sys::sockdiag::{self, Tcp};
use crate::sys::socket;

/// How many connections may wait to be accepted, per listener. The pod's `net.core.somaxconn`
/// bounds it.
const BACKLOG: i32 = 4096;

/// How a pod is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many workers accept; each gets its own listeners.
    pub workers: usize,
    /// What happens to connections that are open.
    pub existing: Existing,
    /// Whether nothing runs in the pod yet, so that nothing opens a connection while it is put under
    /// capture. That saves a transaction, which takes the kernel some 15 ms; a connection that is
    /// opened nevertheless is reset.
    pub fresh: bool,
}

/// A pod under capture.
///
/// Dropping it leaves the rules: the pod is then cut off, which is what must happen when the
/// daemon ends without having drained. [`Capture::release`] takes them away.
#[derive(Debug)]
pub struct Capture {
    pub(crate) netns: Netns,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) options: Options,
    pub(crate) v6: bool,
    pub(crate) mode: Mode,
    pub(crate) slots: Vec<Slot>,
    pub(crate) noted: Noted,
    /// What was written last, until it is noted.
    pub(crate) written: Option<Written>,
    pub(crate) fresh: Vec<WorkerListeners>,
    pub(crate) treated: Treated,
}

/// A listener: whose, where, and by which inode the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) worker: usize,
    pub(crate) port: Port,
    pub(crate) family: Family,
    pub(crate) inode: u32,
}

/// Puts the pod behind `netns`, which has these `addresses`, under capture.
///
/// When it returns, every new TCP connection of the pod waits at the listeners that
/// [`Capture::take_listeners`] gives. Rules that a dead daemon has left are replaced without a
/// moment in which something passes them.
///
/// # Errors
///
/// See [`Error`]. The pod is left as it was.
pub fn enrol(netns: &Netns, addresses: &[IpAddr], options: &Options) -> Result<Capture, Error> {
    let own = belongs(netns, addresses)?;
    let loopback =
        |v6| route::has_loopback(netns, v6).map_err(Error::kernel("look for loopback addresses"));
    if !loopback(false)? {
        return Err(Error::NoLoopback);
    }
    let mut capture = Capture {
        netns: netns.clone(),
        addresses: addresses.to_vec(),
        options: *options,
        v6: loopback(true)?,
        mode: Mode::Full,
        slots: Vec::new(),
        noted: Noted::default(),
        written: None,
        fresh: workers(options.workers),
        treated: Treated::default(),
    };
    capture.listen()?;
    let before = before(netns)?;
    let first = before == Before::Nothing;
    capture
        .commit(&own, &before)
        .and_then(|()| capture.settle())
        .inspect_err(|_| {
            if first {
                // What failed is what is reported; what is left of it is found by `leftover`.
                let _ = remove(netns);
            }
        })?;
    Ok(capture)
}

/// Whether rules of ours are in a namespace: of a daemon that died, or of one that lives.
///
/// # Errors
///
/// The kernel could not be asked.
pub fn leftover(netns: &Netns) -> Result<bool, Error> {
    let table = netlink::has_table(netns, TABLE).map_err(Error::kernel("look for rules"))?;
    if table {
        return Ok(true);
    }
    let routing = Routing::open(netns).map_err(Error::kernel("open rtnetlink"))?;
    for v6 in [false, true] {
        if routing.present(LOOP, v6).map_err(route_error(v6))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what a dead daemon has left in the namespace of a pod that is not captured any more.
/// The rests of connections that it carried are reset first, so that nothing of them gets out.
///
/// # Errors
///
/// Something could not be removed; everything else was.
pub fn clean(netns: &Netns) -> Result<(), Error> {
    let routing = Routing::open(netns).map_err(Error::kernel("open rtnetlink"))?;
    let own = routing
        .addresses()
        .map_err(Error::kernel("list addresses"))?;
    let before = before(netns)?;
    let all = connections(netns)?;
    let sockets = Sockets::new(&all, &own);
    let rests: Vec<_> = match before {
        Before::Nothing => Vec::new(),
        before => sockets
            .strays()
            .filter(|stray| !before.spares(stray))
            .collect(),
    };
    end(netns, rests.into_iter().chain(sockets.carried_sockets()))?;
    remove(netns)
}

impl Capture {
    /// The listeners made since the last call, one set per worker, in their order. After
    /// [`enrol()`] these are all there are; after [`Capture::repair`] those it had to make again,
    /// and the sets of most workers may be empty.
    pub fn take_listeners(&mut self) -> Vec<WorkerListeners> {
        std::mem::replace(&mut self.fresh, workers(self.options.workers))
    }

    /// The namespace that is under capture.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What was done with the connections that were open before.
    #[must_use]
    pub fn existing(&self) -> &Treated {
        &self.treated
    }

    /// Leaves the namespace exactly as it was found. What is still carried is reset, so that the
    /// rest of it does not get out in clear. Listeners that were taken are the caller's to close.
    ///
    /// # Errors
    ///
    /// Something could not be removed; everything else was, and [`clean`] may try again.
    pub fn release(self) -> Result<(), Error> {
        let carried = match (connections(&self.netns), addresses(&self.netns)) {
            (Ok(all), Ok(own)) => end(&self.netns, Sockets::new(&all, &own).carried_sockets()),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        remove(&self.netns)?;
        carried.map(drop)
    }

    /// Makes every listener that should be there and is not.
    pub(crate) fn listen(&mut self) -> Result<(), Error> {
        let alive: HashSet<_> = sockdiag::listeners(&self.netns)
            .map_err(Error::kernel("list listeners"))?
            .iter()
            .map(|socket| socket.inode)
            .collect();
        let v6 = self.v6;
        self.slots
            .retain(|slot| alive.contains(&slot.inode) && (v6 || slot.family == Family::V4));
        for family in families(self.v6) {
            for port in Port::ALL {
                self.listen_on(port, family)?;
            }
        }
        Ok(())
    }

    fn listen_on(&mut self, port: Port, family: Family) -> Result<(), Error> {
        let addr = loopback(port, family);
        let there: HashSet<_> = self
            .slots
            .iter()
            .filter(|slot| slot.port == port && slot.family == family)
            .map(|slot| slot.worker)
            .collect();
        let failed = |cause: std::io::Error| match cause.kind() {
            ErrorKind::AddrInUse => self.taken(addr),
            _ => Error::Listen { addr, cause },
        };
        if there.is_empty() {
            socket::unclaimed(&self.netns, addr).map_err(failed)?;
        }
        let mut made = Vec::new();
        for worker in (0..self.options.workers).filter(|worker| !there.contains(worker)) {
            let listener = socket::listener(&self.netns, addr, BACKLOG).map_err(failed)?;
            let inode = inode(&listener).map_err(failed)?;
            made.push((worker, inode, listener));
        }
        if let (Port::Tunnel, Some((_, _, listener))) = (port, made.last()) {
            let workers = u16::try_from(self.options.workers).unwrap_or(1);
            socket::steer(listener, addr.is_ipv6(), workers).map_err(failed)?;
        }
        for (worker, inode, listener) in made {
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

    /// Takes a listener in, to be handed to its worker.
    pub(crate) fn hold(&mut self, slot: Slot, listener: socket::Listener) {
        self.fresh[slot.worker].on(slot.port).push(listener);
        self.slots.push(slot);
    }

    /// Who has `addr`, which we need.
    fn taken(&self, addr: SocketAddr) -> Error {
        let listeners = sockdiag::listeners(&self.netns).unwrap_or_default();
        let ours = |socket: &Tcp| {
            socket.local == addr && socket.mark & socket::MARK_MASK == socket::OWN_MARK
        };
        if listeners.iter().any(ours) {
            Error::Served
        } else {
            Error::PortTaken { addr }
        }
    }
}

/// The addresses of `netns`, if it is the pod's.
pub(crate) fn belongs(netns: &Netns, pod: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let here = Netns::current().map_err(Error::kernel("tell the daemon's namespace"))?;
    // Where the daemon is not in the node's namespace, and does not see its processes, process 1
    // is in the daemon's own.
    let node = Netns::open(Path::new("/proc/1/ns/net")).ok();
    if *netns == here || node.as_ref() == Some(netns) {
        return Err(Error::TheNode);
    }
    let own = addresses(netns)?;
    match pod.iter().find(|ip| !own.contains(&ip.to_canonical())) {
        Some(&missing) => Err(Error::NotThePod { missing }),
        None => Ok(own),
    }
}

pub(crate) fn addresses(netns: &Netns) -> Result<Vec<IpAddr>, Error> {
    Routing::open(netns)
        .and_then(|routing| routing.addresses())
        .map_err(Error::kernel("list addresses"))
}

/// Takes away rules and routes, as much as can be.
fn remove(netns: &Netns) -> Result<(), Error> {
    let rules = nft::commit(netns, &Rules::removal());
    let routing = Routing::open(netns).map_err(Error::kernel("open rtnetlink"))?;
    let routes: Vec<_> = [false, true]
        .map(|v6| routing.remove(LOOP, v6).map_err(route_error(v6)))
        .into_iter()
        .collect();
    rules?;
    routes.into_iter().collect()
}

pub(crate) fn route_error(v6: bool) -> impl FnOnce(std::io::Error) -> Error {
    let family = if v6 { Family::V6 } else { Family::V4 };
    move |cause| Error::Route { family, cause }
}

pub(crate) fn workers(count: usize) -> Vec<WorkerListeners> {
    std::iter::repeat_with(WorkerListeners::default)
        .take(count)
        .collect()
}

/// The families that a pod has.
pub(crate) fn families(v6: bool) -> impl Iterator<Item = Family> {
    std::iter::once(Family::V4).chain(v6.then_some(Family::V6))
}

pub(crate) fn loopback(port: Port, family: Family) -> SocketAddr {
    let ip = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, port.number())
}

/// The number by which the kernel lists a socket.
pub(crate) fn inode(listener: &impl AsFd) -> std::io::Result<u32> {
    let stat = nix::sys::stat::fstat(listener)?;
    // sock_diag tells the lower half; socket inodes are counted with 32 bits.
    Ok((stat.st_ino & 0xffff_ffff) as u32)
}
