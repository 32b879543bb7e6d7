//! The directory as daemons and people meet it: races, rights, replacement.

use std::collections::HashSet;
use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;
use x509_parser::parse_x509_certificate;

use super::*;
use crate::pki::UnusableCertificate;

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn cart() -> Identity {
    Identity::new(&domain(), "shop", "cart").unwrap()
}

fn open(path: &Path) -> Result<DirectoryCa, Error> {
    DirectoryCa::open(path, &domain())
}

async fn issue(ca: &DirectoryCa) -> Result<Certificate, IssueError> {
    ca.issue(&cart()).await
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// An authority as a person would make it.
fn authority(name: &str, ends: SystemTime) -> CertifiedIssuer<'static, KeyPair> {
    let params = authority_params(name, ends);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn authority_params(name: &str, ends: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = ends.into();
    params
}

/// Puts an authority's files in place of those that are there.
fn put(directory: &Path, authority: &CertifiedIssuer<'static, KeyPair>) {
    put_key(directory, &authority.key().serialize_pem());
    fs::write(directory.join("root.pem"), authority.pem()).unwrap();
}

fn put_key(directory: &Path, pem: &str) {
    let path = directory.join("root.key");
    fs::write(&path, pem).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
}

fn tomorrow() -> SystemTime {
    SystemTime::now() + 24 * HOUR
}

/// The reason and the sentence of a failure to open.
fn check_refused(path: &Path, reason: &str, words: &[&str]) {
    let error = open(path).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.reason(), reason, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn threads_that_race_make_one_root() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("new").join("ca");
    let barrier = Barrier::new(32);
    let roots: HashSet<_> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..32)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    open(&path).unwrap().roots().to_vec()
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap())
            .collect()
    });
    assert_eq!(roots.len(), 1, "everybody trusts the same root");
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["root.key", "root.pem"], "no draft is left");
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&directory.path().join("new")), 0o700);
    assert_eq!(mode(&path.join("root.key")), 0o600);
}

#[test]
fn no_reader_sees_half_a_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("root.pem");
    let content = vec![b'x'; 1 << 19];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            loop {
                if let Some(seen) = files::read_certificates(&path).unwrap() {
                    return seen.len();
                }
                std::thread::yield_now();
            }
        });
        files::publish(&path, 0o644, &content).unwrap();
        assert_eq!(reader.join().unwrap(), content.len());
    });
}

#[tokio::test]
async fn a_leaf_is_an_x509_svid() {
    let directory = TempDir::new().unwrap();
    let ca = open(directory.path()).unwrap();
    let before = SystemTime::now();
    let certificate = issue(&ca).await.unwrap();
    assert_eq!(certificate.identity(), &cart());
    assert_eq!(certificate.chain().len(), 1, "the root is not sent");
    assert_eq!(certificate.roots(), ca.roots());
    assert_eq!(certificate.serial().len(), 32);

    let (_, leaf) = parse_x509_certificate(&certificate.chain()[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "as there is no subject");
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(
        names.value.general_names,
        [x509_parser::extensions::GeneralName::URI(
            "spiffe://cluster.local/ns/shop/sa/cart"
        )]
    );
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && purposes.server_auth && !purposes.any);

    let life = certificate.lifetime();
    assert!(life.issued >= before, "renewal counts from the real start");
    let near = |time: SystemTime, from: SystemTime| {
        let off = time.duration_since(from).unwrap();
        off <= Duration::from_secs(5)
    };
    assert!(near(
        life.not_after + Duration::from_secs(1),
        before + VALIDITY
    ));
    assert!(near(
        certificate.not_before() + BACK + Duration::from_secs(1),
        before
    ));
}

const BACK: Duration = Duration::from_secs(300);

#[test]
fn a_root_is_one_for_its_trust_domain() {
    let directory = TempDir::new().unwrap();
    let ca = open(directory.path()).unwrap();
    let (_, root) = parse_x509_certificate(&ca.roots()[0]).unwrap();
    assert!(root.is_ca());
    let usage = root.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && !usage.digital_signature());
    let names = root.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(
        names.general_names,
        [x509_parser::extensions::GeneralName::URI(
            "spiffe://cluster.local"
        )]
    );
    let ends = ca
        .ends()
        .unwrap()
        .duration_since(SystemTime::now())
        .unwrap();
    assert_eq!(ends.as_secs().div_ceil(24 * 3600), 3650);

    let error = DirectoryCa::open(directory.path(), &TrustDomain::parse("other").unwrap());
    let error = error.unwrap_err();
    assert_eq!(error.reason(), "ca_trust_domain");
    assert!(error.to_string().contains("--trust-domain cluster.local"));
}

