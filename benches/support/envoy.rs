//! Envoy as an HBONE sidecar: its certificates and its configuration.
//!
//! Used by the benchmark as the peer to measure against, and by `tests/interop.rs` as the peer to
//! speak with. One listener per destination stands on the pod's loopback in place of capture, which
//! spares Envoy the cost of finding out where a connection was bound for.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// Flow-control windows, of a stream and of a connection: those of the field's node proxy.
const WINDOWS: (u32, u32) = (4 << 20, 16 << 20);
/// What one connection may hold in memory; Envoy's default.
const BUFFER: u32 = 1 << 20;
/// As good as no limit; Envoy's own are made for fewer connections than the benchmark opens.
const MANY: u32 = 1_000_000;

/// Where the program is: `ENVOY_BIN`, else where `scripts/lib/envoy.sh` installs it.
pub(crate) fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("ENVOY_BIN") {
        Some(path) => PathBuf::from(path),
        None => installed().unwrap_or_default(),
    };
    ensure!(
        path.is_file(),
        "Envoy is not here: run scripts/lib/envoy.sh, set ENVOY_BIN, or leave it out"
    );
    Ok(path)
}

fn installed() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    let versions = fs::read_dir(target.join("venv/lib")).ok()?;
    let mut paths = versions
        .flatten()
        .map(|version| version.path().join("site-packages/envoy/_bin/envoy"));
    paths.find(|path| path.is_file())
}

/// A certificate authority, and the directory where it writes what it issues.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: PathBuf,
    directory: PathBuf,
}

/// An identity on disk.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) root: PathBuf,
}

impl Authority {
    /// A new one.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?;
        let root = directory.join("envoy-root.pem");
        fs::write(&root, certificate.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            root,
            directory: directory.to_owned(),
        })
    }

    /// The one that Adit's daemons share as `--ca dir:CA`.
    pub(crate) fn open(ca: &Path, directory: &Path) -> Result<Self> {
        let root = ca.join("root.pem");
        let certificate = fs::read_to_string(&root)?;
        let key = KeyPair::from_pem(&fs::read_to_string(ca.join("root.key"))?)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&certificate, key)?,
            root,
            directory: directory.to_owned(),
        })
    }

    /// Issues a certificate for `identity`, in files that begin with `name`.
    pub(crate) fn issue(&self, identity: &str, name: &str) -> Result<Credential> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let credential = Credential {
            certificate: self.directory.join(format!("{name}.pem")),
            key: self.directory.join(format!("{name}.key")),
            root: self.root.clone(),
        };
        fs::write(&credential.certificate, certificate.pem())?;
        fs::write(&credential.key, key.serialize_pem())?;
        Ok(credential)
    }
}

/// One way through a sidecar on the client's side.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    /// Where the application dials.
    pub(crate) listen: SocketAddr,
    /// Where it wants to go.
    pub(crate) to: SocketAddr,
    /// Where tunnels to there are taken.
    pub(crate) via: SocketAddr,
    /// The identity that must be found there.
    pub(crate) expect: String,
}

/// A sidecar to be configured.
#[derive(Debug)]
pub(crate) struct Sidecar<'a> {
    pub(crate) credential: &'a Credential,
    /// The trust domain whose clients it takes.
    pub(crate) trusts: &'a str,
    /// Where one line is written for each connection; none is if this is `None`.
    pub(crate) log: Option<&'a Path>,
}

/// What a line of the log holds, in this order.
pub(crate) const LOG_FIELDS: &str = "%RESPONSE_CODE% DOWNSTREAM=%DOWNSTREAM_PEER_URI_SAN% UPSTREAM=%UPSTREAM_PEER_URI_SAN% \
     %REQ(:AUTHORITY)% %RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n";

