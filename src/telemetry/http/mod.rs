//! A small HTTP/1 server for people, probes and scrapers.
//!
//! It serves a handful of requests a minute to few callers and is bounded in every direction: in
//! connections ([`Seats`]), in header bytes, in time. It spawns nothing: [`serve`] is one future that carries
//! its connections with it and ends them when it is dropped. What is answered is decided by the
//! function it is given; [`admin`] has those of the daemon.

pub mod admin;
mod listen;
mod seats;

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::abortable;
use futures_util::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

pub use listen::{Error, Listener, Unserved};
pub use seats::{Seat, Seats};

/// Most connections at once.
const CONNECTIONS: usize = 128;
/// The same, from one address.
const OF_ONE_SOURCE: usize = 16;
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// Most header fields of a request.
const HEADER_FIELDS: usize = 64;
/// Time for a request's head to arrive, and for which a connection may idle.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Time for a whole connection, whatever it does.
const CONNECTION_TIME: Duration = Duration::from_secs(120);
/// Pause when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An answer, whole.
pub type Response = hyper::Response<Full<Bytes>>;

/// What was asked: no request that is served here has a body.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    query: String,
}

impl Request {
    /// A request for a path with a query, as they stand in the request line.
    #[must_use]
    pub fn new(method: Method, path: &str, query: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
        }
    }

    /// The value of a query parameter, decoded; the first of several. A parameter without `=` has
    /// an empty value.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(value))
        })
    }
}

/// Undoes percent-encoding and `+` (the form encoding of WHATWG URL §5). A `%` that starts no
/// code stands for itself.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail
            .get(..2)
            .filter(|code| first == b'%' && code.iter().all(u8::is_ascii_hexdigit))
            .and_then(|code| std::str::from_utf8(code).ok())
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(code.unwrap_or(if first == b'+' { b' ' } else { first }));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer of plain text.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<String>) -> Response {
    answer(status, "text/plain; charset=utf-8", body.into())
}

/// An answer of the given content type.
#[must_use]
pub fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// Serves connections of `listener` until it is dropped. `route` answers each request.
///
/// # Errors
///
/// The listener could not be handed to the runtime; failures of single connections are theirs.
pub async fn serve<F, A>(listener: Listener, route: F) -> io::Result<Infallible>
where
    F: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    match listener.into_inner() {
        listen::Inner::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let accept = async || {
                let (stream, source) = listener.accept().await?;
                Ok((stream, Some(source.ip())))
            };
            Ok(accept_all(accept, &route).await)
        }
        listen::Inner::Unix(listener, _path) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::UnixListener::from_std(listener)?;
            let accept = async || listener.accept().await.map(|(stream, _)| (stream, None));
            Ok(accept_all(accept, &route).await)
        }
    }
}

async fn accept_all<S, F, A>(
    accept: impl AsyncFn() -> io::Result<(S, Option<IpAddr>)>,
    route: &F,
) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    let mut seats = Seats::new(CONNECTIONS, OF_ONE_SOURCE);
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = accept() => match accepted {
                Ok((stream, source)) => {
                    let (serving, end) = abortable(connection(stream, route));
                    let seat = seats.take(source, end);
                    connections.push(async move {
                        let _ = serving.await;
                        seat
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(seat) = connections.next() => seats.leave(seat),
        }
    }
}

/// Serves one connection. It ends without a word when its caller breaks the rules.
async fn connection<S, F, A>(stream: S, route: &F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    let service = service_fn(async |request: hyper::Request<Incoming>| {
        let uri = request.uri();
        let query = uri.query().unwrap_or_default();
        let request = Request::new(request.method().clone(), uri.path(), query);
        Ok::<_, Infallible>(route(request).await)
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADER_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(CONNECTION_TIME, serving).await;
}

#[cfg(test)]
mod tests;
