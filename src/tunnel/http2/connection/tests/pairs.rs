//! A client and a server of ours, joined by wires that cut at will.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::tunnel::http2::connection::Room;
use crate::tunnel::http2::table::Slot;

/// One side, with what it sends and what it got.
struct Side {
    connection: Connection,
    written: Written,
    /// By a stream's number: its slot, what is still to be sent, what was received, whether it
    /// has ended.
    streams: HashMap<usize, (Slot, Vec<u8>, Vec<u8>, bool)>,
}

impl Side {
    fn new(role: Role) -> Self {
        Self {
            connection: Connection::new(config(role)),
            written: Written::default(),
            streams: HashMap::new(),
        }
    }

    fn work(&mut self, most: usize) {
        for (slot, rest, got, ended) in self.streams.values_mut() {
            if !*ended {
                let before = got.len();
                *ended = self.connection.take(*slot, |piece| got.extend(piece));
                self.connection.consumed(*slot, got.len() - before);
            }
            if rest.is_empty() {
                continue;
            }
            let want = rest.len().min(most);
            if let Room::Bytes(room) = self.connection.room(*slot, want as u32) {
                let now: Vec<u8> = rest.drain(..room as usize).collect();
                let end = rest.is_empty();
                let written = &mut &mut self.written;
                assert!(self.connection.send(*slot, &now, end, written));
            }
        }
        self.connection.flush(&mut &mut self.written);
    }

    /// Moves up to `most` bytes to the other side.
    fn carry(&mut self, to: &mut Self, most: usize) -> bool {
        let count = self.written.0.len().min(most);
        let piece: Vec<u8> = self.written.0.drain(..count).collect();
        to.connection.begin_turn();
        to.connection.receive(piece.into()).unwrap();
        count > 0
    }
}

fn content(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 7 + seed * 13 + at / 256) as u8)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_byte_arrives(
        sizes in prop::collection::vec((1_usize..400_000, 1_usize..400_000), 1..8),
        cuts in prop::collection::vec((1_usize..60_000, 1_usize..60_000), 1..20),
        resizes in prop::collection::vec(20_000_u32..300_000, 0..10),
    ) {
        let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
        for (at, (up, _)) in sizes.iter().enumerate() {
            let authority = at.to_string();
            let slot = client.connection.open(authority.as_bytes(), |_| {});
            let all = content(at, *up);
            client.streams.insert(at, (slot, all, Vec::new(), false));
        }
        let (mut idle, mut round) = (0, 0);
        while idle < 10 {
            let (cut, most) = cuts[round % cuts.len()];
            if let Some(size) = resizes.get(round / 7) {
                server.connection.resize(*size);
                client.connection.resize(*size / 2);
            }
            client.work(most);
            server.work(cut);
            let moved = client.carry(&mut server, cut) | server.carry(&mut client, most);
            while let Some((slot, fields)) = server.connection.next_arrival() {
                let text = fields.first(":authority").unwrap();
                let at: usize = std::str::from_utf8(text).unwrap().parse().unwrap();
                server.connection.answer(slot, 200, false);
                let all = content(at + 100, sizes[at].1);
                server.streams.insert(at, (slot, all, Vec::new(), false));
            }
            idle = if moved { 0 } else { idle + 1 };
            round += 1;
        }
        for (at, (up, down)) in sizes.iter().enumerate() {
            let (slot, rest, got, ended) = &client.streams[&at];
            prop_assert!(rest.is_empty() && *ended, "stream {}", at);
            prop_assert!(*got == content(at + 100, *down), "down {}", at);
            prop_assert_eq!(client.connection.status(*slot), Some(200));
            prop_assert!(server.streams[&at].2 == content(at, *up), "up {}", at);
        }
        prop_assert!(client.connection.is_quiet() && server.connection.is_quiet());
    }
}

#[test]
fn what_one_stream_sets_aside_another_gets_when_it_rests() {
    let mut side = Side::new(Role::Client);
    let first = side.connection.open(b"a", |_| {});
    let second = side.connection.open(b"b", |_| {});
    assert_eq!(side.connection.room(first, 65_000), Room::Bytes(65_000));
    assert_eq!(side.connection.room(second, 65_000), Room::Bytes(535));
    assert_eq!(side.connection.room(first, 10), Room::Bytes(10));
    assert_eq!(side.connection.room(second, 65_000), Room::Bytes(65_000));
    side.connection.rest(second);
    assert_eq!(side.connection.room(first, 70_000), Room::Bytes(65_535));
    assert_eq!(side.connection.room(second, 1), Room::None);
    let written = &mut &mut side.written;
    assert!(!side.connection.send(second, b"x", false, written));
    assert!(side.connection.send(first, b"x", false, written));
    assert_eq!(side.connection.room(second, 70_000), Room::Bytes(65_534));
}

#[test]
fn a_head_leaves_with_the_data_behind_it() {
    let mut side = Side::new(Role::Client);
    output(&mut side.connection);
    let slot = side.connection.open(b"10.0.0.1:80", |_| {});
    side.connection.room(slot, 5);
    let written = &mut &mut side.written;
    assert!(side.connection.send(slot, b"hello", true, written));
    assert_eq!(frames(&side.written.0), ["HEADERS 1", "DATA 1 5 end"]);
}

#[test]
fn nothing_is_kept_of_streams_that_are_gone() {
    let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
    for round in 0..200 {
        let slot = client.connection.open(b"10.0.0.1:80", |_| {});
        client.connection.room(slot, 5);
        let written = &mut &mut client.written;
        client
            .connection
            .send(slot, b"hello", round % 2 == 0, written);
        client.carry(&mut server, usize::MAX);
        let (other, _) = server.connection.next_arrival().unwrap();
        server.connection.answer(other, 200, round % 3 == 0);
        server.connection.reset(other, Reason::CONNECT_ERROR);
        server.connection.release(other);
        server.work(1);
        server.carry(&mut client, usize::MAX);
        client.connection.reset(slot, Reason::CANCEL);
        client.connection.release(slot);
        client.work(1);
    }
    client.carry(&mut server, usize::MAX);
    for side in [&client, &server] {
        assert_eq!(side.connection.held(), 0);
        assert!(side.connection.is_quiet());
    }
}
