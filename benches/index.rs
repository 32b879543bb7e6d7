//! The index at scale: 100,000 pods and 5,000 services from files.
//!
//! First it prints, once each, what the project promises: seconds to load, resident memory, time
//! for one changed pod and for many, and how long a resolution takes at its median and 99th
//! percentile. Then criterion measures the small steps. Two sets of files are loaded: one as
//! `kubectl get … -A -o yaml` prints it (about 3.7 kB a pod), one as a person would write it.
//!
//! `cargo bench --bench index`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use adit::identify::{Index, Settings, Snapshot};
use adit::mesh::{OriginalDst, TrustDomain, Workload};
use adit::source::{Change, Files, Object};
use criterion::Criterion;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PODS: u32 = 100_000;
const SERVICES: u32 = 5_000;
const NODES: u32 = 1_000;
const NAMESPACES: u32 = 100;

fn main() {
    let full = load("as kubectl prints it", pod_as_printed);
    drop(full);
    let (_files, mut index) = load("as a person writes it", pod_as_written);
    let mut criterion = Criterion::default().configure_from_args();
    steps(&mut criterion, &mut index);
    criterion.final_summary();
}

fn load(name: &str, pod: fn(u32, &mut dyn Write)) -> (tempfile::TempDir, Index) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bytes = cluster(dir.path(), pod);
    let before = memory("VmRSS");
    let cpu_before = cpu();
    let start = Instant::now();
    let mut files = Files::new(vec![dir.path().to_owned()]);
    let mut index = Index::new(Settings::new(
        TrustDomain::parse("cluster.local").expect("a trust domain"),
    ));
    let poll = files.poll();
    let read = start.elapsed();
    let rejected = index.apply(poll.changes);
    let snapshot = index.snapshot();
    let loaded = start.elapsed();
    let cpu = cpu() - cpu_before;
    assert!(poll.problems.is_empty(), "{:?}", poll.problems);
    assert!(rejected.is_empty(), "{rejected:?}");
    let peak = memory("VmHWM");
    let counts = snapshot.counts();
    assert_eq!(counts.workloads, PODS as usize);
    assert_eq!(counts.services, SERVICES as usize);
    say(&format!(
        "{name}: {} pods, {} services, {:.0} MB of YAML: loaded in {:.2} s (files {:.2} s), \
         {cpu:.2} s of CPU, peak {:.0} MB, now {:.0} MB resident ({:.0} MB before)",
        counts.workloads,
        counts.services,
        bytes as f64 / 1e6,
        loaded.as_secs_f64(),
        read.as_secs_f64(),
        peak,
        memory("VmRSS"),
        before,
    ));
    drop(snapshot);
    change_on_disk(dir.path(), &mut files, &mut index);
    changes(&mut index);
    deltas(&mut index);
    resolutions(&index.snapshot());
    (dir, index)
}

/// Rewrites the small file of one pod and follows it to a new snapshot.
fn change_on_disk(dir: &Path, files: &mut Files, index: &mut Index) {
    std::thread::sleep(std::time::Duration::from_millis(150));
    files.poll();
    let path = dir.join("zz.yaml");
    let new = dir.join("zz.new");
    let mut text = Vec::new();
    pod_as_written(PODS - 1, &mut text);
    let text = String::from_utf8(text).expect("text");
    let text = text.replace("phase: Running", "phase: Pending");
    std::fs::write(&new, format!("items:\n{text}kind: List\n")).expect("written");
    std::fs::rename(new, path).expect("renamed");
    let start = Instant::now();
    let poll = files.poll();
    index.apply(&poll.changes);
    let snapshot = index.snapshot();
    let took = start.elapsed();
    assert_eq!(poll.changes.len(), 1);
    drop(snapshot);
    say(&format!(
        "  one pod changed in a file of its own: {:.3} ms from poll to snapshot",
        took.as_secs_f64() * 1e3
    ));
}

