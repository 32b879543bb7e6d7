//! What a line of the log looks like: the one place that says so, for access records and all else.
//!
//! ```text
//! 2026-11-23T06:00:00.000000Z  INFO target: message field=value name="text"
//! {"timestamp":"…","level":"INFO","message":"…","field":1,"name":"text","target":"…"}
//! ```
//!
//! Text that was given as text is quoted in text lines, what is only displayed is not. Control
//! characters are escaped in both formats, so that a line is a line whatever a peer calls itself.
//! A worker writes a line per connection, so this formats into a buffer of the thread and does
//! the date once a second.

use std::cell::Cell;
use std::fmt;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::telemetry::log::Format;

/// What a line's buffer may keep for the next one.
const KEPT: usize = 16 * 1024;

/// Where lines go.
pub(crate) trait Sink: Send + Sync + 'static {
    /// Takes a line, whose end is a line feed.
    fn line(&self, level: Level, line: &[u8]);
}

/// The layer of a subscriber that makes each event a line.
pub(crate) struct Lines<S> {
    pub(crate) format: Format,
    pub(crate) to: S,
}

thread_local! {
    static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// The last second that was written, and its text.
    static SECOND: Cell<(u64, [u8; 20])> = const { Cell::new((u64::MAX, [0; 20])) };
}

impl<C: Subscriber, S: Sink> Layer<C> for Lines<S> {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, C>) {
        // Taken, not borrowed: a value that logs while it is displayed gets a buffer of its own.
        let mut line = LINE.take();
        line.clear();
        write(&mut line, self.format, SystemTime::now(), event);
        self.to.line(*event.metadata().level(), &line);
        if line.capacity() <= KEPT {
            LINE.set(line);
        }
    }
}

fn write(line: &mut Vec<u8>, format: Format, now: SystemTime, event: &Event<'_>) {
    let metadata = event.metadata();
    let level = metadata.level().as_str();
    match format {
        Format::Text => {
            time(line, now);
            line.extend_from_slice(if level.len() < 5 { b"  " } else { b" " });
            line.extend_from_slice(level.as_bytes());
            line.push(b' ');
            line.extend_from_slice(metadata.target().as_bytes());
            line.extend_from_slice(b":");
            event.record(&mut Text(line));
        }
        Format::Json => {
            line.extend_from_slice(b"{\"timestamp\":\"");
            time(line, now);
            line.extend_from_slice(b"\",\"level\":\"");
            line.extend_from_slice(level.as_bytes());
            line.push(b'"');
            event.record(&mut Json(line));
            line.extend_from_slice(b",\"target\":\"");
            escape_json(line, metadata.target());
            line.extend_from_slice(b"\"}");
        }
    }
    line.push(b'\n');
}

/// Fields as text.
struct Text<'a>(&'a mut Vec<u8>);

impl Text<'_> {
    fn name(&mut self, field: &Field) {
        self.0.push(b' ');
        if field.name() != MESSAGE {
            self.0.extend_from_slice(field.name().as_bytes());
            self.0.push(b'=');
        }
    }
}

/// The field that is the message of an event.
const MESSAGE: &str = "message";

impl Visit for Text<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\';
        if field.name() == MESSAGE {
            Visible(self.0).put(value);
        } else if value.bytes().all(plain) {
            self.0.push(b'"');
            self.0.extend_from_slice(value.as_bytes());
            self.0.push(b'"');
        } else {
            put(self.0, format_args!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        // Fails only if the value does; then there is less of it.
        let _ = write!(Visible(self.0), "{value:?}");
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        put(self.0, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        put(self.0, format_args!("{value}"));
    }
}

/// Fields as members of an object that has some already.
struct Json<'a>(&'a mut Vec<u8>);

impl Json<'_> {
    fn name(&mut self, field: &Field) {
        self.0.extend_from_slice(b",\"");
        escape_json(self.0, field.name());
        self.0.extend_from_slice(b"\":");
    }

    fn raw(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.name(field);
        put(self.0, value);
    }
}

impl Visit for Json<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.0.push(b'"');
        escape_json(self.0, value);
        self.0.push(b'"');
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field);
        self.0.push(b'"');
        let _ = write!(Escaped(self.0), "{value:?}");
        self.0.push(b'"');
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.raw(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.raw(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.raw(field, format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no words for the others.
        if value.is_finite() {
            self.raw(field, format_args!("{value}"));
        } else {
            self.raw(field, format_args!("null"));
        }
    }
}

fn put(line: &mut Vec<u8>, value: fmt::Arguments<'_>) {
    line.write_fmt(value).expect("a vector takes all");
}

/// Text with control characters made visible.
struct Visible<'a>(&'a mut Vec<u8>);

impl Visible<'_> {
    fn put(&mut self, text: &str) {
        let harmless = |b: u8| b >= b' ' && b != 0x7f && b.is_ascii();
        if text.bytes().all(harmless) {
            self.0.extend_from_slice(text.as_bytes());
            return;
        }
        for c in text.chars() {
            if c.is_control() {
                put(self.0, format_args!("{}", c.escape_default()));
            } else {
                self.0
                    .extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
}

impl fmt::Write for Visible<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text);
        Ok(())
    }
}

/// The inside of a JSON string.
struct Escaped<'a>(&'a mut Vec<u8>);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape_json(self.0, text);
        Ok(())
    }
}

