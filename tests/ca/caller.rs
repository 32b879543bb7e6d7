//! Somebody who asks for certificates by hand: right or wrong, as a test says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit::pki::Request;
use adit::pki::grpc::{CertificateRequest, CertificateResponse};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What one call may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// A caller with a connection of its own for each call.
pub(crate) struct Caller {
    runtime: Runtime,
    pub(crate) address: SocketAddr,
    pub(crate) roots: String,
    pub(crate) token: Option<String>,
}

/// An answer: the chain, leaf first, and the roots.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl Caller {
    pub(crate) fn new(address: SocketAddr, roots: &str, token: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Self {
            runtime: runtime.expect("a runtime can be made"),
            address,
            roots: roots.to_owned(),
            token: Some(token.to_owned()),
        }
    }

    /// With another token.
    pub(crate) fn token(mut self, token: Option<&str>) -> Self {
        self.token = token.map(str::to_owned);
        self
    }

    /// Asks for what a node asks for: a certificate of the default trust domain.
    pub(crate) fn ask(&self, namespace: &str, account: &str) -> Result<Issued, Status> {
        self.ask_for(namespace, account, 0)
    }

    /// The same, valid for so many seconds.
    pub(crate) fn ask_for(
        &self,
        namespace: &str,
        account: &str,
        validity: i64,
    ) -> Result<Issued, Status> {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        self.send(request(&identity, validity)).map(Issued::read)
    }

    /// Sends any message.
    pub(crate) fn send(&self, message: CertificateRequest) -> Result<CertificateResponse, Status> {
        self.runtime.block_on(async {
            let call = async {
                let mut sender = self.open().await?;
                self.call(&mut sender, message).await
            };
            let late = |_| Err(Status::deadline_exceeded("the test waited long enough"));
            tokio::time::timeout(PATIENCE, call)
                .await
                .unwrap_or_else(late)
        })
    }

    /// Sends a message so often over one connection, and tells the codes of the answers.
    pub(crate) fn burst(&self, message: &CertificateRequest, times: usize) -> Vec<Code> {
        self.runtime.block_on(async {
            let mut sender = self.open().await.expect("it connects");
            let mut codes = Vec::new();
            for _ in 0..times {
                let answer = self.call(&mut sender, message.clone()).await;
                codes.push(answer.map_or_else(|status| status.code(), |_| Code::Ok));
            }
            codes
        })
    }

    /// Sends a message so often at once, each over a connection of its own, and tells the codes of
    /// the answers.
    pub(crate) fn crowd(&self, message: &CertificateRequest, times: usize) -> Vec<Code> {
        let one = async |message| {
            let mut sender = self.open().await?;
            self.call(&mut sender, message).await
        };
        let all = (0..times).map(|_| one(message.clone()));
        let answers = self.runtime.block_on(futures_util::future::join_all(all));
        let code = |answer: Result<_, Status>| answer.map_or_else(|s| s.code(), |_| Code::Ok);
        answers.into_iter().map(code).collect()
    }

    async fn open(&self) -> Result<Sender, Status> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Status::unavailable(format!("{what}: {error}"))
        };
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.roots.as_bytes()) {
            let root = root.expect("the roots are PEM");
            roots.add(root).expect("a root is a certificate");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.map_err(|e| failed("tcp", &e))?;
        stream.set_nodelay(true).map_err(|e| failed("tcp", &e))?;
        let name = ServerName::from(self.address.ip());
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(|e| failed("tls", &e))?;
        let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|e| failed("http", &e))?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Sender(sender))
    }

    async fn call(
        &self,
        sender: &mut Sender,
        message: CertificateRequest,
    ) -> Result<CertificateResponse, Status> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            let value = format!("Bearer {token}")
                .parse()
                .expect("the token is ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        let origin = "https://authority/".parse().expect("it is a URL");
        let path = http::uri::PathAndQuery::from_static(
            "/istio.v1.auth.IstioCertificateService/CreateCertificate",
        );
        let mut client = Grpc::with_origin(sender.clone(), origin);
        let answer = client.unary(request, path, ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }
}

/// The request of a node for an identity.
pub(crate) fn request(identity: &str, validity: i64) -> CertificateRequest {
    let identity = adit::mesh::Identity::parse(identity).expect("it is an identity");
    let csr = Request::new(&identity)
        .and_then(|r| r.csr())
        .expect("a request can be made");
    CertificateRequest::on_behalf_of(&identity, csr, validity)
}

impl Issued {
    fn read(answer: CertificateResponse) -> Self {
        let pem = |text: &String| {
            let all = CertificateDer::pem_slice_iter(text.as_bytes());
            all.collect::<Result<Vec<_>, _>>().expect("answers are PEM")
        };
        let (roots, chain) = answer
            .cert_chain
            .split_last()
            .expect("answers are not empty");
        Self {
            chain: chain.iter().flat_map(pem).collect(),
            roots: pem(roots),
        }
    }

    fn leaf(&self) -> X509Certificate<'_> {
        X509Certificate::from_der(&self.chain[0])
            .expect("the leaf can be read")
            .1
    }

    /// The names of the leaf.
    pub(crate) fn names(&self) -> Vec<String> {
        let leaf = self.leaf();
        let names = leaf
            .subject_alternative_name()
            .expect("it can be read")
            .expect("it is there");
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) => (*uri).to_owned(),
            other => format!("{other:?}"),
        };
        names.value.general_names.iter().map(text).collect()
    }

    /// How many seconds the leaf is still valid.
    pub(crate) fn validity(&self) -> u64 {
        self.leaf()
            .validity()
            .time_to_expiration()
            .map_or(0, |left| left.whole_seconds().unsigned_abs())
    }

    /// How many seconds ahead the middle of its two dates lies, where ztunnel renews.
    pub(crate) fn middle(&self) -> i64 {
        let leaf = self.leaf();
        let validity = leaf.validity();
        let [from, to] = [&validity.not_before, &validity.not_after].map(|date| date.timestamp());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("the clock is set").as_secs().cast_signed();
        from.midpoint(to) - now
    }

    /// The serial number in lower-case hexadecimal.
    pub(crate) fn serial(&self) -> String {
        self.leaf()
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Whether the chain leads to this root, for servers and clients.
    pub(crate) fn leads_to(&self, root: &CertificateDer<'static>) -> bool {
        let mut store = RootCertStore::empty();
        store.add(root.clone()).expect("a root is a certificate");
        let (leaf, between) = self.chain.split_first().expect("chains are not empty");
        [
            webpki::KeyUsage::server_auth(),
            webpki::KeyUsage::client_auth(),
        ]
        .into_iter()
        .all(|usage| {
            let now = rustls::pki_types::UnixTime::now();
            adit::pki::verify_path(leaf, between, &store, now, usage).is_ok()
        })
    }
}

#[derive(Clone)]
struct Sender(SendRequest<Body>);

impl Service<http::Request<Body>> for Sender {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
