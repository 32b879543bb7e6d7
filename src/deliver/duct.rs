//! Pipes in the kernel, through which `splice(2)` moves bytes between two sockets without a copy.
//!
//! A duct belongs to a connection only while it holds bytes or bytes keep coming; a thread keeps a
//! few for the next one. Two descriptors each: an idle connection has none.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::net::TcpStream;

/// What a duct is asked to hold. The kernel may grant less to a user who has many (pipe(7)).
const SIZE: i32 = 1 << 20;
/// How many empty ducts a thread keeps.
const KEPT: usize = 8;

thread_local! {
    static DUCTS: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe and the bytes in it.
#[derive(Debug)]
pub(crate) struct Duct {
    /// Until it is dropped.
    ends: Option<Ends>,
    held: usize,
}

impl Duct {
    /// One of this thread's, or a new one.
    ///
    /// # Errors
    ///
    /// As `pipe2(2)`: no descriptors left.
    pub(crate) fn take() -> io::Result<Self> {
        if let Some(ends) = DUCTS.with_borrow_mut(Vec::pop) {
            return Ok(Self {
                ends: Some(ends),
                held: 0,
            });
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Without it, it holds the usual 64 KiB.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(SIZE));
        Ok(Self {
            ends: Some(Ends { read, write }),
            held: 0,
        })
    }

    /// How many bytes are in it.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes in what `from` has, into an empty duct, so that "not now" can only mean the socket;
    /// 0 is the FIN.
    pub(crate) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "a full duct would look like an empty socket");
        let Some(ends) = &self.ends else { return Ok(0) };
        let count = splice(from, None, &ends.write, None, SIZE as usize, flags())?;
        self.held += count;
        Ok(count)
    }

    /// Gives out what `to` has room for.
    pub(crate) fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let count = splice(&ends.read, None, to, None, self.held, flags())?;
        self.held -= count;
        Ok(count)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

impl Drop for Duct {
    fn drop(&mut self) {
        // One that holds bytes holds a connection's bytes: never to be seen by another.
        if self.held > 0 {
            return;
        }
        let Some(ends) = self.ends.take() else { return };
        let _ = DUCTS.try_with(|ducts| {
            let mut ducts = ducts.borrow_mut();
            if ducts.len() < KEPT {
                ducts.push(ends);
            }
        });
    }
}
