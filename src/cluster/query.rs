//! Queries of the API server's URLs.

/// A query's value as it stands in a URL (RFC 3986 §2.1): what is not unreserved is encoded.
#[must_use]
pub fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
