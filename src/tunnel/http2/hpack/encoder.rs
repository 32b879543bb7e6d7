//! Encodes header blocks, with the static table and literals that no table remembers.
//!
//! The first block of a connection begins with [`NO_TABLE`]: from then on whatever the peer's
//! SETTINGS say of the table's size asks for nothing (RFC 7541 §4.2).

use crate::tunnel::http2::hpack::{integer, statics};

/// "The dynamic table is empty and stays so" (RFC 7541 §6.3).
pub(crate) const NO_TABLE: u8 = 0x20;

/// `:method: CONNECT`, `:authority`.
pub(crate) fn connect(out: &mut Vec<u8>, authority: &[u8]) {
    known(out, statics::METHOD, b"CONNECT");
    known(out, statics::AUTHORITY, authority);
}

/// `:status`.
pub(crate) fn status(out: &mut Vec<u8>, status: u16) {
    match status {
        200 => integer::write(out, 7, 0x80, statics::STATUS),
        _ => known(out, statics::STATUS, status.to_string().as_bytes()),
    }
}

/// A field with a name of its own, in lower case.
pub(crate) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(0);
    string(out, name.as_bytes());
    string(out, value);
}

fn known(out: &mut Vec<u8>, index: usize, value: &[u8]) {
    integer::write(out, 4, 0, index);
    string(out, value);
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    integer::write(out, 7, 0, text.len());
    out.extend_from_slice(text);
}
