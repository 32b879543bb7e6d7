//! One connection: what arrives, what streams do, what is to be written.
//!
//! Frames that only this side decides on wait in `out` until [`flush`](Connection::flush); DATA
//! is written behind them at once. Each bound on what a peer can make this side do is a constant
//! here.

mod heads;
mod input;
mod receive;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::task::Waker;

use crate::tunnel::http2::connection::input::Input;
use crate::tunnel::http2::fields::Fields;
use crate::tunnel::http2::flow::{self, Window};
use crate::tunnel::http2::frame::{self, LAST_ID, setting};
use crate::tunnel::http2::hpack::Decoder;
use crate::tunnel::http2::pieces::Pieces;
use crate::tunnel::http2::reason::{Failure, Reason};
use crate::tunnel::http2::table::{Slot, Table, is};

pub(crate) use streams::{Fate, Room};

/// Streams that the peer reset before anybody looked at them; more end the connection (rapid reset:
/// opening and resetting costs a peer less than looking).
const RESETS_PENDING: usize = 100;
/// Streams that we reset and remember, so that late frames for them are no error.
const RESETS_REMEMBERED: usize = 256;
/// Streams that the peer may make us reset by breaking rules, in the life of a connection: each
/// gives back its place before what it had begun is undone.
const RESETS_PROVOKED: u32 = 1024;
/// Answers (to PING, SETTINGS, frames for ended streams) that one turn may ask for, and that may
/// wait while the peer does not read. About 170 KB.
const ANSWERS: u32 = 10_000;
/// Frames of one turn that carry nothing: empty DATA, PRIORITY, unknown types, interim responses.
const IDLE_FRAMES: u32 = 10_000;
/// CONTINUATION frames of one header block: what a limit of 64 KiB needs in the smallest frames
/// that a peer can be asked to keep to, and some.
const CONTINUATIONS: u32 = 8;
/// Streams that a peer is assumed to take until its SETTINGS say otherwise.
const STREAMS_ASSUMED: u32 = 100;
/// Frames that may wait to be written while more arrives: far more than all streams of a tunnel have
/// to say at once.
const OUT_MOST: usize = 4 << 20;
/// The part of the connection's window that is given back at once.
const STEP: u32 = 8;
/// What `out` may hold on to when it is empty.
const OUT_KEPT: usize = 1024;
/// The payload of a PING that asks for a sign of life or a round trip.
const PING: [u8; 8] = *b"adit:rtt";
/// The payload of the PINGs between the two GOAWAYs of a drain.
const DRAIN: [u8; 8] = *b"adit:end";

/// Which side of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What this side announces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) role: Role,
    /// The first receive window of streams.
    pub(crate) window: u32,
    /// The receive window of the connection.
    pub(crate) connection_window: u32,
    /// The largest frame, both ways.
    pub(crate) frame: u32,
    /// Bytes of a head, decoded.
    pub(crate) header_list: u32,
    /// Streams that the peer may have open.
    pub(crate) streams: u32,
}

