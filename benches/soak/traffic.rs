//! The connections: what each kind does at its two ends, and what must come of it.
//!
//! A client begins by saying the kind, a seed, and how much will pass each way. So each end knows
//! every byte and the one proper ending. A reset must never look like an end, and the other way
//! round.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::pattern::{self, Choices};
use crate::support::netns::Netns;
use crate::tally::{End, Tally};

/// Where servers listen.
pub(crate) const PORT: u16 = 9000;
/// Where nobody does.
const CLOSED: u16 = 9;
/// How long anything may take that is not meant to take long.
const PATIENCE: Duration = Duration::from_secs(60);
/// The length of what a client begins with.
const HEAD: usize = 25;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A little each way, at once.
    Short,
    /// Mebibytes each way, at once.
    Bulk,
    /// The client ends its side before the server says anything.
    ClientFirst,
    /// The server ends its side before the client says anything.
    ServerFirst,
    /// The client resets in the middle.
    ClientReset,
    /// The server resets in the middle.
    ServerReset,
    /// The client reads slowly.
    SlowClient,
    /// The server reads slowly.
    SlowServer,
    /// Messages with long pauses, for as long as the run.
    Idle,
    /// Messages without pauses, for as long as the run.
    Long,
    /// Nobody listens.
    Refused,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Short,
        Self::Bulk,
        Self::ClientFirst,
        Self::ServerFirst,
        Self::ClientReset,
        Self::ServerReset,
        Self::SlowClient,
        Self::SlowServer,
        Self::Idle,
        Self::Long,
        Self::Refused,
    ];

    /// One of those that callers make one after the other.
    fn choose(choices: &mut Choices) -> Self {
        match choices.within(0..100) {
            0..45 => Self::Short,
            45..50 => Self::Bulk,
            50..63 => Self::ClientFirst,
            63..76 => Self::ServerFirst,
            76..84 => Self::ClientReset,
            84..92 => Self::ServerReset,
            92..94 => Self::SlowClient,
            94..96 => Self::SlowServer,
            _ => Self::Refused,
        }
    }
}

/// What both ends know of a connection.
#[derive(Clone, Copy, Debug)]
struct Head {
    kind: Kind,
    seed: u64,
    there: u64,
    back: u64,
}

impl Head {
    fn new(kind: Kind, choices: &mut Choices) -> Self {
        let seed = choices.next();
        let (there, back) = match kind {
            Kind::Short => (choices.within(0..4096), choices.within(0..4096)),
            Kind::Bulk => (choices.within(0..8 << 20), choices.within(0..8 << 20)),
            Kind::ClientFirst | Kind::ServerFirst => {
                (choices.within(0..300_000), choices.within(0..300_000))
            }
            Kind::ClientReset => (choices.within(1..1 << 20), 0),
            Kind::ServerReset => (0, choices.within(1..1 << 20)),
            Kind::SlowClient => (0, choices.within(2 << 20..6 << 20)),
            Kind::SlowServer => (choices.within(2 << 20..6 << 20), 0),
            Kind::Idle | Kind::Long | Kind::Refused => (0, 0),
        };
        Self {
            kind,
            seed,
            there,
            back,
        }
    }

    fn encode(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0] = self.kind as u8;
        for (slot, value) in [self.seed, self.there, self.back].into_iter().enumerate() {
            bytes[1 + 8 * slot..9 + 8 * slot].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; HEAD]) -> Result<Self> {
        let kind = Kind::ALL
            .get(usize::from(bytes[0]))
            .context("no such kind")?;
        let field = |slot: usize| {
            let mut value = [0; 8];
            value.copy_from_slice(&bytes[1 + 8 * slot..9 + 8 * slot]);
            u64::from_le_bytes(value)
        };
        Ok(Self {
            kind: *kind,
            seed: field(0),
            there: field(1),
            back: field(2),
        })
    }

    /// The seed of what the server says.
    fn answer(self) -> u64 {
        self.seed.wrapping_add(0x1234_5678)
    }
}

/// Runs `work` on a thread in the namespace.
fn inside<F: Future>(
    netns: &Netns,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>> {
    netns.spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime can be made").block_on(work());
    })
}

// ---- servers

/// Serves in a pod until this process ends.
pub(crate) fn serve(netns: &Netns, tally: &Arc<Tally>) -> Result<()> {
    let tally = Arc::clone(tally);
    inside(netns, || async move {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await;
        let listener = listener.expect("the port is free in a new namespace");
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                continue;
            };
            let tally = Arc::clone(&tally);
            tally.serving(true);
            tokio::spawn(async move {
                if let Err(error) = answer(stream, &tally).await {
                    tally.fail(format!("server, from {from}: {error:#}"));
                }
                tally.serving(false);
            });
        }
    })?;
    Ok(())
}

