//! Tells whether this machine can capture at all, by trying it in a namespace of its own.
//!
//! Called once, before the daemon says that it is ready. What would otherwise be one strange error
//! per pod becomes one message that names the cause and what to do.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use nix::libc;
use socket2::SockRef;

use crate::capture::Error;
use crate::capture::enrol::{Options, enrol};
use crate::capture::existing::Existing;
use crate::capture::nft::{self, Failure};
use crate::sys::netns::Netns;
use crate::sys::route::Routing;
use crate::sys::socket::Listener;

/// Why this machine cannot capture.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The process lacks a right.
    #[error(
        "the capability {0} is missing: run as root, or add it to the container's securityContext"
    )]
    Capability(&'static str),
    /// The kernel cannot tell namespaces apart.
    #[error("this kernel has no SO_NETNS_COOKIE: Linux 5.14 or later is needed")]
    OldKernel,
    /// There is no `nft`.
    #[error("there is no nft program: install the nftables package")]
    NoNft,
    /// The kernel lacks something that the rules need.
    #[error("this kernel lacks {feature}: load the module {module}, or use a kernel with {option}")]
    Feature {
        /// What.
        feature: &'static str,
        /// The module that brings it.
        module: &'static str,
        /// The option it is built with.
        option: &'static str,
    },
    /// Everything could be set up, but a connection was not captured.
    #[error("the rules are in place, but a connection passed them by")]
    NoEffect(#[source] io::Error),
    /// Something else.
    #[error("capture does not work in a namespace made to try it")]
    Failed(#[source] Error),
    /// The namespace to try it in could not be made or used.
    #[error("cannot make a network namespace to try capture in")]
    Scratch(#[source] io::Error),
}

/// One thing that the rules need, and rules that need nothing else.
struct Need {
    feature: &'static str,
    module: &'static str,
    option: &'static str,
    rules: &'static str,
}

const NEEDS: [Need; 6] = [
    Need {
        feature: "nf_tables for inet",
        module: "nf_tables",
        option: "CONFIG_NF_TABLES_INET",
        rules: "chain a { type filter hook prerouting priority mangle; }",
    },
    Need {
        feature: "nftables' tproxy",
        module: "nft_tproxy",
        option: "CONFIG_NFT_TPROXY",
        rules: "chain a { type filter hook prerouting priority mangle; \
                meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:1; }",
    },
    Need {
        feature: "nftables' socket match",
        module: "nft_socket",
        option: "CONFIG_NFT_SOCKET",
        rules: "chain a { type filter hook prerouting priority mangle; socket mark 1; }",
    },
    Need {
        feature: "nftables' fib match",
        module: "nft_fib_inet",
        option: "CONFIG_NFT_FIB_INET",
        rules: "chain a { type filter hook prerouting priority mangle; fib daddr type local; }",
    },
    Need {
        feature: "nftables' reject",
        module: "nft_reject_inet",
        option: "CONFIG_NFT_REJECT_INET",
        rules: "chain a { type filter hook prerouting priority mangle; reject with tcp reset; }",
    },
    Need {
        feature: "nftables' dynamic sets",
        module: "nf_tables",
        option: "CONFIG_NF_TABLES",
        rules: "set s { type ipv4_addr; size 1; flags dynamic; }\n\
                set t { type ipv4_addr; size 1; flags dynamic,timeout; timeout 1s; }\n\
                chain a { type filter hook output priority mangle; delete @s { ip saddr }; add @t { ip saddr }; }",
    },
];

/// An address that the namespace can only send to.
const FAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 251)), 80);

