//! The server's handle: start, stop, what it holds, and what it does wrong on command.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::routes;
use super::store::{Entry, Resource, Store};
use super::tokens::Tokens;
use crate::support::namespace::Namespace;

/// How the server behaves when nothing is wrong.
#[derive(Clone)]
pub(crate) struct Options {
    /// Where it listens; on every address there.
    pub(crate) namespace: Option<Arc<Namespace>>,
    pub(crate) tls: bool,
    /// The bearer tokens that are accepted; none for anybody.
    pub(crate) tokens: BTreeSet<String>,
    /// Whether watches may ask for initial events.
    pub(crate) streaming: bool,
    /// How many steps a watch that asks for initial events begins before now, as where the
    /// server's cache is behind its store: they follow as events before the end is told.
    pub(crate) behind: usize,
    /// How often a watch that asked for bookmarks gets one.
    pub(crate) bookmarks: Duration,
    /// Whether a watch from before the history is refused with 410, instead of being told so in
    /// its stream.
    pub(crate) gone_as_status: bool,
    /// What its clock says, as in the header Date; the machine's time without.
    pub(crate) date: Option<&'static str>,
    /// Rights that access reviews say nobody has, such as `create daemonsets`.
    pub(crate) denied: BTreeSet<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: None,
            tls: false,
            tokens: BTreeSet::new(),
            streaming: true,
            behind: 0,
            bookmarks: Duration::from_millis(500),
            gone_as_status: false,
            date: None,
            denied: BTreeSet::new(),
        }
    }
}

/// Which requests a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Any,
    List,
    Watch,
    /// A watch that asks for initial events.
    Stream,
    /// Create, replace, patch and delete.
    Write,
}

/// What a request gets instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This status, and the seconds of `Retry-After`.
    Status(u16, Option<u32>),
    /// Nothing, for ever.
    Silence,
    /// The end of the connection.
    Hangup,
    /// An answer that breaks off: the first half of its body, then the end of the connection.
    Half,
}

/// What happens to watches that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// They end, as after their time.
    End,
    /// The connection ends in the middle of an event.
    MidLine,
    /// They stay open and never say anything again.
    Stall,
    /// They are told that their version is gone, and end.
    Gone,
    /// They are told of another error, and end.
    Error(u16),
    /// They get a line that is no JSON, and go on.
    Garbage,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The plural name of its resource.
    pub(crate) resource: String,
    pub(crate) call: Call,
    /// Whether it was for metadata alone.
    pub(crate) partial: bool,
    /// Path and query.
    pub(crate) uri: String,
    pub(crate) status: u16,
}

/// Answers a TokenReview: token and audiences to its `status`.
pub(crate) type Review = Arc<dyn Fn(&str, &[String]) -> Value + Send + Sync>;

pub(super) struct Planned {
    pub(super) resource: String,
    pub(super) call: Call,
    /// How many go well before.
    pub(super) skip: usize,
    pub(super) times: usize,
    pub(super) fault: Fault,
}

pub(super) struct Live {
    pub(super) resource: String,
    pub(super) commands: mpsc::UnboundedSender<Break>,
}

/// What all connections share.
pub(super) struct State {
    pub(super) store: Store,
    pub(super) options: Options,
    pub(super) faults: Vec<Planned>,
    pub(super) watches: Vec<Live>,
    pub(super) requests: Vec<Request>,
    pub(super) review: Review,
    pub(super) tokens: Tokens,
}

