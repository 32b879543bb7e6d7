//! Frames, written and read (RFC 9113 §4.1, §6).

use crate::tunnel::http2::reason::{Failure, Reason};

/// The length of a frame's head.
pub(crate) const HEAD: usize = 9;
/// What a client sends first (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The highest stream identifier.
pub(crate) const LAST_ID: u32 = (1 << 31) - 1;

/// Frame types.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
    pub(crate) const PADDED: u8 = 8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Names of settings (RFC 9113 §6.5.2).
pub(crate) mod setting {
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, length: usize) -> Self {
        Self {
            length: u32::try_from(length).expect("a frame is below 16 MiB"),
            kind,
            flags,
            stream,
        }
    }

    pub(crate) fn read(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        let [s, t, u, v, ..] = stream;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes([s, t, u, v]) & LAST_ID,
        }
    }

    pub(crate) fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = self.length.to_be_bytes();
        let [s, t, u, v] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, s, t, u, v]
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

pub(crate) fn settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put(out, Head::new(kind::SETTINGS, 0, 0, settings.len() * 6));
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(crate) fn settings_ack(out: &mut Vec<u8>) {
    put(out, Head::new(kind::SETTINGS, flag::ACK, 0, 0));
}

pub(crate) fn ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    put(out, Head::new(kind::PING, flags, 0, 8));
    out.extend_from_slice(&payload);
}

pub(crate) fn window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    put(out, Head::new(kind::WINDOW_UPDATE, 0, stream, 4));
    out.extend_from_slice(&increment.to_be_bytes());
}

pub(crate) fn reset(out: &mut Vec<u8>, stream: u32, reason: Reason) {
    put(out, Head::new(kind::RST_STREAM, 0, stream, 4));
    out.extend_from_slice(&reason.code().to_be_bytes());
}

pub(crate) fn goaway(out: &mut Vec<u8>, last: u32, reason: Reason) {
    put(out, Head::new(kind::GOAWAY, 0, 0, 8));
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&reason.code().to_be_bytes());
}

/// A header block in as many frames as it takes.
pub(crate) fn headers(out: &mut Vec<u8>, stream: u32, mut flags: u8, block: &[u8], most: usize) {
    let mut rest = block;
    let mut kind = kind::HEADERS;
    loop {
        let (now, then) = rest.split_at(rest.len().min(most));
        if then.is_empty() {
            flags |= flag::END_HEADERS;
        }
        put(out, Head::new(kind, flags, stream, now.len()));
        out.extend_from_slice(now);
        if then.is_empty() {
            return;
        }
        (rest, kind, flags) = (then, kind::CONTINUATION, 0);
    }
}

fn put(out: &mut Vec<u8>, head: Head) {
    out.extend_from_slice(&head.bytes());
}

/// The payload without its padding (RFC 9113 §6.1, §6.2).
pub(crate) fn unpad(head: Head, payload: &[u8]) -> Result<&[u8], Failure> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let bad = Failure::Broken(Reason::PROTOCOL_ERROR, "padding longer than the frame");
    let (pad, rest) = payload.split_first().ok_or(Failure::Broken(
        Reason::FRAME_SIZE_ERROR,
        "a padded frame without room for it",
    ))?;
    let length = rest.len().checked_sub(usize::from(*pad)).ok_or(bad)?;
    Ok(&rest[..length])
}

/// A payload that is one number of 32 bits.
pub(crate) fn number(payload: &[u8]) -> Result<u32, Failure> {
    let bytes = payload.try_into().map_err(|_| wrong_size())?;
    Ok(u32::from_be_bytes(bytes))
}

pub(crate) fn wrong_size() -> Failure {
    Failure::Broken(
        Reason::FRAME_SIZE_ERROR,
        "a frame of a length its type cannot have",
    )
}

/// The settings in a frame (RFC 9113 §6.5.1).
pub(crate) fn read_settings(payload: &[u8]) -> Result<impl Iterator<Item = (u16, u32)>, Failure> {
    let (settings, rest) = payload.as_chunks::<6>();
    if !rest.is_empty() {
        return Err(wrong_size());
    }
    let read = |[a, b, c, d, e, f]: &[u8; 6]| {
        let name = u16::from_be_bytes([*a, *b]);
        (name, u32::from_be_bytes([*c, *d, *e, *f]))
    };
    Ok(settings.iter().map(read))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn heads_round_trip(length in 0_usize..1 << 24, kind: u8, flags: u8, id in 0..=LAST_ID) {
            let head = Head::new(kind, flags, id, length);
            prop_assert_eq!(Head::read(head.bytes()), head);
        }

        #[test]
        fn blocks_are_cut_and_whole(block: Vec<u8>, most in 1_usize..50) {
            let mut out = Vec::new();
            headers(&mut out, 5, flag::END_STREAM, &block, most);
            let (mut rest, mut got, mut first) = (&out[..], Vec::new(), true);
            loop {
                let (head, tail) = rest.split_first_chunk().unwrap();
                let head = Head::read(*head);
                let (payload, tail) = tail.split_at(head.length as usize);
                got.extend_from_slice(payload);
                prop_assert!(payload.len() <= most && head.stream == 5);
                prop_assert_eq!(head.kind, if first { kind::HEADERS } else { kind::CONTINUATION });
                prop_assert_eq!(head.has(flag::END_STREAM), first);
                prop_assert_eq!(head.has(flag::END_HEADERS), tail.is_empty());
                (rest, first) = (tail, false);
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(got, block);
        }
    }

    #[test]
    fn padding_is_taken_off() {
        let padded = Head::new(kind::DATA, flag::PADDED, 1, 4);
        assert_eq!(unpad(padded, &[2, 7, 0, 0]), Ok(&[7][..]));
        assert_eq!(unpad(padded, &[3, 0, 0, 0]), Ok(&[][..]));
        let told = |payload| unpad(padded, payload).unwrap_err().reason();
        assert_eq!(told(&[4, 0, 0, 0]), Reason::PROTOCOL_ERROR);
        assert_eq!(told(&[]), Reason::FRAME_SIZE_ERROR);
        let bare = Head::new(kind::DATA, 0, 1, 1);
        assert_eq!(unpad(bare, &[9]), Ok(&[9][..]));
    }
}
