//! CONNECT heads, written and read.
//!
//! Pure. The field's peers (ztunnel, Envoy, waypoints) send a plain CONNECT with the destination
//! as `:authority` and up to three headers that only describe: `baggage`, `forwarded` and
//! `traceparent`. What describes is read leniently and dropped where it cannot be understood; the
//! authority alone decides where bytes go, and is read strictly.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;

use crate::mesh::canonical;
use crate::tunnel::http2::Fields;
use crate::tunnel::http2::hpack::encoder;

const FORWARDED: &str = "forwarded";
const BAGGAGE: &str = "baggage";
const TRACEPARENT: &str = "traceparent";

/// The longest `baggage` and `forwarded` that are looked at; longer ones are dropped.
const DESCRIPTION_LIMIT: usize = 4096;
/// The longest DNS name (RFC 1035 §2.3.4).
const HOST_LIMIT: usize = 253;

/// Why a CONNECT head names nothing this side could dial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Another method than CONNECT, or an extended CONNECT (RFC 8441).
    #[error("not a plain CONNECT request")]
    NotConnect,
    /// The authority is a name. Only addresses are dialled here.
    #[error("the authority {0:?} is a name, not an address")]
    Hostname(String),
    /// The authority is neither `ip:port` nor `[v6]:port`.
    #[error("the authority {0:?} is no address and port")]
    Authority(String),
}

impl HeadError {
    /// A stable word for records and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotConnect => "not_connect",
            Self::Hostname(_) => "hostname_authority",
            Self::Authority(_) => "bad_authority",
        }
    }
}

/// What a CONNECT request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectHead {
    authority: Result<SocketAddr, HeadError>,
    source: Option<SocketAddr>,
    host: Option<String>,
    baggage: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
}

impl ConnectHead {
    /// A request to reach `authority`.
    #[must_use]
    pub fn new(authority: SocketAddr) -> Self {
        Self {
            authority: Ok(authority),
            source: None,
            host: None,
            baggage: None,
            traceparent: None,
        }
    }

    /// Adds whose connection it is and the name of the service that was dialled.
    #[must_use]
    pub fn forwarded(mut self, source: SocketAddr, host: Option<String>) -> Self {
        self.source = Some(source);
        self.host = host.filter(|host| is_host(host));
        self
    }

    /// Adds the source's attributes, `key=value` joined by commas (W3C Baggage).
    #[must_use]
    pub fn with_baggage(mut self, baggage: HeaderValue) -> Self {
        self.baggage = Some(baggage);
        self
    }

    /// Passes a trace context on (W3C Trace Context), if it is one.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: HeaderValue) -> Self {
        self.traceparent = Some(traceparent).filter(|value| is_traceparent(value.as_bytes()));
        self
    }

    /// Where the client wants to go.
    ///
    /// # Errors
    ///
    /// [`HeadError`] when that is nothing to dial.
    pub fn authority(&self) -> Result<SocketAddr, HeadError> {
        self.authority.clone()
    }

    /// The client's own address, as its side of the mesh saw it. A claim, not a proof.
    #[must_use]
    pub fn source(&self) -> Option<SocketAddr> {
        self.source
    }

    /// The name of the service that the client dialled. A claim, not a proof.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The source's attributes as they were sent. A claim, not a proof.
    #[must_use]
    pub fn baggage(&self) -> Option<&HeaderValue> {
        self.baggage.as_ref()
    }

    /// The trace context, well-formed.
    #[must_use]
    pub fn traceparent(&self) -> Option<&HeaderValue> {
        self.traceparent.as_ref()
    }

    /// Writes the fields that describe.
    pub(crate) fn write(&self, block: &mut Vec<u8>) {
        if let Some(forwarded) = self.forwarded_value() {
            encoder::field(block, FORWARDED, forwarded.as_bytes());
        }
        if let Some(baggage) = &self.baggage {
            encoder::field(block, BAGGAGE, baggage.as_bytes());
        }
        if let Some(traceparent) = &self.traceparent {
            encoder::field(block, TRACEPARENT, traceparent.as_bytes());
        }
    }

    fn forwarded_value(&self) -> Option<String> {
        let mut text = String::with_capacity(96);
        if let Some(source) = self.source {
            write!(text, "for=\"{source}\"").expect("a String takes all");
        }
        if let Some(host) = &self.host {
            let gap = if text.is_empty() { "" } else { ";" };
            write!(text, "{gap}host={host}").expect("a String takes all");
        }
        Some(text).filter(|text| !text.is_empty())
    }

    /// Reads a request. Never fails: what is wrong with the authority is told by
    /// [`authority`](Self::authority), and what is wrong with a description drops it.
    pub(crate) fn read(fields: &Fields) -> Self {
        let (source, host) = fields.first(FORWARDED).map_or((None, None), read_forwarded);
        let traceparent = fields.first(TRACEPARENT);
        let traceparent = traceparent.filter(|value| is_traceparent(value));
        Self {
            authority: read_authority(fields),
            source,
            host,
            baggage: join(fields.all(BAGGAGE)),
            traceparent: traceparent.and_then(|value| HeaderValue::from_bytes(value).ok()),
        }
    }
}

