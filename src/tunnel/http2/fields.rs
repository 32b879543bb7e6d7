//! The fields of one head: collected within a limit, and held against the rules for messages
//! (RFC 9113 §8).

use smallvec::SmallVec;

/// What each field counts beyond its text (RFC 9113 §6.5.2).
const OVERHEAD: usize = 32;
/// By what factor a head is far beyond the limit.
const FAR: usize = 16;
/// Fields that are about a connection of HTTP/1.1, and so have no place here (RFC 9113 §8.2.2).
const OF_CONNECTIONS: [&[u8]; 5] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
];

/// The fields of one head, in their order.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    text: Vec<u8>,
    /// Where each name and each value ends.
    ends: SmallVec<[(u32, u32); 8]>,
    size: usize,
    limit: usize,
}

/// What breaks a message: its stream cannot go on, the connection can.
pub(crate) type Malformed = &'static str;

impl Fields {
    /// Takes fields of `limit` bytes, counted as RFC 9113 §6.5.2 does.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Adds a field, unless the limit is passed.
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) {
        self.size += name.len() + value.len() + OVERHEAD;
        if self.is_over() {
            return;
        }
        self.text.extend_from_slice(name);
        let end = end(&self.text);
        self.text.extend_from_slice(value);
        self.ends.push((end, self::end(&self.text)));
    }

    /// Whether there was more than the limit.
    pub(crate) fn is_over(&self) -> bool {
        self.size > self.limit
    }

    /// Whether there was so much more that a peer could only mean to keep this side busy.
    pub(crate) fn is_far_over(&self) -> bool {
        self.size > self.limit.saturating_mul(FAR)
    }

    /// Names and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |(name, value)| {
            let (name, value) = (*name as usize, *value as usize);
            let field = (&self.text[start..name], &self.text[name..value]);
            start = value;
            field
        })
    }

    /// All values of a name.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let named = move |(found, value)| (found == name.as_bytes()).then_some(value);
        self.iter().filter_map(named)
    }

    /// The first value of a name.
    pub(crate) fn first(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// Whether these make a request (RFC 9113 §8.3.1, §8.5).
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(crate) fn check_request(&self) -> Result<(), Malformed> {
        self.check(&[":method", ":scheme", ":authority", ":path", ":protocol"])?;
        let method = self.first(":method").ok_or("a request without a method")?;
        let scheme = self.first(":scheme").is_some();
        let path = self.first(":path").is_some_and(|path| !path.is_empty());
        match method {
            // It takes SETTINGS that are not sent (RFC 8441 §3).
            _ if self.first(":protocol").is_some() => Err("an extended CONNECT was not offered"),
            b"CONNECT" if scheme || self.first(":path").is_some() => {
                Err("a CONNECT with a scheme or a path")
            }
            b"CONNECT" if self.first(":authority").is_none() => Err("a CONNECT without authority"),
            b"CONNECT" => Ok(()),
            _ if scheme && path => Ok(()),
            _ => Err("a request without a scheme or a path"),
        }
    }

    /// The status, if these make a response (RFC 9113 §8.3.2).
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(crate) fn check_response(&self) -> Result<u16, Malformed> {
        self.check(&[":status"])?;
        match self.first(":status") {
            Some(&[a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
                let digit = |byte: u8| u16::from(byte - b'0');
                Ok(digit(a) * 100 + digit(b) * 10 + digit(c))
            }
            _ => Err("a response without a status"),
        }
    }

    /// Whether these may follow a message's content.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(crate) fn check_trailers(&self) -> Result<(), Malformed> {
        self.check(&[])
    }

    /// What holds for all messages, with these pseudo-header fields.
    fn check(&self, pseudo: &[&str]) -> Result<(), Malformed> {
        let mut seen = 0_u32;
        let mut regular = false;
        for (name, value) in self.iter() {
            if name.first() == Some(&b':') {
                let known = pseudo.iter().position(|known| known.as_bytes() == name);
                let bit = 1 << known.ok_or("a pseudo-header field that is unknown here")?;
                if regular || seen & bit != 0 {
                    return Err("a pseudo-header field out of place");
                }
                seen |= bit;
            } else {
                regular = true;
                check_name(name, value)?;
            }
            check_value(value)?;
        }
        Ok(())
    }
}

fn end(text: &[u8]) -> u32 {
    u32::try_from(text.len()).expect("a head is far below 4 GiB")
}

fn check_name(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    let legal = |b: &u8| b.is_ascii_graphic() && !b.is_ascii_uppercase() && *b != b':';
    if name.is_empty() || !name.iter().all(legal) {
        return Err("a field's name is none");
    }
    if OF_CONNECTIONS.contains(&name) || (name == b"te" && value != b"trailers") {
        return Err("a field of another version of HTTP");
    }
    Ok(())
}

fn check_value(value: &[u8]) -> Result<(), Malformed> {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    let illegal = value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n'));
    match illegal || blank(value.first()) || blank(value.last()) {
        true => Err("a field's value is none"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &str) -> Fields {
        let mut fields = Fields::new(1000);
        for line in lines.split('|') {
            let (name, value) = line.split_once('=').unwrap();
            fields.push(name.as_bytes(), value.as_bytes());
        }
        fields
    }

    fn check(lines: &str, expect: Result<(), &str>) {
        assert_eq!(fields(lines).check_request(), expect, "{lines}");
    }

    #[test]
    fn requests_are_whole_and_in_order() {
        check(":method=CONNECT|:authority=10.0.0.1:80", Ok(()));
        check(":method=CONNECT|:authority=x|baggage=a", Ok(()));
        check(":method=GET|:scheme=https|:path=/", Ok(()));
        check(
            ":method=GET|:scheme=https|:path=",
            Err("a request without a scheme or a path"),
        );
        check(":authority=x", Err("a request without a method"));
        check(":method=CONNECT|a=b", Err("a CONNECT without authority"));
        check(
            ":method=CONNECT|:authority=x|:path=/",
            Err("a CONNECT with a scheme or a path"),
        );
        check(
            ":method=CONNECT|:authority=x|:protocol=websocket|:scheme=https|:path=/",
            Err("an extended CONNECT was not offered"),
        );
        let place = Err("a pseudo-header field out of place");
        check(":method=CONNECT|a=b|:authority=x", place);
        check(":method=CONNECT|:method=GET|:authority=x", place);
        let unknown = Err("a pseudo-header field that is unknown here");
        check(":method=CONNECT|:status=200", unknown);
    }

    #[test]
    fn names_and_values_are_clean() {
        let with =
            |line: &str, expect| check(&format!(":method=CONNECT|:authority=x|{line}"), expect);
        with("te=trailers", Ok(()));
        with("te=gzip", Err("a field of another version of HTTP"));
        with(
            "connection=close",
            Err("a field of another version of HTTP"),
        );
        for name in ["Upper", "with space", "ä", "", "a\0", "a:b"] {
            with(&format!("{name}=x"), Err("a field's name is none"));
        }
        for value in [" x", "x\t", "a\rb", "a\nb", "\0"] {
            with(&format!("a={value}"), Err("a field's value is none"));
        }
        with("a=", Ok(()));
    }

    #[test]
    fn responses_have_a_status() {
        assert_eq!(fields(":status=200|a=b").check_response(), Ok(200));
        for status in ["20", "2000", "0200", "abc", "099", "+20"] {
            let told = fields(&format!(":status={status}")).check_response();
            assert_eq!(told, Err("a response without a status"), "{status}");
        }
        assert!(fields("grpc-status=0").check_trailers().is_ok());
        assert!(fields(":status=200").check_trailers().is_err());
    }
}
