//! How many instructions of ours the parts of a connection's life take, counted by callgrind
//! through gungraun: figures that repeat on a machine where times do not.
//!
//!     ./scripts/count             # compares with benches/counts.txt
//!     ./scripts/count --accept    # writes it
//!
//! Both halves of a tunnel live in this process, over loopback, on one thread. What is made ready
//! beforehand, handshakes above all, is not counted; nor is anything that the kernel does.

#![expect(clippy::exit, reason = "the macro `main!` of the library does it")]
#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the daemon; this stands outside of it"
)]
#![expect(
    missing_docs,
    unused_qualifications,
    reason = "what gungraun's macros make"
)]

use std::future::Future;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use adit::authorize::{Evaluator, Verdict};
use adit::identify::{Index, Settings, Snapshot};
use adit::mesh::{
    Family, Flow, InternalTrafficPolicy, Labels, OriginalDst, Owner, Phase, Route, Service,
    ServicePort, TargetPort, TrafficDistribution, TrustDomain, Workload,
};
use adit::source::{
    Change, Endpoint, EndpointPort, EndpointSlice, Namespace, Object, Pod, Readiness,
};
use gungraun::{Callgrind, prelude::*};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use bed::Bed;

#[path = "../tests/tunnel/bed.rs"]
#[allow(dead_code, reason = "made for the tests, which use all of it")]
mod bed;
#[path = "support/policies.rs"]
#[allow(dead_code, reason = "shared with benches/decide.rs")]
mod policies;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

// ---- resolution

const SERVICES: u32 = 5_000;
const REPLICAS: u32 = 20;

/// A cluster of 100,000 pods behind 5,000 services, and one of its pods.
struct Cluster {
    snapshot: Arc<Snapshot>,
    source: Arc<Workload>,
}

fn cluster(services: u32) -> Cluster {
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    let mut index = Index::new(Settings::new(domain));
    let labels = Labels::new([("adit.mesh/mode".into(), "ambient".into())]);
    let namespace = Object::Namespace(Box::new(Namespace {
        name: "shop".into(),
        labels,
        terminating: false,
    }));
    index.apply([Change::Upsert(namespace)]);
    for service in 0..services {
        let name: Arc<str> = format!("app-{service}").into();
        let pods = (0..REPLICAS).map(|replica| pod(&name, service, replica));
        index.apply(pods.map(Change::Upsert));
        index.apply(behind(&name, service).map(Change::Upsert));
    }
    let snapshot = index.snapshot();
    let source = snapshot.workload_at(pod_ip(0)).expect("a pod").clone();
    Cluster { snapshot, source }
}

fn pod_ip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a40_0000 + number).into()
}

fn service_ip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0xac10_0000 + number).into()
}

fn pod(app: &Arc<str>, service: u32, replica: u32) -> Object {
    let name: Arc<str> = format!("{app}-x{replica}").into();
    Object::Pod(Box::new(Pod {
        uid: name.clone(),
        name,
        namespace: "shop".into(),
        service_account: app.clone(),
        node: "node".into(),
        ips: [pod_ip(service * REPLICAS + replica)].into_iter().collect(),
        labels: Labels::default(),
        owner: Owner {
            kind: "deployment".into(),
            name: app.clone(),
        },
        phase: Phase::Running,
        host_network: false,
        sidecar: false,
        marked: false,
        terminating: false,
        created: 20_260_105_100_122,
        netns: None,
        runtime_class: "".into(),
    }))
}

fn behind(app: &Arc<str>, number: u32) -> [Object; 2] {
    let service = Service {
        name: app.clone(),
        namespace: "shop".into(),
        vips: [service_ip(number)].into_iter().collect(),
        ports: [ServicePort {
            name: "".into(),
            port: 80,
            target: TargetPort::Number(8080),
        }]
        .into_iter()
        .collect(),
        internal_traffic_policy: InternalTrafficPolicy::Cluster,
        traffic_distribution: TrafficDistribution::Any,
        publish_not_ready: false,
    };
    let endpoints = (0..REPLICAS).map(|replica| Endpoint {
        ip: pod_ip(number * REPLICAS + replica),
        readiness: Readiness::Ready,
        node: "node".into(),
        zone: "".into(),
        hints: None,
    });
    let slice = EndpointSlice {
        name: app.clone(),
        namespace: "shop".into(),
        service: app.clone(),
        family: Family::V4,
        ports: [EndpointPort {
            name: "".into(),
            port: Some(8080),
        }]
        .into_iter()
        .collect(),
        endpoints: endpoints.collect(),
    };
    [
        Object::Service(Arc::new(service)),
        Object::EndpointSlice(Arc::new(slice)),
    ]
}