/// Applies changes of single pods, each from an upsert to a new snapshot, the old one still held.
fn changes(index: &mut Index) {
    let pods: Vec<Arc<Workload>> = index.snapshot().workloads().take(2_000).cloned().collect();
    let mut held = index.snapshot();
    let mut times = Vec::new();
    for pod in &pods {
        let change = [Change::Upsert(changed(pod))];
        let start = Instant::now();
        index.apply(change);
        let snapshot = index.snapshot();
        times.push(start.elapsed().as_secs_f64() * 1e6);
        held = snapshot;
    }
    drop(held);
    let (p50, p99, max) = quantiles(times);
    say(&format!(
        "  one changed pod, to a new snapshot: p50 {p50:.1} µs, p99 {p99:.1} µs, most {max:.0} µs"
    ));
}

/// Applies changes of several sizes, to see that what each pod of them costs stays the same.
fn deltas(index: &mut Index) {
    let pods: Vec<Arc<Workload>> = index.snapshot().workloads().cloned().collect();
    for size in [1, 10, 100, 1_000, 10_000] {
        let mut times = Vec::new();
        let mut held = index.snapshot();
        for (turn, pods) in pods.chunks(size).take(100).enumerate() {
            // So that every round, of whatever size, finds pods that are not yet what they become.
            let change = |pod: &Arc<Workload>| {
                let mut object = changed(pod);
                if let Object::Pod(pod) = &mut object {
                    pod.netns = Some(format!("/run/netns/{size}-{turn}").into());
                }
                Change::Upsert(object)
            };
            let delta: Vec<Change> = pods.iter().map(change).collect();
            let start = Instant::now();
            index.apply(&delta);
            let snapshot = index.snapshot();
            times.push(start.elapsed().as_secs_f64() * 1e6);
            held = snapshot;
        }
        drop(held);
        let (p50, p99, _) = quantiles(times);
        let each = p50 / size as f64;
        say(&format!(
            "  a delta of {size} pods, to a new snapshot: p50 {p50:.0} µs, p99 {p99:.0} µs, \
             {each:.1} µs a pod"
        ));
    }
}

/// Single resolutions, at random; beside them what the clock itself takes, which is in every
/// figure and was not taken off.
fn resolutions(snapshot: &Snapshot) {
    let source = snapshot.workloads().next().expect("a pod").clone();
    let mut state = 1_u64;
    let mut draw = || random(&mut state);
    single("the clock alone", &mut draw, |_| ());
    let pod = |draw: u64| OriginalDst::new((pod_ip(below(draw, PODS)), 8080).into());
    let service = |draw: u64| OriginalDst::new((service_ip(below(draw, SERVICES)), 80).into());
    let resolve = |to, draw| snapshot.resolve(&source, to, draw).expect("a way");
    single("resolve a pod", &mut draw, |draw| resolve(pod(draw), draw));
    single("resolve a service", &mut draw, |draw| {
        resolve(service(draw), draw.rotate_left(32))
    });
    single("whether a service leads to a pod", &mut draw, |draw| {
        let service = snapshot.service_at(service_ip(below(draw, SERVICES)).into());
        let pod = snapshot.workload_at(pod_ip(below(draw, PODS)).into());
        snapshot.selects(service.expect("a service"), pod.expect("a pod"))
    });
}

/// Times calls one by one and prints their quantiles.
fn single<T>(name: &str, draw: &mut impl FnMut() -> u64, one: impl Fn(u64) -> T) {
    let mut times = Vec::with_capacity(200_000);
    for _ in 0..200_000 {
        let draw = draw();
        let start = Instant::now();
        let done = one(draw);
        let took = start.elapsed();
        drop(done);
        times.push(took.as_secs_f64() * 1e6);
    }
    let (p50, p99, max) = quantiles(times);
    say(&format!(
        "  {name}: p50 {p50:.2} µs, p99 {p99:.2} µs, most {max:.0} µs"
    ));
}

/// A number below `end`, by the high bits of a draw.
fn below(draw: u64, end: u32) -> u32 {
    u32::try_from((u128::from(draw) * u128::from(end)) >> 64).expect("below a 32-bit number")
}

