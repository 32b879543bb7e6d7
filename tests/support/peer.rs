//! Peers that are not Adit: an HBONE client and server that do exactly what a test tells them,
//! right or wrong, with certificates of any making.
//!
//! They run on an own thread's runtime; the test speaks to them in blocking calls.

use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode, Uri};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName as TlsName, ServerConfig,
    SignatureScheme,
};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::app::{Conn, Listener};
use super::namespace::Namespace;

/// How long any step of a peer may take.
const STEP: Duration = Duration::from_secs(10);

/// One thread that drives all peers of this process.
static RUNTIME: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
});

fn wait<T>(work: impl Future<Output = T>) -> Result<T, String> {
    RUNTIME
        .block_on(async { timeout(STEP, work).await })
        .map_err(|_| "it took too long".to_owned())
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub(crate) struct Mint {
    /// Its URI names.
    pub(crate) uris: Vec<String>,
    /// From when to when it holds.
    pub(crate) validity: (SystemTime, SystemTime),
    /// Whether it may be used by clients and by servers.
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Mint {
    /// A proper one of an identity.
    pub(crate) fn of(uri: &str) -> Self {
        let now = SystemTime::now();
        let minute = Duration::from_secs(60);
        Self {
            uris: vec![uri.to_owned()],
            validity: (now - minute, now + 60 * minute),
            usages: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
        }
    }

    /// One that held once.
    pub(crate) fn expired(mut self) -> Self {
        let now = SystemTime::now();
        self.validity = (
            now - Duration::from_secs(7200),
            now - Duration::from_secs(3600),
        );
        self
    }
}

/// A certificate with its key.
pub(crate) struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    /// The one that the daemons of a lab share, from the files of its directory.
    pub(crate) fn of_directory(path: &Path) -> Self {
        let files = std::fs::read_dir(path).expect("the authority's directory is there");
        let texts: Vec<String> = files
            .flatten()
            .filter_map(|file| std::fs::read_to_string(file.path()).ok())
            .collect();
        let with = |mark: &str| texts.iter().find(|t| t.contains(mark)).cloned();
        let certificate = with("BEGIN CERTIFICATE").expect("it holds the root");
        let key = with("PRIVATE KEY").expect("it holds the root's key");
        let key = KeyPair::from_pem(&key).expect("the key is PEM");
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).expect("the root is PEM");
        Self { issuer }
    }

    /// One that nobody has reason to trust.
    pub(crate) fn foreign() -> Self {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = Issuer::new(params, key);
        Self { issuer }
    }

    /// Issues a certificate, whatever it says.
    pub(crate) fn issue(&self, mint: &Mint) -> Credential {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = mint
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().expect("it is ASCII")))
            .collect();
        params.extended_key_usages.clone_from(&mint.usages);
        (params.not_before, params.not_after) = (mint.validity.0.into(), mint.validity.1.into());
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("it can be signed");
        Credential {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    }
}