async fn answer(mut stream: TcpStream, tally: &Tally) -> Result<()> {
    stream.set_nodelay(true)?;
    let at = stream.local_addr()?.ip();
    let mut head = [0; HEAD];
    match timeout(PATIENCE, stream.read_exact(&mut head)).await? {
        Ok(_) => {}
        // A reset may overtake all that was said before; those of other kinds would be missed.
        Err(error) if is_reset(&error) => {
            tally.count(Kind::ClientReset, End::Server);
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("at {at}, reading the head")),
    }
    let head = Head::decode(&head)?;
    let work = answer_as(head, stream, tally);
    match head.kind {
        Kind::Idle | Kind::Long => work.await,
        _ => timeout(2 * PATIENCE, work).await.context("it hangs")?,
    }
    .with_context(|| format!("at {at}, {head:?}"))?;
    tally.count(head.kind, End::Server);
    Ok(())
}

async fn answer_as(head: Head, mut stream: TcpStream, tally: &Tally) -> Result<()> {
    let (reader, writer) = &mut stream.split();
    match head.kind {
        Kind::Short | Kind::Bulk | Kind::SlowClient => {
            let sent = send(writer, head.answer(), head.back);
            let received = receive(reader, head.seed, head.there, Pace::Full, tally);
            tokio::try_join!(sent, received)?;
        }
        Kind::ClientFirst => {
            receive(reader, head.seed, head.there, Pace::Full, tally).await?;
            send(writer, head.answer(), head.back).await?;
        }
        Kind::ServerFirst => {
            send(writer, head.answer(), head.back).await?;
            receive(reader, head.seed, head.there, Pace::Full, tally).await?;
        }
        Kind::SlowServer => {
            receive(reader, head.seed, head.there, Pace::Slow, tally).await?;
            send(writer, head.answer(), head.back).await?;
        }
        Kind::ClientReset => expect_reset(reader, head.seed, head.there, tally).await?,
        Kind::ServerReset => {
            send_part(writer, head.answer(), head.back / 2).await?;
            reset(stream)?;
        }
        Kind::Idle | Kind::Long => echo(reader, writer).await?,
        Kind::Refused => bail!("nobody should have come"),
    }
    Ok(())
}

async fn echo(reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = reader
            .read(&mut buffer)
            .await
            .context("waiting for a message")?;
        if count == 0 {
            writer.shutdown().await?;
            return Ok(());
        }
        writer.write_all(&buffer[..count]).await?;
    }
}

// ---- clients

/// What a pod's callers do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) to: SocketAddr,
    pub(crate) seed: u64,
    pub(crate) way: &'static str,
    pub(crate) callers: usize,
    pub(crate) idle: usize,
}

/// Calls from a pod until the tally is over, and then ends what goes on.
pub(crate) fn call(netns: &Netns, plan: Plan, tally: &Arc<Tally>) -> Result<JoinHandle<()>> {
    let tally = Arc::clone(tally);
    inside(netns, || async move {
        let mut tasks = Vec::new();
        let mut seed = plan.seed << 20;
        let mut task = |kind: Option<Kind>| {
            seed += 1;
            let (plan, tally, choices) = (plan.clone(), Arc::clone(&tally), Choices::new(seed));
            tasks.push(tokio::spawn(caller(plan, kind, choices, tally)));
        };
        (0..plan.callers).for_each(|_| task(None));
        (0..plan.idle).for_each(|_| task(Some(Kind::Idle)));
        task(Some(Kind::Long));
        for task in tasks {
            task.await.expect("a caller does not panic");
        }
    })
}

/// Makes one connection after the other, of this kind alone or of all kinds.
async fn caller(plan: Plan, only: Option<Kind>, mut choices: Choices, tally: Arc<Tally>) {
    while !tally.is_over() {
        let kind = only.unwrap_or_else(|| Kind::choose(&mut choices));
        let head = Head::new(kind, &mut choices);
        tally.count(kind, End::Begun);
        match call_once(&plan, head, &mut choices, &tally).await {
            Ok(()) => tally.count(kind, End::Client),
            Err(error) => {
                tally.fail(format!(
                    "client, {} to {}, {head:?}: {error:#}",
                    plan.way, plan.to
                ));
            }
        }
        sleep(Duration::from_millis(choices.within(0..40))).await;
    }
}

async fn call_once(plan: &Plan, head: Head, choices: &mut Choices, tally: &Tally) -> Result<()> {
    if head.kind == Kind::Refused {
        return refused(plan.to).await;
    }
    let dialled = timeout(PATIENCE, TcpStream::connect(plan.to)).await;
    let mut stream = dialled
        .context("no connection in time")?
        .context("dialling")?;
    stream.set_nodelay(true)?;
    stream
        .write_all(&head.encode())
        .await
        .context("sending the head")?;
    if matches!(head.kind, Kind::Idle | Kind::Long) {
        return converse(stream, head.kind, choices, tally).await;
    }
    timeout(2 * PATIENCE, call_as(head, stream, choices, tally))
        .await
        .context("it hangs")?
}

