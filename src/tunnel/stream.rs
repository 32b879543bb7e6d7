//! One CONNECT stream: bytes both ways, flow control, honest ends.
//!
//! | TCP | HTTP/2 |
//! |---|---|
//! | FIN | END_STREAM, on the last DATA frame where the end is known by then |
//! | RST | RST_STREAM with [`RESET`]; received: any code before END_STREAM |
//! | nothing more wanted | RST_STREAM(NO_ERROR) after END_STREAM, as Envoy does |
//! | lost connection | death of the tunnel |
//!
//! **Optimism.** A client's stream takes up to [`OPTIMISTIC`] bytes before the 200. They are kept
//! until it comes, so that a stream which the peer turned away unseen (REFUSED_STREAM, or GOAWAY
//! with a lower id: RFC 9113 §8.7) is opened once more on another tunnel with nothing lost.
//!
//! **What waits.** All that has arrived is taken over at once and waits here, bounded by the
//! stream's window: h2 would hold a record per frame, of which 1-byte frames could make 256 Ki.
//! Small pieces behind others are copied together, so that they pin no receive buffer.

use std::collections::VecDeque;
use std::future::Future;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use tokio::time::Sleep;

use crate::pipe::{Broken, Duplex, FRAME, Stopped};
use crate::tunnel::client::Opened;
use crate::tunnel::connect::Refused;
use crate::tunnel::error::Error;
use crate::tunnel::pace::Place;
use crate::tunnel::pool::Way;

/// The code of our resets: NO_ERROR and CANCEL are read as an orderly end by others.
pub(crate) const RESET: Reason = Reason::CONNECT_ERROR;
/// Bytes sent before the 200, at most; within any peer's first window (RFC 9113 §6.9.2).
const OPTIMISTIC: usize = FRAME;
/// Pieces below this are copied together when they have to wait.
const SMALL: usize = 4096;
/// Where a copied-together piece ends.
const PIECE: usize = 16 * 1024;

/// One stream of a tunnel. Dropped before both directions have ended, it is reset.
pub struct Stream {
    send: SendStream<Bytes>,
    phase: Phase,
    inbox: Inbox,
    place: Place,
    sent_end: bool,
    got_end: bool,
}

enum Phase {
    /// CONNECT is under way.
    Opening(Box<Opening>),
    /// The peer has answered 200, or we have.
    Open(RecvStream),
    /// Nothing more will come.
    Failed(Error),
}

/// The way to another tunnel.
type Again = Pin<Box<dyn Future<Output = Result<Opened, Error>>>>;

