//! What changes a list or a watch tells.

use super::*;
use crate::source::{Interner, Namespace, Object};

fn key(name: &str) -> Key {
    Key {
        kind: Kind::Namespace,
        namespace: "".into(),
        name: name.into(),
    }
}

/// A namespace of which the version is all that may differ.
fn item(name: &str, version: u64) -> Item {
    let text = version.to_string();
    let labels = Interner::default().labels([("version", &*text)]);
    let name: Arc<str> = name.into();
    let object = Object::Namespace(Box::new(Namespace {
        name,
        labels,
        terminating: false,
    }));
    Item {
        key: match &object {
            Object::Namespace(namespace) => Some(key(&namespace.name)),
            _ => None,
        },
        version,
        object: Ok(Some(object)),
    }
}

fn wrong(name: &str) -> Item {
    Item {
        object: Err("wrong".to_owned()),
        ..item(name, 9)
    }
}

/// Steps are `(`, `)`, `+NAME@VERSION`, `!NAME` (invalid), `?` (unnamed), `~NAME` (means nothing)
/// and `-NAME`; the changes come back as `+NAME` and `-NAME`.
fn check(steps: &str, expect: &str) {
    let mut kept = Kept::new(Kind::Namespace);
    for step in steps.split_whitespace() {
        let (what, name) = step.split_at(1);
        match what {
            "(" => kept.begin(),
            ")" => kept.done(),
            "+" => {
                let (name, version) = name.split_once('@').expect("NAME@VERSION");
                kept.take(item(name, version.parse().expect("a number")));
            }
            "!" => kept.take(wrong(name)),
            "~" => kept.take(Item {
                object: Ok(None),
                ..item(name, 9)
            }),
            "?" => kept.take(Item {
                key: None,
                ..wrong("x")
            }),
            "-" => kept.gone(key(name)),
            other => panic!("{other}"),
        }
    }
    let told = kept.tell();
    assert_eq!(kept.pending(), 0);
    let words: Vec<String> = told
        .iter()
        .map(|change| match change {
            Change::Upsert(Object::Namespace(namespace)) => format!("+{}", namespace.name),
            Change::Upsert(_) => panic!("another kind"),
            Change::Remove(key) => format!("-{}", key.name),
        })
        .collect();
    assert_eq!(words.join(" "), expect, "{steps}");
}

#[test]
fn only_the_end_of_a_list_removes() {
    check("( +a@1 +b@2 )", "+a +b");
    check("( +a@1 +b@2 ) ( +a@1", "+a +b");
    check("( +a@1 +b@2 ) ( +a@1 )", "+a +b -b");
    check("( +a@1 +b@2 ) ( +b@2 ( +a@1 )", "+a +b -b");
    check("( +a@1 ) +b@2 ( +a@1 +b@2 )", "+a +b");
}

#[test]
fn what_is_known_is_not_told_again() {
    check("( +a@1 ) +a@1 +a@2 ( +a@2 )", "+a +a");
}

#[test]
fn events_remove_once() {
    check("( +a@1 ) -a -a", "+a -a");
    check("( +a@1 ) ~a ~a +a@3", "+a -a +a");
}

#[test]
fn what_is_invalid_stands_as_it_was() {
    check("( +a@1 ) ( !a )", "+a");
    check("( +a@1 ) !a +a@1", "+a +a");
    check("( !a ) ( )", "");
    check("( +a@1 +b@2 ) ( ? )", "+a +b");
    check("( +a@1 +b@2 ) ( ? ) ( +a@1 )", "+a +b -b");
}

#[test]
fn what_is_invalid_is_named_until_it_is_right_or_gone() {
    let mut kept = Kept::new(Kind::Namespace);
    kept.begin();
    kept.take(wrong("a"));
    kept.take(wrong("b"));
    kept.done();
    assert_eq!(kept.invalid().len(), 2);
    kept.take(item("a", 3));
    assert_eq!(kept.invalid().len(), 1);
    kept.begin();
    kept.done();
    assert_eq!(kept.invalid().len(), 0);
}
