//! Renders the rules that capture a pod's TCP, as one transaction for the `nft` program.
//!
//! Pure: from [`Rules`] to text. What the text does, chain by chain:
//!
//! - `out` marks what leaves the pod; the policy route of [`LOOP`] turns marked packets round, so
//!   that they come in again through `lo`. It spares our own sockets and every address that is
//!   local.
//! - `pre` hands packets to our listeners: what came round to the outbound one, what arrives from
//!   outside to the inbound or the tunnel one. Behind every `tproxy` stands a `drop`, since
//!   `tproxy` without a listener lets the packet pass on to the application.
//! - `leave` drops marked packets that were not turned round, because somebody took the route
//!   away.
//!
//! Rules that are easily broken:
//!
//! - **Inbound packets are never marked.** With `src_valid_mark` and `rp_filter` they would be
//!   dropped as martians.
//! - **`socket mark` is accepted** before anything is captured inbound: these are answers to our
//!   own connections.
//! - **Our mark is cleared on `lo`**, or, with `tcp_fwmark_accept`, the application's sockets would
//!   inherit it and not be captured.
//! - **`fib daddr type local`** tells what is local, so that addresses added later count at once.
//! - **Nothing else that arrives is rejected** by a rule: the reset would be turned round like
//!   everything that leaves. A call from outside to a port of ours is captured, and refused by
//!   [`accept`](crate::capture::accept()).
//! - **A port at which nobody listens is refused here** (`asked`), because a listener of ours would
//!   accept for it: kubelet's `tcpSocket` probes only connect, and would find every application
//!   well. The set of what was just refused lets the reset out.
//! - **Exceptions are for connections, not for addresses**: a request for a new connection between
//!   the same ends is never spared, and takes the exception away.
//! - No NAT and no conntrack expression: either would start connection tracking in the pod.
//!
//! Every packet of a captured connection passes here, most of them three times, so what tells most
//! packets apart stands first in a rule, and what is rarely asked in a chain of its own.
//!
//! Statements are those that nft 0.9.4 and Linux 5.14 know.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::capture::Port;
use crate::capture::existing::Connection;
use crate::mesh::Family;
use crate::sys::route::Loop;
use crate::sys::socket::{CAPTURED_MARK, MARK_MASK, OWN_MARK};

/// The name of our nftables table, of family `inet`.
pub const TABLE: &str = "adit";

/// How marked packets come back: before the pod's own policy rules, with a table number that
/// nobody picks by chance (it spells "adit").
pub const LOOP: Loop = Loop {
    mark: CAPTURED_MARK,
    mask: MARK_MASK,
    priority: 539,
    table: 0x6164_6974,
};

/// What the rules are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Capture everything, except the connections given, which were there before.
    Full,
    /// Capture nothing new; only the connections given are still ours. Tunnels are still taken,
    /// because peers learn late that this pod has left.
    Draining,
}

/// The rules of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules<'a> {
    /// What they are to do.
    pub(crate) mode: Mode,
    /// Whether there are IPv6 listeners. If not, IPv6 TCP is dropped: should the pod get IPv6
    /// later, nothing passes until capture has noticed.
    pub(crate) v6: bool,
    /// The exceptions from `mode`.
    pub(crate) connections: &'a [Connection],
    /// Whether packets of connections that nobody knows yet are dropped, to be sent again: while
    /// the exceptions are not complete, they could belong to one. [`thaw`] ends it, or the next
    /// rules do.
    pub(crate) held: bool,
}

/// How the name of the chain begins that tells what rules these are.
const FULL: &str = "config_full_";
const DRAINING: &str = "config_draining_";

/// A connection request, and nothing else.
const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// Any other packet of a connection.
const BEGUN: &str = "tcp flags & (fin | syn | rst | ack) != syn";
/// The chain that drops, as long as the rules are held.
const HELD: &str = "held";

