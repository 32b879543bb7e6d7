//! Tells whether a pod is still under capture, by asking the kernel.
//!
//! Made to be called every few seconds for every pod of a node: a dozen system calls, unless
//! somebody has changed nftables rules in the pod since, which the rules' generation number tells.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::capture::enrol::{Capture, addresses, families};
use crate::capture::nft;
use crate::capture::rules::{LOOP, Mode};
use crate::capture::{Error, Port};
use crate::mesh::Family;
use crate::sys::netlink;
use crate::sys::netns::Netns;
use crate::sys::route::{self, Routing};
use crate::sys::sockdiag;

/// What of a capture is no longer as it was.
#[derive(Debug, thiserror::Error)]
pub enum Drift {
    /// Another namespace stands behind the pod. Release this capture and enrol anew.
    #[error("another network namespace stands behind the pod")]
    Namespace,
    /// The namespace lost the pod's address. Release this capture, and enrol when it is back.
    #[error("the pod's address {0} is gone")]
    Address(IpAddr),
    /// The pod got IPv6, or lost it. To be repaired.
    #[error("the pod has {} IPv6", if *appeared { "got" } else { "lost" })]
    Ipv6 {
        /// Whether it got it.
        appeared: bool,
    },
    /// Our rules were changed or removed. To be repaired.
    #[error("the nftables rules were changed or removed")]
    Rules,
    /// Our policy route was removed, or another comes before it. To be repaired.
    #[error("the policy route for {0:?} was removed or covered")]
    Route(Family),
    /// Not all of our listeners on this port are alive. To be repaired.
    #[error("a listener on the {} port is gone", .0.as_str())]
    Listener(Port),
    /// It cannot be told.
    #[error("cannot verify")]
    Unknown(#[source] Error),
}

impl Drift {
    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Address(_) => "address",
            Self::Ipv6 { .. } => "ipv6",
            Self::Rules => "rules",
            Self::Route(_) => "route",
            Self::Listener(_) => "listener",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Whether [`Capture::repair`] can make it good; if not, only to enrol anew can.
    #[must_use]
    pub fn repairable(&self) -> bool {
        !matches!(self, Self::Namespace | Self::Address(_))
    }
}

impl From<Error> for Drift {
    fn from(error: Error) -> Self {
        Self::Unknown(error)
    }
}

impl Capture {
    /// Whether the pod, which now has the namespace `now`, is under capture as it was.
    ///
    /// # Errors
    ///
    /// The first thing that is not; see [`Drift`].
    pub fn verify(&mut self, now: &Netns) -> Result<(), Drift> {
        if *now != self.netns {
            return Err(Drift::Namespace);
        }
        let own = addresses(&self.netns)?;
        if let Some(&missing) = self
            .addresses
            .iter()
            .find(|ip| !own.contains(&ip.to_canonical()))
        {
            return Err(Drift::Address(missing));
        }
        let generation = netlink::generation(&self.netns)
            .map_err(Error::kernel("ask for the rules' generation"))?;
        self.verify_inside()?;
        // Others may change their own rules: not to be looked into again.
        self.noted.generation = generation;
        Ok(())
    }

    pub(crate) fn verify_inside(&self) -> Result<(), Drift> {
        let generation = netlink::generation(&self.netns)
            .map_err(Error::kernel("ask for the rules' generation"))?;
        if generation != self.noted.generation
            && nft::table(&self.netns)?.as_deref() != Some(&*self.noted.listing)
        {
            return Err(Drift::Rules);
        }
        let v6 = route::has_loopback(&self.netns, true)
            .map_err(Error::kernel("look for loopback addresses"))?;
        if v6 != self.v6 {
            return Err(Drift::Ipv6 { appeared: v6 });
        }
        self.verify_routes()?;
        self.verify_listeners()
    }

    fn verify_routes(&self) -> Result<(), Drift> {
        let routing = Routing::open(&self.netns).map_err(Error::kernel("open rtnetlink"))?;
        for family in families(self.v6) {
            let holds = routing
                .holds(LOOP, family == Family::V6)
                .map_err(|cause| Error::Route { family, cause })?;
            if !holds {
                return Err(Drift::Route(family));
            }
        }
        Ok(())
    }

    fn verify_listeners(&self) -> Result<(), Drift> {
        if self.mode == Mode::Draining {
            // Closing them is the end of draining.
            return Ok(());
        }
        let alive: HashSet<_> = sockdiag::listeners(&self.netns)
            .map_err(Error::kernel("list listeners"))?
            .iter()
            .map(|socket| socket.inode)
            .collect();
        match self.slots.iter().find(|slot| !alive.contains(&slot.inode)) {
            Some(slot) => Err(Drift::Listener(slot.port)),
            None => Ok(()),
        }
    }
}
