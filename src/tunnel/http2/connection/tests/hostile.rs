//! Each violation of a rule, and what it is answered with; floods; arbitrary bytes.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::tunnel::http2::connection::Room;
use crate::tunnel::http2::table::Slot;

/// A server whose client has greeted it, or a client with stream 1 open.
pub(super) fn ready(role: Role) -> (Connection, Option<Slot>) {
    let mut connection = Connection::new(config(role));
    let mut slot = None;
    if role == Role::Server {
        connection.receive(Bytes::from_static(PREFACE)).unwrap();
    }
    connection.receive(settings(&[]).into()).unwrap();
    let ack = raw(kind::SETTINGS, flag::ACK, 0, &[]);
    connection.receive(ack.into()).unwrap();
    if role == Role::Client {
        slot = Some(connection.open(b"10.0.0.1:80", |_| {}));
    }
    output(&mut connection);
    (connection, slot)
}

/// What `sent` is answered with, whole and byte by byte. Requests are taken and answered.
fn check(role: Role, sent: &[Vec<u8>], expect: &str) {
    for whole in [true, false] {
        let (mut connection, _slot) = ready(role);
        let mut said = Vec::new();
        for bytes in sent {
            let size = if whole { bytes.len() } else { 1 };
            let mut failed = false;
            for piece in bytes.chunks(size) {
                if connection.receive(Bytes::copy_from_slice(piece)).is_err() {
                    failed = true;
                    break;
                }
            }
            said.extend(output(&mut connection));
            if failed {
                break;
            }
            while let Some((slot, _)) = connection.next_arrival() {
                connection.answer(slot, 200, false);
            }
        }
        said.extend(output(&mut connection));
        assert_eq!(frames(&said).join(", "), expect, "{sent:?} whole: {whole}");
    }
}

fn server(sent: &[Vec<u8>], expect: &str) {
    check(Role::Server, sent, expect);
}

fn client(sent: &[Vec<u8>], expect: &str) {
    check(Role::Client, sent, expect);
}

const END: u8 = flag::END_STREAM;

#[test]
fn a_connection_begins_as_it_must() {
    let begin = |bytes: &[u8]| {
        let mut connection = Connection::new(config(Role::Server));
        let failed = connection.receive(Bytes::copy_from_slice(bytes)).is_err();
        let said = frames(&output(&mut connection)).join(", ");
        assert_eq!(failed, said.contains("GOAWAY"));
        said
    };
    assert_eq!(begin(b"GET / HTTP/1.1\r\n"), "GOAWAY 0 PROTOCOL_ERROR");
    assert_eq!(begin(&PREFACE[..10]), "");
    let ping = [PREFACE, &raw(kind::PING, 0, 0, &[0; 8])].concat();
    assert_eq!(begin(&ping), "GOAWAY 0 PROTOCOL_ERROR");
    let good = [PREFACE, &settings(&[])].concat();
    assert_eq!(begin(&good), "ACK");
}

#[test]
fn frames_have_their_sizes() {
    let wrong = "GOAWAY 0 FRAME_SIZE_ERROR";
    server(&[raw(kind::PING, 0, 0, &[0; 7])], wrong);
    server(&[raw(kind::SETTINGS, 0, 0, &[0; 5])], wrong);
    server(&[raw(kind::SETTINGS, flag::ACK, 0, &[0; 6])], wrong);
    server(&[raw(kind::RST_STREAM, 0, 1, &[0; 5])], wrong);
    server(&[raw(kind::WINDOW_UPDATE, 0, 0, &[0; 3])], wrong);
    server(&[raw(kind::GOAWAY, 0, 0, &[0; 7])], wrong);
    server(&[raw(kind::PRIORITY, 0, 1, &[0; 4])], wrong);
    let padded = flag::PADDED | flag::END_HEADERS;
    server(&[raw(kind::HEADERS, padded, 1, &[])], wrong);
    let priority = flag::PRIORITY | flag::END_HEADERS;
    server(&[raw(kind::HEADERS, priority, 1, &[0; 4])], wrong);
    let large = Head::new(kind::DATA, 0, 1, 65_528).bytes().to_vec();
    server(&[large], wrong);
    server(
        &[request(1, 0, &[]), data(1, flag::PADDED, &[])],
        "HEADERS 1, GOAWAY 1 FRAME_SIZE_ERROR",
    );
}