impl Cluster {
    fn resolve(&self, at: u32) -> Route {
        let draw = u64::from(at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let to = OriginalDst::new(SocketAddr::new(service_ip(at), 80));
        let route = self.snapshot.resolve(&self.source, to, draw);
        route.expect("every service has endpoints")
    }
}

#[library_benchmark(setup = cluster)]
#[bench::of_100_000_pods(SERVICES)]
fn thousand_resolutions(cluster: Cluster) -> Cluster {
    for at in 0..1_000 {
        black_box(cluster.resolve(at * 5));
    }
    cluster
}

// ---- policy

/// An evaluator that has seen each flow once, and the flows.
fn bound(kind: &str, policies: usize) -> (Evaluator, Vec<Flow>) {
    let evaluator = policies::evaluator(kind, policies);
    for flow in policies::flows() {
        black_box(evaluator.decide(flow));
    }
    (evaluator, policies::flows())
}

#[library_benchmark(setup = bound)]
#[bench::by_10_policies("mixed", 10)]
#[bench::by_1000_policies("mixed", 1000)]
#[bench::by_1000_negative_policies("negatives", 1000)]
fn decisions_of_256_flows((evaluator, flows): (Evaluator, Vec<Flow>)) -> (Evaluator, Vec<Verdict>) {
    let verdicts = flows.into_iter().map(|flow| evaluator.decide(flow));
    let verdicts = verdicts.collect();
    (evaluator, verdicts)
}

// ---- connections

/// A tunnel between two sides, warm, with an application behind it that listens.
struct Mesh {
    runtime: Runtime,
    tasks: LocalSet,
    bed: Rc<Bed>,
    listener: TcpListener,
    cluster: Cluster,
    evaluator: Evaluator,
    flows: Vec<Flow>,
}

impl Mesh {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let tasks = LocalSet::new();
        let (bed, listener) = tasks.block_on(&runtime, async {
            let (listener, app) = bed::listen().await;
            (Bed::new(app).await, listener)
        });
        let (evaluator, flows) = bound("mixed", 10);
        let mesh = Self {
            runtime,
            tasks,
            bed,
            listener,
            cluster: cluster(50),
            evaluator,
            flows,
        };
        // The first one makes the tunnel.
        mesh.run(async {
            for at in 0..8 {
                mesh.connection(at).await;
            }
        });
        mesh
    }

    fn run<T>(&self, story: impl Future<Output = T>) -> T {
        self.tasks.block_on(&self.runtime, story)
    }

    async fn connect(&self) -> (TcpStream, TcpStream) {
        let near = self.bed.connect().await;
        let (far, _) = self.listener.accept().await.expect("a connection");
        (near, far)
    }

    /// What a connection takes on both nodes: its way, a decision, a stream, one exchange, its end.
    async fn connection(&self, at: u32) {
        black_box(self.cluster.resolve(at));
        let flow = self.flows[usize::try_from(at).expect("small")].clone();
        black_box(self.evaluator.decide(flow));
        let (mut near, mut far) = self.connect().await;
        exchange(&mut near, &mut far, 1).await;
        near.shutdown().await.expect("an end");
        ended(&mut far).await;
        far.shutdown().await.expect("an end");
        ended(&mut near).await;
    }
}

/// So many times 64 bytes there and back.
async fn exchange(near: &mut TcpStream, far: &mut TcpStream, times: usize) {
    let mut buffer = [7; 64];
    for _ in 0..times {
        near.write_all(&buffer).await.expect("written");
        far.read_exact(&mut buffer).await.expect("read");
        far.write_all(&buffer).await.expect("written");
        near.read_exact(&mut buffer).await.expect("read");
    }
}

async fn ended(stream: &mut TcpStream) {
    let more = stream.read(&mut [0]).await.expect("an orderly end");
    assert_eq!(more, 0);
}

fn mesh() -> Mesh {
    Mesh::new()
}

#[library_benchmark]
#[bench::with_one_exchange_each(setup = mesh)]
fn sixteen_connections(mesh: Mesh) -> Mesh {
    mesh.run(async {
        for at in 0..16 {
            mesh.connection(at).await;
        }
    });
    mesh
}

/// One connection that stands.
fn open() -> (Mesh, TcpStream, TcpStream) {
    let mesh = Mesh::new();
    let (near, far) = mesh.run(async {
        let (mut near, mut far) = mesh.connect().await;
        exchange(&mut near, &mut far, 1).await;
        (near, far)
    });
    (mesh, near, far)
}

#[library_benchmark]
#[bench::through_a_tunnel(setup = open)]
fn relay_of_1_mib((mesh, mut near, mut far): (Mesh, TcpStream, TcpStream)) -> Mesh {
    mesh.run(async {
        let send = async {
            near.write_all(&vec![7; 1 << 20]).await.expect("written");
            near.shutdown().await.expect("an end");
        };
        let receive = async {
            let mut buffer = vec![0; 1 << 18];
            let mut left = 1 << 20;
            while left > 0 {
                let got = far.read(&mut buffer).await.expect("read");
                assert_ne!(got, 0, "an early end");
                left -= got;
            }
            ended(&mut far).await;
        };
        tokio::join!(send, receive);
    });
    mesh
}

#[library_benchmark]
#[bench::through_a_tunnel(setup = open)]
fn hundred_exchanges((mesh, mut near, mut far): (Mesh, TcpStream, TcpStream)) -> Mesh {
    mesh.run(exchange(&mut near, &mut far, 100));
    mesh
}

library_benchmark_group!(
    name = parts,
    benchmarks = [
        thousand_resolutions,
        decisions_of_256_flows,
        sixteen_connections,
        relay_of_1_mib,
        hundred_exchanges
    ]
);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = parts
);
