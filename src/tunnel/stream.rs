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
//! **What waits.** All that has arrived is taken over at once and waits in the stream's
//! [`Inbox`], bounded by its window.

use std::future::Future;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Sleep;

use crate::pipe::{Broken, Duplex, FRAME, Stopped};
use crate::tunnel::connect::Refused;
use crate::tunnel::error::Error;
use crate::tunnel::http2::{Fate, Reason, Room};
use crate::tunnel::inbox::Inbox;
use crate::tunnel::link::Place;
use crate::tunnel::pool::Way;

/// The code of our resets: NO_ERROR and CANCEL are read as an orderly end by others.
pub(crate) const RESET: Reason = Reason::CONNECT_ERROR;
/// Bytes sent before the 200, at most; within any peer's first window (RFC 9113 §6.9.2).
const OPTIMISTIC: usize = FRAME;

/// One stream of a tunnel. Dropped before both directions have ended, it is reset.
pub struct Stream {
    place: Place,
    inbox: Inbox,
    /// `None` while the stream is open: the peer has answered 200, or we have.
    other: Option<Box<Other>>,
}

/// What a stream is beside open.
#[expect(clippy::large_enum_variant, reason = "boxed, and gone when it is open")]
enum Other {
    /// CONNECT is under way.
    Opening(Opening),
    /// Nothing more will come.
    Failed(Error),
}

/// The way to another tunnel.
type Again = Pin<Box<dyn Future<Output = Result<Place, Error>>>>;

struct Opening {
    /// What was sent, to be sent again on another tunnel.
    kept: Vec<Bytes>,
    sent: usize,
    /// What is to be sent again and was not yet, the next last.
    behind: Vec<Bytes>,
    /// Taken by the one retry.
    way: Option<Way>,
    again: Option<Again>,
    /// The end was sent, and has to be sent again.
    end: bool,
    /// The peer has answered 200, but not all has been sent again.
    answered: bool,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
}

/// What the answer to a CONNECT is.
enum Answer {
    Open,
    Refused(Refused),
    Fate(Fate),
}

impl Stream {
    pub(crate) fn opening(place: Place, way: Way) -> Self {
        let patience = way.limits().answer;
        let opening = Opening {
            kept: Vec::new(),
            sent: 0,
            behind: Vec::new(),
            way: Some(way),
            again: None,
            end: false,
            answered: false,
            patience,
            deadline: Box::pin(tokio::time::sleep(patience)),
        };
        Self {
            place,
            inbox: Inbox::default(),
            other: Some(Box::new(Other::Opening(opening))),
        }
    }

    pub(crate) fn open(place: Place) -> Self {
        Self {
            place,
            inbox: Inbox::default(),
            other: None,
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
            let opening = match self.other.as_deref_mut() {
                None => return Poll::Ready(Ok(())),
                Some(Other::Failed(error)) => return Poll::Ready(Err(error.clone())),
                Some(Other::Opening(opening)) => opening,
            };
            if let Some(again) = &mut opening.again {
                match again.as_mut().poll(cx) {
                    Poll::Ready(Ok(place)) => self.begin_again(place),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.fail(error))),
                    Poll::Pending => return self.poll_deadline(cx).map(Err),
                }
                continue;
            }
            if opening.answered {
                self.catch_up(cx);
                return Poll::Ready(Ok(()));
            }
            self.send_again(cx);
            let Poll::Ready(answer) = self.poll_answer(cx) else {
                return self.poll_deadline(cx).map(Err);
            };
            match answer {
                Answer::Open => {
                    if let Some(Other::Opening(opening)) = self.other.as_deref_mut() {
                        opening.answered = true;
                    }
                }
                Answer::Refused(refused) => {
                    self.place.reset(Reason::CANCEL);
                    return Poll::Ready(Err(self.fail(Error::Refused(refused))));
                }
                Answer::Fate(fate) if is_unseen(fate) && self.try_again() => {}
                Answer::Fate(fate) => {
                    let error = self.place.explain(fate);
                    return Poll::Ready(Err(self.fail(error)));
                }
            }
        }
    }

    fn poll_answer(&self, cx: &Context<'_>) -> Poll<Answer> {
        self.place.poll(cx, |http, slot| match http.status(slot) {
            Some(status) => Some(match Refused::from_status(status) {
                None => Answer::Open,
                Some(refused) => Answer::Refused(refused),
            }),
            None => http.fate(slot).map(Answer::Fate),
        })
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let Some(Other::Opening(opening)) = self.other.as_deref_mut() else {
            return Poll::Pending;
        };
        ready!(opening.deadline.as_mut().poll(cx));
        let late = Error::Timeout(opening.patience);
        self.place.reset(RESET);
        Poll::Ready(self.fail(late))
    }

    /// Looks for another tunnel, once; whether it does.
    fn try_again(&mut self) -> bool {
        let Some(Other::Opening(opening)) = self.other.as_deref_mut() else {
            return false;
        };
        let Some(way) = opening.way.take() else {
            return false;
        };
        let refused_by = self.place.link.clone();
        opening.again = Some(Box::pin(async move { way.open(Some(&refused_by)).await }));
        true
    }

    /// Goes on at another tunnel, where nothing was sent yet.
    fn begin_again(&mut self, place: Place) {
        if let Some(Other::Opening(opening)) = self.other.as_deref_mut() {
            opening.again = None;
            opening.behind.clone_from(&opening.kept);
            opening.behind.reverse();
            opening.end = self.place.sent_end;
            let sent_end = self.place.sent_end;
            self.place = place;
            self.place.sent_end = sent_end;
        }
    }

    /// Sends again what there is room for; the rest when there is.
    fn send_again(&mut self, cx: &Context<'_>) {
        let Some(Other::Opening(opening)) = self.other.as_deref_mut() else {
            return;
        };
        while let Some(next) = opening.behind.last_mut() {
            // What goes wrong here is told by the response, too.
            let Poll::Ready(Room::Bytes(room)) = self.place.poll_room(cx, next.len()) else {
                return;
            };
            let now = next.split_to((room as usize).min(next.len()));
            if next.is_empty() {
                opening.behind.pop();
            }
            let end = opening.end && opening.behind.is_empty();
            opening.end &= !end;
            self.place.send(&now, end);
        }
        if std::mem::take(&mut opening.end) {
            self.place.send(&Bytes::new(), true);
        }
    }

    /// After the answer: the stream is open once nothing has to be sent again.
    fn catch_up(&mut self, cx: &Context<'_>) {
        self.send_again(cx);
        if let Some(Other::Opening(opening)) = self.other.as_deref()
            && opening.behind.is_empty()
            && !opening.end
        {
            self.other = None;
        }
    }

    /// Whether the peer has answered 200, or we have.
    fn is_answered(&self) -> bool {
        match self.other.as_deref() {
            None => true,
            Some(Other::Opening(opening)) => opening.answered,
            Some(Other::Failed(_)) => false,
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.inbox = Inbox::default();
        self.other = Some(Box::new(Other::Failed(error.clone())));
        error
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_accepted(cx))?;
        if self.place.got_end {
            return Poll::Ready(Ok(()));
        }
        let inbox = &mut self.inbox;
        let mut news = false;
        let filled = self.place.poll(cx, |http, slot| {
            let ended = http.take(slot, |piece| {
                inbox.push(piece);
                news = true;
            });
            match ended || news {
                true => Some(Ok(ended)),
                false => http.fate(slot).map(Err),
            }
        });
        match ready!(filled) {
            Ok(ended) => {
                self.place.got_end = ended;
                Poll::Ready(Ok(()))
            }
            Err(fate) => {
                let error = self.place.explain(fate);
                Poll::Ready(Err(self.fail(error)))
            }
        }
    }

    /// Why the far side takes no more bytes.
    fn stopped(&mut self, fate: Fate) -> Stopped {
        let error = match (fate, self.other.as_deref()) {
            (_, Some(Other::Failed(error))) => error.clone(),
            (Fate::Reset(Reason::NO_ERROR), _) if self.place.got_end => return Stopped::Clean,
            (fate, _) => self.place.explain(fate),
        };
        Stopped::Broken(self.fail(error).into())
    }
}

