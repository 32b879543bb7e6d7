//! Times as people and records read them.

use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

/// A time as RFC 3339 has it, in whole seconds of UTC; 1970 for what lies before it.
#[must_use]
pub fn timestamp(at: SystemTime) -> String {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| String::new(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_told_in_whole_seconds() {
        let check = |millis: u64, expect: &str| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(timestamp(at), expect);
        };
        check(0, "1970-01-01T00:00:00Z");
        check(1_795_532_428_104, "2026-11-24T15:00:28Z");
        check(u64::MAX, "");
    }
}