/// Where frames are written.
pub(crate) trait Sink {
    /// Takes all of it.
    fn write(&mut self, parts: &[IoSlice<'_>]);
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    config: Config,
    input: Input,
    decoder: Decoder,
    table: Table,
    pieces: Pieces,
    /// Frames to be written.
    out: Vec<u8>,
    woken: Vec<Waker>,
    starved: Vec<Slot>,
    arrivals: VecDeque<(Slot, Fields)>,
    /// How many of `arrivals` the peer has reset.
    abandoned: usize,
    /// Streams that we reset, the latest last.
    reset: VecDeque<u32>,
    provoked: u32,
    answers: u32,
    idle_frames: u32,
    /// What the peer has announced.
    peer: Peer,
    /// What may be sent on all streams together.
    send: Window,
    /// What may be received on all streams together, and what of it was delivered or dropped and is
    /// not given back yet. What waits for a reader is neither, so that this bounds it.
    receive: Window,
    owed: u32,
    /// Bytes that wait for readers, on all streams together.
    unread: usize,
    /// The receive window of streams, as the peer has acknowledged it.
    window: u32,
    /// One that it has not acknowledged yet.
    announced: Option<u32>,
    /// The next stream of ours.
    next: u32,
    /// The last stream of the peer's that we looked at.
    last: u32,
    /// A block was encoded already.
    encoded: bool,
    ping: Ping,
    drain: Drain,
    /// The peer's GOAWAY: its last stream identifier and its code.
    gone: Option<(u32, Reason)>,
}

#[derive(Debug)]
struct Peer {
    greeted: bool,
    window: u32,
    frame: u32,
    streams: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ping {
    None,
    Sent,
    Answered,
}

/// How far an orderly end has come (RFC 9113 §6.8).
///
/// A peer answers a PING before it sends what already waited when it was asked (h2 does, and so
/// ztunnel). So its first answer says that it knows, and only the answer to a second PING that
/// nothing waits any more. What it has opened until then is served, and the GOAWAY that draws the
/// line goes out with the last stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    Not,
    /// The peer has been asked to open nothing more.
    Asked,
    /// It knows, but streams of before may still be on their way.
    Known,
    /// Nothing more is on its way.
    Settled,
    /// What it opens above this is not looked at.
    Behind(u32),
}

impl Connection {
    /// A connection that has just begun. What it says first is to be flushed.
    pub(crate) fn new(config: Config) -> Self {
        let mut connection = Self {
            config,
            input: Input::new(config.role),
            decoder: Decoder::new(),
            table: Table::default(),
            pieces: Pieces::default(),
            out: Vec::with_capacity(128),
            woken: Vec::new(),
            starved: Vec::new(),
            arrivals: VecDeque::new(),
            abandoned: 0,
            reset: VecDeque::new(),
            provoked: 0,
            answers: 0,
            idle_frames: 0,
            peer: Peer {
                greeted: false,
                window: flow::DEFAULT,
                frame: 16_384,
                streams: STREAMS_ASSUMED,
            },
            send: Window::new(flow::DEFAULT),
            receive: Window::new(config.connection_window),
            owed: 0,
            unread: 0,
            window: flow::DEFAULT,
            announced: Some(config.window),
            next: 1,
            last: 0,
            encoded: false,
            ping: Ping::None,
            drain: Drain::Not,
            gone: None,
        };
        connection.greet();
        connection
    }

    fn greet(&mut self) {
        let config = self.config;
        let first = match config.role {
            Role::Client => {
                self.out.extend_from_slice(frame::PREFACE);
                (setting::ENABLE_PUSH, 0)
            }
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, config.streams),
        };
        let settings = [
            first,
            (setting::INITIAL_WINDOW_SIZE, config.window),
            (setting::MAX_FRAME_SIZE, config.frame),
            (setting::MAX_HEADER_LIST_SIZE, config.header_list),
        ];
        frame::settings(&mut self.out, &settings);
        let more = config.connection_window - flow::DEFAULT;
        frame::window_update(&mut self.out, 0, more);
    }

    /// Begins a turn: what floods is counted by turns.
    pub(crate) fn begin_turn(&mut self) {
        self.idle_frames = 0;
        if self.out.is_empty() {
            self.answers = 0;
        }
    }

    /// Whether frames wait to be written.
    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Writes the frames that wait.
    pub(crate) fn flush(&mut self, sink: &mut impl Sink) {
        if self.out.is_empty() {
            return;
        }
        sink.write(&[IoSlice::new(&self.out)]);
        match self.out.capacity() <= OUT_KEPT {
            true => self.out.clear(),
            false => self.out = Vec::new(),
        }
    }

    /// Those who have to be woken, taken over.
    pub(crate) fn take_woken(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.woken)
    }

    /// Gives back the empty list of [`take_woken`](Self::take_woken).
    pub(crate) fn keep_woken(&mut self, woken: Vec<Waker>) {
        if self.woken.is_empty() && woken.capacity() <= 64 {
            self.woken = woken;
        }
    }

    /// Whether anybody has to be woken.
    pub(crate) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// There is room on the wire again.
    pub(crate) fn relieve(&mut self) {
        for slot in std::mem::take(&mut self.starved) {
            self.table.entry(slot).facts &= !is::STARVED;
            self.wake(slot);
        }
    }

