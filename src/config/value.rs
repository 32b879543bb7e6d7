//! Values of single flags, from text to what they mean.
//!
//! Each says, where it refuses, the form that would do; clap puts the flag's name before it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::node::config::CaSpec;
use crate::pki::remote::Address;

pub(super) fn ca(text: &str) -> Result<CaSpec, String> {
    match text.strip_prefix("dir:") {
        Some("") => Err("dir: needs a path, for example dir:/var/lib/adit/ca".to_owned()),
        Some(path) => Ok(CaSpec::Directory(path.into())),
        None => match text.strip_prefix("https://") {
            Some(rest) => remote_address(rest).map(CaSpec::Remote),
            None => Err(format!(
                "write dir:PATH, for example dir:{text}, or https://HOST:PORT"
            )),
        },
    }
}

/// `HOST:PORT` behind `https://`, perhaps with a slash after it.
fn remote_address(text: &str) -> Result<Address, String> {
    let wrong = || {
        "write https://HOST:PORT, for example https://adit-control.adit-system.svc:15012".to_owned()
    };
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let legal = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => dns_name(host).is_ok(),
    };
    if !legal {
        return Err(wrong());
    }
    let host = bare.unwrap_or(host).to_owned();
    Ok(Address { host, port })
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let form = "write ADDRESS:PORT, for example 127.0.0.1:15000 or [::]:15020";
    text.parse().map_err(|_| form.to_owned())
}

/// A DNS name of RFC 1123, in lower case.
pub(super) fn dns_name(text: &str) -> Result<String, String> {
    if text.len() <= 253 && text.split('.').all(|label| namespace(label).is_ok()) {
        Ok(text.to_owned())
    } else {
        Err("not a DNS name: write for example cluster.local".to_owned())
    }
}

/// A DNS label of RFC 1123, which names of namespaces are.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends = !text.starts_with('-') && !text.ends_with('-');
    if (1..=63).contains(&text.len()) && ends && text.bytes().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("not the name of a namespace: use 1 to 63 of a-z 0-9 -".to_owned())
    }
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("write KEY=VALUE, for example istio.io/dataplane-mode=ambient".to_owned()),
    }
}

/// Parses a time to poll: as [`duration`], or 0. Longer than [`LONGEST_BUSY_POLL`] it would cost more
/// than any wake-up it saves.
pub(super) fn busy_poll(text: &str) -> Result<Duration, String> {
    let time = match text {
        "0" => Duration::ZERO,
        _ => duration(text).map_err(|_| "write for example 60us, or 0".to_owned())?,
    };
    if time > LONGEST_BUSY_POLL {
        return Err("longer than a millisecond; write for example 60us, or 0".to_owned());
    }
    Ok(time)
}

/// The longest time to poll.
const LONGEST_BUSY_POLL: Duration = Duration::from_millis(1);

/// Parses `30s`, `1h30m`, `250ms`, `60us`, `7d`: whole numbers, each with its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write numbers with units, for example 30s, 1h30m, 24h".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let micros = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(micros).map(Duration::from_micros);
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= LONGEST)
            .ok_or_else(|| "longer than ten years".to_owned())?;
        rest = tail;
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(total)
    }
}

/// No duration that is meant is longer, and no clock overflows by it.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_poll_is_short() {
        let check = |text, expect: Option<u64>| {
            let parsed = busy_poll(text).ok();
            assert_eq!(parsed, expect.map(Duration::from_micros), "{text}");
        };
        check("0", Some(0));
        check("60us", Some(60));
        check("1ms", Some(1000));
        check("2ms", None);
        check("60", None);
        check("", None);
    }

    #[test]
    fn durations_have_units() {
        let check = |text: &str, expect: Option<u64>| {
            let parsed = duration(text).ok().map(|d| d.as_millis());
            assert_eq!(parsed, expect.map(u128::from), "{text:?}");
        };
        check("30s", Some(30_000));
        check("0s", Some(0));
        check("250ms", Some(250));
        check("1h30m", Some(5_400_000));
        check("7d", Some(604_800_000));
        check("30", None);
        check("s", None);
        check("", None);
        check("-1s", None);
        check("1.5h", None);
        check("30 s", None);
        check("1y", None);
        check("99999999999999999999s", None);
        check("18446744073709551615d", None);
    }

    #[test]
    fn authorities_say_what_they_are() {
        let check = |text: &str, expect: Result<&str, &str>| match (ca(text), expect) {
            (Ok(ca), Ok(expect)) => assert_eq!(ca.to_string(), expect),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (got, _) => panic!("{text:?} gave {got:?}"),
        };
        check("dir:/ca", Ok("dir:/ca"));
        check("/ca", Err("dir:/ca"));
        check("dir:", Err("needs a path"));
        check("https://istiod:15012", Ok("https://istiod:15012"));
        check("https://10.0.0.1:15012/", Ok("https://10.0.0.1:15012"));
        check("https://[::1]:15012", Ok("https://[::1]:15012"));
        check("https://istiod", Err("HOST:PORT"));
        check("https://:15012", Err("HOST:PORT"));
        check("https://istiod:0", Err("HOST:PORT"));
        check("https://::1:15012", Err("HOST:PORT"));
        check("https://istiod:15012/path", Err("HOST:PORT"));
        check("https://a@b:15012", Err("HOST:PORT"));
    }

    #[test]
    fn names_labels_and_addresses_are_checked() {
        let check = |valid: bool, right: bool, text: &str| assert_eq!(valid, right, "{text:?}");
        for (text, right) in [
            ("adit-system", true),
            ("Adit", false),
            ("-a", false),
            ("", false),
        ] {
            check(namespace(text).is_ok(), right, text);
        }
        for (text, right) in [
            ("cluster.local", true),
            ("a..b", false),
            ("cluster.local.", false),
        ] {
            check(dns_name(text).is_ok(), right, text);
        }
        for (text, right) in [("a/b=c", true), ("a", false), ("=c", false), ("a=", false)] {
            check(label(text).is_ok(), right, text);
        }
        for (text, right) in [("[::]:1", true), (":1", false), ("localhost:1", false)] {
            check(address(text).is_ok(), right, text);
        }
    }
}
