//! One question to a node's admin server: HTTP/1.1 over a unix socket or TCP, blocking.
//!
//! The server is our own ([`telemetry::http`](crate::telemetry::http)) and closes after one
//! answer when asked to, so an answer is what arrives until the end, and its head must agree.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::api::ADMIN_SOCKET;

/// Time for the node to take the connection, and between two parts of its answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On its unix socket.
    Unix(PathBuf),
    /// On its admin address.
    Tcp(SocketAddr),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers there.
    #[error("cannot reach a node at {at}: is `adit node` running here? give --admin or --run-dir")]
    Reach {
        /// Where it was looked for.
        at: Target,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The connection broke, or the answer took too long.
    #[error("no whole answer from {at}")]
    Answer {
        /// The node.
        at: Target,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// What answers is not a node's admin server.
    #[error("what answers at {at} is no node's admin server")]
    NoNode {
        /// Where.
        at: Target,
    },
    /// The node says no.
    #[error("the node refuses: {0}")]
    Refused(String),
}

impl Target {
    /// Parses `unix:PATH`, `http://ADDRESS:PORT` or `ADDRESS:PORT`.
    ///
    /// # Errors
    ///
    /// The form that would do, for a person.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let addr = text.strip_prefix("http://").unwrap_or(text);
        let addr = addr.strip_suffix('/').unwrap_or(addr);
        addr.parse().map(Self::Tcp).map_err(|_| {
            "write unix:PATH or http://ADDRESS:PORT, for example http://127.0.0.1:15000".to_owned()
        })
    }

    /// The socket in a node's run directory.
    #[must_use]
    pub fn in_run_dir(run_dir: &Path) -> Self {
        Self::Unix(run_dir.join(ADMIN_SOCKET))
    }

    /// Asks for a page of JSON.
    ///
    /// # Errors
    ///
    /// [`Error`]: nobody answered, or not with that.
    pub fn ask(&self, path: &str) -> Result<Value, Error> {
        let failed = |cause| Error::Answer {
            at: self.clone(),
            cause,
        };
        let mut stream = self.connect().map_err(|cause| Error::Reach {
            at: self.clone(),
            cause,
        })?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: adit\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(failed)?;
        let no_node = || Error::NoNode { at: self.clone() };
        let (status, body) = parse(&answer).ok_or_else(no_node)?;
        match status {
            200 => serde_json::from_slice(body).map_err(|_| no_node()),
            400 => Err(Error::Refused(
                String::from_utf8_lossy(body).trim().to_owned(),
            )),
            _ => Err(no_node()),
        }
    }

    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
            Self::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(addr) => write!(f, "http://{addr}"),
        }
    }
}

trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// Status and body of an answer that is whole, as its `Content-Length` says.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let length: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())?;
    (body.len() == length).then_some((status.parse().ok()?, body))
}

/// Percent-encodes a query value (RFC 3986 §2.1).
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_sockets_and_addresses() {
        let check = |text: &str, expect: Option<&str>| {
            let target = Target::parse(text).ok().map(|target| target.to_string());
            assert_eq!(target.as_deref(), expect, "{text:?}");
        };
        check("unix:/run/a.sock", Some("unix:/run/a.sock"));
        check("http://127.0.0.1:15000", Some("http://127.0.0.1:15000"));
        check("http://[::1]:15000/", Some("http://[::1]:15000"));
        check("127.0.0.1:15000", Some("http://127.0.0.1:15000"));
        check("unix:", None);
        check("/run/a.sock", None);
        check("https://127.0.0.1:1", None);
        check("localhost:15000", None);
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        let check = |answer: &str, expect: Option<(u16, &str)>| {
            let expect = expect.map(|(status, body)| (status, body.as_bytes()));
            assert_eq!(parse(answer.as_bytes()), expect, "{answer:?}");
        };
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
            Some((200, "[]")),
        );
        check(
            "HTTP/1.1 400 Bad Request\r\nx: y\r\ncontent-length:3\r\n\r\nno\n",
            Some((400, "no\n")),
        );
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[]", None);
        check("HTTP/1.1 200 OK\r\n\r\n[]", None);
        check("SSH-2.0-x\r\n\r\n", None);
        check("", None);
    }

    #[test]
    fn what_a_query_cannot_hold_is_encoded() {
        assert_eq!(encode("shop/web:80"), "shop/web:80");
        assert_eq!(encode("a b&c=%"), "a%20b%26c%3D%25");
    }
}