impl Credential {
    fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

/// Takes every certificate: it is the other side that is under test.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl Anything {
    fn new() -> Arc<Self> {
        Arc::new(Self(Arc::new(aws_lc_rs::default_provider())))
    }
}

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anything {
    fn root_hint_subjects(&self) -> &[TlsName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The URI names of the first certificate.
fn uris(chain: Option<&[CertificateDer<'_>]>) -> Vec<String> {
    let Some(leaf) = chain.and_then(<[_]>::first) else {
        return Vec::new();
    };
    let (_, leaf) = X509Certificate::from_der(leaf).expect("TLS has parsed it");
    let names = leaf.subject_alternative_name().ok().flatten();
    names
        .iter()
        .flat_map(|san| &san.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect()
}

/// A tunnel that the test opens by itself.
pub(crate) struct HboneClient {
    requests: h2::client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    server: Vec<String>,
    chain: Vec<CertificateDer<'static>>,
}

impl HboneClient {
    /// Opens a tunnel from inside `netns`. `Err` says at which step the other side refused.
    pub(crate) fn open(
        netns: &Namespace,
        to: SocketAddr,
        credential: Option<&Credential>,
    ) -> Result<Self, String> {
        Self::open_with(netns, to, credential, &["h2"])
    }

    /// The same, offering other protocols.
    pub(crate) fn open_with(
        netns: &Namespace,
        to: SocketAddr,
        credential: Option<&Credential>,
        protocols: &[&str],
    ) -> Result<Self, String> {
        let conn = Conn::dial(netns, None, to, STEP).map_err(|e| format!("dial: {e}"))?;
        let verifier = Anything::new();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&verifier.0))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match credential {
            None => builder.with_no_client_auth(),
            Some(own) => builder
                .with_client_auth_cert(own.chain.clone(), own.key())
                .expect("the key fits the certificate"),
        };
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        wait(Self::handshake(conn, config, to))?
    }

    async fn handshake(conn: Conn, config: ClientConfig, to: SocketAddr) -> Result<Self, String> {
        let stream = conn.stream().try_clone().expect("a descriptor is free");
        stream.set_nonblocking(true).expect("a socket takes it");
        let stream = tokio::net::TcpStream::from_std(stream).expect("it is non-blocking");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect(ServerName::IpAddress(to.ip().into()), stream)
            .await
            .map_err(|e| format!("tls: {e}"))?;
        let chain: Vec<_> = stream
            .get_ref()
            .1
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|c| c.clone().into_owned())
            .collect();
        let (requests, mut connection) = h2::client::handshake(stream)
            .await
            .map_err(|e| format!("h2: {e}"))?;
        let mut pings = connection.ping_pong().expect("it is asked for once");
        let connection = tokio::spawn(connection);
        // In TLS 1.3 the client is done before the server has looked at its certificate: only
        // an answer within HTTP/2 says that it was taken.
        let answer = pings.ping(h2::Ping::opaque()).await;
        answer.map_err(|e| format!("tls or h2: {e}"))?;
        Ok(Self {
            requests,
            connection,
            server: uris(Some(&chain)),
            chain,
        })
    }

    /// The URI names of the server's certificate.
    pub(crate) fn server(&self) -> &[String] {
        &self.server
    }

    /// The certificates the server showed, leaf first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Asks for a stream to `authority`; gives the status, and the stream when that is 200.
    pub(crate) fn connect(&mut self, authority: &str) -> Result<(u16, HboneStream), String> {
        let uri = Uri::builder()
            .authority(authority)
            .build()
            .map_err(|e| e.to_string())?;
        let request = Request::builder().method(Method::CONNECT).uri(uri).body(());
        self.request(request.expect("it is a valid request"))
    }

    /// Asks for anything.
    pub(crate) fn request(&mut self, request: Request<()>) -> Result<(u16, HboneStream), String> {
        let requests = &mut self.requests;
        wait(async {
            let (response, send) = requests
                .send_request(request, false)
                .map_err(|e| format!("h2: {e}"))?;
            let response = response.await.map_err(|e| format!("stream: {e}"))?;
            let status = response.status().as_u16();
            Ok((
                status,
                HboneStream {
                    send,
                    receive: response.into_body(),
                },
            ))
        })?
    }

    /// Whether the other side has ended the tunnel.
    pub(crate) fn ended(&self) -> bool {
        self.connection.is_finished()
    }
}

impl Drop for HboneClient {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// One stream of such a tunnel.
pub(crate) struct HboneStream {
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl HboneStream {
    /// Sends bytes, and with `end` the end of this side.
    pub(crate) fn send(&mut self, bytes: &[u8], end: bool) -> Result<(), String> {
        self.send
            .send_data(Bytes::copy_from_slice(bytes), end)
            .map_err(|e| e.to_string())
    }

    /// Ends the stream with an error code.
    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.send.send_reset(reason);
    }

    /// The next bytes; `None` at the end of the other side.
    pub(crate) fn receive(&mut self) -> Result<Option<Bytes>, String> {
        let receive = &mut self.receive;
        let frame = wait(receive.data())?;
        let frame = frame.transpose().map_err(|e| e.to_string())?;
        if let Some(frame) = &frame {
            let _ = receive.flow_control().release_capacity(frame.len());
        }
        Ok(frame)
    }

    /// Everything up to the end of the other side.
    pub(crate) fn receive_all(&mut self) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        while let Some(frame) = self.receive()? {
            all.extend_from_slice(&frame);
        }
        Ok(all)
    }
}

/// What a server of the test does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    /// Takes the stream and sends back what comes.
    Echo,
    /// Refuses with this status.
    Status(u16),
    /// Never answers.
    Nothing,
    /// Takes the stream and then resets it.
    Reset,
}

