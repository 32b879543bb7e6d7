//! Addresses that cannot be confused with one another.
//!
//! A connection has several addresses at once: the one the application dialled, the pod that
//! serves it, and the tunnel endpoint in front of that pod. Each has its own type, so that a
//! swapped address does not compile.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The TCP port on which every enrolled pod takes HBONE tunnels.
pub const TUNNEL_PORT: u16 = 15008;

/// The IP family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `ip`; an IPv4-mapped IPv6 address counts as IPv4.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if canonical_ip(ip).is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// `ip` with an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2) turned into IPv4.
#[must_use]
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// `addr` with an IPv4-mapped IPv6 address turned into IPv4; flow label and scope are dropped.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical_ip(addr.ip()), addr.port())
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Wraps an address, in canonical form.
            #[must_use]
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The plain socket address.
            #[must_use]
            pub fn get(self) -> SocketAddr {
                self.0
            }

            /// The IP address alone.
            #[must_use]
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port alone.
            #[must_use]
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address! {
    /// What the application dialled, before capture: a service VIP, a pod, or anything else.
    OriginalDst
}
address! {
    /// A pod's own address and the port its application listens on.
    PodAddr
}
address! {
    /// A pod's own address and the port that takes tunnels for it.
    TunnelAddr
}
