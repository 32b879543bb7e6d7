//! Writes the rules of a pod and treats the connections that are open meanwhile.
//!
//! Between a look at the pod's connections and the rules that follow from it there is a moment in
//! which more are opened. So rules are written twice where that matters: held first, which means
//! that packets of unknown connections are dropped and will be sent again, and then, after another
//! look, for good.

use std::collections::HashSet;
use std::net::IpAddr;

use nix::libc;

use crate::capture::Error;
use crate::capture::enrol::{Capture, belongs, families, route_error};
use crate::capture::existing::{Before, Connection, Existing, Sockets, whole};
use crate::capture::nft;
use crate::capture::noted::{Noted, Written};
use crate::capture::rules;
use crate::capture::rules::{LOOP, Mode, Rules, SET_NAMES, TABLE, is_draining, read_connections};
use crate::mesh::Family;
use crate::sys::netlink;
use crate::sys::netns::Netns;
use crate::sys::route::{self, Routing};
use crate::sys::sockdiag::{self, Tcp};

impl Capture {
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
    /// The rules could not be written: nothing gets out that should not, but to be tried again.
    pub fn stop_new(&mut self) -> Result<(), Error> {
        let own = match belongs(&self.netns, &self.addresses) {
            // So does every pod end: the runtime takes its network down before its object goes.
            // Nothing can be opened there any more.
            Err(Error::NotThePod { .. }) => return Ok(()),
            own => own?,
        };
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

    pub(crate) fn renew(&mut self, before: &Before) -> Result<(), Error> {
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

    /// Writes routes and rules, and treats what was open before.
    pub(crate) fn commit(&mut self, own: &[IpAddr], before: &Before) -> Result<(), Error> {
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
        if before.lets_pass() && !self.options.fresh {
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
        let written = Written::commit(&self.netns, rules.transaction())?;
        // What names connections is like no other.
        self.written = connections.is_empty().then_some(written);
        self.mode = mode;
        Ok(())
    }

    /// Notes how the kernel has the rules, to compare with later.
    pub(crate) fn note(&mut self) -> Result<(), Error> {
        self.noted = Noted::of(&self.netns, self.written.take())?;
        Ok(())
    }

    /// Looks whether what was written holds.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        self.verify_inside()
            .map_err(|drift| Error::NotHeld(Box::new(drift)))
    }
}

pub(crate) fn connections(netns: &Netns) -> Result<Vec<Tcp>, Error> {
    sockdiag::connections(netns).map_err(Error::kernel("list connections"))
}

/// What rules the namespace now.
pub(crate) fn before(netns: &Netns) -> Result<Before, Error> {
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

pub(crate) fn end<'a>(
    netns: &Netns,
    sockets: impl IntoIterator<Item = &'a Tcp>,
) -> Result<usize, Error> {
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