/// Appends text as it stands within a JSON string (RFC 8259 §7).
fn escape_json(line: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    let must = |b: &u8| *b < b' ' || *b == b'"' || *b == b'\\';
    while let Some(at) = rest.iter().position(must) {
        line.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            byte if byte < b' ' => put(line, format_args!("\\u{byte:04x}")),
            byte => line.extend_from_slice(&[b'\\', byte]),
        }
        rest = &rest[at + 1..];
    }
    line.extend_from_slice(rest);
}

/// Appends a time in UTC, to the microsecond (RFC 3339).
fn time(line: &mut Vec<u8>, now: SystemTime) {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or(Duration::ZERO);
    let second = since.as_secs();
    let (mut known, mut text) = SECOND.get();
    if known != second {
        (known, text) = (second, of_second(second));
        SECOND.set((known, text));
    }
    line.extend_from_slice(&text);
    digits(line, since.subsec_micros(), 6);
    line.push(b'Z');
}

fn of_second(second: u64) -> [u8; 20] {
    let (year, month, day) = date(second / 86_400);
    let number = |n: u64| u32::try_from(n).unwrap_or_default();
    let of_day = number(second % 86_400);
    let parts = [
        (number(year), 4, b'-'),
        (number(month), 2, b'-'),
        (number(day), 2, b'T'),
        (of_day / 3600, 2, b':'),
        (of_day / 60 % 60, 2, b':'),
        (of_day % 60, 2, b'.'),
    ];
    let mut text = Vec::with_capacity(20);
    for (value, width, end) in parts {
        digits(&mut text, value, width);
        text.push(end);
    }
    text.try_into()
        .expect("as many as there are widths and ends")
}

/// The last `width` decimal digits of a number.
fn digits(line: &mut Vec<u8>, value: u32, width: u32) {
    for place in (0..width).rev() {
        line.push(b'0' + (value / 10_u32.pow(place) % 10) as u8);
    }
}

/// Year, month and day of a day since 1970-01-01.
fn date(mut day: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    // Once a second a few dozen rounds: not worth a formula.
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::telemetry::log::{Filter, subscriber};

    /// Keeps all lines.
    #[derive(Clone, Default)]
    pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Sink for Kept {
        fn line(&self, _level: Level, line: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(line);
        }
    }

    /// What `write` logs.
    pub(crate) fn logged(filter: &str, format: Format, write: impl FnOnce()) -> String {
        let kept = Kept::default();
        let filter = Filter::parse(filter).unwrap();
        let subscriber = subscriber(&filter, format, kept.clone()).0;
        tracing::subscriber::with_default(subscriber, write);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let check = |second: u64, micros: u32, expect: &str| {
            let mut line = Vec::new();
            let since = Duration::from_secs(second) + Duration::from_micros(micros.into());
            time(&mut line, SystemTime::UNIX_EPOCH + since);
            assert_eq!(String::from_utf8(line).unwrap(), expect);
        };
        check(0, 0, "1970-01-01T00:00:00.000000Z");
        check(951_782_400, 1, "2000-02-29T00:00:00.000001Z");
        check(951_868_799, 999_999, "2000-02-29T23:59:59.999999Z");
        check(951_868_800, 0, "2000-03-01T00:00:00.000000Z");
        check(1_735_689_599, 20, "2024-12-31T23:59:59.000020Z");
        check(1_795_413_600, 0, "2026-11-23T06:00:00.000000Z");
        check(4_107_542_400, 0, "2100-03-01T00:00:00.000000Z");
    }

    fn all_kinds() {
        tracing::warn!(
            target: "place",
            text = "a \"b\"\n\u{1b}é",
            shown = %"a \"b\"\n\u{1b}é",
            debug = ?Some("x"),
            count = 7_u64,
            less = -7_i64,
            yes = true,
            half = 0.5,
            absent = None::<u64>,
            dotted.name = "v",
            "what {}",
            "happened\n",
        );
    }

    #[test]
    fn a_text_line_shows_all_kinds_of_values_and_no_control_characters() {
        let line = logged("info", Format::Text, all_kinds);
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-11-23T06:00:00.000000Z".len());
        assert_eq!(
            rest,
            " WARN place: what happened\\n text=\"a \\\"b\\\"\\n\\u{1b}é\" \
             shown=a \"b\"\\n\\u{1b}é debug=Some(\"x\") count=7 less=-7 yes=true half=0.5 \
             dotted.name=\"v\"\n"
        );
    }

    #[test]
    fn a_json_line_gives_all_values_back() {
        let line = logged("info", Format::Json, all_kinds);
        assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line}");
        let mut json: serde_json::Value = serde_json::from_str(&line).unwrap();
        json.as_object_mut().unwrap().remove("timestamp").unwrap();
        let expect = serde_json::json!({
            "level": "WARN",
            "message": "what happened\n",
            "text": "a \"b\"\n\u{1b}é",
            "shown": "a \"b\"\n\u{1b}é",
            "debug": "Some(\"x\")",
            "count": 7,
            "less": -7,
            "yes": true,
            "half": 0.5,
            "dotted.name": "v",
            "target": "place",
        });
        assert_eq!(json, expect);
    }

    #[test]
    fn a_filter_decides_by_target_and_level() {
        let line = || tracing::debug!(target: "place", "a line");
        let check = |filter: &str, lines: usize| {
            let text = logged(filter, Format::Text, line);
            assert_eq!(text.lines().count(), lines, "{filter}: {text}");
        };
        check("info", 0);
        check("debug", 1);
        check("info,place=debug", 1);
        check("debug,place=off", 0);
        check("off,place=trace", 1);
    }
}