#[tokio::test]
async fn every_certificate_differs() {
    let directory = TempDir::new().unwrap();
    let ca = open(directory.path()).unwrap();
    let (one, two) = (issue(&ca).await.unwrap(), issue(&ca).await.unwrap());
    assert_ne!(one.serial(), two.serial());
    assert_ne!(one.epoch(), two.epoch());
    assert_ne!(one.key().key.public_key(), two.key().key.public_key());
}

#[tokio::test]
async fn no_secret_is_formatted() {
    let directory = TempDir::new().unwrap();
    let ca = open(directory.path()).unwrap();
    let certificate = issue(&ca).await.unwrap();
    let text = format!("{certificate:?} {ca:?}");
    let key = fs::read_to_string(directory.path().join("root.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!text.contains(secret) && !text.contains("key"), "{text}");
}

#[test]
fn what_others_can_touch_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    open(path).unwrap();
    let key = path.join("root.key");
    for bits in [0o640, 0o604, 0o620] {
        fs::set_permissions(&key, Permissions::from_mode(bits)).unwrap();
        check_refused(path, "ca_permissions", &["root.key", "chmod 600"]);
    }
    fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
    open(path).unwrap();
    fs::set_permissions(path.join("root.pem"), Permissions::from_mode(0o664)).unwrap();
    check_refused(path, "ca_permissions", &["root.pem", "chmod go-w"]);
    fs::set_permissions(path.join("root.pem"), Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    check_refused(path, "ca_permissions", &["chmod go-w", "0777"]);
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    open(path).unwrap();
}

#[test]
fn a_path_that_cannot_be_a_directory_is_named() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    check_refused(
        &file,
        "ca_access",
        &["cannot create", "file", "--ca dir:PATH"],
    );
    check_refused(&file.join("ca"), "ca_access", &["cannot create"]);
    check_refused(Path::new("/proc/adit"), "ca_access", &["/proc/adit"]);
}

#[test]
fn halves_are_completed_or_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    open(path).unwrap();
    let (key, certificate) = (path.join("root.key"), path.join("root.pem"));
    let key_pem = fs::read_to_string(&key).unwrap();
    let certificate_pem = fs::read_to_string(&certificate).unwrap();

    // A daemon died after the first file.
    fs::remove_file(&certificate).unwrap();
    open(path).unwrap();
    assert_eq!(fs::read_to_string(&key).unwrap(), key_pem);
    fs::write(&certificate, &certificate_pem).unwrap();

    fs::remove_file(&key).unwrap();
    check_refused(path, "ca_missing", &["root.key", "restore"]);
    put_key(path, "");
    check_refused(path, "ca_malformed", &["root.key is not a private key"]);
    put_key(path, &certificate_pem);
    check_refused(path, "ca_malformed", &["root.key is not a private key"]);
    put_key(path, &KeyPair::generate().unwrap().serialize_pem());
    check_refused(path, "ca_mismatch", &["root.key", "root.pem"]);
    put_key(path, &key_pem);
    fs::write(&certificate, "").unwrap();
    check_refused(path, "ca_malformed", &["root.pem has no certificate"]);
    fs::write(&certificate, &certificate_pem[..certificate_pem.len() / 2]).unwrap();
    check_refused(path, "ca_malformed", &["root.pem is not PEM"]);
    fs::write(&certificate, &certificate_pem).unwrap();
    fs::write(path.join("roots.pem"), certificate_pem.replace("M", "?")).unwrap();
    check_refused(path, "ca_malformed", &["roots.pem"]);
}

#[tokio::test]
async fn a_root_of_ones_own_is_used() {
    let directory = TempDir::new().unwrap();
    let own = authority("own", tomorrow());
    put(directory.path(), &own);
    let ca = open(directory.path()).unwrap();
    assert_eq!(ca.roots(), [own.der().clone()]);
    let certificate = issue(&ca).await.unwrap();
    assert_eq!(certificate.roots(), [own.der().clone()]);
}

#[tokio::test]
async fn an_intermediate_is_sent_and_its_root_trusted() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let root = authority("root", tomorrow());
    let sign = |name: &str, by: &CertifiedIssuer<'static, KeyPair>| {
        let params = authority_params(name, tomorrow());
        CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), by).unwrap()
    };
    let upper = sign("upper", &root);
    let lower = sign("lower", &upper);
    put(path, &lower);
    check_refused(path, "ca_malformed", &["not self-signed"]);

    fs::write(path.join("chain.pem"), upper.pem()).unwrap();
    fs::write(path.join("roots.pem"), root.pem()).unwrap();
    let ca = open(path).unwrap();
    let certificate = issue(&ca).await.unwrap();
    assert_eq!(
        certificate.chain()[1..],
        [lower.der().clone(), upper.der().clone()]
    );
    assert_eq!(certificate.roots(), [root.der().clone()]);

    fs::remove_file(path.join("chain.pem")).unwrap();
    assert_eq!(issue(&ca).await.unwrap_err().reason(), "ca_malformed");
    check_refused(path, "ca_malformed", &["chain.pem", "none of the roots"]);
    fs::write(path.join("chain.pem"), upper.pem()).unwrap();
    fs::write(path.join("roots.pem"), authority("root", tomorrow()).pem()).unwrap();
    check_refused(path, "ca_malformed", &["chain.pem", "none of the roots"]);
}

