//! Two sockets joined: a connection that needs no tunnel.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};

use crate::authorize::Permit;
use crate::deliver::app::{App, Ends};
use crate::deliver::duct::Duct;
use crate::deliver::seam::Half;
use crate::deliver::{End, Fault, Meter, Side};
use crate::pipe::CHUNK;
use crate::sys::socket::AppSocket;

/// Bytes that one poll moves in one direction, at most, before other connections have their turn.
const TURN: usize = 4 * CHUNK;

/// Bytes in one poll after which a direction moves inside the kernel: the pipe's system calls must
/// pay. Short messages are cheaper read and written.
const MUCH: usize = CHUNK;

/// Joins `near` and `far` until both directions have ended.
///
/// Dropped earlier, it resets both.
pub fn splice<M>(_permit: &Permit, near: AppSocket, far: AppSocket, meter: M) -> Splice<M>
where
    M: AsRef<Meter> + Unpin,
{
    Splice {
        near: App::new(near),
        far: App::new(far),
        meter,
        up: Lane::default(),
        down: Lane::default(),
        by: None,
    }
}

/// Two joined sockets: a future of their [`End`].
#[must_use = "it moves nothing until it is polled"]
pub struct Splice<M> {
    near: App,
    far: App,
    meter: M,
    up: Lane,
    down: Lane,
    by: Option<Side>,
}

/// One direction. What was read and not written yet is in `rest` or in the duct, never in both.
#[derive(Default)]
struct Lane {
    rest: Bytes,
    /// While much moves, bytes move inside the kernel.
    duct: Option<Duct>,
    got_end: bool,
    ended: bool,
}

impl<M: AsRef<Meter> + Unpin> Future for Splice<M> {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        let fault = match this.poll_lanes(cx) {
            Err((side, error)) => {
                this.by.get_or_insert(side);
                Some(Fault::Socket(error))
            }
            Ok(()) if this.up.ended && this.down.ended => {
                this.near.finish();
                this.far.finish();
                None
            }
            Ok(()) => return Poll::Pending,
        };
        let meter = this.meter.as_ref();
        Poll::Ready(End {
            sent: meter.sent.get(),
            received: meter.received.get(),
            by: this.by.unwrap_or(Side::Near),
            fault,
        })
    }
}

impl<M: AsRef<Meter>> Splice<M> {
    /// The socket of `side` leads to one of this thread, by whose half both ends know of each other.
    pub fn sew(&mut self, side: Side, half: Half) {
        match side {
            Side::Near => self.near.sew(half),
            Side::Far => self.far.sew(half),
        }
    }

    /// When both directions have ended: the sewn socket and its half, if it may be used again.
    pub fn unpick(&mut self) -> Option<(Half, AppSocket)> {
        self.near.unpick().or_else(|| self.far.unpick())
    }

    fn poll_lanes(&mut self, cx: &mut Context<'_>) -> Result<(), (Side, io::Error)> {
        let Self {
            near,
            far,
            meter,
            up,
            down,
            by,
        } = self;
        let meter = M::as_ref(meter);
        up.poll(cx, near, far, down.ended, |count| meter.add_sent(count))
            .map_err(|(end, error)| match end {
                Ends::From => (Side::Near, error),
                Ends::To => (Side::Far, error),
            })?;
        if up.got_end {
            by.get_or_insert(Side::Near);
        }
        down.poll(cx, far, near, up.ended, |count| meter.add_received(count))
            .map_err(|(end, error)| match end {
                Ends::From => (Side::Far, error),
                Ends::To => (Side::Near, error),
            })?;
        if down.got_end {
            by.get_or_insert(Side::Far);
        }
        if up.ended && down.ended {
            return Ok(());
        }
        near.begun(meter.received.get() > 0);
        far.begun(meter.sent.get() > 0);
        near.poll_failed(cx).map_err(|error| (Side::Near, error))?;
        far.poll_failed(cx).map_err(|error| (Side::Far, error))
    }
}

impl Lane {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut App,
        to: &App,
        last: bool,
        mut count: impl FnMut(usize),
    ) -> Result<(), (Ends, io::Error)> {
        let mut moved = 0;
        while !self.ended {
            if self.waits() {
                match self.write(to) {
                    Ok(written) => count(written),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if to
                            .poll_writable(cx)
                            .map_err(|error| (Ends::To, error))?
                            .is_pending()
                        {
                            return Ok(());
                        }
                    }
                    Err(error) => return Err((Ends::To, error)),
                }
                continue;
            }
            if self.got_end {
                to.end(last).map_err(|error| (Ends::To, error))?;
                (self.ended, self.duct) = (true, None);
                return Ok(());
            }
            if moved >= TURN {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            if from
                .poll_readable(cx)
                .map_err(|error| (Ends::From, error))?
                .is_pending()
            {
                return Ok(());
            }
            if self.duct.is_some() {
                moved += self.fill(from).map_err(|error| (Ends::From, error))?;
                continue;
            }
            let (written, rest, end) = from.forward(cx, to)?;
            count(written);
            moved += written + rest.len();
            self.rest = rest;
            self.got_end = end;
            if moved >= MUCH {
                // Without a descriptor to spare, it goes on as before.
                self.duct = Duct::take().ok();
            }
        }
        Ok(())
    }

    fn waits(&self) -> bool {
        !self.rest.is_empty() || self.duct.as_ref().is_some_and(|duct| duct.held() > 0)
    }

    fn write(&mut self, to: &App) -> io::Result<usize> {
        if let (true, Some(duct)) = (self.rest.is_empty(), &mut self.duct) {
            let emptied = duct.empty(to.tcp())?;
            to.wrote(emptied);
            return Ok(emptied);
        }
        let written = to.write(&[IoSlice::new(&self.rest)])?;
        self.rest.advance(written);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Ok(written)
    }

    /// Fills the duct. When there is nothing to fill it with, it goes back.
    fn fill(&mut self, from: &mut App) -> io::Result<usize> {
        let Some(duct) = &mut self.duct else {
            return Ok(0);
        };
        if from.is_over() {
            (self.got_end, self.duct) = (true, None);
            from.hear_end();
            return Ok(0);
        }
        let filled = from.try_read(|socket| duct.fill(socket));
        match filled {
            Ok(0) => {
                self.got_end = true;
                from.hear_end();
            }
            Ok(count) => {
                from.took(count);
                return filled;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return filled,
        }
        self.duct = None;
        Ok(0)
    }
}
