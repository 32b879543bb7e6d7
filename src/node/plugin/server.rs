//! The socket on which the CNI plugin asks.
//!
//! One message, one answer, and the conversation is over. Only root may ask, by the socket's mode
//! and by what the kernel says of the peer. Many ask at once: a node starts with all its pods.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::api::plugin::{Answer, LARGEST, Request};
use crate::sys::netns::Netns;
use crate::sys::seqpacket::{Listener, Packets, Waiting};
use crate::task;

/// Conversations at the same time; more wait to be accepted.
const AT_ONCE: usize = 256;
/// How long one may take to say what it wants.
const SILENCE: Duration = Duration::from_secs(5);
/// How long one may take in all: longer than the plugin waits for it.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long to wait when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What the plugin wants, and where the answer goes.
pub(crate) struct Asked {
    pub(crate) request: Request,
    /// What came beside the message.
    pub(crate) netns: Option<Netns>,
    pub(crate) answer: oneshot::Sender<Answer>,
    /// When it came.
    pub(crate) at: Instant,
}

/// Listens at `path` and passes on what is asked there.
///
/// # Errors
///
/// As [`Listener::bind`].
pub(crate) fn serve(path: &Path, to: mpsc::UnboundedSender<Asked>) -> io::Result<task::Task> {
    let listener = Listener::bind(path)?.waiting()?;
    Ok(task::spawn_local("cni socket", accept(listener, to)))
}

async fn accept(listener: Waiting<Listener>, to: mpsc::UnboundedSender<Asked>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok(packets) => {
                let talk = talk(packets, to.clone());
                let bounded = async move {
                    let _place = place;
                    match tokio::time::timeout(PATIENCE, talk).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!(error = %error, "cni conversation failed"),
                        Err(_) => tracing::warn!("cni conversation took too long"),
                    }
                };
                task::spawn_local("cni conversation", bounded).detach();
            }
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept on the cni socket");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn talk(packets: Waiting<Packets>, to: mpsc::UnboundedSender<Asked>) -> io::Result<()> {
    if packets.packets().peer_uid()? != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let asked = packets.receive(LARGEST);
    let (message, descriptor) = tokio::time::timeout(SILENCE, asked).await??;
    if message.is_empty() {
        return Ok(());
    }
    let at = Instant::now();
    let request = serde_json::from_slice(&message)?;
    let netns = descriptor.map(Netns::from_fd).transpose()?;
    let (answer, answered) = oneshot::channel();
    let asked = Asked {
        request,
        netns,
        answer,
        at,
    };
    if to.send(asked).is_err() {
        return Ok(());
    }
    let Ok(answer) = answered.await else {
        return Ok(());
    };
    let packets = packets.packets();
    packets.send(&serde_json::to_vec(&answer)?, None)
}