#[test]
fn frames_are_where_they_belong() {
    let wrong = "GOAWAY 0 PROTOCOL_ERROR";
    server(&[raw(kind::PING, 0, 1, &[0; 8])], wrong);
    server(&[raw(kind::SETTINGS, 0, 1, &[])], wrong);
    server(&[raw(kind::GOAWAY, 0, 1, &[0; 8])], wrong);
    server(&[raw(kind::PRIORITY, 0, 0, &[0; 5])], wrong);
    server(&[raw(kind::PUSH_PROMISE, 0, 1, &[0; 4])], wrong);
    server(&[raw(kind::SETTINGS, flag::ACK, 0, &[])], wrong);
    server(&[data(0, 0, b"x")], wrong);
    server(&[data(1, 0, b"x")], wrong);
    server(&[reset(0)], wrong);
    server(&[reset(1)], wrong);
    server(&[window_update(3, 1)], wrong);
    server(&[window_update(0, 0)], wrong);
    server(&[request(2, 0, &[])], wrong);
    server(&[request(0, 0, &[])], wrong);
    server(
        &[request(3, 0, &[]), request(1, 0, &[])],
        "HEADERS 3, GOAWAY 3 PROTOCOL_ERROR",
    );
    client(&[data(3, 0, b"x")], wrong);
    client(&[response(3, 0, 200)], wrong);
    client(&[response(2, 0, 200)], wrong);
    client(&[raw(kind::PUSH_PROMISE, 4, 1, &[0; 8])], wrong);
    // Unknown frames and priorities are nothing to this side.
    server(&[raw(77, 255, 9, b"what")], "");
    server(&[raw(kind::PRIORITY, 0, 9, &[0; 5])], "");
    server(&[raw(kind::PING, 0, 0, b"12345678")], "PONG");
}

#[test]
fn header_blocks_are_whole_and_decodable() {
    let begun = raw(kind::HEADERS, 0, 1, &[0x82]);
    let wrong = "GOAWAY 0 PROTOCOL_ERROR";
    server(&[begun.clone(), raw(kind::PING, 0, 0, &[0; 8])], wrong);
    server(&[begun.clone(), raw(kind::CONTINUATION, 4, 3, &[])], wrong);
    server(&[raw(kind::CONTINUATION, 4, 1, &[])], wrong);
    let calm = "GOAWAY 0 ENHANCE_YOUR_CALM";
    let empty = raw(kind::CONTINUATION, 0, 1, &[]);
    server(&[vec![begun.clone()], vec![empty; 20]].concat(), calm);
    let large = raw(kind::CONTINUATION, 0, 1, &vec![0; 40_000]);
    server(&[begun, large.clone(), large], calm);
    server(
        &[raw(kind::HEADERS, flag::END_HEADERS, 1, &[0x80])],
        "GOAWAY 0 COMPRESSION_ERROR",
    );
    let padded = [&[2][..], &request(1, 0, &[])[HEAD..], &[0, 0]].concat();
    let flags = flag::PADDED | flag::END_HEADERS;
    server(&[raw(kind::HEADERS, flags, 1, &padded)], "HEADERS 1");
    server(&[raw(kind::HEADERS, flags, 1, &[9, 0])], wrong);
    let block = request(1, 0, &[])[HEAD..].to_vec();
    let (first, second) = block.split_at(5);
    let cut = [
        raw(kind::HEADERS, END, 1, first),
        raw(kind::CONTINUATION, flag::END_HEADERS, 1, second),
    ];
    server(&cut, "HEADERS 1");
}

