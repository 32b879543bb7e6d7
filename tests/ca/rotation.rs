//! Rotating the root, step by step, with people who are in a hurry.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::bed::{Bed, SOON};
use crate::support::{eventually, within};

fn roots(bed: &Bed) -> Vec<CertificateDer<'static>> {
    let bundle = bed.bundle();
    let all = CertificateDer::pem_slice_iter(bundle.as_bytes());
    all.collect::<Result<_, _>>().expect("the bundle is PEM")
}

/// Lets `hours` pass: sets every time that was written down back by so much.
fn pass(bed: &Bed, hours: i64) {
    let back = |text: &str| {
        let at: k8s_openapi::jiff::Timestamp = text.parse().expect("a time was written");
        (at - Duration::from_secs(3600 * hours.unsigned_abs())).to_string()
    };
    bed.api
        .edit("v1", "Secret", "adit-system", "adit-ca", |secret| {
            for key in ["adit.mesh/staged-at", "adit.mesh/promoted-at"] {
                let note = &mut secret["metadata"]["annotations"][key];
                if let Some(text) = note.as_str() {
                    *note = json!(back(text));
                }
            }
            let notes = secret["metadata"]["annotations"].as_object_mut();
            notes
                .expect("there are some")
                .retain(|_, note| !note.is_null());
        });
    bed.api
        .edit("v1", "ConfigMap", "adit-system", "adit-ca-root", |map| {
            let note = &mut map["metadata"]["annotations"]["adit.mesh/published"];
            let text = note.as_str().expect("it is there");
            let mut since: serde_json::Map<String, Value> =
                serde_json::from_str(text).expect("JSON");
            for at in since.values_mut() {
                *at = json!(back(at.as_str().expect("a time was written")));
            }
            *note = json!(Value::Object(since).to_string());
        });
}

#[test]
fn a_rotation_cuts_nobody_off() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let replicas = [bed.start("one", &[]), bed.start("two", &[])];
    let ask = || {
        replicas
            .each_ref()
            .map(|r| bed.caller(r).ask("shop", "cart").expect("it is granted"))
    };
    let refused = |step: &str, told: &str| {
        let before = bed.secret();
        let (done, text) = bed.ca(step);
        assert!(
            !done && text.contains(told) && text.contains("nothing was changed"),
            "{step}: {text}"
        );
        assert_eq!(bed.secret(), before);
    };
    let old = roots(&bed).remove(0);
    let old_bundle = bed.bundle();
    refused("promote", "no new root is staged");
    refused("retire", "no old root");

    let (done, text) = bed.ca("stage");
    assert!(done && text.contains("`adit ca promote`"), "{text}");
    refused("stage", "staged already");
    eventually(SOON, "the new root is published", || roots(&bed).len() == 2);
    within(SOON, "both replicas tell of it", || {
        let told = ask().map(|issued| issued.roots.len());
        if told == [2, 2] { Ok(()) } else { Err(told) }
    });
    for issued in ask() {
        assert!(issued.leads_to(&old), "the old root signs");
    }
    let new = roots(&bed)
        .into_iter()
        .find(|root| *root != old)
        .expect("two differ");
    refused("promote", "possible from ");
    pass(&bed, 24);
    refused("promote", "possible from ");
    pass(&bed, 1);
    let (_, text) = bed.ca("status");
    assert!(text.contains("next      `adit ca promote`\n"), "{text}");

    let (done, text) = bed.ca("promote");
    assert!(done, "{text}");
    assert_eq!(
        bed.secret_keys(),
        ["retiring.pem", "root.key", "root.pem"],
        "the old key is gone"
    );
    within(SOON, "the new root signs, everywhere", || {
        let issued = ask();
        // All the while, whoever was told of both roots believes either.
        for one in &issued {
            assert!(one.leads_to(&old) || one.leads_to(&new));
            assert_eq!(one.roots.len(), 2, "both are trusted");
        }
        if issued.iter().all(|one| one.leads_to(&new)) {
            Ok(())
        } else {
            Err("not yet")
        }
    });
    // The replicas themselves are known by the new root now.
    within(SOON, "the serving certificate is of the new root", || {
        let mut late = bed.caller(&replicas[0]);
        late.roots.clone_from(&old_bundle);
        let status = late.ask("shop", "cart").map(drop);
        if status.is_err() {
            Ok(())
        } else {
            Err("the old one still")
        }
    });
    refused("stage", "not retired yet");
    refused("retire", "possible from ");
    pass(&bed, 25);
    let (done, text) = bed.ca("retire");
    assert!(done && text.contains("`adit ca stage`"), "{text}");
    eventually(SOON, "the old root is out of the bundle", || {
        roots(&bed) == [new.clone()]
    });
    within(SOON, "and out of the answers", || {
        let told = ask().map(|issued| issued.roots.len());
        if told == [1, 1] { Ok(()) } else { Err(told) }
    });
}

#[test]
fn nothing_is_promoted_that_was_not_published() {
    let bed = Bed::new();
    let mut control = bed.start("control", &[]);
    control.kill();
    let (done, text) = bed.ca("stage");
    assert!(
        done && text.contains("once adit control has published"),
        "{text}"
    );
    pass(&bed, 100);
    let (done, text) = bed.ca("promote");
    assert!(
        !done && text.contains("not in the published bundle"),
        "{text}"
    );
    let _back = bed.start("back", &[]);
    let (done, text) = bed.ca("promote");
    assert!(
        !done && text.contains("possible from "),
        "it is in there for seconds only: {text}"
    );
}

#[test]
fn the_longest_certificate_that_was_ever_given_is_waited_for() {
    let bed = Bed::new();
    let mut long = bed.start("long", &["--max-validity", "7d"]);
    long.kill();
    let _short = bed.start("short", &["--max-validity", "1h"]);
    bed.ca("stage");
    eventually(SOON, "the new root is published", || roots(&bed).len() == 2);
    pass(&bed, 6 * 24);
    let (done, text) = bed.ca("promote");
    assert!(!done && text.contains("possible from "), "{text}");
    pass(&bed, 25);
    let (done, text) = bed.ca("promote");
    assert!(done, "{text}");
}

#[test]
fn the_time_of_a_step_is_the_servers_and_not_that_of_who_does_it() {
    let bed = Bed::new();
    let _control = bed.start("control", &[]);
    bed.api
        .options(|options| options.date = Some("Mon, 05 Jan 2026 10:01:24 GMT"));
    let (done, text) = bed.ca("stage");
    assert!(done && text.contains("since 2026-01-05T10:01:24"), "{text}");
    let secret = bed.secret().expect("it is there");
    let at = secret["metadata"]["annotations"]["adit.mesh/staged-at"].clone();
    assert!(
        at.as_str()
            .is_some_and(|at| at.starts_with("2026-01-05T10:01:24")),
        "{at}"
    );
}

#[test]
fn there_is_nothing_to_rotate_without_an_authority() {
    let bed = Bed::new();
    for step in ["status", "stage", "promote", "retire"] {
        let (done, text) = bed.ca(step);
        assert!(
            !done && text.contains("there is no Secret adit-system/adit-ca"),
            "{step}: {text}"
        );
    }
}
