//! The quick reader of block-style YAML, against the library as an oracle.

use super::*;
use crate::source::{chunk, raw};
use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// `expect` is what both readers make of the text, or `None` where it is beyond the quick one.
fn check(text: &str, expect: Option<Value>) {
    let quick = from_str::<Value>(text).ok();
    assert_eq!(quick, expect, "{text:?}");
    if expect.is_some() {
        assert_eq!(chunk::yaml::<Value>(text).ok(), expect, "{text:?}");
    }
}

#[test]
fn what_kubectl_prints_is_read() {
    check("a: b\n", Some(json!({"a": "b"})));
    check("  a: b\n  c: 7\n", Some(json!({"a": "b", "c": 7})));
    check(
        "a:\n- x\n- 1\nb: {}\n",
        Some(json!({"a": ["x", 1], "b": {}})),
    );
    check(
        "a:\n  - b: 1\n    c:\n    - d\n  -\n    e: 2\n  - - f\n",
        Some(json!({"a": [{"b": 1, "c": ["d"]}, {"e": 2}, ["f"]]})),
    );
    check(
        "a: \"x\\n\\\"y\\\"\" # c\nb: 'it''s'\n",
        Some(json!({"a": "x\n\"y\"", "b": "it's"})),
    );
    check(
        "a:\nb: null\nc: ~\nd: []\n",
        Some(json!({"a": null, "b": null, "c": null, "d": []})),
    );
    check(
        "a: true\nb: \"true\"\nc: yess\n",
        Some(json!({"a": true, "b": "true", "c": "yess"})),
    );
    check(
        "f:k: {}\nk:{\"type\":\"Ready\"}:\n  .: {}\n",
        Some(json!({"f:k": {}, "k:{\"type\":\"Ready\"}": {".": {}}})),
    );
    check(
        "# c\n\na: b # d\n\n# e\nc: d\n",
        Some(json!({"a": "b", "c": "d"})),
    );
    check("\"a b\": c\n'd': e\n", Some(json!({"a b": "c", "d": "e"})));
    check("- a: 1\n- b\n", Some(json!([{"a": 1}, "b"])));
    check("a: http://x:80/y\n", Some(json!({"a": "http://x:80/y"})));
}

#[test]
fn what_could_be_read_otherwise_is_left_to_the_general_parser() {
    for text in [
        "",
        "a",
        "a: b: c",
        "a: *x",
        "a: &x 1",
        "a: !!str 1",
        "a: {b: 1}",
        "a: [1]",
        "a: |\n  x",
        "a: yes",
        "a: 1.5",
        "a: 01",
        "a: -1",
        "a: 0x1",
        "a: .inf",
        "a:\tb",
        "a: \u{e9}",
        "a: b\n  c",
        "a: \"x",
        "a: 'x' y",
        "a: \"\\x41\"",
        "<<: a",
        "? a",
        "a:\n  b: 1\n c: 2",
        "- a\nb: 1",
        "a: -",
        "a : b",
        "%YAML 1.2",
        "---\na: b",
        "a: @b",
        "a: `b`",
        "a: \"b\"c",
    ] {
        check(text, None);
    }
}

#[test]
fn long_text_is_skipped_in_one_piece() {
    for (text, skipped) in [
        ("a: |\n  x: y\n\n   z\nb: 1", true),
        ("a: >-\n  x\nb: 1", true),
        ("a: |\n  x\n y\nb: 1", false),
        ("a: |\n   \n  x\nb: 1", false),
        ("a: b\n  c\n  d\nb: 1", true),
        ("a: b\n  c: d\nb: 1", false),
        ("a: b # c\n  d\nb: 1", false),
        ("a: \"b\n  c\\\n  d\"\nb: 1", true),
        ("a: 'b\n\n  c'\nb: 1", true),
        ("a: 'b\nc'\nb: 1", false),
        ("a: 'b\n  c' d\nb: 1", false),
        ("- |\n x\n- y", true),
    ] {
        assert_eq!(from_str::<IgnoredAny>(text).is_ok(), skipped, "{text:?}");
        if skipped {
            assert!(chunk::yaml::<IgnoredAny>(text).is_ok(), "{text:?}");
        }
    }
}

#[test]
fn depth_is_bounded() {
    let deep = "- ".repeat(100_000);
    assert!(from_str::<IgnoredAny>(&deep).is_err());
    let deep: String = (0..10_000)
        .map(|i| format!("{}a:\n", " ".repeat(i)))
        .collect();
    assert!(from_str::<IgnoredAny>(&deep).is_err());
}