#[test]
fn settings_have_their_values() {
    let one = |name, value, expect: &str| {
        server(&[settings(&[(name, value)])], expect);
        client(&[settings(&[(name, value)])], expect);
    };
    one(4, 1 << 31, "GOAWAY 0 FLOW_CONTROL_ERROR");
    one(5, 16_383, "GOAWAY 0 PROTOCOL_ERROR");
    one(5, 1 << 24, "GOAWAY 0 PROTOCOL_ERROR");
    one(2, 2, "GOAWAY 0 PROTOCOL_ERROR");
    one(1, 0, "ACK");
    one(99, 7, "ACK");
    server(&[settings(&[(2, 1)])], "ACK");
    client(&[settings(&[(2, 1)])], "GOAWAY 0 PROTOCOL_ERROR");
}

#[test]
fn windows_hold() {
    let open = request(1, 0, &[]);
    server(
        &[window_update(0, (1 << 31) - 1)],
        "GOAWAY 0 FLOW_CONTROL_ERROR",
    );
    server(
        &[open.clone(), window_update(1, (1 << 31) - 1)],
        "HEADERS 1, RST 1 FLOW_CONTROL_ERROR",
    );
    server(
        &[open.clone(), window_update(1, 0)],
        "HEADERS 1, RST 1 PROTOCOL_ERROR",
    );
    let most = (1_u32 << 31) - 1 - 65_535;
    server(
        &[
            open.clone(),
            window_update(1, most),
            settings(&[(4, 65_536)]),
        ],
        "HEADERS 1, GOAWAY 1 FLOW_CONTROL_ERROR",
    );
    let half = vec![0; 50_000];
    let full = [open.clone(), data(1, 0, &half), data(1, 0, &half)];
    server(&full, "HEADERS 1");
    server(
        &[&full[..], &[data(1, 0, b"x")]].concat(),
        "HEADERS 1, RST 1 FLOW_CONTROL_ERROR",
    );
    // What comes for a stream that is reset counts for the connection and is no error.
    server(
        &[&full[..], &vec![data(1, 0, b"x"); 3]].concat(),
        "HEADERS 1, RST 1 FLOW_CONTROL_ERROR",
    );
    server(
        &[open, data(1, flag::PADDED, &[9, 0, 0])],
        "HEADERS 1, GOAWAY 1 PROTOCOL_ERROR",
    );
}

#[test]
fn streams_end_once() {
    let open = request(1, END, &[]);
    let closed = "HEADERS 1, RST 1 STREAM_CLOSED";
    server(&[open.clone(), data(1, 0, b"x")], closed);
    server(&[open.clone(), request(1, END, &[("a", "b")])], closed);
    server(&[request(1, 0, &[]), reset(1), reset(1)], "HEADERS 1");
    server(
        &[
            request(1, 0, &[]),
            reset(1),
            data(1, 0, b"x"),
            data(1, 0, b"x"),
        ],
        closed,
    );
    server(
        &[request(1, 0, &[]), reset(1), window_update(1, 1)],
        "HEADERS 1",
    );
    let trailers = request(1, END, &[("grpc-status", "0")]);
    server(&[request(1, 0, &[]), trailers], "HEADERS 1");
    let wrong = "HEADERS 1, RST 1 PROTOCOL_ERROR";
    server(&[request(1, 0, &[]), request(1, 0, &[("a", "b")])], wrong);
    let pseudo = request(1, END, &[(":status", "200")]);
    server(&[request(1, 0, &[]), pseudo], wrong);
    client(
        &[response(1, END, 200), data(1, 0, b"x")],
        "RST 1 STREAM_CLOSED",
    );
}