    fn wake(&mut self, slot: Slot) {
        self.woken.extend(self.table.entry(slot).waker.take());
    }

    /// Whether the peer's SETTINGS have come.
    pub(crate) fn is_greeted(&self) -> bool {
        self.peer.greeted
    }

    /// How many bytes wait for readers.
    pub(crate) fn unread(&self) -> usize {
        self.unread
    }

    /// How many streams somebody holds.
    pub(crate) fn held(&self) -> usize {
        self.table.held()
    }

    /// Whether no stream is open, and none may come.
    pub(crate) fn is_done(&self) -> bool {
        let drained = matches!(self.drain, Drain::Settled | Drain::Behind(_));
        let closing = self.gone.is_some() || drained;
        closing && self.is_quiet()
    }

    /// Whether no stream is open.
    pub(crate) fn is_quiet(&self) -> bool {
        self.table.opened() == 0 && self.arrivals.is_empty()
    }

    /// How many streams of ours the peer takes at once.
    pub(crate) fn peer_streams(&self) -> usize {
        self.peer.streams as usize
    }

    /// Whether one more stream of ours may be opened, the peer's limit aside.
    pub(crate) fn may_open(&self) -> bool {
        self.gone.is_none() && self.drain == Drain::Not && self.next <= LAST_ID
    }

    /// Sends a PING, unless one is under way; whether it did.
    pub(crate) fn ping(&mut self) -> bool {
        if self.ping == Ping::Sent {
            return false;
        }
        self.ping = Ping::Sent;
        frame::ping(&mut self.out, 0, PING);
        true
    }

    /// Whether the PING was answered since it was sent; tells so once.
    pub(crate) fn pong(&mut self) -> bool {
        let answered = self.ping == Ping::Answered;
        if answered {
            self.ping = Ping::None;
        }
        answered
    }

    /// Announces a new receive window for streams; refused while the peer has not acknowledged the
    /// one before.
    pub(crate) fn resize(&mut self, window: u32) -> bool {
        if self.announced.is_some() {
            return false;
        }
        self.announced = Some(window);
        frame::settings(&mut self.out, &[(setting::INITIAL_WINDOW_SIZE, window)]);
        true
    }

    /// Asks the peer to open nothing more; what it has opened until it knows is still served.
    pub(crate) fn drain(&mut self) {
        if self.drain == Drain::Not {
            self.drain = Drain::Asked;
            frame::goaway(&mut self.out, LAST_ID, Reason::NO_ERROR);
            frame::ping(&mut self.out, 0, DRAIN);
        }
    }

    /// Says that nothing more will come, and why.
    pub(crate) fn say_goodbye(&mut self, reason: Reason) {
        self.drain = Drain::Behind(self.last);
        frame::goaway(&mut self.out, self.last, reason);
    }

    /// The connection is lost to all streams that are open on it.
    pub(crate) fn lose(&mut self) {
        for slot in self.table.slots() {
            self.table.entry(slot).facts |= is::LOST;
            self.drop_unfinished(slot);
            self.wake(slot);
            self.close(slot);
        }
        self.gone.get_or_insert((0, Reason::NO_ERROR));
    }

    /// Takes a stream off the wire.
    fn close(&mut self, slot: Slot) {
        let entry = self.table.entry(slot);
        let (starved, reserved) = (entry.is(is::STARVED), std::mem::take(&mut entry.reserved));
        if starved {
            self.starved.retain(|other| *other != slot);
            self.table.entry(slot).facts &= !is::STARVED;
        }
        self.give_back(reserved);
        self.table.close(slot);
    }

    /// Gives back a part of the connection's window that was set aside.
    fn give_back(&mut self, reserved: u32) {
        if reserved > 0 {
            // It was within the window before it was set aside.
            let _ = self.send.shift(i64::from(reserved));
            self.relieve();
        }
    }

    fn broken<T>(reason: Reason, what: &'static str) -> Result<T, Failure> {
        Err(Failure::Broken(reason, what))
    }
}
