//! What seals and opens records: a traffic key with its counter, and where the next one is from.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::error::Unspecified;
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ContentType};

use crate::tunnel::record::{HEAD, TAIL};

/// The traffic key of one direction (RFC 8446 §5.2, §5.3).
pub(crate) struct Key {
    key: LessSafeKey,
    iv: Iv,
    /// How many records it has sealed or opened.
    used: u64,
}

impl Key {
    /// A key from what rustls derived, and the number of the first record under it.
    pub(crate) fn new(
        (used, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, rustls::Error> {
        match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                Self::of(&AES_128_GCM, &key, iv, used)
            }
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                Self::of(&AES_256_GCM, &key, iv, used)
            }
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                Self::of(&CHACHA20_POLY1305, &key, iv, used)
            }
            _ => Err(unusable()),
        }
    }

    fn of(
        algorithm: &'static Algorithm,
        key: &AeadKey,
        iv: Iv,
        used: u64,
    ) -> Result<Self, rustls::Error> {
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unusable())?;
        let key = LessSafeKey::new(key);
        Ok(Self { key, iv, used })
    }

    /// How many records it has sealed or opened.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Unique for each record of the direction. The counter cannot wrap in anybody's lifetime.
    fn nonce(&mut self) -> Nonce {
        let nonce = cipher::Nonce::new(&self.iv, self.used);
        self.used += 1;
        Nonce::assume_unique_for_key(nonce.0)
    }

    /// Makes a record of which everything but the plaintext is still open.
    pub(crate) fn seal(
        &mut self,
        record: &mut [u8],
        kind: ContentType,
    ) -> Result<(), rustls::Error> {
        let nonce = self.nonce();
        let (head, plaintext, tail) = parts(record);
        let sealed =
            self.key
                .seal_in_place_scatter(nonce, Aad::from(head), plaintext, &[kind.into()], tail);
        sealed.map_err(|_| rustls::Error::EncryptError)
    }

    /// Makes a record of application data that is somewhere else.
    pub(crate) fn seal_from(
        &mut self,
        plaintext: &[u8],
        record: &mut [u8],
    ) -> Result<(), rustls::Error> {
        let nonce = self.nonce();
        let (head, sealed, tail) = parts(record);
        let sealed = self.key.seal_out_of_place_scatter(
            nonce,
            Aad::from(head),
            plaintext,
            sealed,
            &[ContentType::ApplicationData.into()],
            tail,
        );
        sealed.map_err(|_| rustls::Error::EncryptError)
    }

    /// Opens a record where it is. What it held is behind its head then, up to where the tag was.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(), rustls::Error> {
        let failed = |_: Unspecified| rustls::Error::DecryptError;
        let nonce = self.nonce();
        let (head, sealed) = record.split_at_mut(HEAD);
        let opened = self.key.open_in_place(nonce, Aad::from(head), sealed);
        opened.map(drop).map_err(failed)
    }
}

/// A record's head, filled in, and its parts.
fn parts(record: &mut [u8]) -> ([u8; HEAD], &mut [u8], &mut [u8]) {
    let [high, low] = u16::try_from(record.len() - HEAD)
        .expect("a record is below 17 KiB")
        .to_be_bytes();
    let head = [ContentType::ApplicationData.into(), 3, 3, high, low];
    record[..HEAD].copy_from_slice(&head);
    let rest = &mut record[HEAD..];
    let (plaintext, tail) = rest.split_at_mut(rest.len() - TAIL);
    (head, plaintext, tail)
}

fn unusable() -> rustls::Error {
    rustls::Error::General("no such traffic key".into())
}

/// Where the keys of a session come from.
pub(crate) enum Secrets {
    /// Of a client.
    Client(KernelConnection<ClientConnectionData>),
    /// Of a server.
    Server(KernelConnection<ServerConnectionData>),
}

impl Secrets {
    pub(crate) fn is_client(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// How many records one key may seal.
    pub(crate) fn confidentiality_limit(&self) -> u64 {
        let suite = match self {
            Self::Client(kernel) => kernel.negotiated_cipher_suite(),
            Self::Server(kernel) => kernel.negotiated_cipher_suite(),
        };
        // Without a suite of TLS 1.3 there is no session. A key for one record is a safe answer.
        suite
            .tls13()
            .map_or(1, |suite| suite.common.confidentiality_limit)
    }

    /// The next key of what the peer sends.
    pub(crate) fn next_received(
        &mut self,
    ) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
    }

    /// The next key of what we send.
    pub(crate) fn next_sent(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
    }
}