fn steps(criterion: &mut Criterion, index: &mut Index) {
    let snapshot = index.snapshot();
    let source = snapshot.workloads().next().expect("a pod").clone();
    let mut state = 1_u64;
    criterion.bench_function("resolve", |bencher| {
        bencher.iter(|| {
            let draw = random(&mut state);
            snapshot.resolve(&source, destination(draw), draw)
        });
    });
    let pods: Vec<Arc<Workload>> = snapshot.workloads().take(1_000).cloned().collect();
    drop(snapshot);
    let mut at = 0;
    let mut flip = false;
    criterion.bench_function("apply one pod and take a snapshot", |bencher| {
        bencher.iter(|| {
            at = (at + 1) % pods.len();
            flip ^= at == 0;
            let change = if flip {
                changed(&pods[at])
            } else {
                object(&pods[at])
            };
            index.apply([Change::Upsert(change)]);
            index.snapshot()
        });
    });
    let source = index.snapshot();
    criterion.bench_function("take a snapshot", |bencher| {
        bencher.iter(|| index.snapshot());
    });
    drop(source);
}

/// A service or, one time in four, a pod.
fn destination(draw: u64) -> OriginalDst {
    let draw = u32::try_from(draw >> 33).expect("31 bits");
    let (ip, port) = if draw % 4 == 0 {
        (pod_ip(draw % PODS), 8080)
    } else {
        (service_ip(draw % SERVICES), 80)
    };
    OriginalDst::new((IpAddr::V4(ip), port).into())
}

fn object(workload: &Workload) -> Object {
    Object::Pod(Box::new(adit::source::Pod {
        uid: workload.uid.clone(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.identity.service_account().into(),
        node: workload.node.clone(),
        ips: workload.ips.clone(),
        labels: workload.labels.clone(),
        owner: workload.owner.clone(),
        phase: workload.phase,
        host_network: false,
        runtime_class: "".into(),
        sidecar: false,
        marked: false,
        terminating: false,
        created: 20_260_105_100_122,
        netns: None,
    }))
}

fn changed(workload: &Workload) -> Object {
    let mut object = object(workload);
    if let Object::Pod(pod) = &mut object {
        pod.phase = adit::mesh::Phase::Pending;
        pod.netns = Some("/run/netns/x".into());
    }
    object
}

/// SplitMix64, so that a run is like the one before.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn quantiles(mut times: Vec<f64>) -> (f64, f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |q: usize| times[(times.len() - 1) * q / 100];
    (at(50), at(99), at(100))
}

/// Seconds of CPU that this process has used.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|t| t.parse::<u64>().expect("a number")).sum();
    ticks as f64 / 100.0
}

/// A line of /proc/self/status in MB.
fn memory(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|l| l.starts_with(line)).expect("line");
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<f64>().expect("a number") * 1024.0 / 1e6
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("stdout");
}

fn pod_ip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a40_0000 + i)
}

fn service_ip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0000 + i)
}

/// Writes the cluster's files; gives their size.
fn cluster(dir: &Path, pod: fn(u32, &mut dyn Write)) -> u64 {
    list(&dir.join("a-cluster.yaml"), |out| {
        for i in 0..NAMESPACES {
            let label = if i % 2 == 0 { "ambient" } else { "none" };
            write!(
                out,
                "- apiVersion: v1\n  kind: Namespace\n  metadata:\n    labels:\n      \
                 adit.mesh/mode: {label}\n    name: team-{i}\n"
            )
            .expect("written");
        }
        for i in 0..NODES {
            write!(
                out,
                "- apiVersion: v1\n  kind: Node\n  metadata:\n    labels:\n      \
                 topology.kubernetes.io/zone: zone-{}\n    name: node-{i}\n",
                i % 3
            )
            .expect("written");
        }
        for i in 0..SERVICES {
            service(i, out);
        }
    });
    list(&dir.join("b-pods.yaml"), |out| {
        for i in 0..PODS - 1 {
            pod(i, out);
        }
    });
    list(&dir.join("zz.yaml"), |out| pod_as_written(PODS - 1, out));
    let sizes = std::fs::read_dir(dir).expect("a directory").map(|entry| {
        let entry = entry.expect("an entry");
        entry.metadata().expect("metadata").len()
    });
    sizes.sum()
}