#[test]
fn messages_are_well_formed() {
    let wrong = "RST 1 PROTOCOL_ERROR";
    server(&[request(1, 0, &[(":method", "CONNECT")])], wrong);
    server(&[request(1, 0, &[("a", "b")])], wrong);
    let head = [(":method", "CONNECT"), (":authority", "x"), ("Upper", "x")];
    server(&[request(1, 0, &head)], wrong);
    // The next one is not touched by that.
    let both = [request(1, 0, &head), request(3, 0, &[])];
    server(&both, "RST 1 PROTOCOL_ERROR, HEADERS 3");
    let get = [(":method", "GET"), (":scheme", "https"), (":path", "/")];
    server(&[request(1, END, &get)], "HEADERS 1");
    let long = "x".repeat(17_000);
    let head = [(":method", "CONNECT"), (":authority", "x"), ("long", &long)];
    server(&[request(1, 0, &head)], "HEADERS 1 end, RST 1 NO_ERROR");

    client(&[data(1, 0, b"x")], wrong);
    client(&[response(1, END, 100)], wrong);
    client(&[response(1, 0, 101)], wrong);
    client(&[request(1, 0, &[("a", "b")])], wrong);
    client(&[request(1, 0, &[(":status", "abc")])], wrong);
    client(&[response(1, 0, 103), response(1, 0, 200)], "");
    client(&[response(1, 0, 200), response(1, 0, 200)], wrong);
    client(&[response(1, 0, 200), request(1, END, &[("a", "b")])], "");
}

#[test]
fn only_so_many_streams_are_open() {
    let mut sent: Vec<_> = (0..11).map(|at| request(2 * at + 1, 0, &[])).collect();
    sent.push(data(21, END, b"late"));
    let mut expect: Vec<_> = (0..10)
        .map(|at| format!("HEADERS {}", 2 * at + 1))
        .collect();
    expect.push("RST 21 REFUSED_STREAM".to_owned());
    server(&sent, &expect.join(", "));
}

/// Feeds `sent` over and over in one turn, or in turns whose answers are never written.
fn flood(role: Role, sent: impl Fn(u32) -> Vec<u8>, turns: bool) -> Option<(u32, Reason)> {
    let (mut connection, _slot) = ready(role);
    (0..100_000).find_map(|round| {
        if turns {
            connection.begin_turn();
        }
        let failure = connection.receive(sent(round).into()).err()?;
        Some((round, failure.reason()))
    })
}

#[test]
fn floods_end_the_connection() {
    let calm = |sent: &dyn Fn(u32) -> Vec<u8>, turns, most: u32| {
        let (rounds, reason) = flood(Role::Server, sent, turns).expect("no bound");
        assert_eq!(reason, Reason::ENHANCE_YOUR_CALM);
        assert!(rounds <= most, "only after {rounds}");
    };
    for turns in [false, true] {
        calm(&|_| raw(kind::PING, 0, 0, &[0; 8]), turns, 10_000);
        calm(&|_| settings(&[]), turns, 10_000);
    }
    calm(&|_| raw(99, 0, 0, &[]), false, 10_000);
    calm(&|_| raw(kind::PRIORITY, 0, 1, &[0; 5]), false, 10_000);
    let open = |round: u32, then: &[u8]| [&request(2 * round + 1, 0, &[]), then].concat();
    let (rounds, reason) = flood(
        Role::Server,
        |round| open(round, &reset(2 * round + 1)),
        true,
    )
    .expect("no bound");
    assert_eq!((rounds, reason), (100, Reason::ENHANCE_YOUR_CALM));
    calm(
        &|round| open(round, &window_update(2 * round + 1, 0)),
        true,
        1024,
    );
    calm(
        &|round| match round {
            0 => open(0, &[]),
            _ => data(1, 0, &[]),
        },
        false,
        10_001,
    );
}

