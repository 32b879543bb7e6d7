//! Where the root comes from: made once, found again, brought by the user, and never lost silently.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::bed::{Bed, SOON, START, replace};
use crate::support::apiserver::{Call, Fault};
use crate::support::{eventually, holds_for, within};

#[test]
fn replicas_that_start_at_once_make_one_root() {
    for round in 0..4 {
        let bed = Bed::new();
        bed.pod("worker-1", "shop", "cart-1", "cart");
        let mut replicas: Vec<_> = (0..3)
            .map(|n| bed.spawn(&format!("control-{round}-{n}"), &[]))
            .collect();
        for replica in &mut replicas {
            replica.await_ready();
        }
        // Ready may be said before the line has left the log's buffer.
        let made = || {
            replicas
                .iter()
                .map(|r| r.records("made a root").len())
                .sum::<usize>()
        };
        eventually(SOON, "one of them was first", || made() == 1);
        let root =
            CertificateDer::from_pem_slice(bed.bundle().as_bytes()).expect("it is published");
        for replica in &replicas {
            let issued = bed
                .caller(replica)
                .ask("shop", "cart")
                .expect("it is granted");
            assert_eq!(issued.roots, std::slice::from_ref(&root));
            assert!(issued.leads_to(&root));
        }
        assert_eq!(made(), 1, "only one of them was first");
        assert_eq!(bed.secret_keys(), ["root.key", "root.pem"]);
    }
}

#[test]
fn a_root_outlives_its_replicas() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let mut first = bed.start("first", &[]);
    let (bundle, secret) = (bed.bundle(), bed.secret());
    let before = bed
        .caller(&first)
        .ask("shop", "cart")
        .expect("it is granted");
    first.signal(Signal::SIGTERM);
    let well = within(Duration::from_secs(15), "it ends", || {
        first.ended().ok_or("it runs")
    });
    assert!(well, "it ends well");
    let second = bed.start("second", &[]);
    assert_eq!(
        (bed.bundle(), bed.secret()),
        (bundle, secret),
        "nothing was written anew"
    );
    let after = bed
        .caller(&second)
        .ask("shop", "cart")
        .expect("it is granted");
    assert_eq!(before.roots, after.roots);
}

#[test]
fn a_secret_that_is_gone_is_not_made_anew_behind_everybodys_back() {
    let bed = Bed::new();
    let mut first = bed.start("first", &[]);
    bed.api.remove("v1", "Secret", "adit-system", "adit-ca");
    first.await_record("the authority cannot be kept up to date", |r| {
        r["reason"] == "secret_gone"
    });
    first.kill();
    let second = bed.spawn("second", &[]);
    second.await_record("the authority cannot be kept up to date", |record| {
        let told = record["error"].as_str().unwrap_or_default();
        told.contains("restore the Secret") && told.contains("delete the ConfigMap")
    });
    holds_for(Duration::from_secs(2), "there is no new root", || {
        bed.secret().is_none() && !second.ready().0
    });
    // A person decides to begin anew.
    bed.api
        .remove("v1", "ConfigMap", "adit-system", "adit-ca-root");
    eventually(START, "a new root is made", || {
        second.ready().0 && bed.secret().is_some()
    });
}

#[test]
fn a_replica_waits_for_the_api_server_and_for_its_role() {
    let mut bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    bed.api.stop();
    let mut control = bed.spawn("control", &[]);
    control.await_record("the authority cannot be kept up to date", |r| {
        r["reason"] == "api"
    });
    assert!(!control.ready().0);
    bed.api
        .fail("secrets", Call::Write, 3, Fault::Status(403, None));
    bed.api.resume();
    control.await_record("the authority cannot be kept up to date", |record| {
        record["error"]
            .as_str()
            .is_some_and(|told| told.contains("check the role"))
    });
    control.await_ready();
    assert!(bed.caller(&control).ask("shop", "cart").is_ok());
}

#[test]
fn a_bundle_that_somebody_damages_is_mended() {
    let bed = Bed::new();
    let _control = bed.start("control", &[]);
    let bundle = bed.bundle();
    for damage in ["", "nothing of use"] {
        bed.api
            .edit("v1", "ConfigMap", "adit-system", "adit-ca-root", |map| {
                map["data"]["root-cert.pem"] = serde_json::json!(damage);
                map["data"]["theirs"] = serde_json::json!("kept");
            });
        eventually(SOON, "the bundle is back", || bed.bundle() == bundle);
    }
    let map = bed
        .api
        .object("v1", "ConfigMap", "adit-system", "adit-ca-root")
        .expect("it is there");
    assert_eq!(map["data"]["theirs"], "kept");
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key can be made")
}

/// People who begin with a root that was made here and later bring their own.
#[test]
fn an_authority_that_nobody_trusts_yet_takes_over_from_none() {
    let (bed, control) = Bed::shop();
    let before = bed.bundle();
    let own = CertifiedIssuer::self_signed(authority("own"), key()).expect("it signs");
    let mounted = bed.path("mounted");
    std::fs::create_dir(&mounted).expect("the directory is writable");
    replace(&mounted.join("tls.key"), &own.key().serialize_pem());
    replace(&mounted.join("tls.crt"), &own.pem());
    replace(&mounted.join("ca.crt"), &own.pem());
    let ca = format!("dir:{}", mounted.display());
    let mut next = bed.spawn("next", &["--ca", &ca]);
    next.await_record("the authority cannot be kept up to date", |record| {
        record["reason"] == "foreign_roots"
            && record["error"]
                .as_str()
                .is_some_and(|told| told.contains("An authority of your own"))
    });
    holds_for(Duration::from_secs(2), "the one before goes on", || {
        bed.bundle() == before && !next.ready().0
    });
    assert!(bed.caller(&control).ask("shop", "cart").is_ok());
    drop(control);
    // With the root before beside it, it may.
    replace(&mounted.join("ca.crt"), &(own.pem() + &before));
    next.await_ready();
    let issued = bed.caller(&next).ask("shop", "cart");
    assert_eq!(issued.expect("it is granted").roots.len(), 2);
}