struct Opening {
    response: ResponseFuture,
    /// What was sent, to be sent again on another tunnel.
    kept: Vec<Bytes>,
    sent: usize,
    /// Taken by the one retry.
    way: Option<Way>,
    again: Option<Again>,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl Stream {
    pub(crate) fn opening(opened: Opened, way: Way) -> Self {
        let Opened {
            response,
            send,
            place,
        } = opened;
        let patience = way.limits().answer;
        let opening = Opening {
            response,
            kept: Vec::new(),
            sent: 0,
            way: Some(way),
            again: None,
            patience,
            deadline: Box::pin(tokio::time::sleep(patience)),
        };
        Self::new(send, Phase::Opening(Box::new(opening)), place)
    }

    pub(crate) fn accepted_from(send: SendStream<Bytes>, body: RecvStream, place: Place) -> Self {
        Self::new(send, Phase::Open(body), place)
    }

    fn new(send: SendStream<Bytes>, phase: Phase, place: Place) -> Self {
        Self {
            send,
            phase,
            inbox: Inbox::default(),
            place,
            sent_end: false,
            got_end: false,
        }
    }

    /// The peer's answer to CONNECT. A relay need not wait for it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the peer's status, or why there is no answer.
    pub async fn accepted(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_accepted(cx)).await
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            let opening = match &mut self.phase {
                Phase::Opening(opening) => opening,
                Phase::Open(_) => return Poll::Ready(Ok(())),
                Phase::Failed(error) => return Poll::Ready(Err(error.clone())),
            };
            if opening.deadline.as_mut().poll(cx).is_ready() {
                let late = Error::Timeout(opening.patience);
                self.send.send_reset(RESET);
                return Poll::Ready(Err(self.fail(late)));
            }
            if let Some(again) = &mut opening.again {
                match ready!(again.as_mut().poll(cx)) {
                    Ok(opened) => self.begin_again(opened),
                    Err(error) => return Poll::Ready(Err(self.fail(error))),
                }
                continue;
            }
            let response = match ready!(Pin::new(&mut opening.response).poll(cx)) {
                Ok(response) => response,
                Err(error) if is_unseen(&error) && opening.way.is_some() => {
                    let way = opening.way.take().expect("looked at above");
                    let refused_by = self.place.other();
                    opening.again =
                        Some(Box::pin(async move { way.open(Some(&refused_by)).await }));
                    continue;
                }
                Err(error) => {
                    let error = self.place.explain(error);
                    return Poll::Ready(Err(self.fail(error)));
                }
            };
            if let Some(refused) = Refused::from_status(response.status()) {
                self.send.send_reset(Reason::CANCEL);
                return Poll::Ready(Err(self.fail(Error::Refused(refused))));
            }
            self.phase = Phase::Open(response.into_body());
        }
    }

    /// Sends on another tunnel what was sent on the one that turned the stream away.
    fn begin_again(&mut self, opened: Opened) {
        let Phase::Opening(opening) = &mut self.phase else {
            return;
        };
        opening.again = None;
        opening.response = opened.response;
        self.send = opened.send;
        self.place = opened.place;
        let last = opening.kept.len();
        for (at, bytes) in opening.kept.iter().enumerate() {
            // What goes wrong here is told by the response, too.
            let _ = self
                .send
                .send_data(bytes.clone(), self.sent_end && at + 1 == last);
        }
        if last == 0 && self.sent_end {
            let _ = self.send.send_data(Bytes::new(), true);
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.inbox = Inbox::default();
        self.phase = Phase::Failed(error.clone());
        error
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_accepted(cx))?;
        if self.got_end {
            return Poll::Ready(Ok(()));
        }
        let mut news = false;
        loop {
            let Phase::Open(body) = &mut self.phase else {
                return Poll::Pending;
            };
            match body.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) if bytes.is_empty() => {}
                Poll::Ready(Some(Ok(bytes))) => {
                    self.inbox.push(bytes);
                    news = true;
                }
                Poll::Ready(None) => {
                    self.got_end = true;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => {
                    let error = self.place.explain(error);
                    return Poll::Ready(Err(self.fail(error)));
                }
                Poll::Pending if news => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Why the far side takes no more bytes.
    fn stopped(&mut self, said: Result<Reason, h2::Error>) -> Stopped {
        let error = match (said, &self.phase) {
            (_, Phase::Failed(error)) => error.clone(),
            (Ok(Reason::NO_ERROR), _) if self.got_end => return Stopped::Clean,
            (Ok(reason), _) => self.place.end().unwrap_or(Error::Reset(reason)),
            (Err(error), _) => self.place.explain(error),
        };
        Stopped::Broken(self.fail(error).into())
    }

    fn why_stopped(&mut self, cx: &mut Context<'_>) -> Stopped {
        match self.send.poll_reset(cx) {
            Poll::Ready(said) => self.stopped(said),
            Poll::Pending => self.stopped(Ok(Reason::CANCEL)),
        }
    }
}

/// Whether the peer has said that it never looked at the stream.
fn is_unseen(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

impl Duplex for Stream {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.poll_fill(cx).map_err(Broken::from)
    }

    fn slices<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        self.inbox.slices(into)
    }

    fn waiting(&self) -> usize {
        self.inbox.bytes
    }

    fn consume(&mut self, count: usize) {
        self.inbox.consume(count);
        if let Phase::Open(body) = &mut self.phase {
            // Fails only for more than was received.
            let _ = body.flow_control().release_capacity(count);
        }
    }

    fn ended(&self) -> bool {
        self.got_end
    }

    fn accepted(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, Stopped>> {
        let want = match &self.phase {
            Phase::Opening(opening) if opening.again.is_some() => return Poll::Pending,
            Phase::Opening(opening) => want.min(OPTIMISTIC - opening.sent),
            Phase::Open(_) => want,
            Phase::Failed(error) => {
                return Poll::Ready(Err(Stopped::Broken(error.clone().into())));
            }
        };
        if want == 0 {
            return Poll::Pending;
        }
        self.send.reserve_capacity(want);
        let room = self.send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(want)));
        }
        match ready!(self.send.poll_capacity(cx)) {
            Some(Ok(room)) => Poll::Ready(Ok(room.min(want))),
            Some(Err(error)) => Poll::Ready(Err(self.stopped(Err(error)))),
            None => Poll::Ready(Err(self.why_stopped(cx))),
        }
    }

    fn rest(&mut self) {
        self.send.reserve_capacity(0);
    }

    fn send(&mut self, bytes: Bytes, end: bool) -> Result<(), Stopped> {
        if let Phase::Opening(opening) = &mut self.phase {
            opening.sent += bytes.len();
            if !bytes.is_empty() {
                opening.kept.push(bytes.clone());
            }
        }
        self.sent_end |= end;
        match self.send.send_data(bytes, end) {
            Ok(()) => Ok(()),
            // The response tells, or the one retry sends it again.
            Err(_) if matches!(self.phase, Phase::Opening(_)) => Ok(()),
            Err(error) => Err(self.stopped(Err(error))),
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Stopped> {
        if let Phase::Opening(_) = self.phase {
            // Whatever happens now is told by the response.
            return Poll::Pending;
        }
        let said = ready!(self.send.poll_reset(cx));
        Poll::Ready(self.stopped(said))
    }

    fn reset(&mut self) {
        self.send.send_reset(RESET);
        self.fail(Error::Closed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !(self.sent_end && self.got_end) {
            self.send.send_reset(RESET);
        }
    }
}

/// What has arrived and not been delivered.
#[derive(Default)]
struct Inbox {
    pieces: VecDeque<Bytes>,
    small: BytesMut,
    bytes: usize,
}

impl Inbox {
    fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        if self.pieces.is_empty() || bytes.len() >= SMALL {
            self.seal();
            self.pieces.push_back(bytes);
            return;
        }
        self.small.extend_from_slice(&bytes);
        if self.small.len() >= PIECE {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if !self.small.is_empty() {
            self.pieces
                .push_back(std::mem::take(&mut self.small).freeze());
        }
    }

    fn slices<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let small = Some(&self.small[..]).filter(|small| !small.is_empty());
        let all = self.pieces.iter().map(|piece| &piece[..]).chain(small);
        let mut count = 0;
        for (slot, piece) in into.iter_mut().zip(all) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    fn consume(&mut self, mut count: usize) {
        self.bytes -= count;
        if self.bytes == 0 {
            // What is silent holds nothing.
            *self = Self::default();
            return;
        }
        while let Some(first) = self.pieces.front_mut() {
            if count < first.len() {
                bytes::Buf::advance(first, count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
        bytes::Buf::advance(&mut self.small, count);
        self.seal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_comes_out_in_order_and_in_few_pieces() {
        let mut inbox = Inbox::default();
        let mut expect = Vec::new();
        for round in 0..40_000_u32 {
            let len = if round % 997 == 0 { 5000 } else { 1 };
            let bytes = vec![round as u8; len];
            expect.extend_from_slice(&bytes);
            inbox.push(bytes.into());
        }
        assert!(inbox.pieces.len() < 130, "{} pieces", inbox.pieces.len());
        let mut got = Vec::new();
        while inbox.bytes > 0 {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = inbox.slices(&mut slices);
            let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
            let take = all.len().min(7001);
            got.extend_from_slice(&all[..take]);
            inbox.consume(take);
        }
        assert_eq!(got, expect);
        assert_eq!(
            inbox.pieces.capacity(),
            0,
            "nothing is held when nothing waits"
        );
    }
}
