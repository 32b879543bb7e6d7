//! Addresses, policy rules and routes of a namespace (rtnetlink(7)).
//!
//! Only what capture needs: the one policy rule and the one route by which marked packets come
//! back through `lo`, whether they have effect, and which addresses are there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use nix::libc;

use crate::sys::netlink::Netlink;
use crate::sys::netns::Netns;
use crate::sys::socket;

/// The index of `lo`: the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// A way for marked packets back into this machine: a policy rule, and a route table that takes
/// every address for a local one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The packet mark that takes this way.
    pub mark: u32,
    /// The bits of the mark that are looked at.
    pub mask: u32,
    /// The place of the rule among others: smaller goes first, and 0 is the `local` table.
    pub priority: u32,
    /// The number of the route table.
    pub table: u32,
}

/// An open rtnetlink conversation with one namespace.
#[derive(Debug)]
pub struct Routing(Netlink);

impl Routing {
    /// Opens a conversation with `netns`.
    ///
    /// # Errors
    ///
    /// As [`Netlink::open`].
    pub fn open(netns: &Netns) -> io::Result<Self> {
        Netlink::open(netns, netlink_sys::protocols::NETLINK_ROUTE).map(Self)
    }

    /// All addresses of all interfaces, loopback and link-local ones too.
    ///
    /// # Errors
    ///
    /// What the kernel answered.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let request = bytes(&AddressMessage::default());
        let messages = self.0.dump(libc::RTM_GETADDR, &request)?;
        let mut all = Vec::new();
        for message in messages {
            let message = AddressMessage::parse(&message.payload).map_err(io::Error::other)?;
            let own = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            };
            let any = |attribute: &AddressAttribute| match attribute {
                // On a point-to-point link this one is the peer's, and Local is there too.
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            };
            let attributes = &message.attributes;
            all.extend(
                attributes
                    .iter()
                    .find_map(own)
                    .or_else(|| attributes.iter().find_map(any)),
            );
        }
        Ok(all)
    }

    /// Brings `lo` up, and sends everything to it that has no other route. For a namespace that
    /// was made to try something in; one of a pod is never changed so.
    ///
    /// # Errors
    ///
    /// What the kernel answered.
    pub fn furnish(&self) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = LOOPBACK;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.0.tell(libc::RTM_NEWLINK, &bytes(&link))?;
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Link;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Oif(LOOPBACK)];
        self.0.create(libc::RTM_NEWROUTE, &bytes(&route))
    }

    /// Makes the rule and the route of `way`, for IPv4 or IPv6. Ones that are there stay.
    ///
    /// # Errors
    ///
    /// What the kernel answered: `EAFNOSUPPORT` or `EOPNOTSUPP` when the family is missing or the
    /// kernel has no policy routing, `ENETDOWN` when `lo` is down.
    pub fn add(&self, way: Loop, v6: bool) -> io::Result<()> {
        // The route first: a rule that leads to an empty table would let packets pass.
        let route = bytes(&way.route(v6));
        unless(libc::EEXIST, self.0.create(libc::RTM_NEWROUTE, &route))?;
        let rule = bytes(&way.rule(v6));
        unless(libc::EEXIST, self.0.create(libc::RTM_NEWRULE, &rule))
    }

    /// Removes the rule and the route of `way`; that one is missing is no error.
    ///
    /// # Errors
    ///
    /// What the kernel answered.
    pub fn remove(&self, way: Loop, v6: bool) -> io::Result<()> {
        // Every copy of the rule goes: adding one twice is possible for other programs.
        while self
            .0
            .tell(libc::RTM_DELRULE, &bytes(&way.rule(v6)))
            .map_or_else(gone, |()| Ok(true))?
        {}
        let route = bytes(&way.route(v6));
        self.0
            .tell(libc::RTM_DELROUTE, &route)
            .map_or_else(gone, |()| Ok(true))?;
        Ok(())
    }

    /// Whether a packet to some far address that carries the mark of `way` would take it: rule and
    /// route are there, and no other rule comes before them.
    ///
    /// # Errors
    ///
    /// What the kernel answered, except that there is no route at all.
    pub fn holds(&self, way: Loop, v6: bool) -> io::Result<bool> {
        let far = if v6 { FAR_V6 } else { FAR_V4 };
        let mut question = RouteMessage::default();
        question.header.address_family = family(v6);
        question.header.destination_prefix_length = if v6 { 128 } else { 32 };
        question.header.flags = RouteFlags::LookupTable;
        question.attributes = vec![
            RouteAttribute::Destination(far.into()),
            RouteAttribute::Mark(way.mark),
        ];
        let answer = match self.0.ask(libc::RTM_GETROUTE, &bytes(&question)) {
            Ok(answer) => answer,
            Err(error) if unreachable(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let answer = RouteMessage::parse(&answer.payload).map_err(io::Error::other)?;
        let table = answer
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Table(table) => Some(*table),
                _ => None,
            });
        Ok(answer.header.kind == RouteType::Local && table == Some(way.table))
    }

    /// Whether rule or route of `way` are there, with effect or not.
    ///
    /// # Errors
    ///
    /// What the kernel answered.
    pub fn present(&self, way: Loop, v6: bool) -> io::Result<bool> {
        let mut question = RuleMessage::default();
        question.header.family = family(v6);
        let rules = match self.0.dump(libc::RTM_GETRULE, &bytes(&question)) {
            Ok(rules) => rules,
            Err(error) if no_family(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        for rule in rules {
            let rule = RuleMessage::parse(&rule.payload).map_err(io::Error::other)?;
            if rule.attributes.contains(&RuleAttribute::Table(way.table)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Loop {
    fn rule(self, v6: bool) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = family(v6);
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
        ];
        rule
    }

    fn route(self, v6: bool) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header = RouteHeader {
            address_family: family(v6),
            protocol: RouteProtocol::Static,
            scope: if v6 {
                RouteScope::Universe
            } else {
                RouteScope::Host
            },
            kind: RouteType::Local,
            ..RouteHeader::default()
        };
        route.attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Oif(LOOPBACK),
        ];
        route
    }
}

/// Addresses of the blocks for documentation (RFC 5737, RFC 3849): nobody's own.
const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 251));
const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xad17));

/// Whether programs in `netns` can use their loopback address of the family.
///
/// A kernel or a namespace without IPv6 says so in many ways (no such family, `disable_ipv6` on
/// `lo` or on all); what they have in common is that `::1` cannot be bound.
///
/// # Errors
///
/// As [`Netns::enter`].
pub fn has_loopback(netns: &Netns, v6: bool) -> io::Result<bool> {
    let ip: IpAddr = if v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    let addr = SocketAddr::new(ip, 0).into();
    match socket::connector(netns, ip).and_then(|socket| socket.bind(&addr)) {
        Ok(()) => Ok(true),
        Err(error) if no_family(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn unless(expected: libc::c_int, outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(expected) => Ok(()),
        outcome => outcome,
    }
}

/// What was to be removed is not there: `false`.
fn gone(error: io::Error) -> io::Result<bool> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH | libc::ENODEV) => Ok(false),
        _ if no_family(&error) => Ok(false),
        _ => Err(error),
    }
}

fn no_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EOPNOTSUPP | libc::EPFNOSUPPORT)
    )
}

fn unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES)
    ) || no_family(error)
}
