//! Peers made of the bare h2 crate, and wires that can be cut.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use adit::pki::Certificate;
use adit::task;
use adit::tunnel::tls;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::bed::{Bed, identity, listen};

pub(crate) type Server = h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes>;

/// The server side of the next tunnel that comes to `listener`.
pub(crate) async fn accept(listener: &TcpListener, certificate: &Arc<Certificate>) -> Server {
    let (tcp, _) = listener.accept().await.unwrap();
    let acceptor = TlsAcceptor::from(tls::server_config(certificate));
    let stream = acceptor.accept(tcp).await.unwrap();
    let builder = h2::server::Builder::new();
    builder.handshake(stream).await.unwrap()
}

/// The same, with a first window of `window` bytes for each stream.
pub(crate) async fn accept_narrow(
    listener: &TcpListener,
    certificate: &Arc<Certificate>,
    window: u32,
) -> Server {
    let (tcp, _) = listener.accept().await.unwrap();
    let acceptor = TlsAcceptor::from(tls::server_config(certificate));
    let stream = acceptor.accept(tcp).await.unwrap();
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(window);
    builder.handshake(stream).await.unwrap()
}

/// A client of the tunnel port at `via`, driven by a task.
pub(crate) async fn connect(
    via: SocketAddr,
    certificate: &Arc<Certificate>,
) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(via).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let connector = TlsConnector::from(tls::client_config(certificate, &identity("web")));
    let stream = connector.connect(tls::server_name(), tcp).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    task::spawn_local("peer", async move { drop(connection.await) }).detach();
    requests
}

pub(crate) fn connect_request(to: SocketAddr) -> http::Request<()> {
    http::Request::builder()
        .method("CONNECT")
        .uri(to.to_string())
        .body(())
        .unwrap()
}

/// All data until the end of the stream, giving room back as it comes.
pub(crate) async fn drain(body: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        all.extend_from_slice(&bytes);
        body.flow_control().release_capacity(bytes.len()).unwrap();
    }
    Ok(all)
}

/// Sends within the peer's window.
pub(crate) async fn send(stream: &mut h2::SendStream<Bytes>, mut bytes: Bytes, piece: usize) {
    while !bytes.is_empty() {
        let want = piece.min(bytes.len());
        stream.reserve_capacity(want);
        while stream.capacity() == 0 {
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
            room.unwrap().unwrap();
        }
        let count = want.min(stream.capacity());
        stream.send_data(bytes.split_to(count), false).unwrap();
        tokio::task::yield_now().await;
    }
}

/// A TCP relay in front of `to`, to be cut or made to swallow everything.
pub(crate) struct Wire {
    pub(crate) addr: SocketAddr,
    pub(crate) connections: Rc<Cell<usize>>,
    cut: Rc<Notify>,
    end: Rc<Notify>,
    deaf: Rc<Cell<bool>>,
}

impl Wire {
    /// Before a bed's own tunnel port: its tunnels go through this from now on.
    pub(crate) async fn of(bed: &Bed) -> Self {
        let wire = Self::to(bed.via.get()).await;
        bed.via.set(wire.addr);
        wire
    }

    pub(crate) async fn to(to: SocketAddr) -> Self {
        let (listener, addr) = listen().await;
        let wire = Self {
            addr,
            connections: Rc::default(),
            cut: Rc::default(),
            end: Rc::default(),
            deaf: Rc::default(),
        };
        let (connections, cut, end, deaf) = (
            wire.connections.clone(),
            wire.cut.clone(),
            wire.end.clone(),
            wire.deaf.clone(),
        );
        task::spawn_local("wire", async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                connections.set(connections.get() + 1);
                let (cut, end, deaf) = (cut.clone(), end.clone(), deaf.clone());
                task::spawn_local("wire", async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        () = carry(&mut near, &mut far, &deaf) => {}
                        () = end.notified() => {}
                        () = cut.notified() => {
                            near.set_zero_linger().unwrap();
                            far.set_zero_linger().unwrap();
                        }
                    }
                })
                .detach();
            }
        })
        .detach();
        wire
    }

    /// Resets all connections.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Ends all connections by FIN.
    pub(crate) fn end(&self) {
        self.end.notify_waiters();
    }

    /// Lets no byte through any more, and tells nobody.
    pub(crate) fn swallow(&self) {
        self.deaf.set(true);
    }
}

async fn carry(near: &mut TcpStream, far: &mut TcpStream, deaf: &Cell<bool>) {
    let mut buffers = (vec![0; 65536], vec![0; 65536]);
    loop {
        let (count, up) = tokio::select! {
            count = near.read(&mut buffers.0) => (count.unwrap_or(0), true),
            count = far.read(&mut buffers.1) => (count.unwrap_or(0), false),
        };
        if deaf.get() {
            std::future::pending::<()>().await;
        }
        let done = match up {
            _ if count == 0 => return,
            true => far.write_all(&buffers.0[..count]).await,
            false => near.write_all(&buffers.1[..count]).await,
        };
        if done.is_err() {
            return;
        }
    }
}

/// Echoes everything on every connection to `listener`.
pub(crate) fn echo(listener: TcpListener) {
    task::spawn_local("echo", async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            task::spawn_local("echo", async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            })
            .detach();
        }
    })
    .detach();
}

/// Drives a bare server until it ends, beside whatever holds its streams.
pub(crate) fn drive(mut server: Server) {
    task::spawn_local("peer", async move {
        let _ = std::future::poll_fn(|cx| server.poll_closed(cx)).await;
    })
    .detach();
}
