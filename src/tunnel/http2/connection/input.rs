//! Cuts what arrives into frames.
//!
//! A frame other than DATA is handled whole; DATA goes on as it comes, so that nothing is kept
//! here but heads and what is left of a small frame.

use bytes::{Buf as _, Bytes};

use crate::tunnel::http2::connection::{Connection, OUT_MOST, Role};
use crate::tunnel::http2::frame::{self, HEAD, Head, PREFACE, flag, kind};
use crate::tunnel::http2::reason::{Failure, Reason};

/// What comes next.
#[derive(Debug)]
pub(crate) struct Input {
    next: Next,
    /// A header block that is not whole yet.
    pub(crate) block: Option<Block>,
}

#[derive(Debug)]
enum Next {
    /// The client's preface, of which this many bytes have come.
    Preface(usize),
    /// A head, of which this many bytes have come.
    Head([u8; HEAD], usize),
    /// The rest of a frame's payload.
    Payload(Head, Vec<u8>),
    /// The rest of a DATA frame.
    Data(Data),
}

/// What is left of a DATA frame.
#[derive(Clone, Copy, Debug)]
struct Data {
    stream: u32,
    end: bool,
    /// The length of the padding has not come yet.
    padded: bool,
    payload: u32,
    padding: u32,
}

/// The begin of a header block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) stream: u32,
    pub(crate) end: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) continuations: u32,
}

const NO_HEAD: Next = Next::Head([0; HEAD], 0);

impl Input {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            next: match role {
                Role::Client => NO_HEAD,
                Role::Server => Next::Preface(0),
            },
            block: None,
        }
    }
}

impl Connection {
    /// Takes what has arrived, cut anywhere.
    ///
    /// # Errors
    ///
    /// The connection cannot go on; the GOAWAY that says so is to be flushed.
    pub(crate) fn receive(&mut self, piece: Bytes) -> Result<(), Failure> {
        let result = self.take_in(piece);
        if let Err(failure) = result {
            self.say_goodbye(failure.reason());
        }
        result
    }

    fn take_in(&mut self, mut piece: Bytes) -> Result<(), Failure> {
        while !piece.is_empty() {
            match &mut self.input.next {
                Next::Preface(have) => {
                    let expect = &PREFACE[*have..];
                    let count = expect.len().min(piece.len());
                    if piece[..count] != expect[..count] {
                        return Self::broken(Reason::PROTOCOL_ERROR, "no preface");
                    }
                    *have += count;
                    if *have == PREFACE.len() {
                        self.input.next = NO_HEAD;
                    }
                    piece.advance(count);
                }
                Next::Head(bytes, have) => {
                    let count = (HEAD - *have).min(piece.len());
                    piece.copy_to_slice(&mut bytes[*have..*have + count]);
                    *have += count;
                    if *have == HEAD {
                        let head = Head::read(*bytes);
                        self.input.next = NO_HEAD;
                        self.begin(head, &mut piece)?;
                    }
                }
                Next::Payload(head, bytes) => {
                    let head = *head;
                    let count = (head.length as usize - bytes.len()).min(piece.len());
                    bytes.extend_from_slice(&piece[..count]);
                    piece.advance(count);
                    if bytes.len() == head.length as usize {
                        let bytes = std::mem::take(bytes);
                        self.input.next = NO_HEAD;
                        self.frame(head, &bytes)?;
                    }
                }
                Next::Data(data) => {
                    let data = *data;
                    self.data(data, &mut piece)?;
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, head: Head, piece: &mut Bytes) -> Result<(), Failure> {
        let length = head.length as usize;
        if self.out.len() > OUT_MOST {
            let what = "frames to answer, and no answer is read";
            return Self::broken(Reason::ENHANCE_YOUR_CALM, what);
        }
        if head.length > self.config.frame {
            return Self::broken(Reason::FRAME_SIZE_ERROR, "a frame larger than announced");
        }
        let first = head.kind == kind::SETTINGS && !head.has(flag::ACK);
        if !self.peer.greeted && !first {
            return Self::broken(Reason::PROTOCOL_ERROR, "no SETTINGS first");
        }
        let within = self.input.block.as_ref().map(|block| block.stream);
        let goes_on = (head.kind == kind::CONTINUATION).then_some(head.stream);
        if within != goes_on {
            return Self::broken(Reason::PROTOCOL_ERROR, "a header block out of sequence");
        }
        if head.kind == kind::DATA {
            let padded = head.has(flag::PADDED);
            if padded && head.length == 0 {
                return Err(frame::wrong_size());
            }
            self.begin_data(head)?;
            let data = Data {
                stream: head.stream,
                end: head.has(flag::END_STREAM),
                padded,
                payload: head.length - u32::from(padded),
                padding: 0,
            };
            return self.data(data, piece);
        }
        if piece.len() < length {
            self.input.next = Next::Payload(head, Vec::new());
            return Ok(());
        }
        self.frame(head, &piece[..length])?;
        piece.advance(length);
        Ok(())
    }

    /// Hands on what has come of a DATA frame.
    fn data(&mut self, mut data: Data, piece: &mut Bytes) -> Result<(), Failure> {
        if data.padded && !piece.is_empty() {
            data.padding = u32::from(piece.get_u8());
            data.padded = false;
            if data.padding > data.payload {
                let what = "padding longer than the frame";
                return Self::broken(Reason::PROTOCOL_ERROR, what);
            }
            data.payload -= data.padding;
            self.padding(data.stream, data.padding + 1);
        }
        if !data.padded {
            let count = piece.len().min(data.payload as usize);
            if count > 0 {
                self.deliver(data.stream, piece.split_to(count));
                data.payload -= u32::try_from(count).expect("at most the payload");
            }
            let count = piece.len().min(data.padding as usize);
            if data.payload == 0 {
                piece.advance(count);
                data.padding -= u32::try_from(count).expect("at most the padding");
            }
        }
        if data.padded || data.payload > 0 || data.padding > 0 {
            self.input.next = Next::Data(data);
            return Ok(());
        }
        self.input.next = NO_HEAD;
        if data.end {
            self.got_end(data.stream);
        }
        Ok(())
    }
}
