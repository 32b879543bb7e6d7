//! An application's socket joined with a stream of a tunnel.
//!
//! The future is polled for both directions at once; each poll moves what can be moved, in large
//! steps, and leaves every waker that could matter in place. Order within a poll: what arrived on
//! the stream is taken in first, because that also drives the stream's opening.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Sleep;

use crate::authorize::Permit;
use crate::deliver::app::App;
use crate::deliver::{End, Fault, Meter, Side};
use crate::pipe::{CHUNK, Duplex, Stopped};
use crate::sys::socket::AppSocket;

/// Bytes that one poll moves in one direction, at most, before other connections have their turn.
const TURN: usize = 4 * CHUNK;
/// How long an application may take to close, when the far side wants nothing more from it.
const LINGER: Duration = Duration::from_secs(30);

/// Joins `app` (the near side) and `stream` (the far side) until both directions have ended.
///
/// Dropped earlier, it resets both.
pub fn relay<S, M>(_permit: &Permit, app: AppSocket, stream: S, meter: M) -> Relay<S, M>
where
    S: Duplex + Unpin,
    M: AsRef<Meter> + Unpin,
{
    Relay {
        app: App::new(app),
        stream,
        meter,
        unconfirmed: 0,
        up: Up::Open,
        down: Down::Open,
        by: None,
        linger: None,
        unheard: false,
    }
}

/// An application joined with a stream: a future of their [`End`]. It has a name so that whoever
/// carries many can keep them flat.
#[must_use = "it moves nothing until it is polled"]
pub struct Relay<S, M> {
    app: App,
    stream: S,
    meter: M,
    /// Sent before the far side accepted.
    unconfirmed: usize,
    up: Up,
    down: Down,
    by: Option<Side>,
    linger: Option<Pin<Box<Sleep>>>,
    /// The application has said something that nobody hears.
    unheard: bool,
}

/// From the application to the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Up {
    Open,
    /// The far side wants nothing more: what still comes is dropped.
    Unwanted,
    Ended,
}

/// From the stream to the application.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Down {
    Open,
    Ended,
}

/// What ends a relay before its time.
struct Failure(Side, Fault);

impl Failure {
    fn app(error: io::Error) -> Self {
        Self(Side::Near, Fault::Socket(error))
    }
}

impl<S: Duplex + Unpin, M: AsRef<Meter> + Unpin> Future for Relay<S, M> {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        match this.poll_both(cx) {
            Err(Failure(side, fault)) => {
                this.by.get_or_insert(side);
                this.stream.reset();
                Poll::Ready(this.end(Some(fault)))
            }
            Ok(()) if this.up == Up::Ended && this.down == Down::Ended => {
                this.app.finish();
                Poll::Ready(this.end(None))
            }
            Ok(()) => Poll::Pending,
        }
    }
}

impl<S: Duplex, M: AsRef<Meter>> Relay<S, M> {
    fn end(&self, fault: Option<Fault>) -> End {
        let meter = self.meter.as_ref();
        End {
            sent: meter.sent.get(),
            received: meter.received.get(),
            by: self.by.unwrap_or(Side::Near),
            fault,
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        self.poll_down(cx)?;
        self.app.begun(self.meter.as_ref().received.get() > 0);
        self.poll_up(cx)?;
        if self.up == Up::Ended && self.down == Down::Ended {
            return Ok(());
        }
        // Last, because what was read told of most ends already, and this asks the kernel.
        self.app.poll_failed(cx).map_err(Failure::app)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let mut moved = 0;
        loop {
            let news = match self.down {
                Down::Open if !self.stream.ended() => self.fill(cx)?,
                _ => false,
            };
            let before = moved;
            while self.stream.waiting() > 0 {
                match self.deliver() {
                    Ok(count) => moved += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if self
                            .app
                            .poll_writable(cx)
                            .map_err(Failure::app)?
                            .is_pending()
                        {
                            self.stream.settle();
                            return self.poll_given_up(cx);
                        }
                    }
                    Err(error) => return Err(Failure::app(error)),
                }
                if moved >= TURN {
                    cx.waker().wake_by_ref();
                    return Ok(());
                }
            }
            if self.down == Down::Open && self.stream.ended() {
                let last = self.up == Up::Ended;
                self.app.end(last).map_err(Failure::app)?;
                self.down = Down::Ended;
                self.by.get_or_insert(Side::Far);
            }
            if !news && moved == before {
                return Ok(());
            }
        }
    }

