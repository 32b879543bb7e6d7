//! The side of the next daemon: it finds the one that runs, and is given what that has.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::node::handover::lock::Lock;
use crate::node::handover::message::{Hello, LARGEST, OutOfPlace, Unpacked, Wants, Word};
use crate::node::handover::{Estates, SOCKET};
use crate::sys::seqpacket::{Packets, Waiting};

/// How long the daemon that runs may take for its next word. It finishes what is under way first.
const SILENCE: Duration = Duration::from_secs(20);
/// How long to wait before asking again whether somebody serves.
const AGAIN: Duration = Duration::from_secs(1);
/// The same of somebody who is about to begin, or just ends.
const SOON: Duration = Duration::from_millis(50);
/// How long somebody who holds the lock may take to answer, or to end.
const HOLDING: Duration = Duration::from_secs(10);
/// How long one whose conversation has ended may take to let go of the lock.
const ENDING: Duration = Duration::from_secs(2);

/// Why pods did not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The other did not say what it should have.
    #[error("the daemon that runs does not answer on {0}: stop it, or start this one again")]
    Silent(String),
    /// The conversation broke.
    #[error("the conversation with the daemon that runs has broken")]
    Broken(#[from] io::Error),
    /// It said something else.
    #[error("the daemon that runs said what was not due")]
    OutOfPlace(#[from] OutOfPlace),
    /// It goes on itself.
    #[error("the daemon that runs has broken off, and goes on itself")]
    GoneOn,
    /// It does not take this one for the next.
    #[error("the daemon that runs does not hand over to this one: {0}")]
    Refused(String),
    /// Another was quicker, or is stuck.
    #[error("another daemon holds the lock in {0}: end that one, or start this one again")]
    Held(String),
    /// There is nothing to lock.
    #[error("cannot lock the run directory: choose another with --run-dir")]
    NoLock(#[source] io::Error),
}

/// How a daemon begins.
pub(crate) enum Arrived {
    /// None runs, and none can begin beside it.
    Alone(Lock),
    /// One runs, and is about to hand over.
    After(Predecessor),
}

/// Who was found.
enum Met {
    /// No daemon runs.
    Nobody,
    /// One does, and hands nothing over to this one.
    Refused(String),
    /// One does.
    Predecessor(Predecessor),
}

/// The daemon that runs, ready to hand over.
#[derive(Debug)]
pub(crate) struct Predecessor {
    packets: Waiting<Packets>,
    /// Its process id, for people.
    pub(crate) process: u32,
    /// The version of its program.
    pub(crate) program: String,
}

/// Finds out whether this daemon is to serve the pods itself, or after the one that runs. One that
/// is about to begin or to end is waited for.
///
/// # Errors
///
/// See [`Error`]: another serves, and neither answers nor hands over.
pub(crate) async fn arrive(run_dir: &Path, hello: &Hello) -> Result<Arrived, Error> {
    let until = Instant::now() + HOLDING;
    loop {
        let refused = match meet(run_dir, hello).await? {
            Met::Predecessor(predecessor) => return Ok(Arrived::After(predecessor)),
            Met::Refused(reason) => Some(reason),
            Met::Nobody => None,
        };
        match (Lock::take(run_dir).map_err(Error::NoLock)?, refused) {
            (Some(lock), refused) => {
                // One that only drains does, and one of a version that knew of no lock.
                if let Some(reason) = refused {
                    tracing::warn!(
                        reason = %reason,
                        "the daemon that runs does not hand over to this one",
                    );
                }
                return Ok(Arrived::Alone(lock));
            }
            (None, Some(reason)) => return Err(Error::Refused(reason)),
            (None, None) if Instant::now() < until => tokio::time::sleep(SOON).await,
            (None, None) => return Err(Error::Held(run_dir.display().to_string())),
        }
    }
}

/// Waits until the lock of a daemon that has just ended is this one's.
///
/// # Errors
///
/// It serves yet, or another has begun to.
pub(crate) async fn left_to(run_dir: &Path) -> Result<Lock, Error> {
    let lock = Lock::wait(run_dir, ENDING).await.map_err(Error::NoLock)?;
    lock.ok_or_else(|| Error::Held(run_dir.display().to_string()))
}

/// Says `hello` to the daemon of this run directory, if one listens.
async fn meet(run_dir: &Path, hello: &Hello) -> Result<Met, Error> {
    let path = &run_dir.join(SOCKET);
    let silent = || Error::Silent(path.display().to_string());
    let packets = match Waiting::<Packets>::connect(path) {
        Ok(packets) => packets,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(Met::Nobody),
                io::ErrorKind::WouldBlock => Err(silent()),
                _ => Err(error.into()),
            };
        }
    };
    if packets.packets().peer_uid()? != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
    }
    let text = serde_json::to_vec(hello).map_err(io::Error::from)?;
    packets.send_all(&text, &[]).await?;
    match tokio::time::timeout(SILENCE, hear(&packets)).await {
        Err(_) => Err(silent()),
        Ok(Ok(Word::Welcome { program, process })) => Ok(Met::Predecessor(Predecessor {
            packets,
            process,
            program,
        })),
        Ok(Ok(Word::Refused { reason })) => Ok(Met::Refused(reason)),
        Ok(Ok(_)) => Ok(Met::Refused("its answer is not understood".to_owned())),
        // It ended meanwhile, or did not understand a word.
        Ok(Err(_)) => match Waiting::<Packets>::connect(path) {
            Ok(_) => Ok(Met::Refused("it ended the conversation".to_owned())),
            Err(_) => Ok(Met::Nobody),
        },
    }
}