/// Captures one connection in a namespace made for it.
///
/// # Errors
///
/// What is missing; see [`Unfit`].
pub fn probe() -> Result<(), Unfit> {
    let netns = Netns::scratch().map_err(scratch)?;
    Routing::open(&netns)
        .and_then(|routing| routing.furnish())
        .map_err(furnish)?;
    let options = Options {
        workers: 1,
        existing: Existing::Keep,
        fresh: false,
    };
    let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut capture = enrol(&netns, &[own], &options).map_err(|error| explain(&netns, error))?;
    let listeners = capture.take_listeners();
    let outbound = listeners
        .into_iter()
        .flat_map(|worker| worker.outbound)
        .next();
    let arrived = outbound.map_or_else(
        || Err(io::ErrorKind::NotFound.into()),
        |listener| try_one(&netns, &listener),
    );
    arrived.map_err(Unfit::NoEffect)
}

/// Connects to far away and looks whether it arrives here.
fn try_one(netns: &Netns, listener: &Listener) -> io::Result<()> {
    let limit = Duration::from_secs(2);
    let _client = std::thread::scope(|scope| {
        let inside = scope.spawn(|| netns.enter(|| TcpStream::connect_timeout(&FAR, limit)));
        inside
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("thread panicked")))
    })??;
    let listener = SockRef::from(listener);
    listener.set_nonblocking(false)?;
    listener.set_read_timeout(Some(limit))?;
    let (accepted, _) = listener.accept()?;
    if accepted.local_addr()?.as_socket() == Some(FAR) {
        Ok(())
    } else {
        Err(io::Error::other("the original destination is lost"))
    }
}

fn scratch(error: io::Error) -> Unfit {
    match error.raw_os_error() {
        Some(libc::EPERM) => Unfit::Capability("CAP_SYS_ADMIN"),
        Some(libc::ENOPROTOOPT) => Unfit::OldKernel,
        _ => Unfit::Scratch(error),
    }
}

/// The namespace is there; only the right to change it can be missing.
fn furnish(error: io::Error) -> Unfit {
    match error.raw_os_error() {
        Some(libc::EPERM) => Unfit::Capability("CAP_NET_ADMIN"),
        _ => Unfit::Scratch(error),
    }
}

/// Finds the cause behind what failed.
fn explain(netns: &Netns, error: Error) -> Unfit {
    match error {
        Error::Listen { ref cause, .. }
        | Error::Route { ref cause, .. }
        | Error::Kernel { ref cause, .. }
            if cause.raw_os_error() == Some(libc::EPERM) =>
        {
            Unfit::Capability("CAP_NET_ADMIN")
        }
        Error::Route { ref cause, .. } if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Unfit::Feature {
                feature: "policy routing",
                module: "none",
                option: "CONFIG_IP_MULTIPLE_TABLES",
            }
        }
        Error::Rules {
            cause: Failure::Missing,
            ..
        } => Unfit::NoNft,
        Error::Rules {
            cause: Failure::Refused(ref said),
            ..
        } if said.contains("not permitted") => Unfit::Capability("CAP_NET_ADMIN"),
        Error::Rules {
            cause: Failure::Refused(_),
            ..
        } => missing(netns).unwrap_or(Unfit::Failed(error)),
        error => Unfit::Failed(error),
    }
}

/// The first thing that the kernel cannot do alone either.
fn missing(netns: &Netns) -> Option<Unfit> {
    NEEDS
        .iter()
        .find(|need| {
            let table = format!(
                "table inet try {{\n{}\n}}\ndelete table inet try\n",
                need.rules
            );
            nft::commit(netns, &table).is_err()
        })
        .map(|need| Unfit::Feature {
            feature: need.feature,
            module: need.module,
            option: need.option,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A need that this machine's kernel, which has all of them, does not fulfil is written wrong.
    #[test]
    fn needs_are_written_right() {
        let netns = Netns::scratch().unwrap();
        for need in NEEDS {
            let table = format!("table inet try {{\n{}\n}}", need.rules);
            nft::commit(&netns, &table).unwrap();
            nft::commit(&netns, "delete table inet try").unwrap();
        }
        assert!(missing(&netns).is_none());
    }

    #[test]
    fn this_machine_can_capture() {
        probe().unwrap();
    }
}
