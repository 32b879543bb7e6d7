//! Against the h2 crate, over memory: what it sends we read, and what we send it reads.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;

use super::*;
use crate::tunnel::http2::connection::{Fate, Room};
use crate::tunnel::http2::table::Slot;

/// A connection of ours that a task drives.
#[derive(Clone)]
struct Ours {
    connection: Rc<RefCell<Connection>>,
    written: Rc<RefCell<Written>>,
    news: Rc<Notify>,
}

impl Ours {
    fn over(wire: DuplexStream, config: Config, cut: usize) -> Self {
        let ours = Self {
            connection: Rc::new(RefCell::new(Connection::new(config))),
            written: Rc::default(),
            news: Rc::default(),
        };
        tokio::task::spawn_local(ours.clone().drive(wire, cut));
        ours
    }

    async fn drive(self, wire: DuplexStream, cut: usize) {
        let (mut read, mut write) = tokio::io::split(wire);
        let mut buffer = vec![0; cut];
        let mut behind = Written::default();
        loop {
            behind.0.append(&mut self.written.borrow_mut().0);
            self.connection.borrow_mut().flush(&mut &mut behind);
            tokio::select! {
                biased;
                done = write.write(&behind.0), if !behind.0.is_empty() => {
                    let Ok(count) = done else {
                        break;
                    };
                    behind.0.drain(..count);
                }
                count = read.read(&mut buffer) => {
                    let count = count.unwrap_or(0);
                    if count == 0 {
                        break;
                    }
                    let piece = Bytes::copy_from_slice(&buffer[..count]);
                    let mut connection = self.connection.borrow_mut();
                    connection.begin_turn();
                    connection.receive(piece).unwrap();
                    let woken = connection.take_woken();
                    drop(connection);
                    woken.into_iter().for_each(std::task::Waker::wake);
                    self.news.notify_waiters();
                }
                () = self.news.notified() => {}
            }
        }
        self.connection.borrow_mut().lose();
        self.connection
            .borrow_mut()
            .take_woken()
            .into_iter()
            .for_each(std::task::Waker::wake);
    }