#[test]
fn an_intermediate_of_the_users_own_signs() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let root = CertifiedIssuer::self_signed(authority("root"), key()).expect("it signs");
    let mounted = bed.path("mounted");
    std::fs::create_dir(&mounted).expect("the directory is writable");
    let put = |name: &str| {
        let issuer = CertifiedIssuer::signed_by(authority(name), key(), &root).expect("it signs");
        replace(&mounted.join("tls.key"), &issuer.key().serialize_pem());
        replace(&mounted.join("tls.crt"), &issuer.pem());
        issuer.der().clone()
    };
    // Before the files are there it waits, and says for what.
    let ca = format!("dir:{}", mounted.display());
    let mut control = bed.spawn("control", &["--ca", &ca]);
    control.await_record("the authority cannot be kept up to date", |r| {
        r["reason"] == "file"
    });
    let first = put("first");
    replace(&mounted.join("ca.crt"), &root.pem());
    control.await_ready();
    assert!(bed.secret().is_none(), "no key of it is written anywhere");
    let issued = bed
        .caller(&control)
        .ask("shop", "cart")
        .expect("it is granted");
    assert_eq!(issued.chain.len(), 2);
    assert_eq!(issued.chain[1], first);
    assert_eq!(issued.roots, [root.der().clone()]);
    assert!(issued.leads_to(root.der()));

    // cert-manager renews it.
    let second = put("second");
    within(SOON, "the new one signs", || {
        let issued = bed
            .caller(&control)
            .ask("shop", "cart")
            .expect("it is granted all the while");
        assert!(issued.leads_to(root.der()));
        if issued.chain[1] == second {
            Ok(())
        } else {
            Err("the first one does")
        }
    });
    // What does not fit together changes nothing.
    replace(&mounted.join("tls.key"), &key().serialize_pem());
    control.await_record("the authority cannot be kept up to date", |record| {
        record["error"]
            .as_str()
            .is_some_and(|told| told.contains("its key is not its certificate's"))
    });
    assert!(bed.caller(&control).ask("shop", "cart").is_ok());
    let (done, told) = bed.ca("stage");
    assert!(!done && told.contains("brought by the user"), "{told}");
}

/// Puts files into a directory as the kubelet mounts a Secret: all of them are exchanged at once, by
/// one link.
fn mount(directory: &Path, generation: usize, files: &[(&str, &str)]) {
    let content = directory.join(format!("..{generation}"));
    std::fs::create_dir_all(&content).expect("the directory is writable");
    for (name, text) in files {
        std::fs::write(content.join(name), text).expect("the directory is writable");
        let _ = std::os::unix::fs::symlink(Path::new("..data").join(name), directory.join(name));
    }
    let new = directory.join("..new");
    std::os::unix::fs::symlink(format!("..{generation}"), &new).expect("it is free");
    std::fs::rename(&new, directory.join("..data")).expect("both are in one directory");
}

#[test]
fn a_secret_of_cert_managers_is_followed_with_its_whole_chain() {
    let bed = Bed::new();
    bed.pod("worker-1", "shop", "cart-1", "cart");
    let key = || KeyPair::generate().expect("a key can be made");
    let root = |name| CertifiedIssuer::self_signed(authority(name), key()).expect("it signs");
    let (first, second) = (root("first"), root("second"));
    let mounted = bed.path("mounted");
    let put = |generation, above: &CertifiedIssuer<'static, KeyPair>, roots: &str| {
        let upper = CertifiedIssuer::signed_by(authority("upper"), key(), above);
        let upper = upper.expect("it signs");
        let lower = CertifiedIssuer::signed_by(authority("lower"), key(), &upper);
        let lower = lower.expect("it signs");
        let files = [
            ("tls.crt", lower.pem() + &upper.pem()),
            ("tls.key", lower.key().serialize_pem()),
            ("ca.crt", roots.to_owned()),
        ];
        mount(
            &mounted,
            generation,
            &files.each_ref().map(|(name, text)| (*name, text.as_str())),
        );
        [lower.der().clone(), upper.der().clone()]
    };
    let chain = put(1, &first, &first.pem());
    let ca = format!("dir:{}", mounted.display());
    let control = bed.start("control", &["--ca", &ca]);
    let ask = || {
        bed.caller(&control)
            .ask("shop", "cart")
            .expect("it is granted all the while")
    };
    let issued = ask();
    assert_eq!(issued.chain[1..], chain);
    assert!(issued.leads_to(first.der()));

    // Its root is another authority's: nobody would believe what is signed, so nothing changes.
    put(2, &first, &second.pem());
    control.await_record("the authority cannot be kept up to date", |record| {
        record["error"]
            .as_str()
            .is_some_and(|told| told.contains("none of the roots"))
    });
    assert_eq!(ask().chain[1..], chain);
    assert_eq!(bed.bundle(), first.pem().replace("\r\n", "\n"));

    // The user changes to the second root, with both trusted meanwhile.
    let both = first.pem() + &second.pem();
    let chain = put(3, &second, &both);
    within(SOON, "the second root's authority signs", || {
        let issued = ask();
        if issued.chain[1..] != chain {
            return Err("the first one's does");
        }
        assert!(issued.leads_to(second.der()));
        assert_eq!(issued.roots.len(), 2);
        Ok(())
    });
}