pub(super) struct Shared {
    state: Mutex<State>,
    /// Told of each write.
    pub(super) changed: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A test's panic elsewhere must not hide behind a second one here.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

struct Running {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// A running fake API server.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    tls: Option<Tls>,
    running: Option<Running>,
}

/// What a server held at some time.
pub(crate) struct Backup(Store);

#[derive(Clone)]
struct Tls {
    acceptor: TlsAcceptor,
    authority: String,
}

impl ApiServer {
    /// Starts an empty cluster, with the namespaces that every cluster has.
    pub(crate) fn start(options: Options) -> Self {
        let tls = options.tls.then(make_tls);
        let mut store = Store::new();
        for name in ["default", "kube-system"] {
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
            });
            store.put(namespace).expect("a namespace is built in");
        }
        let state = State {
            store,
            options,
            faults: Vec::new(),
            watches: Vec::new(),
            requests: Vec::new(),
            review: Arc::new(|_, _| json!({ "authenticated": false })),
            tokens: Tokens::default(),
        };
        let mut server = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: watch::Sender::new(0),
            }),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls,
            running: None,
        };
        server.resume();
        server
    }

    /// Closes its port and every connection; what it holds stays.
    pub(crate) fn stop(&mut self) {
        if let Some(Running { thread, stop }) = self.running.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
        self.shared.lock().watches.clear();
    }

    /// Listens again on the same port.
    pub(crate) fn resume(&mut self) {
        let (namespace, address) = (self.shared.lock().options.namespace.clone(), self.address);
        let bind = || TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), address.port()));
        let listener = match &namespace {
            Some(namespace) => namespace.enter(bind),
            None => bind(),
        };
        let listener = listener.expect("the port is free");
        let port = listener.local_addr().expect("it is bound").port();
        self.address.set_port(port);
        listener.set_nonblocking(true).expect("a socket may be");
        let (stop, stopped) = oneshot::channel();
        let (shared, tls) = (self.shared.clone(), self.tls.clone());
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.expect("a runtime can be made");
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, shared, tls) => {}
                    _ = stopped => {}
                }
            });
            // The runtime goes, and every connection with it.
        };
        let thread = std::thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(serve)
            .expect("a thread can be made");
        self.running = Some(Running { thread, stop });
    }

    /// `stop` and `resume`.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.resume();
    }

    /// Where clients in its namespace reach it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base address as a URL.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate of its authority, PEM, when it speaks TLS.
    pub(crate) fn authority(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| &*tls.authority)
    }

    /// A kubeconfig for it; `user` is the YAML in flow style of its user, such as
    /// `{token: abc}` or `{tokenFile: /path}`.
    pub(crate) fn kubeconfig(&self, user: &str) -> String {
        let ca = self.authority().map_or_else(String::new, |pem| {
            format!(", certificate-authority-data: {}", base64(pem.as_bytes()))
        });
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             clusters:\n- name: it\n  cluster: {{server: \"{}\"{ca}}}\n\
             contexts:\n- name: it\n  context: {{cluster: it, user: it}}\n\
             users:\n- name: it\n  user: {user}\n",
            self.url()
        )
    }

    /// Creates or replaces an object as it stands; gives its resource version.
    #[track_caller]
    pub(crate) fn put(&self, object: Value) -> u64 {
        let entry = self.shared.lock().store.put(object);
        let entry = entry.expect("an object of a resource that is served");
        self.tell();
        entry.version
    }

    /// The object of that `apiVersion` and kind.
    pub(crate) fn object(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Value> {
        let mut state = self.shared.lock();
        let about = json!({ "apiVersion": api_version, "kind": kind });
        let resource = state.store.resource_of(&about)?;
        let name = (namespace.to_owned(), name.to_owned());
        let entry: Arc<Entry> = state.store.shelf(&resource).objects.get(&name)?.clone();
        let version = resource.versions.first()?;
        serde_json::from_str(&entry.full(&resource, version)).ok()
    }

    /// Every object of that `apiVersion` and kind.
    pub(crate) fn objects(&self, api_version: &str, kind: &str) -> Vec<Value> {
        let mut state = self.shared.lock();
        let about = json!({ "apiVersion": api_version, "kind": kind });
        let Some(resource) = state.store.resource_of(&about) else {
            return Vec::new();
        };
        let entries = state.store.shelf(&resource).objects.values();
        entries.map(|entry| entry.value()).collect()
    }

    /// Changes an object that is there.
    #[track_caller]
    pub(crate) fn edit(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let object = self.object(api_version, kind, namespace, name);
        let mut object = object.unwrap_or_else(|| panic!("there is no {kind} {namespace}/{name}"));
        change(&mut object);
        self.put(object);
    }

    /// Deletes an object that is there.
    #[track_caller]
    pub(crate) fn remove(&self, api_version: &str, kind: &str, namespace: &str, name: &str) {
        let about = json!({ "apiVersion": api_version, "kind": kind });
        let mut state = self.shared.lock();
        let resource = state
            .store
            .resource_of(&about)
            .expect("a resource that is served");
        let id = (namespace.to_owned(), name.to_owned());
        let gone = state.store.delete(&resource, &id);
        gone.unwrap_or_else(|e| panic!("{kind} {namespace}/{name}: {e:?}"));
        drop(state);
        self.tell();
    }

    /// Puts in many objects at once that no watch is told of: before anybody looks.
    pub(crate) fn load(&self, objects: impl IntoIterator<Item = Value>) {
        self.shared.lock().store.load(objects);
        self.tell();
    }

    /// Serves a custom resource from now on.
    pub(crate) fn install(&self, resource: Resource) {
        self.shared.lock().store.install(resource);
        self.tell();
    }

    /// Ends a custom resource, called `PLURAL.GROUP`, with all its objects.
    pub(crate) fn uninstall(&self, id: &str) {
        self.shared.lock().store.uninstall(id);
        self.tell();
    }

    /// Forgets history: watches from now on start at this moment or later, lists begin anew.
    pub(crate) fn compact(&self) {
        self.shared.lock().store.compact();
        self.tell();
    }

    /// What it holds now, for [`restore`](Self::restore).
    pub(crate) fn backup(&self) -> Backup {
        Backup(self.shared.lock().store.clone())
    }

    /// Starts anew with what it held then: versions go back, too.
    pub(crate) fn restore(&mut self, backup: &Backup) {
        self.stop();
        self.shared.lock().store = backup.0.clone();
        self.resume();
    }

    /// Changes how it behaves.
    pub(crate) fn options(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.shared.lock().options);
    }

    /// Who a TokenReview says a token is that was not given out by the server itself.
    pub(crate) fn review(&self, review: Review) {
        self.shared.lock().review = review;
    }

    /// Lets the next `times` requests fail that are for a resource (by plural name; empty for any)
    /// and of a kind.
    pub(crate) fn fail(&self, resource: &str, call: Call, times: usize, fault: Fault) {
        self.fail_after(0, resource, call, times, fault);
    }

    /// As [`fail`](Self::fail), after `skip` of them have gone well.
    pub(crate) fn fail_after(
        &self,
        skip: usize,
        resource: &str,
        call: Call,
        times: usize,
        fault: Fault,
    ) {
        self.shared.lock().faults.push(Planned {
            resource: resource.to_owned(),
            call,
            skip,
            times,
            fault,
        });
    }

    /// Takes back every fault that has not come to pass.
    pub(crate) fn heal(&self) {
        self.shared.lock().faults.clear();
    }

    /// Breaks the watches of a resource that run now (by plural name; empty for all); says how
    /// many there were.
    pub(crate) fn break_watches(&self, resource: &str, how: Break) -> usize {
        let mut state = self.shared.lock();
        state.watches.retain(|live| !live.commands.is_closed());
        let fits = |live: &&Live| resource.is_empty() || live.resource == resource;
        let told = state.watches.iter().filter(fits);
        told.filter(|live| live.commands.send(how).is_ok()).count()
    }

    /// How many watches of a resource run; of all, for an empty name.
    pub(crate) fn watching(&self, resource: &str) -> usize {
        let mut state = self.shared.lock();
        state.watches.retain(|live| !live.commands.is_closed());
        let fits = |live: &&Live| resource.is_empty() || live.resource == resource;
        state.watches.iter().filter(fits).count()
    }

    /// The requests so far, in their order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// How many requests of a kind there were for a resource, by plural name.
    pub(crate) fn count(&self, resource: &str, call: Call) -> usize {
        let state = self.shared.lock();
        let fits = |r: &&Request| r.resource == resource && (call == Call::Any || r.call == call);
        state.requests.iter().filter(fits).count()
    }

    fn tell(&self) {
        self.shared.changed.send_modify(|version| *version += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<Tls>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.acceptor.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve<S>(stream: S, shared: Arc<Shared>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let shared = shared.clone();
        async move { routes::answer(request, shared).await }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    let _ = connection
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The error that ends a connection without an answer.
pub(super) fn hangup() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "hung up on command")
}

fn make_tls() -> Tls {
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no name is wrong");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "fake-apiserver-ca");
    let authority = params.self_signed(&key).expect("it signs itself");
    let issuer = rcgen::Issuer::new(params, key);
    let own = rcgen::KeyPair::generate().expect("a key can be made");
    let names = ["127.0.0.1", "::1", "localhost"].map(str::to_owned);
    let params = rcgen::CertificateParams::new(names).expect("the names are well formed");
    let certificate = params.signed_by(&own, &issuer).expect("it signs");
    let key = rustls_pki_types::PrivateKeyDer::try_from(own.serialize_der()).expect("PKCS 8");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("the key is the certificate's");
    Tls {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        authority: authority.pem(),
    }
}

/// RFC 4648, as Secrets and kubeconfigs have it.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            if at <= chunk.len() {
                let index = bits >> (18 - 6 * at) & 63;
                text.push(char::from(LETTERS[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}
