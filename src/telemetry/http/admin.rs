//! What the daemon's three servers answer: admin, metrics and readiness.
//!
//! The node gives the answers ([`Admin`]); here they get their paths. Reading is `GET`, changing
//! is `POST`, and nothing else. Admin listens on a unix socket and on loopback; metrics and
//! readiness, which scrapers and the kubelet reach from outside, answer nothing but themselves.

use hyper::{Method, StatusCode};
use serde::Serialize;

use crate::api::{
    Certificate, Config, Connection, Dump, Pod, Policy, Service, Sources, Status, Workload,
};
use crate::telemetry::http::{Request, Response, answer, text};
use crate::telemetry::metrics::CONTENT_TYPE;

/// What the node knows and can change.
///
/// All but [`connections`](Admin::connections) answer from what the control thread holds;
/// connections live with the workers, which have to be asked.
pub trait Admin {
    /// The node on one screen.
    fn status(&self) -> Status;
    /// What it was started with.
    fn config(&self) -> Config;
    /// Where its objects come from.
    fn sources(&self) -> Sources;
    /// Every pod of the index.
    fn workloads(&self) -> Vec<Workload>;
    /// Every service of the index.
    fn services(&self) -> Vec<Service>;
    /// Every policy.
    fn policies(&self) -> Vec<Policy>;
    /// The certificates of this node.
    fn certificates(&self) -> Vec<Certificate>;
    /// The pods of this node that belong to the mesh.
    fn pods(&self) -> Vec<Pod>;
    /// The connections alive.
    fn connections(&self) -> impl Future<Output = Vec<Connection>>;
    /// What policy would say to a connection, as JSON of [`api`](crate::api)'s explanation.
    ///
    /// # Errors
    ///
    /// Why the question cannot be answered, for a person.
    fn explain(&self, source: &str, destination: &str) -> Result<serde_json::Value, String>;
    /// The log filter in force.
    fn log_filter(&self) -> String;
    /// Puts another log filter in force, or the first one again; returns what is then in force.
    ///
    /// # Errors
    ///
    /// What is wrong with the filter, for a person.
    fn change_log_filter(&self, filter: Option<&str>) -> Result<String, String>;
    /// Whether every pod of the mesh on this node is served.
    ///
    /// # Errors
    ///
    /// What is still waited for.
    fn readiness(&self) -> Result<(), Vec<String>>;
    /// All metrics, as OpenMetrics text.
    fn metrics(&self) -> String;
}

/// Answers on the admin addresses.
pub async fn admin(node: &impl Admin, request: Request) -> Response {
    match (&request.method, request.path.as_str()) {
        (&Method::POST, "/logging") => logging(node, &request),
        (&Method::GET, "/connections") => json(&node.connections().await),
        (&Method::GET, "/config_dump") => json(&dump(node).await),
        (&Method::GET, path) => read(node, path, &request),
        _ => not_that_way(&request),
    }
}

fn read(node: &impl Admin, path: &str, request: &Request) -> Response {
    match path {
        "/" => text(StatusCode::OK, INDEX),
        "/status" => json(&node.status()),
        "/workloads" => json(&node.workloads()),
        "/services" => json(&node.services()),
        "/policies" => json(&node.policies()),
        "/certificates" => json(&node.certificates()),
        "/pods" => json(&node.pods()),
        "/problems" => json(&node.sources()),
        "/explain" => explain(node, request),
        "/logging" => text(StatusCode::OK, format!("{}\n", node.log_filter())),
        "/healthz/ready" => readiness(node),
        "/metrics" | "/stats/prometheus" => scrape(node),
        _ => unknown(),
    }
}

/// Answers on the metrics address.
pub fn metrics(node: &impl Admin, request: &Request) -> Response {
    match (&request.method, request.path.as_str()) {
        (&Method::GET, "/metrics" | "/stats/prometheus") => scrape(node),
        (&Method::GET, _) => unknown(),
        _ => not_that_way(request),
    }
}

/// Answers on the readiness address.
pub fn ready(node: &impl Admin, request: &Request) -> Response {
    match (&request.method, request.path.as_str()) {
        (&(Method::GET | Method::HEAD), "/healthz/ready") => readiness(node),
        // Whoever answers runs. What it waits for a restart would not bring.
        (&(Method::GET | Method::HEAD), "/healthz/live") => text(StatusCode::OK, "alive\n"),
        (&Method::GET, _) => unknown(),
        _ => not_that_way(request),
    }
}

/// Composes the whole dump.
async fn dump(node: &impl Admin) -> Dump {
    let Status {
        version,
        node: name,
        ..
    } = node.status();
    Dump {
        version,
        node: name,
        config: node.config(),
        sources: node.sources(),
        workloads: node.workloads(),
        services: node.services(),
        policies: node.policies(),
        certificates: node.certificates(),
        pods: node.pods(),
        connections: node.connections().await,
    }
}

fn logging(node: &impl Admin, request: &Request) -> Response {
    let reset = request.parameter("reset").is_some();
    let changed = match request.parameter("level") {
        Some(level) if !reset => node.change_log_filter(Some(&level)),
        None if !reset => Ok(node.log_filter()),
        _ => node.change_log_filter(None),
    };
    match changed {
        Ok(filter) => text(StatusCode::OK, format!("{filter}\n")),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

fn explain(node: &impl Admin, request: &Request) -> Response {
    let (Some(source), Some(destination)) = (request.parameter("src"), request.parameter("dst"))
    else {
        let usage = "ask /explain?src=NAMESPACE/POD&dst=HOST:PORT\n";
        return text(StatusCode::BAD_REQUEST, usage);
    };
    match node.explain(&source, &destination) {
        Ok(explanation) => json(&explanation),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

fn readiness(node: &impl Admin) -> Response {
    match node.readiness() {
        Ok(()) => text(StatusCode::OK, "ready\n"),
        Err(waiting) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready, waiting for:\n{}\n", waiting.join("\n")),
        ),
    }
}

fn scrape(node: &impl Admin) -> Response {
    answer(StatusCode::OK, CONTENT_TYPE, node.metrics())
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body + "\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn unknown() -> Response {
    text(StatusCode::NOT_FOUND, "no such page; see /\n")
}

fn not_that_way(request: &Request) -> Response {
    text(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} is not for {}\n", request.method, request.path),
    )
}

const INDEX: &str = "\
adit node: what can be asked here

/status                   the node on one screen
/config_dump              everything below in one object
/workloads                every pod known
/services                 every service, with endpoints
/policies                 every policy, as it is understood
/certificates             the certificates of this node's identities
/pods                     this node's pods of the mesh: enrolled, pending, failed, draining
/connections              the connections alive
/problems                 the sources, and what is wrong there
/explain?src=&dst=        what policy says to a connection: src=NAMESPACE/POD, dst=HOST:PORT
/logging                  the log filter; POST ?level=FILTER changes it, POST ?reset restores it
/metrics                  metrics (also /stats/prometheus)
/healthz/ready            200 once every pod of the mesh on this node is served
";
