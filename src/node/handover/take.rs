//! The side of the next daemon: it finds the one that runs, and is given what that has.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::node::handover::Estates;
use crate::node::handover::message::{Hello, LARGEST, OutOfPlace, Unpacked, Wants, Word};
use crate::sys::seqpacket::{Packets, Waiting};

/// How long the daemon that runs may take for its next word. It finishes what is under way first.
const SILENCE: Duration = Duration::from_secs(20);
/// How long to wait before asking again whether somebody serves.
const AGAIN: Duration = Duration::from_secs(1);

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
}

/// Who was found.
pub(crate) enum Met {
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

/// Says `hello` to the daemon that listens at `path`, if one does.
///
/// # Errors
///
/// See [`Error`]: one listens, and does not answer.
pub(crate) async fn meet(path: &Path, hello: &Hello) -> Result<Met, Error> {
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
    pub(crate) async fn take(&self) -> Result<(), Error> {
        self.say(&Word::Take).await?;
        let heard = tokio::time::timeout(SILENCE, hear(&self.packets)).await;
        match heard.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            Word::Yours => {}
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        }
        // Fails if the other has lost its patience, and accepts again.
        self.say(&Word::Serving).await
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

/// Waits until no daemon serves at `path`, for one that has handed over.
pub(crate) async fn watch(path: &Path, node: &str) {
    loop {
        let met = match Hello::new(Wants::Word, node) {
            Ok(hello) => meet(path, &hello).await,
            Err(error) => Err(error.into()),
        };
        match met {
            Ok(Met::Nobody) => return,
            Ok(Met::Predecessor(serving)) => serving.gone().await,
            Ok(Met::Refused(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Whether a daemon serves at `path`. One that is just dying answers nothing more, and counts as one
/// that does not.
pub(crate) async fn lives(path: &Path, node: &str) -> bool {
    const LOOKS: usize = 20;
    for _ in 0..LOOKS {
        let Ok(hello) = Hello::new(Wants::Word, node) else {
            return true;
        };
        match meet(path, &hello).await {
            Ok(Met::Nobody) => return false,
            Ok(Met::Predecessor(_)) | Err(Error::Silent(_)) => return true,
            Ok(Met::Refused(_)) | Err(_) => tokio::time::sleep(AGAIN / 20).await,
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