/// A pod as kubectl prints it.
fn seed() -> String {
    include_str!("../../../benches/pod.yaml.in").replace('@', "x")
}

const EXTRA: &str = "  more:\n    a: |-\n      text: x\n\n       y\n    b: \"two\n      lines\"\n    \
    c: plain\n      goes on\n    'q': 'it''s'\n    f:x: {}\n    n: null\n    z: []\n    e:\n    \
    - - 1\n      - two\n    -\n      k: v # note\n";

/// A change to a text: where, as a share of it, and what.
#[derive(Clone, Debug)]
enum Edit {
    Insert(f64, char),
    Delete(f64),
    Indent(f64, usize),
    Dedent(f64),
    DropLine(f64),
    CopyLine(f64, f64),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = 0.0..1.0_f64;
    let chars: Vec<char> = " \n:-#'\"{}[]|>&*!~?%@,a0.\\<+$(".chars().collect();
    let edit = prop_oneof![
        4 => (at.clone(), prop::sample::select(chars)).prop_map(|(a, c)| Edit::Insert(a, c)),
        3 => at.clone().prop_map(Edit::Delete),
        1 => (at.clone(), 1_usize..4).prop_map(|(a, n)| Edit::Indent(a, n)),
        1 => at.clone().prop_map(Edit::Dedent),
        1 => at.clone().prop_map(Edit::DropLine),
        1 => (at.clone(), at).prop_map(|(a, b)| Edit::CopyLine(a, b)),
    ];
    prop::collection::vec(edit, 0..6)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a length is a place in it"
)]
fn apply(text: &mut String, edit: &Edit) {
    let place = |share: f64, of: usize| (share * of as f64) as usize;
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let line = |share: f64| place(share, lines.len());
    match *edit {
        _ if lines.is_empty() => {}
        Edit::Insert(at, c) => text.insert(place(at, text.len()), c),
        Edit::Delete(at) => drop(text.remove(place(at, text.len()))),
        Edit::Indent(at, n) => {
            let at = line(at);
            lines[at].insert_str(0, &" ".repeat(n));
            *text = lines.concat();
        }
        Edit::Dedent(at) => {
            let at = line(at);
            lines[at] = lines[at].strip_prefix(' ').unwrap_or(&lines[at]).to_owned();
            *text = lines.concat();
        }
        Edit::DropLine(at) => {
            lines.remove(line(at));
            *text = lines.concat();
        }
        Edit::CopyLine(from, to) => {
            let copy = lines[line(from)].clone();
            lines.insert(line(to), copy);
            *text = lines.concat();
        }
    }
}

/// The general parser's reading; `None` where it refuses for a reason that the quick reader is
/// free not to look for: a name that stands twice in a part nobody asked for.
fn general<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    match chunk::yaml::<T>(text) {
        Ok(value) => Some(value),
        Err(error) if error.message.contains("duplicate mapping key") => None,
        Err(error) => panic!("the general parser refuses: {}\n{text}", error.message),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_accepted_is_accepted_and_read_alike_by_the_general_parser(
        edits in edits(), from in 0.0..1.0_f64, lines in 1_usize..30,
    ) {
        // A few lines of a pod, so that the edits fall close together.
        let seed = seed();
        let all: Vec<&str> = seed.lines().chain(EXTRA.lines()).collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
        let first = (from * all.len() as f64) as usize;
        let some = &all[first..(first + lines).min(all.len())];
        let margin = some.iter().map(|l| l.len() - l.trim_start().len()).min().unwrap_or(0);
        let mut text: String = some.iter().map(|l| format!("{}\n", &l[margin..])).collect();
        for edit in &edits {
            apply(&mut text, edit);
        }
        if let Ok(value) = from_str::<Value>(&text)
            && let Some(expect) = general::<Value>(&text)
        {
            prop_assert_eq!(&value, &expect, "{}", text);
        }
        if from_str::<IgnoredAny>(&text).is_ok() {
            general::<IgnoredAny>(&text);
        }
    }

    #[test]
    fn a_pod_is_read_alike(edits in edits()) {
        let mut text = format!("{}{EXTRA}", seed()).replacen('-', " ", 1);
        for edit in &edits {
            apply(&mut text, edit);
        }
        if let Ok(pod) = from_str::<raw::Pod<'_>>(&text) {
            match chunk::yaml::<raw::Pod<'_>>(&text) {
                Ok(expect) => prop_assert_eq!(format!("{pod:?}"), format!("{expect:?}")),
                Err(error) => prop_assert!(
                    error.message.contains("duplicate mapping key"),
                    "{}\n{}", error.message, text
                ),
            }
        }
    }
}