/// A client that asks for what is refused, and reads no answer.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    let (mut connection, _) = ready(Role::Server);
    let failure = (0..1_000_000).find_map(|round| {
        connection.begin_turn();
        let sent = request(2 * round + 1, 0, &[]);
        if let Err(failure) = connection.receive(sent.into()) {
            return Some(failure);
        }
        let (slot, _) = connection.next_arrival().unwrap();
        connection.answer(slot, 401, true);
        connection.reset(slot, Reason::NO_ERROR);
        connection.release(slot);
        None
    });
    assert_eq!(
        failure.map(|failure| failure.reason()),
        Some(Reason::ENHANCE_YOUR_CALM)
    );
}

/// A client that lets a window grow for one stream, and then uses it for many.
#[test]
fn what_waits_on_all_streams_is_bounded() {
    let mut connection = Connection::new(Config {
        window: 4 << 20,
        connection_window: 1 << 20,
        ..config(Role::Server)
    });
    let ack = raw(kind::SETTINGS, flag::ACK, 0, &[]);
    let begin = [PREFACE, &settings(&[]), &ack].concat();
    connection.receive(begin.into()).unwrap();
    let mut slots = Vec::new();
    for at in 0..10 {
        connection
            .receive(request(2 * at + 1, 0, &[]).into())
            .unwrap();
        let (slot, _) = connection.next_arrival().unwrap();
        connection.answer(slot, 200, false);
        slots.push(slot);
    }
    output(&mut connection);
    let piece = data(1, 0, &[0; 60_000]);
    let mut sent = 0;
    let mut send = |connection: &mut Connection, stream: u32| {
        let mut piece = piece.clone();
        piece[5..9].copy_from_slice(&stream.to_be_bytes());
        sent += 60_000;
        connection.receive(piece.into()).is_ok()
    };
    // What is delivered, dropped with its stream, padded or late makes room again.
    for round in 0..100 {
        let at = round % 9;
        assert!(send(&mut connection, 2 * at as u32 + 1), "{round}");
        if at < 4 {
            let mut taken = 0;
            connection.take(slots[at], |piece| taken += piece.len());
            connection.consumed(slots[at], taken);
        } else if round < 9 && at < 8 {
            connection.reset(slots[at], Reason::CANCEL);
            connection.release(slots[at]);
        } else if at == 8 {
            connection.take(slots[at], |_| {});
            connection.consumed(slots[at], 60_000);
        }
        connection.begin_turn();
        output(&mut connection);
    }
    // What nobody takes does not.
    let mut more = 0;
    while send(&mut connection, 19) {
        more += 60_000;
        connection.begin_turn();
        output(&mut connection);
        assert!(more <= 1 << 20, "{more} bytes wait");
    }
    assert!(more > 1 << 19, "only {more} bytes may wait");
}

#[test]
fn a_head_costs_no_more_than_some_times_its_limit() {
    let (mut connection, _) = ready(Role::Server);
    // One field that fills the table, and then its name over and over.
    let mut block = vec![0x40, 0x7f, 0xa1, 0x1e];
    block.extend(vec![b'a'; 4000]);
    block.push(0);
    block.extend([0x7e, 0].repeat(10_000));
    let sent = raw(kind::HEADERS, flag::END_HEADERS, 1, &block);
    let failure = connection.receive(sent.into()).unwrap_err();
    assert_eq!(failure.reason(), Reason::ENHANCE_YOUR_CALM);
}

/// Each change of the window touches all streams, and a frame has room for 10,000.
#[test]
fn a_window_changes_once_in_a_frame() {
    let (mut connection, _) = ready(Role::Client);
    let slots: Vec<_> = (0..1000)
        .map(|_| connection.open(b"10.0.0.1:80", |_| {}))
        .collect();
    let pairs: Vec<_> = (0..10_000).map(|at| (4, 70_000 + at % 2)).collect();
    let start = std::time::Instant::now();
    for _ in 0..50 {
        connection.receive(settings(&pairs).into()).unwrap();
    }
    let took = start.elapsed();
    assert!(took < std::time::Duration::from_secs(2), "{took:?}");
    // And all of it took place.
    let update = window_update(0, 100_000);
    connection.receive(update.into()).unwrap();
    assert_eq!(connection.room(slots[0], 80_000), Room::Bytes(70_001));
}