impl Rules<'_> {
    /// The transaction that puts these rules in the place of whatever was there.
    pub(crate) fn transaction(&self) -> String {
        let body = self.body();
        format!(
            "add table inet {TABLE}\ndelete table inet {TABLE}\n\
             table inet {TABLE} {{\n\tchain {} {{\n\t}}\n{body}}}\n",
            self.config(&body)
        )
    }

    /// The transaction that removes every rule of ours; succeeds if there is none.
    pub(crate) fn removal() -> String {
        format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
    }

    /// The name by which these rules can be told from any others, also by another version of this
    /// program.
    pub(crate) fn name(&self) -> String {
        self.config(&self.body())
    }

    /// The name of an empty chain by which anyone can tell from the kernel what these rules are.
    fn config(&self, body: &str) -> String {
        let mode = match self.mode {
            Mode::Full => FULL,
            Mode::Draining => DRAINING,
        };
        format!("{mode}{:016x}", fnv1a(body))
    }

    fn body(&self) -> String {
        let mut text = self.sets();
        if self.held {
            let ours =
                format!("meta l4proto tcp socket mark & {MARK_MASK:#x} == {OWN_MARK:#x} return\n");
            let lines = match self.mode {
                Mode::Full => ours + "drop\n",
                Mode::Draining => "drop\n".to_owned(),
            };
            text += &chain(HELD, "", &lines);
        }
        text += &match self.mode {
            Mode::Full => self.capturing(),
            Mode::Draining => self.draining(),
        };
        text += &self.looped();
        text += &chain(
            "leave",
            "type filter hook postrouting priority mangle; policy accept;",
            &format!(
                "oif != \"lo\" meta mark & {MARK_MASK:#x} == {CAPTURED_MARK:#x} meta l4proto tcp drop\n"
            ),
        );
        text
    }

    /// The hooks of [`Mode::Full`].
    fn capturing(&self) -> String {
        let tunnel = Port::Tunnel.number();
        let mut out = own_accepted();
        out += TO_SELF;
        out += &self.spared(Side::Leaving);
        out += "tcp flags & rst == rst jump refusal\n";
        out += &format!("meta l4proto tcp {}\n", mark_captured());
        let mut refusal = String::new();
        for set in self.refused() {
            let (name, key) = (set.refused, set.key(Side::Leaving));
            let _ = writeln!(refusal, "{key} @{name} accept");
        }

        let mut arriving = self.spared(Side::Arriving);
        arriving += &format!("tcp dport {tunnel} jump tunnel\n");
        arriving += &format!("{SYN} jump asked\n");
        arriving += &self.tproxy(Port::Inbound);
        arriving += "drop\n";

        own_ports()
            + &chain("refusal", "", &refusal)
            + &chain("out", OUT, &out)
            + &chain("tunnel", "", &(self.tproxy(Port::Tunnel) + "drop\n"))
            + &chain("asked", "", &self.asked())
            + &chain("inbound", "", &arriving)
            + &chain(
                "pre",
                PRE,
                &format!(
                    "iif \"lo\" jump loop\n\
                     meta l4proto tcp socket mark & {MARK_MASK:#x} == {OWN_MARK:#x} accept\n\
                     meta l4proto tcp fib daddr type local jump inbound\n"
                ),
            )
    }

    /// Refuses a request for a connection to a port at which nobody listens. Either value of
    /// `transparent` means that there is a socket. What finds no room in the set is captured.
    fn asked(&self) -> String {
        let mut text = "socket transparent 0 return\nsocket transparent 1 return\n".to_owned();
        for set in self.refused() {
            let (name, key) = (set.refused, set.key(Side::Arriving));
            let _ = writeln!(text, "add @{name} {{ {key} }} reject with tcp reset");
        }
        text
    }

    /// The families of which requests are refused.
    fn refused(&self) -> impl Iterator<Item = &'static Set> {
        let v6 = self.v6;
        SETS.iter()
            .filter(move |set| v6 || set.family == Family::V4)
    }

    /// The hooks of [`Mode::Draining`].
    fn draining(&self) -> String {
        let tunnel = Port::Tunnel.number();
        let mut out = own_accepted();
        out += TO_SELF;
        for set in SETS {
            let key = set.key(Side::Leaving);
            // A new connection between the same two ends is nobody's any more.
            out += &format!(
                "{SYN} {key} @{name} delete @{name} {{ {key} }} accept\n",
                name = set.name
            );
            out += &format!("{key} @{} {} accept\n", set.name, mark_captured());
        }
        if self.held {
            let _ = writeln!(out, "{BEGUN} jump {HELD}");
        }
        let refusing = self.tproxy(Port::Tunnel) + "reject with tcp reset\n";
        own_ports()
            + &chain("out", OUT, &out)
            + &chain("tunnel", "", &refusing)
            + &chain(
                "pre",
                PRE,
                &format!(
                    "iif \"lo\" jump loop\n\
                     tcp dport {tunnel} fib daddr type local jump tunnel\n"
                ),
            )
    }

    /// What comes in through `lo`: packets that we turned round, our own, and the pod's with
    /// itself.
    fn looped(&self) -> String {
        let tunnel = Port::Tunnel.number();
        let mut lo = format!(
            "meta mark & {MARK_MASK:#x} == {CAPTURED_MARK:#x} meta l4proto tcp jump captured\n"
        );
        lo += &format!("meta mark & {MARK_MASK:#x} != {OWN_MARK:#x} accept\n");
        // Ours, to the application as if from its client. If the client itself has a connection
        // with these ends, this one would reach that one's socket and get no answer: refuse it,
        // and we take another port.
        lo +=
            &format!("{SYN} socket mark & {MARK_MASK:#x} == {OWN_MARK:#x} reject with tcp reset\n");
        if self.mode == Mode::Draining {
            for set in SETS {
                // The application's answers have to come round to us.
                let (name, key) = (set.name, set.key(Side::Arriving));
                lo += &format!("{SYN} fib saddr type != local add @{name} {{ {key} }}\n");
            }
        }
        // Ours, from the pod to itself by way of a tunnel.
        lo += &format!("tcp dport {tunnel} fib saddr type local jump tunnel\n");
        lo += &format!("meta mark set meta mark & {:#x} accept\n", !MARK_MASK);
        let mut captured = String::new();
        if self.held && self.mode == Mode::Full {
            let _ = writeln!(captured, "{BEGUN} jump {HELD}");
        }
        captured += &self.tproxy(Port::Outbound);
        captured += "drop\n";
        chain("captured", "", &captured) + &chain("loop", "", &lo)
    }

    /// Lets the connections go on that were there before; a new one between the same ends is
    /// captured, and ends the exception.
    fn spared(&self, side: Side) -> String {
        let mut text = String::new();
        for set in SETS {
            if !self.connections.iter().any(|one| set.holds(one)) {
                continue;
            }
            let (name, key) = (set.name, set.key(side));
            let _ = writeln!(text, "{BEGUN} {key} @{name} accept");
            // What arrives may ask for the same connection again, because the answer was lost.
            // As long as the application has a socket for it, `tproxy` does not take it.
            let _ = match side {
                Side::Leaving => writeln!(text, "{SYN} {key} @{name} delete @{name} {{ {key} }}"),
                Side::Arriving if set.family == Family::V6 && !self.v6 => Ok(()),
                Side::Arriving => {
                    let tproxy = set.tproxy(Port::Inbound);
                    writeln!(
                        text,
                        "{SYN} {key} @{name} {tproxy} delete @{name} {{ {key} }} accept"
                    )
                }
            };
        }
        text
    }

    fn tproxy(&self, to: Port) -> String {
        let mut text = String::new();
        for set in SETS
            .iter()
            .filter(|set| self.v6 || set.family == Family::V4)
        {
            let (nfproto, tproxy) = (set.nfproto, set.tproxy(to));
            let _ = writeln!(
                text,
                "meta nfproto {nfproto} meta l4proto tcp {tproxy} accept"
            );
        }
        text
    }

    fn sets(&self) -> String {
        let mut text = String::new();
        for set in SETS {
            let elements: Vec<_> = self.elements(set).map(element).collect();
            if elements.is_empty() && self.mode == Mode::Full {
                continue;
            }
            let Set { name, address, .. } = set;
            let size = elements.len().max(65_535);
            let _ = write!(
                text,
                "\tset {name} {{\n\t\ttype {address} . inet_service . {address} . inet_service\n\
                 \t\tsize {size}\n\t\tflags dynamic\n"
            );
            if !elements.is_empty() {
                let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
            }
            text += "\t}\n";
        }
        if self.mode == Mode::Full {
            for Set {
                refused, address, ..
            } in self.refused()
            {
                // The reset leaves before the rule that calls for it has ended.
                let _ = write!(
                    text,
                    "\tset {refused} {{\n\t\ttype {address} . inet_service . {address} . inet_service\n\
                     \t\tsize 4096\n\t\tflags dynamic,timeout\n\t\ttimeout 1s\n\t}}\n"
                );
            }
        }
        text
    }

    fn elements(&self, set: Set) -> impl Iterator<Item = &Connection> {
        self.connections
            .iter()
            .filter(move |connection| set.holds(connection))
    }
}