    /// Both ends have been said and the application does not read: only this tells that what waits
    /// for it was given up.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        match self.up == Up::Ended && self.stream.ended() {
            true => self.poll_stopped(cx),
            false => Ok(()),
        }
    }

    /// Takes in what has arrived; whether there was something.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let news = match self.stream.poll_fill(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(broken)) => return Err(Failure(Side::Far, Fault::Stream(broken))),
            Poll::Pending => false,
        };
        if self.unconfirmed > 0 && self.stream.accepted() {
            let confirmed = std::mem::take(&mut self.unconfirmed);
            self.meter.as_ref().add_sent(confirmed);
        }
        Ok(news)
    }

    fn deliver(&mut self) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = self.stream.slices(&mut slices);
        let written = self.app.write(&slices[..count])?;
        self.stream.consume(written);
        self.meter.as_ref().add_received(written);
        Ok(written)
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let mut moved = 0;
        while self.up == Up::Open {
            if self
                .app
                .poll_readable(cx)
                .map_err(Failure::app)?
                .is_pending()
            {
                self.stream.rest();
                return self.poll_stopped(cx);
            }
            let room = match self.stream.poll_room(cx, CHUNK) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(stopped)) => {
                    self.stop(stopped)?;
                    break;
                }
                Poll::Pending => return self.poll_stopped(cx),
            };
            let (bytes, end) = self.app.read(cx, room).map_err(Failure::app)?;
            if bytes.is_empty() && !end {
                // A false alarm.
                continue;
            }
            moved += bytes.len();
            self.send(bytes, end)?;
            if moved >= TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
        }
        if self.up == Up::Unwanted {
            self.poll_unwanted(cx)?;
        }
        Ok(())
    }

    fn send(&mut self, bytes: Bytes, end: bool) -> Result<(), Failure> {
        let count = bytes.len();
        if let Err(stopped) = self.stream.send(bytes, end) {
            return self.stop(stopped);
        }
        if self.stream.accepted() {
            self.meter.as_ref().add_sent(count);
        } else {
            self.unconfirmed += count;
        }
        if end {
            self.up = Up::Ended;
            self.by.get_or_insert(Side::Near);
        }
        Ok(())
    }

    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        match self.stream.poll_stopped(cx) {
            Poll::Ready(stopped) => {
                self.stop(stopped)?;
                self.poll_unwanted(cx)
            }
            Poll::Pending => Ok(()),
        }
    }

    fn stop(&mut self, stopped: Stopped) -> Result<(), Failure> {
        match stopped {
            Stopped::Clean => {
                self.up = Up::Unwanted;
                Ok(())
            }
            Stopped::Broken(broken) => Err(Failure(Side::Far, Fault::Stream(broken))),
        }
    }

    /// Reads and drops, until the application closes or has had its time. Closing the socket
    /// before would reset it, and what it has not read yet could be lost.
    ///
    /// An application that goes on speaking is to learn that nobody listens, as it would from the
    /// kernel of one that has closed: it is reset, as soon as it has what was sent to it.
    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let linger = self
            .linger
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut over = linger.as_mut().poll(cx).is_ready();
        loop {
            if self.unheard && (over || self.down == Down::Ended && self.app.is_delivered()) {
                let nobody = io::ErrorKind::BrokenPipe.into();
                return Err(Failure(Side::Far, Fault::Socket(nobody)));
            }
            if over {
                self.up = Up::Ended;
                cx.waker().wake_by_ref();
                return Ok(());
            }
            if self
                .app
                .poll_readable(cx)
                .map_err(Failure::app)?
                .is_pending()
            {
                return Ok(());
            }
            let (bytes, end) = self.app.read(cx, CHUNK).map_err(Failure::app)?;
            if bytes.is_empty() && !end {
                // A false alarm.
                return Ok(());
            }
            self.unheard |= !bytes.is_empty();
            over = end;
        }
    }
}
