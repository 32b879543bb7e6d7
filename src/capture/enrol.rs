//! Puts a pod under capture and lets it go again.
//!
//! A pod is a namespace that has the pod's addresses. What is done to it happens in an order in
//! which every moment is safe, and is undone in the opposite order when a step fails; unless the
//! pod was under capture before, by a daemon that died: then it stays cut off.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;

use nix::libc;

use crate::capture::existing::{Before, Connection, Existing, Sockets, Treated, whole};
use crate::capture::nft;
use crate::capture::rules;
use crate::capture::rules::{LOOP, Mode, Rules, SET_NAMES, TABLE, is_draining, read_connections};
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
    fresh: Vec<WorkerListeners>,
    treated: Treated,
}

/// A listener: whose, where, and by which inode the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) worker: usize,
    pub(crate) port: Port,
    pub(crate) family: Family,
    pub(crate) inode: u32,
}

/// What the kernel said of the rules after they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) listing: String,
    pub(crate) generation: u32,
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

    /// Forgets the kept connections that have ended. Worth a call now and then while there are
    /// any: [`Capture::existing`] then counts those that live. When the last has ended, the rules
    /// lose their exceptions.
    ///
    /// # Errors
    ///
    /// The kernel could not be asked, or the rules not be written.
    pub fn forget_ended(&mut self) -> Result<(), Error> {
        if self.treated.kept.is_empty() || self.mode == Mode::Draining {
            return Ok(());
        }
        let own = belongs(&self.netns, &self.addresses)?;
        let all = connections(&self.netns)?;
        let open: HashSet<_> = Sockets::new(&all, &own)
            .strays()
            .map(Connection::of)
            .collect();
        self.treated.kept.retain(|kept| open.contains(kept));
        if self.treated.kept.is_empty() {
            self.write(Mode::Full, &[], false)?;
            self.note()?;
        }
        Ok(())
    }

    /// Makes good what [`Capture::verify`] found missing: writes routes and rules again and makes
    /// listeners that are gone, or that a family which has come needs; see
    /// [`Capture::take_listeners`]. Connections that were opened while the rules were away are
    /// reset.
    ///
    /// # Errors
    ///
    /// See [`Error`]. The namespace must still be the pod's: if not, release this and enrol anew.
    pub fn repair(&mut self) -> Result<(), Error> {
        let before = match self.mode {
            Mode::Full => Before::Captured(self.treated.kept.clone()),
            Mode::Draining => return self.stop_new(),
        };
        self.renew(&before)
    }

    /// Captures nothing new from now on: what the pod opens goes out by itself, and what arrives
    /// reaches the application. Connections that are carried go on; so do tunnels to the pod, and
    /// new ones, because peers learn late that it has left.
    ///
    /// # Errors
    ///
    /// The rules could not be written; they are as they were.
    pub fn stop_new(&mut self) -> Result<(), Error> {
        let own = belongs(&self.netns, &self.addresses)?;
        let carried = self.carried(&own)?;
        self.write(Mode::Draining, &carried, true)?;
        self.treated.kept.clear();
        // What was captured while the rules were being written is seen now.
        let mut missed = self.carried(&own)?;
        missed.retain(|connection| !carried.contains(connection));
        nft::commit(&self.netns, &rules::thaw(&missed))?;
        self.note()?;
        self.settle()
    }

    /// Captures everything again after [`Capture::stop_new`]; what was opened meanwhile is treated
    /// as [`Options::existing`] says.
    ///
    /// # Errors
    ///
    /// As [`Capture::repair`].
    pub fn resume(&mut self) -> Result<(), Error> {
        if self.mode == Mode::Full {
            return Ok(());
        }
        let before = before(&self.netns)?;
        self.renew(&before)
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

    fn renew(&mut self, before: &Before) -> Result<(), Error> {
        let own = belongs(&self.netns, &self.addresses)?;
        self.v6 = route::has_loopback(&self.netns, true)
            .map_err(Error::kernel("look for loopback addresses"))?;
        self.listen()?;
        self.commit(&own, before)?;
        self.settle()
    }

    fn carried(&self, own: &[IpAddr]) -> Result<Vec<Connection>, Error> {
        let all = connections(&self.netns)?;
        Ok(Sockets::new(&all, own).carried().collect())
    }

    /// Makes every listener that should be there and is not.
    fn listen(&mut self) -> Result<(), Error> {
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
            let listener: TcpListener = socket::listener(&self.netns, addr, BACKLOG)
                .map_err(failed)?
                .into();
            let inode = inode(&listener).map_err(failed)?;
            made.push((worker, inode, listener));
        }
        for (worker, inode, listener) in made {
            self.slots.push(Slot {
                worker,
                port,
                family,
                inode,
            });
            self.fresh[worker].on(port).push(listener);
        }
        Ok(())
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

    /// Writes routes and rules, and treats what was open before.
    fn commit(&mut self, own: &[IpAddr], before: &Before) -> Result<(), Error> {
        let routing = Routing::open(&self.netns).map_err(Error::kernel("open rtnetlink"))?;
        for v6 in families(self.v6).map(|family| family == Family::V6) {
            routing.add(LOOP, v6).map_err(route_error(v6))?;
        }
        let mut kept: Vec<Connection> = self
            .lasting_strays(own)?
            .iter()
            .filter(|stray| before.spares(stray))
            .map(Connection::of)
            .collect();
        if before.lets_pass() {
            self.write(Mode::Full, &kept, true)?;
            // No new stray can appear any more; but some may have, just before. What they send is
            // held until they are known.
            let strays = self.lasting_strays(own)?;
            let spared = strays.iter().filter(|stray| before.spares(stray));
            let known: HashSet<_> = kept.iter().copied().collect();
            kept.extend(
                spared
                    .map(Connection::of)
                    .filter(|stray| !known.contains(stray)),
            );
        }
        self.write(Mode::Full, &kept, false)?;
        self.note()?;
        let strays = self.lasting_strays(own)?;
        // These are stuck: their packets come round to us, and we know nothing of them. Those that
        // are about to end do so by themselves, and may have something left to be read.
        let stuck = strays
            .iter()
            .filter(|stray| !kept.contains(&Connection::of(stray)) && whole(stray));
        end_if_possible(&self.netns, stuck)?;
        self.treated.kept = kept;
        match self.options.existing {
            Existing::Keep => Ok(()),
            Existing::Reset => self.reset(&strays),
        }
    }

    /// Ends the kept connections. The rules still spare them, so that their peers hear of it.
    fn reset(&mut self, strays: &[Tcp]) -> Result<(), Error> {
        if self.treated.kept.is_empty() {
            return Ok(());
        }
        let kept: HashSet<_> = self.treated.kept.drain(..).collect();
        let open = strays
            .iter()
            .filter(|stray| kept.contains(&Connection::of(stray)));
        self.treated.reset += end(&self.netns, open)?;
        self.write(Mode::Full, &[], false)?;
        self.note()
    }

    /// The strays that are there at two looks. A look takes its time, and a connection that is
    /// captured while it lasts may show one of its two sockets only.
    fn lasting_strays(&self, own: &[IpAddr]) -> Result<Vec<Tcp>, Error> {
        let all = connections(&self.netns)?;
        let mut strays: Vec<_> = Sockets::new(&all, own).strays().cloned().collect();
        if !strays.is_empty() {
            let all = connections(&self.netns)?;
            let again: HashSet<_> = Sockets::new(&all, own)
                .strays()
                .map(Connection::of)
                .collect();
            strays.retain(|stray| again.contains(&Connection::of(stray)));
        }
        Ok(strays)
    }

    fn write(&mut self, mode: Mode, connections: &[Connection], held: bool) -> Result<(), Error> {
        let rules = Rules {
            mode,
            v6: self.v6,
            connections,
            held,
        };
        nft::commit(&self.netns, &rules.transaction())?;
        self.mode = mode;
        Ok(())
    }

    /// Notes how the kernel has the rules, to compare with later.
    fn note(&mut self) -> Result<(), Error> {
        // The number first: a change between the two is then one that `verify` looks into.
        self.noted.generation = netlink::generation(&self.netns)
            .map_err(Error::kernel("ask for the rules' generation"))?;
        self.noted.listing = nft::table(&self.netns)?.unwrap_or_default();
        Ok(())
    }

    /// Looks whether what was written holds.
    fn settle(&self) -> Result<(), Error> {
        self.verify_inside()
            .map_err(|drift| Error::NotHeld(Box::new(drift)))
    }
}