/// Which way a packet of a connection goes, seen from the application.
#[derive(Clone, Copy)]
enum Side {
    Leaving,
    Arriving,
}

/// A family, and the set that holds its exceptions.
#[derive(Clone, Copy)]
struct Set {
    /// Of the set of exceptions.
    name: &'static str,
    /// Of the set of what was just refused.
    refused: &'static str,
    family: Family,
    address: &'static str,
    protocol: &'static str,
    nfproto: &'static str,
    loopback: &'static str,
}

/// The names of the sets that hold connections.
pub(crate) const SET_NAMES: [&str; 2] = [SETS[0].name, SETS[1].name];

const SETS: [Set; 2] = [
    Set {
        name: "known4",
        refused: "refused4",
        family: Family::V4,
        address: "ipv4_addr",
        protocol: "ip",
        nfproto: "ipv4",
        loopback: "127.0.0.1",
    },
    Set {
        name: "known6",
        refused: "refused6",
        family: Family::V6,
        address: "ipv6_addr",
        protocol: "ip6",
        nfproto: "ipv6",
        loopback: "[::1]",
    },
];

impl Set {
    fn holds(self, connection: &Connection) -> bool {
        Family::of(connection.local.ip()) == self.family
    }

    /// The statement that gives a packet to one of our listeners, or breaks off its rule.
    fn tproxy(self, to: Port) -> String {
        let Self {
            protocol, loopback, ..
        } = self;
        format!("tproxy {protocol} to {loopback}:{}", to.number())
    }

