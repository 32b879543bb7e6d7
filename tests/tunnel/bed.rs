//! Two sides of a mesh in one process.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use adit::authorize::{self, Permit};
use adit::deliver::{self, End, Meter};
use adit::mesh::{
    Direction, Enrolment, Flow, Identity, Labels, Local, Owner, Path, Peer, Phase, PodAddr,
    TrustDomain, TunnelAddr, Workload,
};
use adit::pki::directory::DirectoryCa;
use adit::pki::{Certificate, Issuer};
use adit::sys::netns::Netns;
use adit::sys::socket::AppSocket;
use adit::task;
use adit::tunnel::{self, ConnectHead, Limits, Origin, Pool, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let set = tokio::task::LocalSet::new();
    let limited = async {
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, test)
            .await
            .expect("the test hangs");
    };
    set.block_on(&runtime, limited);
}

pub(crate) async fn sleep(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Waits until `done`, for a few seconds.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        sleep(10).await;
    }
    panic!("it never came");
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(loopback(0)).unwrap();
    // Room for a thousand at once: what overflows is reset, and would not be our doing.
    let listener = socket.listen(4096).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// An authority, and certificates of it.
pub(crate) struct Trust {
    ca: DirectoryCa,
    _dir: tempfile::TempDir,
}

impl Trust {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let ca = DirectoryCa::open(&dir.path().join("ca"), &domain).unwrap();
        Self { ca, _dir: dir }
    }

    pub(crate) async fn issue(&self, account: &str) -> Arc<Certificate> {
        Arc::new(self.ca.issue(&identity(account)).await.unwrap())
    }
}

/// A certificate of an authority of its own, that trusts the authority of `real` as well.
pub(crate) fn stranger(real: &Certificate) -> Certificate {
    let uri = real.identity().to_string().try_into().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "stranger");
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = rcgen::Issuer::new(params, key);
    let request = adit::pki::Request::new(real.identity()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let leaf = params.signed_by(request.public_key(), &issuer).unwrap();
    let roots = [vec![root], real.roots().to_vec()].concat();
    let now = std::time::SystemTime::now();
    request
        .complete(vec![leaf.der().clone()], roots, now)
        .unwrap()
}

pub(crate) fn identity(account: &str) -> Identity {
    Identity::new(
        &TrustDomain::parse("cluster.local").unwrap(),
        "test",
        account,
    )
    .unwrap()
}

/// What became of connections, in the order of their ends.
#[derive(Default)]
pub(crate) struct Ends(RefCell<Vec<Result<End, String>>>);

impl Ends {
    pub(crate) fn add(&self, end: Result<End, String>) {
        self.0.borrow_mut().push(end);
    }

    pub(crate) async fn next(&self) -> Result<End, String> {
        until(|| !self.0.borrow().is_empty()).await;
        self.0.borrow_mut().remove(0)
    }
}

/// A node that accepts for "web" and dials as "client".
pub(crate) struct Bed {
    pub(crate) limits: Limits,
    pub(crate) pool: Pool,
    pub(crate) origin: RefCell<Origin>,
    pub(crate) expected: RefCell<Identity>,
    /// The application that connections are for.
    pub(crate) app: SocketAddr,
    /// Where the tunnel port of the destination is.
    pub(crate) via: Cell<SocketAddr>,
    pub(crate) outbound: Rc<Ends>,
    pub(crate) inbound: Rc<Ends>,
    /// Tunnels that the inbound side has accepted.
    pub(crate) tunnels: Rc<Cell<usize>>,
    pub(crate) drain: Rc<Notify>,
    /// What to answer instead of dialling.
    pub(crate) refuse: Rc<Cell<Option<Status>>>,
    /// Whether to drop requests without an answer.
    pub(crate) forget: Rc<Cell<bool>>,
    pub(crate) trust: Trust,
}

impl Bed {
    pub(crate) async fn new(app: SocketAddr) -> Rc<Self> {
        Self::with(app, Limits::default()).await
    }

    pub(crate) async fn with(app: SocketAddr, limits: Limits) -> Rc<Self> {
        let trust = Trust::new();
        let (listener, via) = listen().await;
        let certificate = trust.issue("client").await;
        let server = trust.issue("web").await;
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let netns = Netns::current().unwrap();
        let bed = Rc::new(Self {
            pool: Pool::new(limits.clone()),
            limits,
            origin: RefCell::new(Origin {
                netns,
                address,
                certificate,
            }),
            expected: RefCell::new(identity("web")),
            app,
            via: Cell::new(via),
            outbound: Rc::default(),
            inbound: Rc::default(),
            tunnels: Rc::default(),
            drain: Rc::default(),
            refuse: Rc::default(),
            forget: Rc::default(),
            trust,
        });
        task::spawn_local("inbound", serve(bed.clone(), listener, server)).detach();
        bed
    }

    pub(crate) fn permit(&self) -> Permit {
        authorize::outbound(flow(self.app, self.expected.borrow().clone()))
    }

    pub(crate) async fn open(&self) -> Result<tunnel::Stream, tunnel::Error> {
        let head = ConnectHead::new(self.app).forwarded(loopback(4711), None);
        let via = TunnelAddr::new(self.via.get());
        let origin = self.origin.borrow().clone();
        self.pool
            .open(&self.permit(), &origin, PodAddr::new(self.app), via, &head)
            .await
    }

