//! One request for a certificate, told from its arrival to its end.
//!
//! What decides is in [`rules`](crate::control::rules); here its facts are fetched. Every end is
//! counted and leaves a record under the log's target `audit`: who asked, from which node, for
//! whom, and what came of it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use crate::causes::Causes;
use crate::control::keeper::Keeper;
use crate::control::kube::Kube;
use crate::control::limits::Buckets;
use crate::control::pods::Pods;
use crate::control::rules::{Caller, Refusal, Rules};
use crate::mesh::Identity;
use crate::pki::authority::write_bundle;
use crate::pki::grpc::{CertificateRequest, CertificateResponse};
use crate::telemetry::metrics::{Control as Metrics, Reason};
use crate::telemetry::timestamp;

/// Most requests that are worked on at once; others wait.
const AT_ONCE: usize = 128;
/// How long a request waits to be worked on.
const QUEUE: Duration = Duration::from_secs(3);
/// How long a whole request may take: less than nodes wait for an answer.
const DEADLINE: Duration = Duration::from_secs(9);
/// Requests per second and at once, of one address before it has said who it is. Nodes behind one
/// address share it.
const ADDRESS: (f64, f64) = (200.0, 2_000.0);
/// Requests per second and at once, of one node: one for each service account on it, and again
/// after a restart.
const NODE: (f64, f64) = (20.0, 500.0);
/// How long a reviewed token is believed without asking again.
const BELIEVED: Duration = Duration::from_secs(10);
/// Most tokens that are kept in mind.
const TOKENS: usize = 10_000;

/// The SHA-256 of a token.
type Digest = [u8; 32];

/// What answers requests.
pub(crate) struct Desk {
    rules: Rules,
    kube: Arc<Kube>,
    keeper: Arc<Keeper>,
    pods: Arc<Pods>,
    metrics: Arc<Metrics>,
    places: Semaphore,
    addresses: Mutex<Buckets<IpAddr>>,
    nodes: Mutex<Buckets<String>>,
    believed: Mutex<HashMap<Digest, (Caller, Instant)>>,
}

/// What is known of a request so far, for its record.
#[derive(Default)]
struct Known {
    caller: Option<Caller>,
    identity: Option<Identity>,
}

/// A certificate that was signed.
struct Granted {
    chain: Vec<String>,
    serial: String,
    issuer: String,
    not_after: SystemTime,
}