fn read_authority(fields: &Fields) -> Result<SocketAddr, HeadError> {
    if fields.first(":method") != Some(b"CONNECT") {
        return Err(HeadError::NotConnect);
    }
    let text = fields.first(":authority").unwrap_or_default();
    parse_authority(&String::from_utf8_lossy(text))
}

fn parse_authority(text: &str) -> Result<SocketAddr, HeadError> {
    let bad = || HeadError::Authority(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = if digits {
        port.parse::<u16>().map_err(|_| bad())?
    } else {
        return Err(bad());
    };
    if port == 0 {
        return Err(bad());
    }
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let ip = match bracketed {
        Some(host) => host.parse().map(IpAddr::V6).map_err(|_| bad())?,
        None if host.contains(':') => return Err(bad()),
        None => match host.parse() {
            Ok(ip) => IpAddr::V4(ip),
            Err(_) if is_host(host) => return Err(HeadError::Hostname(text.to_owned())),
            Err(_) => return Err(bad()),
        },
    };
    Ok(canonical(SocketAddr::new(ip, port)))
}

/// Whether a text could be a DNS name. A last label of digits alone is a mistyped address.
fn is_host(host: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    !host.is_empty()
        && host.len() <= HOST_LIMIT
        && host.bytes().all(legal)
        && !last.bytes().all(|b| b.is_ascii_digit())
}

/// Reads the first element of a Forwarded header (RFC 7239 §4), quoted or not.
fn read_forwarded(value: &[u8]) -> (Option<SocketAddr>, Option<String>) {
    if value.len() > DESCRIPTION_LIMIT {
        return (None, None);
    }
    let Ok(text) = std::str::from_utf8(value) else {
        return (None, None);
    };
    let first = text.split(',').next().unwrap_or("");
    let (mut source, mut host) = (None, None);
    for pair in first.split(';') {
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"');
        match name.trim() {
            name if name.eq_ignore_ascii_case("for") => source = value.parse().ok().map(canonical),
            name if name.eq_ignore_ascii_case("host") && is_host(value) => {
                host = Some(value.to_owned());
            }
            _ => {}
        }
    }
    (source, host)
}

/// Whether this is `version-trace-parent-flags` in lower-case hex (W3C Trace Context §3.2).
fn is_traceparent(value: &[u8]) -> bool {
    const DASHES: [usize; 3] = [2, 35, 52];
    let legal = |(at, byte): (usize, &u8)| match DASHES.contains(&at) {
        true => *byte == b'-',
        false => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
    };
    value.len() == 55 && value.iter().enumerate().all(legal)
}

/// One list header out of its lines (RFC 9110 §5.3).
fn join<'a>(mut lines: impl Iterator<Item = &'a [u8]>) -> Option<HeaderValue> {
    let first = lines.next()?;
    let joined = lines.try_fold(first.to_vec(), |mut joined, line| {
        joined.push(b',');
        joined.extend_from_slice(line);
        (joined.len() <= DESCRIPTION_LIMIT).then_some(joined)
    })?;
    HeaderValue::from_maybe_shared(bytes::Bytes::from(joined))
        .ok()
        .filter(|value| value.len() <= DESCRIPTION_LIMIT)
}

/// What this side answers to a CONNECT request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 400: the request names nothing that this pod serves.
    BadRequest,
    /// 401: policy refused, as the field's peers say it.
    Denied,
    /// 503: the application could not be reached.
    DialFailed,
}

impl Status {
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Denied => 401,
            Self::DialFailed => 503,
        }
    }
}

/// What a peer answered instead of 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// 401 or 403: its policy refused.
    Denied,
    /// 503: it could not reach the application.
    DialFailed,
    /// 400: it does not serve that destination.
    BadRequest,
    /// Any other status, 201 to 299 included: only 200 opens a stream.
    Other(u16),
}

impl Refused {
    /// What a status means; `None` for 200.
    pub(crate) fn from_status(status: u16) -> Option<Self> {
        match status {
            200 => None,
            401 | 403 => Some(Self::Denied),
            503 => Some(Self::DialFailed),
            400 => Some(Self::BadRequest),
            other => Some(Self::Other(other)),
        }
    }

