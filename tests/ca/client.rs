//! The client of `adit node`, before authorities that are not as they should be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit::mesh::Identity;
use adit::pki::remote::{Address, RemoteCa, Settings};
use adit::pki::{Certificate, IssueError, Issuer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{Bed, replace};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

struct Node {
    ca: RemoteCa,
    token: PathBuf,
    root: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    fn new(bed: &Bed, address: SocketAddr) -> Self {
        Self::at(bed, &address.ip().to_string(), address.port())
    }

    fn at(bed: &Bed, host: &str, port: u16) -> Self {
        let (token, root) = (bed.path("token"), bed.path("root.pem"));
        replace(&token, "worker-1-token\n");
        replace(&root, &bed.bundle());
        let settings = Settings {
            address: Address {
                host: host.to_owned(),
                port,
            },
            token: token.clone(),
            root: root.clone(),
            validity: Duration::from_secs(3600),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Self {
            ca: RemoteCa::new(settings).expect("the host is one"),
            token,
            root,
            runtime: runtime.expect("a runtime can be made"),
        }
    }

    fn ask(&self) -> Result<Certificate, IssueError> {
        let cart = Identity::parse(CART).expect("it is an identity");
        self.runtime.block_on(self.ca.issue(&cart))
    }

    #[track_caller]
    fn fails(&self, reason: &str, told: &str) {
        let error = self.ask().expect_err(reason);
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", cause.unwrap_or_default());
        assert_eq!(error.reason(), reason, "{text}");
        assert!(text.contains(told), "{text}");
    }
}

#[test]
fn certificates_come_with_their_roots() {
    let (bed, control) = Bed::shop();
    let node = Node::new(&bed, control.address());
    let first = node.ask().expect("it is granted");
    assert_eq!(first.identity().to_string(), CART);
    assert_eq!((first.chain().len(), first.roots().len()), (1, 1));
    let life = first.not_after().duration_since(first.lifetime().issued);
    assert!(life.is_ok_and(|life| (3590..=3600).contains(&life.as_secs())));
    let second = node.ask().expect("it is granted");
    assert_ne!(first.serial(), second.serial());
    let ends = node.ca.ends().expect("the root's end is known");
    assert!(ends > std::time::SystemTime::now() + Duration::from_secs(9 * 365 * 86_400));
}

#[test]
fn the_token_is_read_for_each_request() {
    let (bed, control) = Bed::shop();
    let node = Node::new(&bed, control.address());
    assert!(node.ask().is_ok());
    replace(&node.token, "stolen");
    node.fails(
        "ca_unauthenticated",
        "it says: the API server does not believe the token",
    );
    bed.node("worker-1b");
    bed.token("fresh", crate::bed::daemon("worker-1"));
    replace(&node.token, "fresh");
    assert!(node.ask().is_ok());
    replace(&node.token, "worker-2-token");
    node.fails("ca_denied", "shop/cart runs on node worker-2");
    replace(&node.token, " \n");
    node.fails("ca_token", "holds no token");
    std::fs::remove_file(&node.token).expect("it is there");
    node.fails("ca_token", "--ca-token");
}

#[test]
fn the_server_is_checked_by_the_roots_in_the_file() {
    let (bed, control) = Bed::shop();
    let node = Node::new(&bed, control.address());
    let right = bed.bundle();
    let other = Bed::new();
    let _other = other.start("other", &[]);
    replace(&node.root, &other.bundle());
    node.fails("ca_untrusted", "--ca");
    replace(&node.root, "not PEM at all");
    node.fails("ca_root", "no certificate in PEM");
    std::fs::remove_file(&node.root).expect("it is there");
    node.fails("ca_root", "--ca-root");
    replace(&node.root, &format!("{}{right}", other.bundle()));
    assert!(node.ask().is_ok(), "one of the roots suffices");
    // Its certificate is for other names.
    let elsewhere = Node::at(&bed, "127.0.0.2", control.address().port());
    elsewhere.fails("ca_untrusted", "names the host");
}

#[test]
fn names_are_looked_up_and_every_address_is_tried() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let control = bed.start("control", &["--name", "localhost"]);
    let port = control.address().port();
    let node = Node::at(&bed, "localhost", port);
    assert!(node.ask().is_ok());
    Node::at(&bed, "no-such-name.invalid", port).fails("ca_lookup", "no-such-name.invalid");
}

#[test]
fn a_replica_that_goes_takes_no_request_with_it() {
    let (bed, mut control) = Bed::shop();
    let node = Node::new(&bed, control.address());
    assert!(node.ask().is_ok());
    let ports = control.ports();
    control.kill();
    node.fails("ca_unreachable", "check that it runs");
    let mut next = bed.spawn_at("next", ports, &[]);
    next.await_ready();
    assert!(node.ask().is_ok());
    // The connection that is kept died unnoticed: a new one is made at once.
    next.kill();
    let mut last = bed.spawn_at("last", ports, &[]);
    last.await_ready();
    assert!(node.ask().is_ok());
}

/// Accepts connections and answers each as `manner` says, for ever.
fn rude(manner: &'static str) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    listener.set_nonblocking(true).expect("a socket may be");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime can be made").block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
            loop {
                let (mut stream, _) = listener.accept().await.expect("it accepts");
                tokio::spawn(async move {
                    let mut bytes = [0; 1024];
                    let _ = stream.read(&mut bytes).await;
                    match manner {
                        "plain" => {
                            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await)
                        }
                        "silent" => tokio::time::sleep(Duration::from_secs(60)).await,
                        _ => {}
                    }
                });
            }
        });
    });
    address
}

#[test]
fn servers_that_are_none_are_told_apart() {
    let (bed, _control) = Bed::shop();
    Node::new(&bed, rude("plain")).fails("ca_untrusted", "TLS with the authority");
    Node::new(&bed, rude("hangup")).fails("ca_untrusted", "TLS with the authority");
    let start = Instant::now();
    Node::new(&bed, rude("silent")).fails("ca_untrusted", "TLS with the authority");
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn an_authority_that_takes_the_request_and_is_silent_is_given_up() {
    let (bed, control) = Bed::shop();
    let node = Arc::new(Node::new(&bed, control.address()));
    assert!(node.ask().is_ok());
    control.signal(nix::sys::signal::Signal::SIGSTOP);
    let start = Instant::now();
    let error = node.ask().expect_err("nobody answers");
    assert!(
        start.elapsed() < Duration::from_secs(25),
        "{:?}",
        start.elapsed()
    );
    let reasons = ["ca_lost", "ca_silent", "ca_untrusted"];
    assert!(reasons.contains(&error.reason()), "{}", error.reason());
    control.signal(nix::sys::signal::Signal::SIGCONT);
    assert!(node.ask().is_ok());
}
