//! A peer of frames alone, for what the order of frames decides.

use std::net::SocketAddr;
use std::sync::Arc;

use adit::pki::Certificate;
use adit::tunnel::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bed::{self, Bed, identity, run};
use crate::peer;

/// Types of frames (RFC 9113 §6).
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// Flags of frames.
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

struct Peer(TlsStream<TcpStream>);

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A CONNECT, its two fields as literals whose names are in the static table (RFC 7541).
fn request(stream: u32, to: SocketAddr) -> Vec<u8> {
    let to = to.to_string();
    let length = u8::try_from(to.len()).unwrap();
    let block = [b"\x02\x07CONNECT\x01", &[length][..], to.as_bytes()].concat();
    frame(HEADERS, END_HEADERS, stream, &block)
}

impl Peer {
    async fn connect(via: SocketAddr, certificate: &Arc<Certificate>) -> Self {
        let tcp = TcpStream::connect(via).await.unwrap();
        let connector = TlsConnector::from(tls::client_config(certificate, &identity("web")));
        let mut stream = connector.connect(tls::server_name(), tcp).await.unwrap();
        let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        stream.write_all(hello).await.unwrap();
        let mut peer = Self(stream);
        peer.say(&frame(SETTINGS, 0, 0, &[])).await;
        peer
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// The next frame of this type.
    async fn hear(&mut self, kind: u8) -> Frame {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            if head[3] == kind {
                return Frame {
                    kind,
                    flags: head[4],
                    stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
                    payload,
                };
            }
        }
    }
}

/// ztunnel lost connections when Adit was relieved: its answer to the PING of a drain overtakes the
/// requests that waited in its process at that moment.
#[test]
fn a_request_behind_the_answer_to_the_ping_of_a_drain_is_served() {
    run(async {
        let (listener, app) = bed::listen().await;
        peer::echo(listener);
        let bed = Bed::new(app).await;
        let client = bed.trust.issue("client").await;
        let mut peer = Peer::connect(bed.via.get(), &client).await;
        peer.say(&request(1, app)).await;
        assert_eq!(peer.hear(HEADERS).await.stream, 1);
        bed.drain.notify_waiters();
        assert_eq!(peer.hear(GOAWAY).await.payload[..4], [0x7f, 255, 255, 255]);
        let ping = peer.hear(PING).await;
        assert_eq!((ping.kind, ping.flags), (PING, 0));
        let pong = frame(PING, ACK, 0, &ping.payload);
        peer.say(&[pong, request(3, app)].concat()).await;
        let answer = peer.hear(HEADERS).await;
        assert_eq!(answer.stream, 3);
        // Of the static table, `:status: 200`; a change of the table's size may stand before it.
        assert!(answer.payload.contains(&0x88), "{:?}", answer.payload);
    });
}