/// The addresses of `netns`, if it is the pod's.
fn belongs(netns: &Netns, pod: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
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

fn connections(netns: &Netns) -> Result<Vec<Tcp>, Error> {
    sockdiag::connections(netns).map_err(Error::kernel("list connections"))
}

/// What rules the namespace now.
fn before(netns: &Netns) -> Result<Before, Error> {
    // Asked first because it costs nothing, and this is so nearly always.
    if !netlink::has_table(netns, TABLE).map_err(Error::kernel("look for rules"))? {
        return Ok(Before::Nothing);
    }
    let listing = nft::table(netns)?.unwrap_or_default();
    let mut known = Vec::new();
    for name in SET_NAMES {
        known.extend(
            nft::set(netns, name)?
                .as_deref()
                .map(read_connections)
                .unwrap_or_default(),
        );
    }
    Ok(if is_draining(&listing) {
        Before::Draining(known)
    } else {
        Before::Captured(known)
    })
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

fn end<'a>(netns: &Netns, sockets: impl IntoIterator<Item = &'a Tcp>) -> Result<usize, Error> {
    sockdiag::destroy(netns, sockets).map_err(Error::kernel("reset connections"))
}

/// As [`end`], where the connections would end by themselves, only later.
fn end_if_possible<'a>(
    netns: &Netns,
    sockets: impl IntoIterator<Item = &'a Tcp>,
) -> Result<usize, Error> {
    match sockdiag::destroy(netns, sockets) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(0),
        done => done.map_err(Error::kernel("reset connections")),
    }
}

fn route_error(v6: bool) -> impl FnOnce(std::io::Error) -> Error {
    let family = if v6 { Family::V6 } else { Family::V4 };
    move |cause| Error::Route { family, cause }
}

fn workers(count: usize) -> Vec<WorkerListeners> {
    std::iter::repeat_with(WorkerListeners::default)
        .take(count)
        .collect()
}

/// The families that a pod has.
pub(crate) fn families(v6: bool) -> impl Iterator<Item = Family> {
    std::iter::once(Family::V4).chain(v6.then_some(Family::V6))
}

fn loopback(port: Port, family: Family) -> SocketAddr {
    let ip = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, port.number())
}

fn inode(listener: &TcpListener) -> std::io::Result<u32> {
    let stat = nix::sys::stat::fstat(listener)?;
    // sock_diag tells the lower half; socket inodes are counted with 32 bits.
    Ok((stat.st_ino & 0xffff_ffff) as u32)
}