fn list(path: &Path, items: impl FnOnce(&mut dyn Write)) {
    let mut out = BufWriter::new(File::create(path).expect("a file"));
    out.write_all(b"apiVersion: v1\nitems:\n").expect("written");
    items(&mut out);
    out.write_all(b"kind: List\nmetadata:\n  resourceVersion: \"\"\n")
        .expect("written");
    out.flush().expect("written");
}

fn service(i: u32, out: &mut dyn Write) {
    let namespace = i % NAMESPACES;
    let ip = service_ip(i);
    write!(
        out,
        r#"- apiVersion: v1
  kind: Service
  metadata:
    creationTimestamp: "2026-01-05T10:00:00Z"
    name: app-{i}
    namespace: team-{namespace}
  spec:
    clusterIP: {ip}
    clusterIPs:
    - {ip}
    internalTrafficPolicy: Cluster
    ipFamilies:
    - IPv4
    ports:
    - name: http
      port: 80
      protocol: TCP
      targetPort: http
    selector:
      app: app-{i}
    type: ClusterIP
  status:
    loadBalancer: {{}}
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  endpoints:
"#
    )
    .expect("written");
    for replica in 0..PODS / SERVICES {
        let pod = i * (PODS / SERVICES) + replica;
        let (ip, node) = (pod_ip(pod), pod % NODES);
        write!(
            out,
            "  - addresses:\n    - {ip}\n    conditions:\n      ready: true\n      \
             serving: true\n      terminating: false\n    nodeName: node-{node}\n    \
             targetRef:\n      kind: Pod\n      name: app-{i}-x{pod}\n    zone: zone-{}\n",
            node % 3
        )
        .expect("written");
    }
    write!(
        out,
        r"  kind: EndpointSlice
  metadata:
    labels:
      kubernetes.io/service-name: app-{i}
    name: app-{i}-abcde
    namespace: team-{namespace}
  ports:
  - name: http
    port: 8080
    protocol: TCP
"
    )
    .expect("written");
}

struct Names {
    app: u32,
    namespace: u32,
    node: u32,
    account: u32,
    hash: u32,
    ip: Ipv4Addr,
}

fn names(i: u32) -> Names {
    let app = i / (PODS / SERVICES);
    Names {
        app,
        namespace: app % NAMESPACES,
        node: i % NODES,
        account: app % 20,
        hash: app.wrapping_mul(2_654_435_761),
        ip: pod_ip(i),
    }
}

fn pod_as_written(i: u32, out: &mut dyn Write) {
    let Names {
        app,
        namespace,
        node,
        account,
        ip,
        ..
    } = names(i);
    write!(
        out,
        "- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: app-{app}-x{i}\n    \
         namespace: team-{namespace}\n    labels:\n      app: app-{app}\n      version: v1\n  \
         spec:\n    nodeName: node-{node}\n    serviceAccountName: sa-{account}\n  status:\n    \
         phase: Running\n    podIPs:\n    - ip: {ip}\n"
    )
    .expect("written");
}

fn pod_as_printed(i: u32, out: &mut dyn Write) {
    let Names {
        app,
        namespace,
        node,
        account,
        hash,
        ip,
    } = names(i);
    let unique = u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let template = include_str!("pod.yaml.in");
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('@') {
        out.write_all(before.as_bytes()).expect("written");
        let (name, after) = after.split_once('@').expect("a closing @");
        match name {
            "app" => write!(out, "app-{app}"),
            "namespace" => write!(out, "team-{namespace}"),
            "node" => write!(out, "node-{node}"),
            "account" => write!(out, "sa-{account}"),
            "hash" => write!(out, "{hash:08x}"),
            "suffix" => write!(out, "x{i}"),
            "uid" => write!(out, "{hash:08x}-1d2e-4f3a-8b4c-{unique:012x}"),
            "ip" => write!(out, "{ip}"),
            other => unreachable!("{other} is not in the template"),
        }
        .expect("written");
        rest = after;
    }
    out.write_all(rest.as_bytes()).expect("written");
}