    /// What is looked up: the application's end, then the other.
    fn key(self, side: Side) -> String {
        let ip = self.protocol;
        match side {
            Side::Leaving => format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport"),
            Side::Arriving => format!("{ip} daddr . tcp dport . {ip} saddr . tcp sport"),
        }
    }
}

const OUT: &str = "type route hook output priority mangle; policy accept;";
/// Every packet to an address of the pod goes through `lo`; asking that first spares all others
/// the look-up of their address.
const TO_SELF: &str = "oif \"lo\" fib daddr type local jump own\n";
const PRE: &str = "type filter hook prerouting priority mangle; policy accept;";

fn own_accepted() -> String {
    format!("meta mark & {MARK_MASK:#x} == {OWN_MARK:#x} accept\n")
}

fn mark_captured() -> String {
    format!(
        "meta mark set meta mark & {:#x} | {CAPTURED_MARK:#x}",
        !MARK_MASK
    )
}

/// Calls that stay in the pod are free, except to our listeners.
fn own_ports() -> String {
    let [outbound, inbound, tunnel] = Port::ALL.map(Port::number);
    chain(
        "own",
        "",
        &format!(
            "tcp dport {{ {outbound}, {inbound}, {tunnel} }} {SYN} reject with tcp reset\naccept\n"
        ),
    )
}

fn chain(name: &str, hook: &str, lines: &str) -> String {
    let mut text = format!("\tchain {name} {{\n");
    for line in std::iter::once(hook)
        .chain(lines.lines())
        .filter(|line| !line.is_empty())
    {
        let _ = writeln!(text, "\t\t{line}");
    }
    text + "\t}\n"
}

fn element(connection: &Connection) -> String {
    let Connection { local, remote } = connection;
    format!(
        "{} . {} . {} . {}",
        local.ip(),
        local.port(),
        remote.ip(),
        remote.port()
    )
}

/// A hash (FNV-1a) that is the same whatever compiled it.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The transaction that adds connections to rules of [`Mode::Draining`] that are held, and lets
/// go. Not by writing them again: since they stand, they have been adding connections themselves.
pub(crate) fn thaw(connections: &[Connection]) -> String {
    let mut text = String::new();
    for connection in connections {
        for set in SETS.iter().filter(|set| set.holds(connection)) {
            let (name, element) = (set.name, element(connection));
            let _ = writeln!(text, "add element inet {TABLE} {name} {{ {element} }}");
        }
    }
    text + &format!("flush chain inet {TABLE} {HELD}\n")
}

/// Whether rules, as `nft list table` prints them, are those of [`Mode::Draining`].
pub(crate) fn is_draining(listing: &str) -> bool {
    listing.contains(&format!("chain {DRAINING}"))
}

/// The name of the rules that `nft list table` printed, as [`Rules::name`] gives it.
pub(crate) fn name_in(listing: &str) -> Option<&str> {
    let mut words = listing.split_whitespace();
    words.find(|word| word.starts_with(FULL) || word.starts_with(DRAINING))
}

/// The connections in a set, as `nft list set` prints it.
///
/// Anything that is not one is passed over: the text comes from a namespace that others may write
/// to, and a connection that is not found is one that is not spared.
pub(crate) fn read_connections(listing: &str) -> Vec<Connection> {
    let Some((_, elements)) = listing.split_once("elements = {") else {
        return Vec::new();
    };
    let elements = elements.split('}').next().unwrap_or_default();
    elements.split(',').filter_map(read_connection).collect()
}

fn read_connection(element: &str) -> Option<Connection> {
    let mut parts = element.split(" . ").map(str::trim);
    let mut end = || {
        let ip: IpAddr = parts.next()?.parse().ok()?;
        let port: u16 = parts.next()?.parse().ok()?;
        Some(SocketAddr::new(ip, port))
    };
    Some(Connection {
        local: end()?,
        remote: end()?,
    })
}

#[cfg(test)]
mod tests;