    async fn look<T>(&self, slot: Slot, mut look: impl FnMut(&mut Connection) -> Option<T>) -> T {
        std::future::poll_fn(|cx| {
            let mut connection = self.connection.borrow_mut();
            match look(&mut connection) {
                Some(found) => Poll::Ready(found),
                None => {
                    connection.watch(slot, cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Sends all and the end, in pieces.
    async fn send(&self, slot: Slot, all: &[u8], piece: usize) {
        let mut rest = all;
        loop {
            let want = rest.len().min(piece) as u32;
            let room = if want == 0 {
                0
            } else {
                self.look(slot, |connection| match connection.room(slot, want) {
                    Room::Bytes(room) => Some(room as usize),
                    Room::None => None,
                    Room::Ended => panic!("ended by {:?}", connection.fate(slot)),
                })
                .await
            };
            let (now, then) = rest.split_at(room);
            rest = then;
            self.write(slot, now, rest.is_empty());
            self.news.notify_waiters();
            tokio::task::yield_now().await;
            if rest.is_empty() {
                return;
            }
        }
    }

    fn write(&self, slot: Slot, payload: &[u8], end: bool) {
        let mut connection = self.connection.borrow_mut();
        let mut written = self.written.borrow_mut();
        assert!(connection.send(slot, payload, end, &mut &mut *written));
    }

    /// All to the end, or how it ended otherwise.
    async fn receive(&self, slot: Slot) -> Result<Vec<u8>, Fate> {
        let mut all = Vec::new();
        loop {
            let mut count = 0;
            let ended = self
                .look(slot, |connection| {
                    let ended = connection.take(slot, |piece| {
                        count += piece.len();
                        all.extend_from_slice(&piece);
                    });
                    match ended || count > 0 {
                        true => Some(Ok(ended)),
                        false => connection.fate(slot).map(Err),
                    }
                })
                .await?;
            self.connection.borrow_mut().consumed(slot, count);
            self.news.notify_waiters();
            if ended {
                return Ok(all);
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn h2_send(stream: &mut h2::SendStream<Bytes>, all: &[u8], piece: usize) {
    let mut rest = Bytes::copy_from_slice(all);
    while !rest.is_empty() {
        stream.reserve_capacity(piece.min(rest.len()));
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let room = room.unwrap().unwrap().min(rest.len());
        stream.send_data(rest.split_to(room), false).unwrap();
        tokio::task::yield_now().await;
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

async fn h2_receive(body: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        all.extend_from_slice(&bytes);
        body.flow_control().release_capacity(bytes.len())?;
    }
    Ok(all)
}

/// What one stream does.
#[derive(Clone, Debug)]
struct Script {
    up: usize,
    down: usize,
    piece: usize,
    /// The client resets instead of ending.
    reset: bool,
}

#[derive(Clone, Debug)]
struct Plan {
    scripts: Vec<Script>,
    window: u32,
    peer_window: u32,
    frame: u32,
    cut: usize,
    pipe: usize,
}

fn plans() -> impl Strategy<Value = Plan> {
    let script = (0_usize..200_000, 0_usize..200_000, 1_usize..70_000, 0_u8..4);
    let script = script.prop_map(|(up, down, piece, dice)| Script {
        up,
        down,
        piece,
        reset: dice == 0,
    });
    let sizes = (1_u32..300_000, 1_u32..300_000, 16_384_u32..70_000);
    let cuts = (1_usize..70_000, 100_usize..100_000);
    (prop::collection::vec(script, 1..6), sizes, cuts).prop_map(
        |(scripts, (window, peer_window, frame), (cut, pipe))| Plan {
            scripts,
            // A window of a few bytes is a different test, of patience.
            window: window.max(1000),
            peer_window: peer_window.max(1000),
            frame,
            cut: cut.max(20),
            pipe,
        },
    )
}

fn content(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 5 + seed * 17 + at / 256) as u8)
        .collect()
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let limit = std::time::Duration::from_secs(20);
    local.block_on(&runtime, async {
        tokio::time::timeout(limit, work).await.unwrap()
    });
}

fn ours_config(role: Role, plan: &Plan) -> Config {
    Config {
        window: plan.window,
        ..config(role)
    }
}

async fn our_client(plan: Plan) {
    let (near, far) = tokio::io::duplex(plan.pipe);
    let ours = Ours::over(near, ours_config(Role::Client, &plan), plan.cut);
    let scripts = plan.scripts.clone();
    let serving = tokio::task::spawn_local(async move {
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(plan.peer_window);
        builder.max_frame_size(plan.frame);
        let mut server = builder.handshake::<_, Bytes>(far).await.unwrap();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let at = request.uri().authority().unwrap().port_u16().unwrap() as usize - 1;
            let script = scripts[at].clone();
            assert_eq!(request.headers()["name"], "value");
            tokio::task::spawn_local(async move {
                let mut send = respond
                    .send_response(http::Response::new(()), false)
                    .unwrap();
                let mut body = request.into_body();
                let receiving = h2_receive(&mut body);
                if script.reset {
                    let told = receiving.await.unwrap_err();
                    assert_eq!(told.reason(), Some(h2::Reason::CONNECT_ERROR));
                    return;
                }
                let down = content(at + 50, script.down);
                let sending = h2_send(&mut send, &down, script.piece);
                let (got, ()) = tokio::join!(receiving, sending);
                assert!(got.unwrap() == content(at, script.up));
            });
        }
    });
    let work = plan.scripts.iter().enumerate().map(async |(at, script)| {
        let authority = format!("10.0.0.1:{}", at + 1);
        let slot = ours
            .connection
            .borrow_mut()
            .open(authority.as_bytes(), |block| {
                encoder::field(block, "name", b"value");
            });
        ours.news.notify_waiters();
        let status = ours.look(slot, |connection| connection.status(slot)).await;
        assert_eq!(status, 200);
        if script.reset {
            ours.connection
                .borrow_mut()
                .reset(slot, Reason::CONNECT_ERROR);
        } else {
            let up = content(at, script.up);
            let sending = ours.send(slot, &up, script.piece);
            let (got, ()) = tokio::join!(ours.receive(slot), sending);
            assert!(got.unwrap() == content(at + 50, script.down));
        }
        ours.connection.borrow_mut().release(slot);
        ours.news.notify_waiters();
    });
    futures_util::future::join_all(work).await;
    assert!(ours.connection.borrow().is_quiet());
    assert_eq!(ours.connection.borrow().held(), 0);
    drop(serving);
}

async fn our_server(plan: Plan) {
    let (near, far) = tokio::io::duplex(plan.pipe);
    let ours = Ours::over(near, ours_config(Role::Server, &plan), plan.cut);
    let scripts = plan.scripts.clone();
    let serving = ours.clone();
    tokio::task::spawn_local(async move {
        loop {
            let next = serving.connection.borrow_mut().next_arrival();
            let Some((slot, fields)) = next else {
                serving.news.notified().await;
                continue;
            };
            let authority = std::str::from_utf8(fields.first(":authority").unwrap()).unwrap();
            let at: usize = authority.rsplit(':').next().unwrap().parse().unwrap();
            assert_eq!(fields.first("name"), Some(&b"value"[..]));
            let (ours, script) = (serving.clone(), scripts[at].clone());
            tokio::task::spawn_local(async move {
                ours.connection.borrow_mut().answer(slot, 200, false);
                ours.news.notify_waiters();
                if script.reset {
                    let told = ours.receive(slot).await;
                    assert_eq!(told, Err(Fate::Reset(Reason::CANCEL)));
                } else {
                    let down = content(at + 50, script.down);
                    let sending = ours.send(slot, &down, script.piece);
                    let (got, ()) = tokio::join!(ours.receive(slot), sending);
                    assert!(got.unwrap() == content(at, script.up));
                }
                ours.connection.borrow_mut().release(slot);
            });
        }
    });
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(plan.peer_window);
    builder.max_frame_size(plan.frame);
    let (requests, connection) = builder.handshake::<_, Bytes>(far).await.unwrap();
    tokio::task::spawn_local(connection);
    let work = plan.scripts.iter().enumerate().map(async |(at, script)| {
        let request = http::Request::builder()
            .method("CONNECT")
            .uri(format!("10.0.0.1:{at}"))
            .header("name", "value")
            .body(())
            .unwrap();
        let mut requests = requests.clone().ready().await.unwrap();
        let (response, mut send) = requests.send_request(request, false).unwrap();
        let mut body = response.await.unwrap().into_body();
        if script.reset {
            send.send_reset(h2::Reason::CANCEL);
            return;
        }
        let up = content(at, script.up);
        let sending = h2_send(&mut send, &up, script.piece);
        let (got, ()) = tokio::join!(h2_receive(&mut body), sending);
        assert!(got.unwrap() == content(at + 50, script.down));
    });
    futures_util::future::join_all(work).await;
    while ours.connection.borrow().held() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(ours.connection.borrow().is_quiet());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn our_client_and_its_server_agree(plan in plans()) {
        run(our_client(plan));
    }

    #[test]
    fn its_client_and_our_server_agree(plan in plans()) {
        run(our_server(plan));
    }
}
