//! A real API server and its store, from the binaries in `KUBEBUILDER_ASSETS`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::support::namespace::Namespace;

const PORT: u16 = 6443;
const TOKEN: &str = "the-token-of-the-tests";

/// `kube-apiserver` with `etcd` behind it, in a namespace.
pub(crate) struct Real {
    assets: PathBuf,
    dir: PathBuf,
    namespace: Arc<Namespace>,
    etcd: Child,
    server: Option<Child>,
}

impl Real {
    pub(crate) fn start(assets: &Path, dir: &Path, namespace: &Arc<Namespace>) -> Self {
        let dir = dir.to_owned();
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        std::fs::write(dir.join("sa.key"), key.serialize_pem()).expect("it is writable");
        // It reads the public part from no private key of this form.
        std::fs::write(dir.join("sa.pub"), key.public_key_pem()).expect("it is writable");
        let tokens = format!("{TOKEN},tests,tests,system:masters\n");
        std::fs::write(dir.join("tokens.csv"), tokens).expect("it is writable");
        let etcd = start(namespace, assets, "etcd", &dir, |etcd| {
            etcd.arg("--data-dir").arg(dir.join("etcd"));
            etcd.args(["--listen-client-urls", "http://127.0.0.1:2379"]);
            etcd.args(["--advertise-client-urls", "http://127.0.0.1:2379"]);
            etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
            etcd.arg("--unsafe-no-fsync");
        });
        let mut real = Self {
            assets: assets.to_owned(),
            namespace: namespace.clone(),
            dir,
            etcd,
            server: None,
        };
        real.resume();
        real
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    pub(crate) fn resume(&mut self) {
        let dir = self.dir.clone();
        let server = start(
            &self.namespace,
            &self.assets,
            "kube-apiserver",
            &dir,
            |server| {
                server.args(["--etcd-servers", "http://127.0.0.1:2379"]);
                server.arg("--cert-dir").arg(dir.join("certs"));
                server.arg(format!("--secure-port={PORT}"));
                server.args([
                    "--bind-address",
                    "127.0.0.1",
                    "--advertise-address",
                    "127.0.0.1",
                ]);
                server.args(["--service-cluster-ip-range", "10.96.0.0/16"]);
                server.args(["--authorization-mode", "RBAC"]);
                server.args(["--disable-admission-plugins", "ServiceAccount"]);
                server.arg("--token-auth-file").arg(dir.join("tokens.csv"));
                server.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
                server
                    .arg("--service-account-key-file")
                    .arg(dir.join("sa.pub"));
                server
                    .arg("--service-account-signing-key-file")
                    .arg(dir.join("sa.key"));
            },
        );
        self.server = Some(server);
    }

    /// Panics with its last words if a program has ended that should run.
    #[track_caller]
    pub(crate) fn must_run(&mut self) {
        let programs = [
            ("etcd", Some(&mut self.etcd)),
            ("kube-apiserver", self.server.as_mut()),
        ];
        for (program, child) in programs {
            let ended = child.and_then(|child| child.try_wait().expect("it is our child"));
            if let Some(status) = ended {
                let log = self.dir.join(format!("{program}.log"));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(20)..].join("\n");
                panic!("{program} ended, {status}:\n{last}");
            }
        }
    }

    pub(crate) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             clusters:\n- name: it\n  cluster: {{server: \"https://127.0.0.1:{PORT}\", \
             insecure-skip-tls-verify: true}}\n\
             contexts:\n- name: it\n  context: {{cluster: it, user: it}}\n\
             users:\n- name: it\n  user: {{token: {TOKEN}}}\n"
        )
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.stop();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

fn start(
    namespace: &Namespace,
    assets: &Path,
    program: &str,
    dir: &Path,
    arguments: impl FnOnce(&mut Command),
) -> Child {
    let binary = assets.join(program);
    assert!(
        binary.exists(),
        "KUBEBUILDER_ASSETS has no {program}: {}",
        binary.display()
    );
    let log = File::create(dir.join(format!("{program}.log"))).expect("it is writable");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.path().display()));
    command.args(["setpriv", "--pdeathsig", "KILL"]).arg(binary);
    arguments(&mut command);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor is free"))
        .stderr(log)
        .spawn()
        .expect("nsenter (util-linux) can be run")
}