    /// A bed whose tunnels go to a peer that the test plays: on the listener, as the certificate.
    pub(crate) async fn before_a_peer() -> (Rc<Self>, TcpListener, Arc<Certificate>) {
        let (listener, via) = listen().await;
        // Nothing gets as far as an application.
        let bed = Self::new(via).await;
        bed.via.set(via);
        let server = bed.trust.issue("web").await;
        (bed, listener, server)
    }

    /// Two applications that have spoken: the client's end and the server's.
    pub(crate) async fn joined(self: &Rc<Self>, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let mut near = self.connect().await;
        let (mut far, _) = listener.accept().await.unwrap();
        near.write_all(b"x").await.unwrap();
        far.read_exact(&mut [0]).await.unwrap();
        (near, far)
    }

    /// An application's connection that goes through the tunnel to the application `app`.
    pub(crate) async fn connect(self: &Rc<Self>) -> TcpStream {
        let (near, captured) = pair().await;
        let captured = AppSocket::resetting(captured).unwrap();
        let bed = self.clone();
        task::spawn_local("outbound", async move {
            let end = match bed.open().await {
                Ok(stream) => {
                    let meter = Meter::default();
                    Ok(deliver::relay(&bed.permit(), captured, stream, &meter).await)
                }
                Err(error) => Err(error.reason().to_owned()),
            };
            bed.outbound.add(end);
        })
        .detach();
        near
    }
}

pub(crate) fn flow(to: SocketAddr, identity: Identity) -> Flow {
    let peer = Peer {
        addr: loopback(4711),
        identity: None,
        workload: None,
    };
    thread_local! {
        /// One workload per identity, as the index has it.
        static KNOWN: RefCell<Vec<Arc<Workload>>> = const { RefCell::new(Vec::new()) };
    }
    let workload = KNOWN.with_borrow_mut(|known| {
        let found = known
            .iter()
            .find(|workload| workload.identity == identity)
            .cloned();
        found.unwrap_or_else(|| {
            known.push(Arc::new(workload(identity)));
            known[known.len() - 1].clone()
        })
    });
    let destination = Local {
        addr: to,
        workload: Some(workload),
        service: None,
    };
    Flow {
        direction: Direction::Outbound,
        source: peer,
        destination,
        path: Path::Tunnel,
    }
}

async fn serve(bed: Rc<Bed>, listener: TcpListener, server: Arc<Certificate>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let config = tunnel::tls::server_config(&server);
        let bed = bed.clone();
        task::spawn_local("tunnel", async move {
            let accepted = tunnel::accept(socket, config, &bed.limits).await;
            let Ok(mut incoming) = accepted else { return };
            bed.tunnels.set(bed.tunnels.get() + 1);
            assert_eq!(incoming.peer(), bed.origin.borrow().certificate.identity());
            loop {
                let next = tokio::select! {
                    next = incoming.next() => next,
                    () = bed.drain.notified() => { incoming.drain(); continue }
                };
                let Some(Ok(request)) = next else { return };
                let answer = answer(bed.clone(), request);
                task::spawn_local("stream", async move {
                    if let Some((permit, app, stream, ends)) = Box::pin(answer).await {
                        let meter = Meter::default();
                        ends.add(Ok(deliver::relay(&permit, app, stream, &meter).await));
                    }
                })
                .detach();
            }
        })
        .detach();
    }
}

async fn answer(
    bed: Rc<Bed>,
    request: tunnel::Request,
) -> Option<(Box<Permit>, AppSocket, tunnel::Stream, Rc<Ends>)> {
    if let Some(status) = bed.refuse.get() {
        request.refuse(status);
        return None;
    }
    if bed.forget.get() {
        return None;
    }
    let Ok(to) = request.head().authority() else {
        request.refuse(Status::BadRequest);
        return None;
    };
    let permit = Box::new(authorize::outbound(flow(to, identity("web"))));
    let netns = Netns::current().unwrap();
    let app = match deliver::dial(&permit, &netns, None).await {
        Ok(app) => app,
        Err(error) => {
            request.refuse(Status::DialFailed);
            bed.inbound.add(Err(error.reason().to_owned()));
            return None;
        }
    };
    match request.accept() {
        Ok(stream) => Some((permit, app, stream, bed.inbound.clone())),
        Err(error) => {
            bed.inbound.add(Err(error.reason().to_owned()));
            None
        }
    }
}

/// Two ends of a TCP connection.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let (listener, addr) = listen().await;
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

fn workload(identity: Identity) -> Workload {
    Workload {
        uid: "uid".into(),
        name: "web-0".into(),
        namespace: "test".into(),
        identity,
        node: "b".into(),
        zone: "".into(),
        region: "".into(),
        ips: [IpAddr::V4(Ipv4Addr::LOCALHOST)].into_iter().collect(),
        labels: Labels::default(),
        owner: Owner {
            kind: "pod".into(),
            name: "web-0".into(),
        },
        enrolment: Enrolment::Enrolled,
        phase: Phase::Running,
        host_network: false,
        reach: adit::mesh::Reach::AsEnrolled,
        netns: None,
    }
}