async fn call_as(
    head: Head,
    mut stream: TcpStream,
    choices: &mut Choices,
    tally: &Tally,
) -> Result<()> {
    let (reader, writer) = &mut stream.split();
    match head.kind {
        Kind::ServerFirst => {
            receive(reader, head.answer(), head.back, Pace::Full, tally).await?;
            send(writer, head.seed, head.there).await?;
        }
        Kind::ClientFirst => {
            send(writer, head.seed, head.there).await?;
            receive(reader, head.answer(), head.back, Pace::Full, tally).await?;
        }
        Kind::ClientReset => {
            send_part(writer, head.seed, head.there / 2).await?;
            sleep(Duration::from_millis(choices.within(0..30))).await;
            reset(stream)?;
        }
        Kind::ServerReset => expect_reset(reader, head.answer(), head.back, tally).await?,
        _ => {
            let pace = if head.kind == Kind::SlowClient {
                Pace::Slow
            } else {
                Pace::Full
            };
            let sent = send(writer, head.seed, head.there);
            let received = receive(reader, head.answer(), head.back, pace, tally);
            tokio::try_join!(sent, received)?;
        }
    }
    Ok(())
}

/// A call to a port where nobody listens: it must be refused, or reset at once.
async fn refused(to: SocketAddr) -> Result<()> {
    let closed = SocketAddr::new(to.ip(), CLOSED);
    let attempt = async {
        let mut stream = TcpStream::connect(closed).await?;
        match stream.read(&mut [0]).await? {
            0 => Err(io::Error::other("an end came, where nobody listens")),
            _ => Err(io::Error::other("somebody answers, where nobody listens")),
        }
    };
    let outcome: io::Result<()> = timeout(PATIENCE, attempt).await.context("silence")?;
    match outcome {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if is_reset(&error) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => bail!("nothing was said"),
    }
}

/// Messages that are echoed, with pauses or without, until the end of the run.
async fn converse(
    mut stream: TcpStream,
    kind: Kind,
    choices: &mut Choices,
    tally: &Tally,
) -> Result<()> {
    let (reader, writer) = &mut stream.split();
    loop {
        let (seed, len) = (choices.next(), choices.within(1..10_000));
        let mut message = vec![0; usize::try_from(len)?];
        copy_pattern(seed, &mut message);
        let mut got = vec![0; message.len()];
        let exchange = async {
            tokio::try_join!(writer.write_all(&message), reader.read_exact(&mut got)).map(|_| ())
        };
        timeout(PATIENCE, exchange)
            .await
            .context("no echo")?
            .context("in a conversation")?;
        ensure!(got == message, "the echo is another message");
        tally.add_bytes(2 * len);
        if tally.is_over() {
            break;
        }
        let pause = if kind == Kind::Idle {
            choices.within(1000..20_000)
        } else {
            choices.within(0..10)
        };
        let end = Instant::now() + Duration::from_millis(pause);
        while Instant::now() < end && !tally.is_over() {
            sleep(Duration::from_millis(200).min(end - Instant::now())).await;
        }
    }
    writer.shutdown().await?;
    let rest = timeout(PATIENCE, reader.read(&mut [0]))
        .await
        .context("no end")??;
    ensure!(rest == 0, "more came than was said");
    Ok(())
}

// ---- both ends

/// How fast an end reads.
#[derive(Clone, Copy, Debug)]
enum Pace {
    Full,
    Slow,
}

fn copy_pattern(seed: u64, into: &mut [u8]) {
    let mut at = 0;
    while at < into.len() {
        let part = pattern::stretch(seed, at as u64, into.len() - at);
        into[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

async fn send_part(writer: &mut WriteHalf<'_>, seed: u64, bytes: u64) -> Result<()> {
    let mut at = 0;
    while at < bytes {
        let most = usize::try_from((bytes - at).min(64 << 10))?;
        let part = pattern::stretch(seed, at, most);
        writer
            .write_all(part)
            .await
            .with_context(|| format!("sending at {at}"))?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Sends so much, and the end.
async fn send(writer: &mut WriteHalf<'_>, seed: u64, bytes: u64) -> Result<()> {
    send_part(writer, seed, bytes).await?;
    writer.shutdown().await.context("sending the end")
}

/// Reads so much, and the end.
async fn receive(
    reader: &mut ReadHalf<'_>,
    seed: u64,
    bytes: u64,
    pace: Pace,
    tally: &Tally,
) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let count = reader
            .read(&mut buffer)
            .await
            .with_context(|| format!("reading at {at} of {bytes}"))?;
        if count == 0 {
            ensure!(at == bytes, "the end came at {at} of {bytes}");
            tally.add_bytes(at);
            return Ok(());
        }
        ensure!(
            pattern::fits(seed, at, &buffer[..count]),
            "other bytes after {at} of {bytes}"
        );
        at += count as u64;
        ensure!(at <= bytes, "{at} bytes came of {bytes}");
        if let Pace::Slow = pace {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Reads what comes of so much, up to a reset; anything else is wrong.
async fn expect_reset(
    reader: &mut ReadHalf<'_>,
    seed: u64,
    bytes: u64,
    tally: &Tally,
) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => bail!("a reset looks like an end, at {at} of {bytes}"),
            Ok(count) => {
                ensure!(
                    pattern::fits(seed, at, &buffer[..count]),
                    "other bytes after {at} of {bytes}"
                );
                at += count as u64;
                tally.add_bytes(count as u64);
            }
            Err(error) if is_reset(&error) => return Ok(()),
            Err(error) => return Err(error).context("that is no reset"),
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}