impl Desk {
    pub(crate) fn new(
        rules: Rules,
        kube: &Arc<Kube>,
        keeper: &Arc<Keeper>,
        pods: &Arc<Pods>,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            rules,
            kube: kube.clone(),
            keeper: keeper.clone(),
            pods: pods.clone(),
            metrics: metrics.clone(),
            places: Semaphore::new(AT_ONCE),
            addresses: Mutex::new(Buckets::new(ADDRESS.0, ADDRESS.1)),
            nodes: Mutex::new(Buckets::new(NODE.0, NODE.1)),
            believed: Mutex::default(),
        })
    }

    async fn answer(
        &self,
        peer: SocketAddr,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        let start = Instant::now();
        let mut known = Known::default();
        let working = tokio::time::timeout(DEADLINE, self.grant(peer, request, &mut known));
        let outcome = working
            .await
            .unwrap_or_else(|_| Err(Refusal::Api(format!("no answer within {DEADLINE:?}"))));
        match outcome {
            Ok(granted) => {
                self.metrics.issued.inc();
                self.metrics
                    .issue_seconds
                    .inc_by(start.elapsed().as_secs_f64());
                Ok(Response::new(granted.record(peer, &known)))
            }
            Err(refusal) => Err(self.refuse(peer, &known, &refusal)),
        }
    }

    async fn grant(
        &self,
        peer: SocketAddr,
        request: Request<CertificateRequest>,
        known: &mut Known,
    ) -> Result<Granted, Refusal> {
        let address = peer.ip().to_canonical();
        if !take(&self.addresses, address) {
            return Err(Refusal::TooFast(address.to_string()));
        }
        let place = tokio::time::timeout(QUEUE, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(Refusal::Busy);
        };
        let caller = self.authenticate(&request).await?;
        let caller = known.caller.insert(caller).clone();
        if !take(&self.nodes, caller.node.clone()) {
            return Err(Refusal::TooFast(caller.node));
        }
        let request = request.into_inner();
        let asked = self.rules.asked(&request)?;
        let identity = known.identity.insert(asked.identity).clone();
        let api = |error| Refusal::Api(Causes(&error).to_string());
        let on_node = self.pods.hold(&caller.node, &identity).await;
        Rules::placed(&caller, &identity, on_node.map_err(api)?)?;
        let current = self.keeper.current().map_err(Refusal::NotReady)?;
        let validity = self.rules.validity(request.validity_duration);
        let now = SystemTime::now();
        let chain = current
            .authority
            .sign(&asked.key, &identity, validity, now)
            .map_err(|_| Refusal::Signing)?;
        let serial = chain.first().and_then(serial).ok_or(Refusal::Signing)?;
        let mut chain: Vec<_> = chain
            .iter()
            .map(|one| write_bundle(std::slice::from_ref(one)))
            .collect();
        chain.push(current.bundle.clone());
        Ok(Granted {
            chain,
            serial,
            issuer: current.authority.serial().to_owned(),
            not_after: (now + validity).min(current.authority.ends()),
        })
    }

    /// Asks the API server who the bearer of the token is, unless it has just said so.
    async fn authenticate(&self, request: &Request<CertificateRequest>) -> Result<Caller, Refusal> {
        let token = bearer(request).ok_or(Refusal::NoToken)?;
        let digest = digest(token);
        if let Some(caller) = self.believed(&digest) {
            return Ok(caller);
        }
        self.metrics.reviews.inc();
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.rules.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let ask = async |client| {
            let reviews = Api::<TokenReview>::all(client);
            reviews.create(&PostParams::default(), &review).await
        };
        let review = self.kube.ask("have a token reviewed", ask).await;
        let review = review.map_err(|error| Refusal::Api(Causes(&error).to_string()))?;
        let caller = self.rules.caller(review.status.as_ref())?;
        let mut believed = lock(&self.believed);
        if believed.len() >= TOKENS {
            believed.clear();
        }
        believed.insert(digest, (caller.clone(), Instant::now()));
        Ok(caller)
    }

    fn believed(&self, digest: &Digest) -> Option<Caller> {
        let mut believed = lock(&self.believed);
        let (caller, at) = believed.get(digest)?;
        if at.elapsed() < BELIEVED {
            return Some(caller.clone());
        }
        believed.remove(digest);
        None
    }

    fn refuse(&self, peer: SocketAddr, known: &Known, refusal: &Refusal) -> Status {
        let reason = Reason {
            reason: refusal.reason(),
        };
        self.metrics.refused.get_or_create(&reason).inc();
        // Whoever asks too fast must not fill the log as well.
        if !matches!(refusal, Refusal::TooFast(_) | Refusal::Busy) {
            let caller = known.caller.as_ref();
            let identity = known.identity.as_ref().map(Identity::to_string);
            tracing::warn!(
                target: "audit",
                peer = %peer,
                node = caller.map_or("", |c| &c.node),
                account = caller.map_or("", |c| &c.account),
                pod = caller.map_or("", |c| &c.pod),
                identity = identity.unwrap_or_default(),
                reason = refusal.reason(),
                error = %refusal,
                "certificate refused",
            );
        }
        Status::new(refusal.code(), refusal.to_string())
    }
}

impl Granted {
    /// Writes the record; the answer is what is left.
    fn record(self, peer: SocketAddr, known: &Known) -> CertificateResponse {
        let caller = known.caller.as_ref();
        let identity = known.identity.as_ref().map(Identity::to_string);
        tracing::info!(
            target: "audit",
            peer = %peer,
            node = caller.map_or("", |c| &c.node),
            account = caller.map_or("", |c| &c.account),
            pod = caller.map_or("", |c| &c.pod),
            identity = identity.unwrap_or_default(),
            serial = self.serial,
            issuer = self.issuer,
            not_after = timestamp(self.not_after),
            "certificate issued",
        );
        CertificateResponse {
            cert_chain: self.chain,
        }
    }
}

fn bearer(request: &Request<CertificateRequest>) -> Option<&str> {
    let header = request.metadata().get("authorization")?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn digest(token: &str) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut bytes = Digest::default();
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

fn serial(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let hex = |byte: &u8| format!("{byte:02x}");
    Some(parsed.raw_serial().iter().map(hex).collect())
}

fn take<K: Eq + std::hash::Hash>(buckets: &Mutex<Buckets<K>>, caller: K) -> bool {
    lock(buckets).take(caller, Instant::now())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that is done under these locks can leave them half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The desk, for one connection.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) desk: Arc<Desk>,
    pub(crate) peer: SocketAddr,
}

impl UnaryService<CertificateRequest> for Call {
    type Response = CertificateResponse;
    type Future = BoxFuture<'static, Result<Response<CertificateResponse>, Status>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let Self { desk, peer } = self.clone();
        Box::pin(async move { desk.answer(peer, request).await })
    }
}