    /// A stable word for records and metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::DialFailed => "dial_failed",
            Self::BadRequest => "bad_request",
            Self::Other(_) => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::http2::hpack::Decoder;

    /// What a peer reads of a head.
    fn sent(head: &ConnectHead) -> Fields {
        let mut block = Vec::new();
        let authority = head.authority().unwrap().to_string();
        encoder::connect(&mut block, authority.as_bytes());
        head.write(&mut block);
        let mut fields = Fields::new(16 * 1024);
        Decoder::new().decode(&block, &mut fields).unwrap();
        fields.check_request().unwrap();
        fields
    }

    fn check(authority: &str, expect: Result<&str, &str>) {
        let parsed = parse_authority(authority);
        match expect {
            Ok(addr) => assert_eq!(parsed, Ok(addr.parse().unwrap()), "{authority}"),
            Err(reason) => assert_eq!(parsed.unwrap_err().reason(), reason, "{authority}"),
        }
    }

    #[test]
    fn only_an_address_and_port_can_be_dialled() {
        check("10.0.0.1:80", Ok("10.0.0.1:80"));
        check("[fd00::1]:8080", Ok("[fd00::1]:8080"));
        check("[::ffff:10.0.0.1]:80", Ok("10.0.0.1:80"));
        check("api.shop.svc.cluster.local:80", Err("hostname_authority"));
        check("10.0.0.1", Err("bad_authority"));
        check("10.0.0.1:0", Err("bad_authority"));
        check("10.0.0.1:+80", Err("bad_authority"));
        check("10.0.0.1:65536", Err("bad_authority"));
        check("10.0.0.256:80", Err("bad_authority"));
        check("fd00::1:80", Err("bad_authority"));
        check("[fd00::1%eth0]:80", Err("bad_authority"));
        check("", Err("bad_authority"));
        check(":80", Err("bad_authority"));
    }

    #[test]
    fn what_is_written_is_read() {
        let head = ConnectHead::new("[fd00::2]:5432".parse().unwrap())
            .forwarded(
                "10.0.0.1:4711".parse().unwrap(),
                Some("db.shop.svc.cluster.local".into()),
            )
            .with_baggage(HeaderValue::from_static(
                "k8s.namespace.name=shop,service.name=web",
            ))
            .with_traceparent(HeaderValue::from_static(
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ));
        let fields = sent(&head);
        assert_eq!(
            fields.first(FORWARDED).unwrap(),
            b"for=\"10.0.0.1:4711\";host=db.shop.svc.cluster.local"
        );
        assert_eq!(ConnectHead::read(&fields), head);
    }

    #[test]
    fn descriptions_are_read_leniently() {
        let read = |value: &str| read_forwarded(value.as_bytes());
        let source = Some("10.0.0.1:1".parse().unwrap());
        assert_eq!(
            read("for=\"10.0.0.1:1\";host=\"a.b\""),
            (source, Some("a.b".into()))
        );
        assert_eq!(
            read(" Host=a.b ; For=10.0.0.1:1 , for=x"),
            (source, Some("a.b".into()))
        );
        assert_eq!(read("for=_hidden;proto=h2"), (None, None));
        assert_eq!(read("host=ä"), (None, None));
        assert_eq!(
            join([&b"a=1"[..], b"b=2"].into_iter()),
            Some(HeaderValue::from_static("a=1,b=2"))
        );
        for short in [
            "00-",
            "00-0000000000000000000000000000000000000000000000000000",
        ] {
            assert!(!is_traceparent(short.as_bytes()), "{short}");
        }
    }

    #[test]
    fn only_200_opens_a_stream() {
        let of = Refused::from_status;
        assert_eq!(of(200), None);
        assert_eq!(of(204), Some(Refused::Other(204)));
        assert_eq!(of(401).unwrap().reason(), "denied");
        assert_eq!(of(503).unwrap().reason(), "dial_failed");
    }

    proptest! {
        #[test]
        fn no_input_panics(authority in ".{0,64}", forwarded: Vec<u8>, trace: Vec<u8>) {
            let _ = parse_authority(&authority);
            let _ = read_forwarded(&forwarded);
            let _ = is_traceparent(&trace);
        }

        #[test]
        fn every_address_round_trips(ip: IpAddr, port in 1_u16..) {
            let to = canonical(SocketAddr::new(ip, port));
            let fields = sent(&ConnectHead::new(to));
            prop_assert_eq!(ConnectHead::read(&fields).authority(), Ok(to));
        }
    }
}