impl Predecessor {
    /// Everything that passes; what is whole of it, if the other ends before.
    pub(crate) async fn inventory(&self) -> (Estates, Result<(), Error>) {
        let mut unpacked = Unpacked::default();
        match self.unpack(&mut unpacked).await {
            Ok(()) => (unpacked.all, Ok(())),
            Err(error) => (unpacked.cut(), Err(error)),
        }
    }

    async fn unpack(&self, into: &mut Unpacked) -> Result<(), Error> {
        self.say(&Word::Inventory).await?;
        loop {
            let received = self.packets.receive_all(LARGEST);
            let received = tokio::time::timeout(SILENCE, received).await;
            let (message, beside) =
                received.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            if into.add(understood(&message)?, beside)? {
                return Ok(());
            }
        }
    }

    /// Is in charge from here on: when this returns, the other accepts nothing any more.
    ///
    /// # Errors
    ///
    /// The other goes on, or is gone.
    pub(crate) async fn take(&self, run_dir: &Path) -> Result<Lock, Error> {
        self.say(&Word::Take).await?;
        let heard = tokio::time::timeout(SILENCE, self.packets.receive_all(LARGEST)).await;
        let (message, mut beside) =
            heard.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if understood(&message)? != Word::Yours {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        let lock = match beside.pop() {
            Some(lock) => Lock::passed(lock),
            // It is of a version that knew of none.
            None => left_to(run_dir).await?,
        };
        // Fails if the other has lost its patience, and accepts again.
        self.say(&Word::Serving).await.map(|()| lock)
    }

    /// Waits until the other is gone.
    pub(crate) async fn gone(&self) {
        while hear(&self.packets).await.is_ok() {}
    }

    async fn say(&self, word: &Word) -> Result<(), Error> {
        let text = serde_json::to_vec(word).map_err(io::Error::from)?;
        Ok(self.packets.send_all(&text, &[]).await?)
    }
}

/// Waits until no daemon serves here, for one that has handed over, and gives it the lock.
pub(crate) async fn watch(run_dir: &Path, node: &str) -> Lock {
    loop {
        let met = match Hello::new(Wants::Word, node) {
            Ok(hello) => meet(run_dir, &hello).await,
            Err(error) => Err(error.into()),
        };
        match met {
            Ok(Met::Nobody) => match Lock::take(run_dir) {
                Ok(Some(lock)) => return lock,
                // Whoever has it is about to be found here.
                Ok(None) => tokio::time::sleep(SOON).await,
                Err(_) => tokio::time::sleep(AGAIN).await,
            },
            Ok(Met::Predecessor(serving)) => serving.gone().await,
            Ok(Met::Refused(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Whether a daemon serves here. One that is just dying answers nothing more, and counts as one that
/// does not.
pub(crate) async fn lives(run_dir: &Path, node: &str) -> bool {
    const LOOKS: usize = 20;
    for _ in 0..LOOKS {
        let Ok(hello) = Hello::new(Wants::Word, node) else {
            return true;
        };
        match meet(run_dir, &hello).await {
            Ok(Met::Nobody) => return false,
            Ok(Met::Predecessor(_)) | Err(Error::Silent(_)) => return true,
            Ok(Met::Refused(_)) | Err(_) => tokio::time::sleep(SOON).await,
        }
    }
    true
}

async fn hear(packets: &Waiting<Packets>) -> io::Result<Word> {
    understood(&packets.receive_all(LARGEST).await?.0)
}

fn understood(message: &[u8]) -> io::Result<Word> {
    if message.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(message)?)
}