#[tokio::test]
async fn an_authority_that_is_over_or_no_authority_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    put(path, &authority("over", SystemTime::now() - HOUR));
    check_refused(path, "ca_not_valid", &["root.pem", "replace"]);

    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::default().self_signed(&key).unwrap();
    put_key(path, &key.serialize_pem());
    fs::write(path.join("root.pem"), leaf.pem()).unwrap();
    check_refused(
        path,
        "ca_malformed",
        &["not the certificate of an authority"],
    );
}

#[tokio::test]
async fn no_certificate_outlives_its_authority() {
    let directory = TempDir::new().unwrap();
    let ends = SystemTime::now() + HOUR;
    put(directory.path(), &authority("short", ends));
    let ca = open(directory.path()).unwrap();
    let certificate = issue(&ca).await.unwrap();
    assert!(certificate.not_after() <= ends);
    assert_eq!(Some(certificate.not_after()), ca.ends());
    let short = issue(&ca.with_validity(Duration::from_secs(60)))
        .await
        .unwrap();
    assert!(short.not_after() < SystemTime::now() + Duration::from_secs(61));
}

#[tokio::test]
async fn a_replaced_root_counts_from_the_next_certificate() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let ca = open(path).unwrap();
    let old = issue(&ca).await.unwrap();
    let old_root = fs::read_to_string(path.join("root.pem")).unwrap();
    let new = authority("new", tomorrow());

    // Half-way through the replacement nothing is issued, and nothing is remade.
    put_key(path, &new.key().serialize_pem());
    assert_eq!(issue(&ca).await.unwrap_err().reason(), "ca_mismatch");
    put(path, &new);
    let over = authority("over", SystemTime::now() - HOUR).pem();
    fs::write(path.join("roots.pem"), old_root + &over).unwrap();
    let certificate = issue(&ca).await.unwrap();
    assert_eq!(
        certificate.roots(),
        [new.der().clone(), old.roots()[0].clone()]
    );
}

#[tokio::test]
async fn a_directory_that_went_away_is_not_made_again() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("ca");
    let ca = open(&path).unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert_eq!(issue(&ca).await.unwrap_err().reason(), "ca_access");
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(issue(&ca).await.unwrap_err().reason(), "ca_missing");
}

#[test]
fn a_request_is_one_for_its_identity() {
    let request = Request::new(&cart()).unwrap();
    let pem = request.csr().unwrap();
    let parsed = rcgen::CertificateSigningRequestParams::from_pem(&pem).unwrap();
    let uri = crate::pki::issue::uri(&cart()).unwrap();
    assert_eq!(parsed.params.subject_alt_names, [uri]);
    assert_eq!(parsed.params.distinguished_name.iter().count(), 0);
}

#[tokio::test]
async fn an_answer_for_another_key_or_name_is_refused() {
    let directory = TempDir::new().unwrap();
    let ca = open(directory.path()).unwrap();
    let foreign = issue(&ca).await.unwrap();
    let answer = |identity: &Identity| {
        let request = Request::new(identity).unwrap();
        let (chain, roots) = (foreign.chain().to_vec(), foreign.roots().to_vec());
        match request.complete(chain, roots, SystemTime::now()) {
            Err(IssueError::Unusable(unusable)) => unusable,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(answer(&cart()), UnusableCertificate::Key(_)));
    let pay = Identity::new(&domain(), "shop", "pay").unwrap();
    assert!(matches!(answer(&pay), UnusableCertificate::Identity { .. }));

    let check = |chain: &[CertificateDer<'static>], roots: &[CertificateDer<'static>]| {
        let request = Request::new(&cart()).unwrap();
        let outcome = request.complete(chain.to_vec(), roots.to_vec(), SystemTime::now());
        assert_eq!(outcome.unwrap_err().reason(), "unusable_certificate");
    };
    check(&[], foreign.roots());
    check(foreign.chain(), &[]);
    check(&[CertificateDer::from(vec![0x30, 0x00])], foreign.roots());
    let garbage = CertificateDer::from_pem_slice(b"").ok();
    check(
        foreign.chain(),
        &[garbage.unwrap_or_else(|| vec![1, 2].into())],
    );
}
