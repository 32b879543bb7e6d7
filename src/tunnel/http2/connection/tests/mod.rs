//! Connections against peers that break the rules, against one another, and against the h2 crate.

mod ends;
mod hostile;
mod oracle;
mod pairs;

use std::io::IoSlice;

use crate::tunnel::http2::connection::{Config, Connection, Role, Sink};
use crate::tunnel::http2::frame::{self, HEAD, Head, PREFACE, flag, kind};
use crate::tunnel::http2::hpack::encoder;
use crate::tunnel::http2::reason::Reason;

/// What is written, in memory.
#[derive(Default)]
struct Written(Vec<u8>);

impl Sink for &mut Written {
    fn write(&mut self, parts: &[IoSlice<'_>]) {
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
    }
}

fn config(role: Role) -> Config {
    Config {
        role,
        window: 100_000,
        connection_window: 1 << 30,
        frame: 65_527,
        header_list: 16 * 1024,
        streams: 10,
    }
}

/// What a connection has to say.
fn output(connection: &mut Connection) -> Vec<u8> {
    let mut written = Written::default();
    connection.flush(&mut &mut written);
    written.0
}

/// The frames in `bytes`, in words; those of every connection's begin are left out.
fn frames(bytes: &[u8]) -> Vec<String> {
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut all = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<HEAD>() {
        let head = Head::read(*head);
        let (payload, tail) = tail.split_at(head.length as usize);
        rest = tail;
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let end = if head.has(flag::END_STREAM) {
            " end"
        } else {
            ""
        };
        let stream = head.stream;
        all.push(match head.kind {
            kind::DATA => format!("DATA {stream} {}{end}", head.length),
            kind::HEADERS => format!("HEADERS {stream}{end}"),
            kind::RST_STREAM => format!("RST {stream} {}", Reason::from_code(number(0))),
            kind::SETTINGS if head.has(flag::ACK) => "ACK".to_owned(),
            kind::SETTINGS => continue,
            kind::PING if head.has(flag::ACK) => "PONG".to_owned(),
            kind::PING => "PING".to_owned(),
            kind::GOAWAY => format!("GOAWAY {} {}", number(0), Reason::from_code(number(4))),
            kind::WINDOW_UPDATE if stream == 0 => continue,
            kind::WINDOW_UPDATE => format!("WINDOW {stream} {}", number(0)),
            other => format!("kind {other}"),
        });
    }
    all
}

fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Head::new(kind, flags, stream, payload.len())
        .bytes()
        .to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::settings(&mut bytes, pairs);
    bytes
}

fn window_update(stream: u32, by: u32) -> Vec<u8> {
    raw(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn reset(stream: u32) -> Vec<u8> {
    raw(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    raw(kind::DATA, flags, stream, payload)
}

/// A CONNECT, or what else these fields make.
fn request(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        encoder::field(&mut block, name, value.as_bytes());
    }
    if fields.is_empty() {
        encoder::connect(&mut block, b"10.0.0.1:80");
    }
    raw(kind::HEADERS, flags | flag::END_HEADERS, stream, &block)
}

fn response(stream: u32, flags: u8, status: u16) -> Vec<u8> {
    let mut block = Vec::new();
    encoder::status(&mut block, status);
    raw(kind::HEADERS, flags | flag::END_HEADERS, stream, &block)
}