impl Sidecar<'_> {
    /// The side of clients.
    pub(crate) fn client(&self, tunnels: &[Tunnel]) -> Value {
        let listeners: Vec<_> = tunnels.iter().map(|tunnel| self.outbound(tunnel)).collect();
        let mut clusters: Vec<Value> = Vec::new();
        for tunnel in tunnels {
            let name = Value::from(cluster(tunnel));
            if clusters.iter().all(|known| known["name"] != name) {
                clusters.push(self.towards(tunnel));
            }
        }
        bootstrap(listeners, clusters)
    }

    /// The side of servers: takes tunnels at `listen` and dials what they name.
    pub(crate) fn server(&self, listen: SocketAddr) -> Value {
        let route = json!({
            "match": { "connect_matcher": {} },
            "route": {
                "cluster": "authority",
                "timeout": "0s",
                "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
            },
        });
        let connections = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "hbone",
            "codec_type": "HTTP2",
            "http2_protocol_options": http2(json!({ "allow_connect": true })),
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "stream_idle_timeout": "0s",
            "access_log": self.access_log(),
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        });
        let chain = json!({
            "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": connections }],
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": self.tls(&json!({
                        "custom_validator_config": {
                            "name": "envoy.tls.cert_validator.spiffe",
                            "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                                "trust_domains": [{
                                    "name": self.trusts,
                                    "trust_bundle": { "filename": self.credential.root },
                                }],
                            },
                        },
                    })),
                },
            },
        });
        let listener = listener("tunnels", listen, &chain);
        let cluster = json!({
            "name": "authority",
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "5s",
            "per_connection_buffer_limit_bytes": BUFFER,
            "original_dst_lb_config": { "use_http_header": true, "http_header_name": ":authority" },
            "circuit_breakers": thresholds(),
        });
        bootstrap(vec![listener], vec![cluster])
    }

    fn outbound(&self, tunnel: &Tunnel) -> Value {
        let proxy = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "outbound",
            "cluster": cluster(tunnel),
            "access_log": self.access_log(),
            "tunneling_config": { "hostname": tunnel.to.to_string() },
        });
        let chain = json!({
            "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy }],
        });
        listener(
            &format!("outbound-{}", tunnel.listen),
            tunnel.listen,
            &chain,
        )
    }

    fn towards(&self, tunnel: &Tunnel) -> Value {
        json!({
            "name": cluster(tunnel),
            "type": "STATIC",
            "connect_timeout": "5s",
            "per_connection_buffer_limit_bytes": BUFFER,
            "circuit_breakers": thresholds(),
            "load_assignment": {
                "cluster_name": cluster(tunnel),
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(tunnel.via) } }] }],
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": http2(json!({})) },
                },
            },
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": self.tls(&json!({
                        "trusted_ca": { "filename": self.credential.root },
                        "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": tunnel.expect } }],
                    })),
                },
            },
        })
    }

    fn tls(&self, validation: &Value) -> Value {
        json!({
            "alpn_protocols": ["h2"],
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{
                "certificate_chain": { "filename": self.credential.certificate },
                "private_key": { "filename": self.credential.key },
            }],
            "validation_context": validation,
        })
    }

    fn access_log(&self) -> Value {
        let Some(path) = self.log else {
            return json!([]);
        };
        json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": path,
                "log_format": { "text_format_source": { "inline_string": LOG_FIELDS } },
            },
        }])
    }
}

/// What the program is called with, for a configuration in a file.
pub(crate) fn arguments(configuration: &Path, workers: usize) -> Vec<String> {
    let path = configuration.display().to_string();
    let workers = workers.to_string();
    let words = [
        "--config-path",
        &path,
        "--concurrency",
        &workers,
        "--log-level",
        "warning",
    ];
    let last = ["--disable-hot-restart"];
    words
        .iter()
        .chain(&last)
        .map(|&word| word.to_owned())
        .collect()
}

/// Writes a configuration.
pub(crate) fn write(path: &Path, configuration: &Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(configuration)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn cluster(tunnel: &Tunnel) -> String {
    format!("via-{}", tunnel.via)
}

fn bootstrap(listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
    json!({ "static_resources": { "listeners": listeners, "clusters": clusters } })
}

fn listener(name: &str, at: SocketAddr, chain: &Value) -> Value {
    json!({
        "name": name,
        "address": address(at),
        "per_connection_buffer_limit_bytes": BUFFER,
        "tcp_backlog_size": 4096,
        "filter_chains": [chain],
    })
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

fn http2(mut options: Value) -> Value {
    options["initial_stream_window_size"] = json!(WINDOWS.0);
    options["initial_connection_window_size"] = json!(WINDOWS.1);
    options["max_concurrent_streams"] = json!(MANY);
    options
}

fn thresholds() -> Value {
    json!({ "thresholds": [{
        "max_connections": MANY,
        "max_pending_requests": MANY,
        "max_requests": MANY,
    }] })
}