/// A request as such a server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) authority: String,
    pub(crate) headers: http::HeaderMap,
    /// The URI names of the client's certificate.
    pub(crate) client: Vec<String>,
}

/// A tunnel server that the test runs in the place of a daemon.
pub(crate) struct HboneServer {
    seen: Arc<Mutex<Vec<Seen>>>,
    _server: super::app::Server,
}

impl HboneServer {
    /// Takes tunnels in `netns` on `addr`, shows `credential`, and answers every request alike.
    pub(crate) fn open(
        netns: &Namespace,
        addr: SocketAddr,
        credential: &Credential,
        reply: Reply,
    ) -> Self {
        let verifier = Anything::new();
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&verifier.0))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(credential.chain.clone(), credential.key())
            .expect("the key fits the certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let listener = Listener::open(netns, addr).expect("the tunnel port is free");
        let server = listener.serve(move |conn| {
            RUNTIME.spawn(take(conn, Arc::clone(&config), reply, Arc::clone(&log)));
        });
        Self {
            seen,
            _server: server,
        }
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no holder panics").clone()
    }
}

/// Serves one tunnel; its errors are the client's to report.
async fn take(
    conn: Conn,
    config: Arc<ServerConfig>,
    reply: Reply,
    log: Arc<Mutex<Vec<Seen>>>,
) -> Option<()> {
    let stream = conn.stream().try_clone().ok()?;
    stream.set_nonblocking(true).ok()?;
    let stream = tokio::net::TcpStream::from_std(stream).ok()?;
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let stream = acceptor.accept(stream).await.ok()?;
    let client = uris(stream.get_ref().1.peer_certificates());
    let mut connection = h2::server::handshake(stream).await.ok()?;
    let mut unanswered = Vec::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (head, body) = request.into_parts();
        log.lock().expect("no holder panics").push(Seen {
            method: head.method.to_string(),
            authority: head.uri.to_string(),
            headers: head.headers,
            client: client.clone(),
        });
        if let Reply::Nothing = reply {
            unanswered.push((respond, body));
        } else {
            tokio::spawn(answer(respond, body, reply));
        }
    }
    Some(())
}

async fn answer(
    mut respond: h2::server::SendResponse<Bytes>,
    mut body: RecvStream,
    reply: Reply,
) -> Option<()> {
    let (status, refused) = match reply {
        Reply::Status(status) => (StatusCode::from_u16(status).expect("it is a status"), true),
        _ => (StatusCode::OK, false),
    };
    let response = Response::builder()
        .status(status)
        .body(())
        .expect("it is valid");
    let mut send = respond.send_response(response, refused).ok()?;
    if let Reply::Reset = reply {
        send.send_reset(h2::Reason::INTERNAL_ERROR);
        return None;
    }
    while let Some(Ok(bytes)) = body.data().await {
        let _ = body.flow_control().release_capacity(bytes.len());
        send.send_data(bytes, false).ok()?;
    }
    send.send_data(Bytes::new(), true).ok()
}