#[test]
fn what_is_looked_at_and_reset_is_no_flood() {
    let (mut connection, _) = ready(Role::Server);
    for round in 0..5000 {
        let id = 2 * round + 1;
        connection.begin_turn();
        connection.receive(request(id, 0, &[]).into()).unwrap();
        let (slot, _) = connection.next_arrival().unwrap();
        connection.receive(reset(id).into()).unwrap();
        connection.release(slot);
        output(&mut connection);
    }
    assert_eq!(connection.held(), 0);
}

#[test]
fn a_smaller_window_stalls_nobody() {
    let (mut connection, _) = ready(Role::Server);
    connection.receive(request(1, 0, &[]).into()).unwrap();
    let (slot, _) = connection.next_arrival().unwrap();
    connection.answer(slot, 200, false);
    connection.receive(data(1, 0, &[0; 40_000]).into()).unwrap();
    connection.take(slot, |_| {});
    connection.consumed(slot, 40_000);
    assert!(connection.resize(10_000) && !connection.resize(9));
    output(&mut connection);
    let ack = raw(kind::SETTINGS, flag::ACK, 0, &[]);
    connection.receive(ack.into()).unwrap();
    assert_eq!(frames(&output(&mut connection)), ["WINDOW 1 40000"]);
}

fn arbitrary_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..30),
        Just(vec![0; 8]),
        Just(vec![0, 0, 0, 1]),
        Just(request(1, 0, &[])[HEAD..].to_vec()),
        Just(response(1, 0, 200)[HEAD..].to_vec()),
    ];
    (0_u8..11, any::<u8>(), 0_u32..8, payload)
        .prop_map(|(kind, flags, stream, payload)| raw(kind, flags, stream, &payload))
}

proptest! {
    #[test]
    fn no_frames_panic(
        server: bool,
        sent in prop::collection::vec((arbitrary_frame(), 0_u8..5), 0..60),
    ) {
        let (mut connection, slot) = ready(if server { Role::Server } else { Role::Client });
        let mut slots: Vec<_> = slot.into_iter().collect();
        for (bytes, then) in sent {
            if connection.receive(bytes.into()).is_err() {
                break;
            }
            while let Some((slot, _)) = connection.next_arrival() {
                slots.push(slot);
            }
            for slot in &slots {
                let mut taken = 0;
                connection.take(*slot, |piece| taken += piece.len());
                connection.consumed(*slot, taken);
                connection.room(*slot, 10);
                connection.fate(*slot);
            }
            match (then, slots.pop()) {
                (0, Some(slot)) => connection.release(slot),
                (1, Some(slot)) => {
                    connection.reset(slot, Reason::CANCEL);
                    connection.release(slot);
                }
                (2, Some(slot)) => {
                    connection.answer(slot, 200, true);
                    slots.push(slot);
                }
                (3, Some(slot)) => {
                    let mut written = Written::default();
                    connection.send(slot, b"some", then % 2 == 0, &mut &mut written);
                    slots.push(slot);
                }
                (_, slot) => slots.extend(slot),
            }
        }
        connection.lose();
        slots.into_iter().for_each(|slot| connection.release(slot));
        while connection.next_arrival().is_some() {}
        prop_assert_eq!(connection.held(), 0);
    }

    #[test]
    fn no_bytes_panic(server: bool, pieces: Vec<Vec<u8>>) {
        let (mut connection, _) = ready(if server { Role::Server } else { Role::Client });
        for piece in pieces {
            if connection.receive(piece.into()).is_err() {
                break;
            }
        }
    }
}
