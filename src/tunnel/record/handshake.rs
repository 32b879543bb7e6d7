//! Carries the bytes of a handshake between rustls and whoever has the socket.
//!
//! rustls is given one record at a time and none behind the end of the handshake, so that what
//! follows in the same segment is left for [`Records`].
//!
//! Nobody has looked at the peer yet, and rustls bounds what it is shown only where it reads for
//! itself. So what it keeps and how often it is asked is bounded here.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CommonState, InvalidMessage};
use rustls_pki_types::CertificateDer;

use crate::tunnel::record::key::Secrets;
use crate::tunnel::record::{HEAD, LONGEST, Records};
use crate::tunnel::tls;

/// Bytes that rustls may have seen and not be done with: parts of a message, with all the padding
/// between them. Its own bound where it reads for itself.
const KEPT: usize = 64 * 1024;
/// Records in a whole handshake. Early data that it refused rustls keeps, and tries to open anew
/// with each record that follows.
const RECORDS: usize = 512;

/// A session that has not begun.
pub(crate) enum Handshake {
    /// As client.
    Client(Box<UnbufferedClientConnection>),
    /// As server.
    Server(Box<UnbufferedServerConnection>),
}

impl From<UnbufferedClientConnection> for Handshake {
    fn from(connection: UnbufferedClientConnection) -> Self {
        Self::Client(Box::new(connection))
    }
}

impl From<UnbufferedServerConnection> for Handshake {
    fn from(connection: UnbufferedServerConnection) -> Self {
        Self::Server(Box::new(connection))
    }
}

impl Handshake {
    fn state(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }
}

/// A handshake that is under way.
pub(crate) struct Negotiation {
    side: Handshake,
    incoming: Vec<u8>,
    /// How much of it rustls has seen.
    shown: usize,
    /// How many records rustls has seen.
    records: usize,
    outgoing: Vec<u8>,
    written: usize,
}

/// What came of it.
pub(crate) struct Negotiated {
    /// The session.
    pub(crate) records: Records,
    /// What was received behind the handshake.
    pub(crate) rest: Vec<u8>,
    /// The certificates that the peer has proven to hold, leaf first.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Whether both sides agreed on HTTP/2.
    pub(crate) speaks_h2: bool,
}

/// What rustls wants next.
enum Next {
    Again,
    Bytes,
}

impl Negotiation {
    /// Before the first byte.
    pub(crate) fn new(side: Handshake) -> Self {
        Self {
            side,
            incoming: Vec::new(),
            shown: 0,
            records: 0,
            outgoing: Vec::new(),
            written: 0,
        }
    }

    /// Takes in what the peer sent.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
    }

    /// What is to be written before anything else.
    pub(crate) fn outgoing(&self) -> &[u8] {
        &self.outgoing[self.written..]
    }

    /// Marks bytes of it as written.
    pub(crate) fn written(&mut self, count: usize) {
        self.written += count;
        if self.written == self.outgoing.len() {
            self.outgoing.clear();
            self.written = 0;
        }
    }

    /// Goes as far as the bytes allow. Whether the handshake is done.
    ///
    /// # Errors
    ///
    /// It failed. The alert that says so is outgoing, unless the peer only sent too much.
    pub(crate) fn advance(&mut self) -> Result<bool, rustls::Error> {
        loop {
            match self.step() {
                Ok(Next::Again) => {}
                Ok(Next::Bytes) if !self.side.state().is_handshaking() => return Ok(true),
                Ok(Next::Bytes) => match record(&self.incoming[self.shown..]) {
                    Some(length) => self.show(length)?,
                    None => return Ok(false),
                },
                Err(error) => {
                    // The alert, and nothing more: asked further, rustls would fail again.
                    while self.side.state().wants_write() && self.step().is_ok() {}
                    return Err(error);
                }
            }
        }
    }

    /// Has rustls see one more record.
    fn show(&mut self, length: usize) -> Result<(), rustls::Error> {
        self.shown += length;
        self.records += 1;
        if self.shown > KEPT || self.records > RECORDS {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        Ok(())
    }

    /// Lets rustls do one thing with what it is shown. That never gets shorter but by what rustls
    /// is done with: it remembers where in it the parts of a message are.
    fn step(&mut self) -> Result<Next, rustls::Error> {
        let shown = &mut self.incoming[..self.shown];
        let (done, next) = match &mut self.side {
            Handshake::Client(connection) => {
                follow(connection.process_tls_records(shown), &mut self.outgoing)
            }
            Handshake::Server(connection) => {
                follow(connection.process_tls_records(shown), &mut self.outgoing)
            }
        };
        self.incoming.drain(..done);
        self.shown -= done;
        next
    }

    /// The session, once the handshake is done and all is written.
    pub(crate) fn finish(mut self) -> Result<Negotiated, rustls::Error> {
        let state = self.side.state();
        let chain = state.peer_certificates().unwrap_or_default();
        let certificates = chain
            .iter()
            .cloned()
            .map(CertificateDer::into_owned)
            .collect();
        let speaks_h2 = state.alpn_protocol() == Some(tls::ALPN);
        let (extracted, secrets) = match self.side {
            Handshake::Client(connection) => {
                let (extracted, kernel) = connection.dangerous_into_kernel_connection()?;
                (extracted, Secrets::Client(kernel))
            }
            Handshake::Server(connection) => {
                let (extracted, kernel) = connection.dangerous_into_kernel_connection()?;
                (extracted, Secrets::Server(kernel))
            }
        };
        Ok(Negotiated {
            records: Records::new(extracted, secrets)?,
            rest: self.incoming.split_off(self.shown),
            certificates,
            speaks_h2,
        })
    }
}

/// Does what rustls asks for, as far as that is not reading. How many bytes it is done with.
fn follow<Side>(
    status: UnbufferedStatus<'_, '_, Side>,
    outgoing: &mut Vec<u8>,
) -> (usize, Result<Next, rustls::Error>) {
    let next = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(message) => encode(message, outgoing),
        ConnectionState::TransmitTlsData(sent) => {
            // As good as sent: it is written before anything else.
            sent.done();
            Ok(Next::Again)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(Next::Bytes),
        _ => Err(rustls::Error::HandshakeNotComplete),
    });
    (status.discard, next)
}

fn encode<Side>(
    mut message: EncodeTlsData<'_, Side>,
    outgoing: &mut Vec<u8>,
) -> Result<Next, rustls::Error> {
    let start = outgoing.len();
    if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
        outgoing.resize(start + size.required_size, 0);
        let encoded = message.encode(&mut outgoing[start..]);
        encoded.map_err(|error| rustls::Error::General(error.to_string()))?;
    }
    Ok(Next::Again)
}

/// The length of the next record, if it is there as a whole. What is no record is shown to rustls
/// as it is, which knows what to say to it.
fn record(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [] => None,
        [20..=23] | [20..=23, 3] | [20..=23, 3, _] | [20..=23, 3, _, _] => None,
        [20..=23, 3, _, high, low, ..] => {
            let length = HEAD + usize::from(u16::from_be_bytes([high, low]));
            if length > LONGEST {
                return Some(bytes.len());
            }
            (length <= bytes.len()).then_some(length)
        }
        _ => Some(bytes.len()),
    }
}
