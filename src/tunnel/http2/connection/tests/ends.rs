//! How a connection is ended in order, and when a reset is sent.

use crate::tunnel::http2::connection::tests::hostile::ready;
use crate::tunnel::http2::connection::{Fate, Room};

use super::*;

#[test]
fn a_goaway_fails_what_was_not_seen() {
    let (mut connection, first) = ready(Role::Client);
    let second = connection.open(b"10.0.0.1:80", |_| {});
    let goaway = |last: u32| raw(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    connection.receive(goaway(1).into()).unwrap();
    assert_eq!(connection.fate(first.unwrap()), None);
    assert_eq!(connection.fate(second), Some(Fate::Unseen));
    assert!(!connection.may_open() && !connection.is_done());
    connection
        .receive(response(1, flag::END_STREAM, 401).into())
        .unwrap();
    connection.reset(first.unwrap(), Reason::CANCEL);
    assert!(connection.is_done());
    assert!(connection.receive(goaway(3).into()).is_err());
}

/// Two answers to PING, because the first one overtakes what waited when the peer was asked.
#[test]
fn a_drain_serves_all_that_was_on_its_way() {
    let (mut connection, _) = ready(Role::Server);
    connection.receive(request(1, 0, &[]).into()).unwrap();
    connection.drain();
    let said = output(&mut connection);
    assert_eq!(frames(&said), ["GOAWAY 2147483647 NO_ERROR", "PING"]);
    let pong = raw(kind::PING, flag::ACK, 0, &said[said.len() - 8..]);
    connection.receive(request(3, 0, &[]).into()).unwrap();
    connection.receive(pong.clone().into()).unwrap();
    connection.receive(request(5, 0, &[]).into()).unwrap();
    assert_eq!(frames(&output(&mut connection)), ["PING"]);
    for id in [1, 3, 5] {
        assert!(!connection.is_done());
        let (slot, _) = connection.next_arrival().unwrap();
        connection.answer(slot, 503, true);
        connection.reset(slot, Reason::NO_ERROR);
        connection.release(slot);
        let expect = [format!("HEADERS {id} end"), format!("RST {id} NO_ERROR")];
        assert_eq!(frames(&output(&mut connection)), expect);
    }
    assert!(!connection.is_done(), "more may be on its way");
    connection.receive(pong.into()).unwrap();
    assert!(connection.is_done());
    connection.say_goodbye(Reason::NO_ERROR);
    for bytes in [request(7, 0, &[]), data(7, 0, b"x"), window_update(7, 7)] {
        connection.receive(bytes.into()).unwrap();
    }
    assert!(connection.next_arrival().is_none());
    assert_eq!(frames(&output(&mut connection)), ["GOAWAY 5 NO_ERROR"]);
}

#[test]
fn the_reset_of_a_request_waits_for_its_answer_and_not_for_ever() {
    let (mut connection, _) = ready(Role::Client);
    let slots = [0; 3].map(|_| connection.open(b"10.0.0.1:80", |_| ()));
    output(&mut connection);
    for slot in slots {
        connection.reset(slot, Reason::CONNECT_ERROR);
        assert_eq!(connection.fate(slot), Some(Fate::Closed));
        assert_eq!(connection.room(slot, 1), Room::Ended);
        connection.release(slot);
    }
    assert_eq!(frames(&output(&mut connection)), [""; 0]);
    assert_eq!(connection.held(), 4, "they count until they are answered");
    connection.receive(response(3, 0, 200).into()).unwrap();
    connection
        .receive(response(7, flag::END_STREAM, 503).into())
        .unwrap();
    let expect = ["RST 3 CONNECT_ERROR", "RST 7 CONNECT_ERROR"];
    assert_eq!(frames(&output(&mut connection)), expect);
    connection.hurry();
    assert_eq!(frames(&output(&mut connection)), [""; 0]);
    connection.hurry();
    assert_eq!(frames(&output(&mut connection)), ["RST 5 CONNECT_ERROR"]);
    assert_eq!(connection.held(), 1);
}
