//! The side of the daemon that runs: it answers the next one, and passes on what that wants.
//!
//! Each conversation is a task of its own. It decides nothing but what is in order: the control
//! loop is told of [`Wish`]es.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::node::handover::Estates;
use crate::node::handover::message::{Hello, LARGEST, Wants, Word, parcels};
use crate::sys::seqpacket::{Listener, Packets, Waiting};
use crate::task;

/// How long a conversation may take to begin.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the next daemon may look at what it was given before it takes it.
const LOOKING: Duration = Duration::from_secs(60);
/// How long nobody may accept, before this daemon does so again.
const BETWEEN: Duration = Duration::from_secs(5);
/// How long to wait when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What another daemon wants of the control loop.
pub(crate) enum Wish {
    /// It is about to be the next one. The answer is why not, if so.
    Greet(Hello, oneshot::Sender<Result<(), String>>),
    /// It wants to have everything that passes.
    Inventory(oneshot::Sender<Estates>),
    /// It could serve all that: accept nothing more, and say so by a copy of the lock.
    Yield(oneshot::Sender<Option<OwnedFd>>),
    /// It serves.
    Handed,
    /// It is not going to, for this reason.
    Lost(String),
    /// It has served, and is gone.
    Left,
}

type Wishes = mpsc::UnboundedSender<Wish>;

/// Listens at `path`, in the place of whoever did, and passes on what is wished there. Who waits for
/// word of this daemon's end gets it when the task that is returned is dropped.
///
/// # Errors
///
/// As [`Listener::bind`].
pub(crate) fn serve(path: &Path, to: Wishes) -> io::Result<task::Task> {
    let listener = Listener::bind(path)?.leaving_its_path().waiting()?;
    Ok(task::spawn_local("handover socket", accept(listener, to)))
}

async fn accept(listener: Waiting<Listener>, to: Wishes) {
    let (_open, closed) = watch::channel(());
    loop {
        match listener.accept().await {
            Ok(packets) => {
                let talk = talk(packets, to.clone(), closed.clone());
                task::spawn_local("handover", talk).detach();
            }
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept on the handover socket");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn talk(packets: Waiting<Packets>, to: Wishes, closed: watch::Receiver<()>) {
    match begin(&packets, &to).await {
        Err(error) => tracing::warn!(error = %error, "handover conversation failed"),
        Ok(None) => {}
        Ok(Some(Wants::Word)) => await_end(&packets, closed).await,
        Ok(Some(Wants::Pods)) => match hand_over(&packets, &to).await {
            Err(error) => {
                let _ = to.send(Wish::Lost(error.to_string()));
            }
            Ok(()) => {
                while hear(&packets).await.is_ok() {}
                let _ = to.send(Wish::Left);
            }
        },
    }
}

/// Hears who is there and what he wants; `None` if he does not get it.
async fn begin(packets: &Waiting<Packets>, to: &Wishes) -> io::Result<Option<Wants>> {
    if packets.packets().peer_uid()? != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let said = tokio::time::timeout(SILENCE, packets.receive_all(LARGEST)).await;
    let (message, _) = said??;
    if message.is_empty() {
        return Ok(None);
    }
    let hello: Hello = serde_json::from_slice(&message)?;
    let wants = hello.wants;
    let refused = match (hello.unspoken(), wants) {
        (Some(reason), _) => Some(reason),
        (None, Wants::Word) => None,
        (None, Wants::Pods) => {
            let (answer, answered) = oneshot::channel();
            let _ = to.send(Wish::Greet(hello, answer));
            let ending = || Err("it is ending".to_owned());
            answered.await.unwrap_or_else(|_| ending()).err()
        }
    };
    let refuses = refused.is_some();
    let word = match refused {
        Some(reason) => {
            tracing::warn!(reason = %reason, "another daemon of this node was turned away");
            Word::Refused { reason }
        }
        None => Word::Welcome {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
        },
    };
    let said = say(packets, &word).await;
    match (wants, &said) {
        // It was told that the other begins.
        (Wants::Pods, Err(error)) if !refuses => {
            let _ = to.send(Wish::Lost(error.to_string()));
            Ok(None)
        }
        _ => said.map(|()| (!refuses).then_some(wants)),
    }
}

/// Until either is gone.
async fn await_end(packets: &Waiting<Packets>, mut closed: watch::Receiver<()>) {
    tokio::select! {
        _ = closed.changed() => {}
        _ = hear(packets) => {}
    }
}

async fn hand_over(packets: &Waiting<Packets>, to: &Wishes) -> io::Result<()> {
    expect(packets, &Word::Inventory).await?;
    let (answer, answered) = oneshot::channel();
    let _ = to.send(Wish::Inventory(answer));
    let all = answered.await.map_err(|_| io::ErrorKind::BrokenPipe)?;
    for (word, beside) in parcels(&all) {
        let text = serde_json::to_vec(&word)?;
        let sent = packets.send_all(&text, &beside);
        tokio::time::timeout(LOOKING, sent).await??;
    }
    // What was sent is the next daemon's: a copy here would outlive its end.
    drop(all);
    tokio::time::timeout(LOOKING, expect(packets, &Word::Take)).await??;
    let (answer, answered) = oneshot::channel();
    let _ = to.send(Wish::Yield(answer));
    let lock: Option<OwnedFd> = answered.await.map_err(|_| io::ErrorKind::BrokenPipe)?;
    let beside: Vec<_> = lock.iter().map(AsFd::as_fd).collect();
    let yours = serde_json::to_vec(&Word::Yours)?;
    packets.send_all(&yours, &beside).await?;
    drop(lock);
    match tokio::time::timeout(BETWEEN, expect(packets, &Word::Serving)).await {
        Ok(said) => said?,
        Err(_) => {
            // It may say so at this very moment. Whatever it says after this, it knows that nobody
            // hears it, and does not serve.
            packets.packets().stop_receiving()?;
            expect(packets, &Word::Serving).await?;
        }
    }
    let _ = to.send(Wish::Handed);
    Ok(())
}

async fn say(packets: &Waiting<Packets>, word: &Word) -> io::Result<()> {
    packets.send_all(&serde_json::to_vec(word)?, &[]).await
}

async fn hear(packets: &Waiting<Packets>) -> io::Result<Word> {
    let (message, _) = packets.receive_all(LARGEST).await?;
    if message.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&message)?)
}

async fn expect(packets: &Waiting<Packets>, word: &Word) -> io::Result<()> {
    let heard = hear(packets).await?;
    if heard == *word {
        Ok(())
    } else {
        let odd = format!("{word:?} was due, and {heard:?} came");
        Err(io::Error::new(io::ErrorKind::InvalidData, odd))
    }
}
