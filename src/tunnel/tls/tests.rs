//! Real handshakes between both configurations, and with peers that are not what they should be.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::HandshakeKind;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::pki::Parts;

const HOUR: Duration = Duration::from_secs(3600);
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const PAY: &str = "spiffe://cluster.local/ns/shop/sa/pay";
const FOREIGN: &str = "spiffe://elsewhere/ns/shop/sa/cart";

type Root = CertifiedIssuer<'static, KeyPair>;

fn root(name: &str) -> Root {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Root::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn id(text: &str) -> Identity {
    Identity::parse(text).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// A leaf as `change` makes it from a good one, with its key.
fn leaf(
    root: &Root,
    names: &[SanType],
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.to_vec();
    params.not_before = (now - HOUR).into();
    params.not_after = (now + HOUR).into();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    change(&mut params);
    let leaf = params.signed_by(&key, root).unwrap().der().clone();
    (leaf, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

/// A certificate in force, from `signer`, that trusts `roots`.
fn certificate(identity: &str, signer: &Root, roots: &[&Root]) -> Certificate {
    let (leaf, key) = leaf(signer, &[uri(identity)], |_| {});
    let parts = Parts {
        chain: vec![leaf],
        key,
        roots: roots.iter().map(|root| root.der().clone()).collect(),
        issued: SystemTime::now(),
    };
    Certificate::new(&id(identity), parts).unwrap()
}

/// A verifier that believes everything, for peers that play foul.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client that shows `shown`, or nothing, and offers `alpn`.
fn foul_client(
    shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match shown {
        Some((leaf, key)) => builder.with_client_auth_cert(vec![leaf], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A server that shows `shown`, asks for nothing, and agrees on `alpn`.
fn foul_server(
    shown: (CertificateDer<'static>, PrivateKeyDer<'static>),
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown.0], shown.1)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// What one side came to know of the other: an identity, or a reason.
type Seen = Result<Identity, String>;

fn tls_reason(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.map_or_else(|| format!("io {error}"), |error| reason(error).to_owned())
}

async fn serve(stream: DuplexStream, config: Arc<ServerConfig>) -> Seen {
    let mut tls = TlsAcceptor::from(config)
        .accept(stream)
        .await
        .map_err(|error| tls_reason(&error))?;
    let _ = tls.write_all(b"s").await;
    let found = peer(tls.get_ref().1).map_err(|error| error.reason().to_owned())?;
    assert_eq!(tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(tls.get_ref().1.server_name(), None, "no name is sent");
    let _ = tls.read_u8().await;
    Ok(found)
}

async fn call(stream: DuplexStream, config: Arc<ClientConfig>) -> Seen {
    let mut tls = TlsConnector::from(config)
        .connect(server_name(), stream)
        .await
        .map_err(|error| tls_reason(&error))?;
    // In TLS 1.3 the server's refusal comes after the client's side is done.
    tls.read_u8().await.map_err(|error| tls_reason(&error))?;
    let found = peer(tls.get_ref().1).map_err(|error| error.reason().to_owned())?;
    assert_eq!(tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    let _ = tls.write_all(b"c").await;
    Ok(found)
}

/// One handshake: what the server saw, and what the client saw.
async fn meet(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> (Seen, Seen) {
    let (a, b) = tokio::io::duplex(1 << 16);
    tokio::join!(serve(a, server), call(b, client))
}

fn seen(text: &str) -> Seen {
    Ok(id(text))
}

fn failed(reason: &str) -> Seen {
    Err(reason.to_owned())
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let root = root("root");
    let (cart, pay) = (
        certificate(CART, &root, &[&root]),
        certificate(PAY, &root, &[&root]),
    );
    let (server, client) = (server_config(&pay), client_config(&cart, &id(PAY)));
    // Twice with the same configurations: what is kept in them must not shorten the second one.
    for _ in 0..2 {
        let (server, client) = meet(server.clone(), client.clone()).await;
        assert_eq!((server, client), (seen(CART), seen(PAY)));
    }
}

#[tokio::test]
async fn a_client_accepts_whom_it_called_and_nobody_else() {
    let (ours, theirs) = (root("ours"), root("theirs"));
    let cart = certificate(CART, &ours, &[&ours]);
    let check = async |server: Certificate, expected: &str, outcome: Seen| {
        let (_, client) = meet(server_config(&server), client_config(&cart, &id(expected))).await;
        assert_eq!(client, outcome, "{expected}");
    };
    check(certificate(PAY, &ours, &[&ours]), PAY, seen(PAY)).await;
    let unexpected = || failed("identity_unexpected");
    check(certificate(PAY, &ours, &[&ours]), CART, unexpected()).await;
    check(certificate(FOREIGN, &ours, &[&ours]), PAY, unexpected()).await;
    let other = certificate(PAY, &theirs, &[&theirs, &ours]);
    check(other, PAY, failed("certificate_issuer")).await;
}

#[tokio::test]
async fn a_server_accepts_its_trust_domain_and_nobody_else() {
    let (ours, theirs) = (root("ours"), root("theirs"));
    let pay = certificate(PAY, &ours, &[&ours]);
    let check = async |client: Certificate, outcome: Seen| {
        let (server, _) = meet(server_config(&pay), client_config(&client, &id(PAY))).await;
        assert_eq!(server, outcome);
    };
    check(certificate(CART, &ours, &[&ours]), seen(CART)).await;
    check(
        certificate(FOREIGN, &ours, &[&ours]),
        failed("trust_domain"),
    )
    .await;
    let other = certificate(CART, &theirs, &[&theirs, &ours]);
    check(other, failed("certificate_issuer")).await;
}

#[tokio::test]
async fn certificates_that_are_not_svids_are_refused_by_both() {
    let root = root("root");
    let (cart, pay) = (
        certificate(CART, &root, &[&root]),
        certificate(PAY, &root, &[&root]),
    );
    let check = async |names: &[SanType],
                       change: &dyn Fn(&mut CertificateParams),
                       outcome: Result<(), &str>| {
        let make = || leaf(&root, names, change);
        let client = foul_client(Some(make()), &[ALPN]);
        let (at_server, told) = meet(server_config(&pay), client).await;
        assert_eq!(at_server.map(drop), outcome.map_err(str::to_owned));
        if outcome.is_err() {
            assert_eq!(told, failed("alert"), "the client is told");
        }
        let server = foul_server(make(), &[ALPN]);
        let (_, at_client) = meet(server, client_config(&cart, &id(PAY))).await;
        assert_eq!(at_client.map(drop), outcome.map_err(str::to_owned));
    };
    let none = |_: &mut CertificateParams| {};
    check(&[uri(PAY)], &none, Ok(())).await;
    check(&[dns("pay.shop.svc"), uri(PAY)], &none, Ok(())).await;
    check(&[uri(PAY), uri(CART)], &none, Err("identity_ambiguous")).await;
    check(&[uri(PAY), uri(PAY)], &none, Err("identity_ambiguous")).await;
    let web = uri("https://pay.shop");
    check(&[uri(PAY), web.clone()], &none, Err("identity_ambiguous")).await;
    check(&[web], &none, Err("identity_malformed")).await;
    let longer = uri("spiffe://cluster.local/ns/shop/sa/pay/x");
    check(&[longer], &none, Err("identity_malformed")).await;
    check(&[dns("pay.shop.svc")], &none, Err("identity_absent")).await;
    check(&[], &none, Err("identity_absent")).await;

    let now = SystemTime::now();
    let over = |params: &mut CertificateParams| params.not_after = (now - HOUR / 2).into();
    check(&[uri(PAY)], &over, Err("certificate_expired")).await;
    let early = |params: &mut CertificateParams| params.not_before = (now + HOUR / 2).into();
    check(&[uri(PAY)], &early, Err("certificate_expired")).await;
    let mail = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    };
    check(&[uri(PAY)], &mail, Err("certificate_purpose")).await;
    let authority = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    check(&[uri(PAY)], &authority, Err("certificate_invalid")).await;
}

#[tokio::test]
async fn usages_count_by_side() {
    let root = root("root");
    let (cart, pay) = (
        certificate(CART, &root, &[&root]),
        certificate(PAY, &root, &[&root]),
    );
    let only = |usage: ExtendedKeyUsagePurpose| {
        leaf(&root, &[uri(PAY)], |params| {
            params.extended_key_usages = vec![usage];
        })
    };
    let client = foul_client(Some(only(ExtendedKeyUsagePurpose::ServerAuth)), &[ALPN]);
    let (server, _) = meet(server_config(&pay), client).await;
    assert_eq!(server, failed("certificate_purpose"));
    let server = foul_server(only(ExtendedKeyUsagePurpose::ClientAuth), &[ALPN]);
    let (_, client) = meet(server, client_config(&cart, &id(PAY))).await;
    assert_eq!(client, failed("certificate_purpose"));
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let root = root("root");
    let pay = certificate(PAY, &root, &[&root]);
    let (server, client) = meet(server_config(&pay), foul_client(None, &[ALPN])).await;
    assert_eq!(
        (server, client),
        (failed("certificate_missing"), failed("alert"))
    );
}

#[tokio::test]
async fn nothing_but_h2_is_spoken() {
    let root = root("root");
    let (cart, pay) = (
        certificate(CART, &root, &[&root]),
        certificate(PAY, &root, &[&root]),
    );
    let offer = async |alpn: &[&[u8]]| {
        let client = foul_client(Some(leaf(&root, &[uri(CART)], |_| {})), alpn);
        meet(server_config(&pay), client).await.0
    };
    assert_eq!(offer(&[ALPN]).await, seen(CART));
    assert_eq!(offer(&[b"http/1.1", ALPN]).await, seen(CART));
    assert_eq!(offer(&[b"http/1.1"]).await, failed("alpn"));
    assert_eq!(offer(&[]).await, failed("alpn"), "silence is no agreement");

    let server = foul_server(leaf(&root, &[uri(PAY)], |_| {}), &[]);
    let (_, client) = meet(server, client_config(&cart, &id(PAY))).await;
    assert_eq!(client, failed("alpn"));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let root = root("root");
    let config = server_config(&certificate(PAY, &root, &[&root]));
    // A ClientHello as before RFC 8446: no supported_versions; one ECDHE-ECDSA suite, P-256,
    // ECDSA with SHA-256.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![
        22,
        3,
        1,
        0,
        hello.len() as u8 + 4,
        1,
        0,
        0,
        hello.len() as u8,
    ];
    record.extend(hello);

    let (server, mut client) = tokio::io::duplex(1 << 12);
    client.write_all(&record).await.unwrap();
    assert_eq!(serve(server, config).await, failed("incompatible"));
    let mut alert = Vec::new();
    client.read_to_end(&mut alert).await.unwrap();
    assert_eq!(
        alert[..],
        [21, 3, 3, 0, 2, 2, 70],
        "fatal, protocol_version"
    );
}

#[tokio::test]
async fn both_epochs_work_while_a_certificate_and_a_root_are_renewed() {
    let (old_root, new_root) = (root("old"), root("new"));
    let old = |identity| certificate(identity, &old_root, &[&old_root, &new_root]);
    let new = |identity| certificate(identity, &new_root, &[&new_root, &old_root]);
    let (cart_1, cart_2, pay_1, pay_2) = (old(CART), new(CART), old(PAY), new(PAY));
    assert_ne!(cart_1.epoch(), cart_2.epoch());
    for cart in [&cart_1, &cart_2] {
        for pay in [&pay_1, &pay_2] {
            let both = meet(server_config(pay), client_config(cart, &id(PAY))).await;
            assert_eq!(both, (seen(CART), seen(PAY)));
        }
    }
    // The old root is given up: who still comes with it is refused, although it met before.
    let strict = certificate(PAY, &new_root, &[&new_root]);
    let (server, _) = meet(server_config(&strict), client_config(&cart_1, &id(PAY))).await;
    assert_eq!(server, failed("certificate_issuer"));
}

/// A client that would keep and use what a server gives it to shorten the next handshake.
#[tokio::test]
async fn no_session_is_resumed() {
    let root = root("root");
    let server = server_config(&certificate(PAY, &root, &[&root]));
    let eager = foul_client(Some(leaf(&root, &[uri(CART)], |_| {})), &[ALPN]);
    for _ in 0..3 {
        let both = meet(server.clone(), eager.clone()).await;
        assert_eq!(
            both,
            (seen(CART), seen(PAY)),
            "`meet` asserts a full handshake"
        );
    }
}

#[test]
fn an_empty_chain_is_nobody() {
    assert_eq!(peer_identity(&[]), Err(PeerError::Anonymous));
    let garbage = CertificateDer::from(vec![1, 2, 3]);
    let error = peer_identity(&[garbage]).unwrap_err();
    assert_eq!(error.reason(), "certificate_malformed");
}

/// What a hostile peer sends instead of its certificate.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, u8),
    Remove(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), 1_u8..).prop_map(|(at, with)| Damage::Flip(at, with)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        any::<usize>().prop_map(Damage::Remove),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    match *damage {
        Damage::Flip(at, with) => bytes[at % length] ^= with,
        Damage::Cut(at) => bytes.truncate(at % length),
        Damage::Insert(at, byte) => bytes.insert(at % length, byte),
        Damage::Remove(at) => {
            bytes.remove(at % length);
        }
    }
}

/// One root and a good leaf for all cases.
static GOOD: Mutex<Option<(CertificateDer<'static>, CertificateDer<'static>)>> = Mutex::new(None);

fn good() -> (CertificateDer<'static>, CertificateDer<'static>) {
    let make = || {
        let root = root("root");
        let (leaf, _) = leaf(&root, &[dns("cart"), uri(CART)], |_| {});
        (root.der().clone(), leaf)
    };
    GOOD.lock().unwrap().get_or_insert_with(make).clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// A damaged certificate is read without a panic, and neither side believes it.
    #[test]
    fn damage_is_never_believed(damages in prop::collection::vec(damage(), 1..4)) {
        let (root, leaf) = good();
        let mut bytes = leaf.to_vec();
        for damage in &damages {
            apply(&mut bytes, damage);
        }
        prop_assume!(bytes != leaf.to_vec());
        let damaged = CertificateDer::from(bytes);
        let _ = peer_identity(std::slice::from_ref(&damaged));

        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let roots = Arc::new(roots);
        let trust_domain = id(CART).trust_domain().clone();
        let server = AnyOf { trust_domain, roots: roots.clone() };
        let client = Exactly { identity: id(CART), roots };
        let now = UnixTime::now();
        prop_assert!(server.verify_client_cert(&leaf, &[], now).is_ok());
        prop_assert!(server.verify_client_cert(&damaged, &[], now).is_err());
        prop_assert!(client.verify_server_cert(&damaged, &[], &server_name(), &[], now).is_err());
        let through = [damaged];
        let _ = client.verify_server_cert(&leaf, &through, &server_name(), &[], now);
    }

    #[test]
    fn noise_names_nobody(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(peer_identity(&[CertificateDer::from(bytes)]).is_err());
    }
}
