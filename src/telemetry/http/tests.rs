//! The servers, over real sockets of this machine.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::api::{
    Certificate, Config, Connection, Pod, Policy, Service, Sources, Status, Workload,
};
use crate::telemetry::http::admin::Admin;

/// A node that knows one connection and waits for one pod.
struct Node;

impl Admin for Node {
    fn status(&self) -> Status {
        Status {
            node: "n1".to_owned(),
            ..Status::default()
        }
    }
    fn config(&self) -> Config {
        Config::default()
    }
    fn sources(&self) -> Sources {
        Sources::default()
    }
    fn workloads(&self) -> Vec<Workload> {
        Vec::new()
    }
    fn services(&self) -> Vec<Service> {
        Vec::new()
    }
    fn policies(&self) -> Vec<Policy> {
        Vec::new()
    }
    fn certificates(&self) -> Vec<Certificate> {
        Vec::new()
    }
    fn pods(&self) -> Vec<Pod> {
        Vec::new()
    }
    async fn connections(&self) -> Vec<Connection> {
        tokio::task::yield_now().await;
        vec![Connection::default()]
    }
    fn explain(&self, source: &str, destination: &str) -> Result<serde_json::Value, String> {
        Ok(serde_json::json!([source, destination]))
    }
    fn log_filter(&self) -> String {
        "info".to_owned()
    }
    fn change_log_filter(&self, filter: Option<&str>) -> Result<String, String> {
        match filter {
            Some("loud") => Err("no".to_owned()),
            filter => Ok(filter.unwrap_or("first").to_owned()),
        }
    }
    fn readiness(&self) -> Result<(), Vec<String>> {
        Err(vec!["shop/web".to_owned()])
    }
    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), test)
            .await
            .expect("the test ends in time");
    });
}

async fn ask(path: &Path, request: &str) -> String {
    let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: adit\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that leaves bytes of an oversized request unread resets behind its answer.
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[test]
fn the_admin_socket_reads_with_get_and_changes_with_post() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listener = Listener::unix(&path).unwrap();
    run(async {
        let check = async |request: &str, status: &str, part: &str| {
            let answer = ask(&path, request).await;
            let line = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&line), "{request}: {answer}");
            assert!(answer.contains(part), "{request}: {answer}");
        };
        let asking = async {
            check("GET /", "200", "/config_dump").await;
            check("GET /status", "200", "\"node\": \"n1\"").await;
            check("GET /config_dump", "200", "\"bytes_sent\": 0").await;
            check("GET /connections", "200", "application/json").await;
            check("GET /logging", "200", "\r\n\r\ninfo\n").await;
            check("POST /logging?level=a%3Ddebug,warn", "200", "a=debug,warn").await;
            check("POST /logging?reset", "200", "first").await;
            check("POST /logging", "200", "info").await;
            check("POST /logging?level=loud", "400", "no").await;
            check("GET /explain?src=shop/web", "400", "dst=").await;
            check("GET /explain?src=a%2Fb&dst=c+d:80", "200", "c d:80").await;
            check("GET /healthz/ready", "503", "shop/web").await;
            check("GET /metrics", "200", "openmetrics-text").await;
            check("GET /nowhere", "404", "see /").await;
            check("POST /workloads", "405", "POST").await;
            check("DELETE /logging", "405", "DELETE").await;
            let long = format!("GET /{}", "x".repeat(HEAD_BYTES * 2));
            let answer = ask(&path, &long).await;
            assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        };
        tokio::select! {
            _ = serve(listener, |request| admin::admin(&Node, request)) => unreachable!(),
            () = asking => {}
        }
    });
}

#[test]
fn scrapers_and_probes_see_their_page_and_no_other() {
    let request = |path| Request::new(Method::GET, path, "");
    let check = |response: Response, status: u16| assert_eq!(response.status(), status);
    check(admin::metrics(&Node, &request("/metrics")), 200);
    check(admin::metrics(&Node, &request("/stats/prometheus")), 200);
    check(admin::metrics(&Node, &request("/config_dump")), 404);
    check(admin::ready(&Node, &request("/healthz/ready")), 503);
    check(admin::ready(&Node, &request("/healthz/live")), 200);
    check(admin::ready(&Node, &request("/logging")), 404);
    let post = Request::new(Method::POST, "/metrics", "");
    check(admin::metrics(&Node, &post), 405);
}

/// A caller from that address of this machine.
async fn call(from: [u8; 4], to: std::net::SocketAddr) -> tokio::net::TcpStream {
    loop {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        // So that other tests may listen on the port that this one gets; it may be taken already.
        socket.set_reuseaddr(true).unwrap();
        socket.bind((from, 0).into()).unwrap();
        if let Ok(stream) = socket.connect(to).await {
            return stream;
        }
    }
}

#[test]
fn silent_callers_keep_nobody_waiting() {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.tcp_addr().unwrap();
    run(async {
        let asking = async {
            let mut idle = Vec::new();
            // One caller with more connections than there are, then as many callers.
            for n in 0..2 * CONNECTIONS {
                idle.push(call([127, 0, 0, 2], addr).await);
                let last = u8::try_from(n % 200).unwrap();
                idle.push(call([127, 0, 1, last], addr).await);
            }
            for from in [[127, 0, 0, 1], [127, 0, 0, 2]] {
                let mut stream = call(from, addr).await;
                stream
                    .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    .await
                    .unwrap();
                let mut answer = String::new();
                let answered = stream.read_to_string(&mut answer);
                // Kubelet gives a probe a second; the silent ones may be so for five.
                let answered = tokio::time::timeout(Duration::from_secs(1), answered).await;
                answered.expect("it is answered at once").unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            }
        };
        let route = async |request| admin::metrics(&Node, &request);
        tokio::select! {
            _ = serve(listener, route) => unreachable!(),
            () = asking => {}
        }
    });
}

#[test]
fn parameters_are_decoded() {
    let check = |query: &str, expect: Option<&str>| {
        let request = Request::new(Method::GET, "/", query);
        assert_eq!(request.parameter("a").as_deref(), expect, "{query:?}");
    };
    check("a=b", Some("b"));
    check("x=1&a=%41%2f", Some("A/"));
    check("a", Some(""));
    check("a=%4", Some("%4"));
    check("a=100%&x", Some("100%"));
    check("a=%+1", Some("% 1"));
    check("a=%ff", Some("\u{fffd}"));
    check("b=1", None);
    check("", None);
}
