//! Asks the daemon that has taken over, in the name of a plugin that still asks here.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::plugin::{Answer, LARGEST, Request};
use crate::sys::netns::Netns;
use crate::sys::seqpacket::Packets;

/// How long the other may take: as long as the plugin waits.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long to wait for the other to stand at the socket.
const MOMENT: Duration = Duration::from_millis(5);

/// Asks at `path` and waits for the answer. Blocks.
pub(crate) fn forward(path: &Path, request: &Request, netns: Option<&Netns>) -> Answer {
    ask(path, request, netns).unwrap_or_else(|error| Answer::Unknown {
        reason: format!("the daemon has handed over, and the next one does not answer: {error}"),
    })
}

fn ask(path: &Path, request: &Request, netns: Option<&Netns>) -> io::Result<Answer> {
    let packets = reach(path)?;
    packets.send(
        &serde_json::to_vec(request)?,
        netns.map(|netns| netns.as_fd()),
    )?;
    let (answer, _) = packets.receive(LARGEST)?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Begins to talk with the other. For a moment after it has taken over, who stands there is still
/// this daemon: asked by itself, it would ask itself again.
fn reach(path: &Path) -> io::Result<Packets> {
    let until = Instant::now() + PATIENCE;
    loop {
        let packets = Packets::connect(path, PATIENCE)?;
        if !packets.is_own() {
            return Ok(packets);
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(MOMENT);
    }
}