/// Whether the peer has said that it never looked at the stream.
fn is_unseen(fate: Fate) -> bool {
    matches!(fate, Fate::Unseen | Fate::Reset(Reason::REFUSED_STREAM))
}

impl Duplex for Stream {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.poll_fill(cx).map_err(Broken::from)
    }

    fn slices<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        self.inbox.slices(into)
    }

    fn waiting(&self) -> usize {
        self.inbox.len()
    }

    fn consume(&mut self, count: usize) {
        self.inbox.consume(count);
        self.place.consumed(count);
    }

    fn settle(&mut self) {
        self.inbox.settle();
    }

    fn ended(&self) -> bool {
        self.place.got_end
    }

    fn accepted(&self) -> bool {
        self.is_answered()
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, Stopped>> {
        if self.other.is_some() && self.is_answered() {
            self.catch_up(cx);
        }
        let want = match self.other.as_deref() {
            None => want,
            Some(Other::Opening(opening))
                if opening.again.is_some() || !opening.behind.is_empty() =>
            {
                return Poll::Pending;
            }
            Some(Other::Opening(opening)) => want.min(OPTIMISTIC - opening.sent),
            Some(Other::Failed(error)) => {
                return Poll::Ready(Err(Stopped::Broken(error.clone().into())));
            }
        };
        if want == 0 {
            return Poll::Pending;
        }
        match ready!(self.place.poll_room(cx, want)) {
            Room::Bytes(room) => Poll::Ready(Ok(room as usize)),
            // The response tells.
            _ if self.other.is_some() => Poll::Pending,
            _ => {
                let fate = self.place.fate().unwrap_or(Fate::Closed);
                Poll::Ready(Err(self.stopped(fate)))
            }
        }
    }

    fn rest(&mut self) {
        self.place.rest();
    }

    fn send(&mut self, bytes: Bytes, end: bool) -> Result<(), Stopped> {
        self.place.sent_end |= end;
        let sent = self.place.send(&bytes, end);
        if let Some(Other::Opening(opening)) = self.other.as_deref_mut() {
            opening.sent += bytes.len();
            if !bytes.is_empty() {
                opening.kept.push(bytes);
            }
            // The response tells, or the one retry sends it again.
            return Ok(());
        }
        match sent {
            true => Ok(()),
            false => {
                let fate = self.place.fate().unwrap_or(Fate::Closed);
                Err(self.stopped(fate))
            }
        }
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Stopped> {
        if !self.is_answered() && matches!(self.other.as_deref(), Some(Other::Opening(_))) {
            // Whatever happens now is told by the response.
            return Poll::Pending;
        }
        let fate = ready!(self.place.poll(cx, |http, slot| http.fate(slot)));
        Poll::Ready(self.stopped(fate))
    }

    fn reset(&mut self) {
        self.place.reset(RESET);
        self.fail(Error::Closed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.other.is_some() || !(self.place.sent_end && self.place.got_end) {
            self.place.reset(RESET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_stream_is_small() {
        assert!(size_of::<Stream>() <= 64, "{} bytes", size_of::<Stream>());
    }
}
