//! The daemon installs its plugin, keeps it installed, and leaves it to the next.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::runtime::{Pod, Runtime, Sandbox, lab};
use crate::support::{adit, eventually, holds_for};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_runtime_that_follows_what_the_daemon_installs_captures_pods() {
    let mut lab = lab();
    let [bin, conf]: [PathBuf; 2] = ["bin", "conf"].map(|name| {
        let directory = lab.dir().join(name);
        fs::create_dir(&directory).expect("the lab's directory is writable");
        directory
    });
    let primary = conf.join("10-pods.conflist");
    let list = Runtime::new(&lab).primary();
    fs::write(&primary, list.to_string()).expect("it is writable");
    let pod = Pod::new("mesh", "a");
    lab.cluster.put(pod.object(&[]));
    let dirs = [&bin, &conf].map(|path| path.to_string_lossy().into_owned());
    lab.publish();
    let args = ["--cni-bin-dir", &dirs[0], "--cni-conf-dir", &dirs[1]];
    let daemon = lab.launch(1).args(&args).start();
    lab.install(1, daemon);
    let own = conf.join("00-adit.conflist");
    eventually(SOON, "it is installed", || own.exists());
    let runtime = Runtime::installed(&lab, &bin, &conf);
    let sandbox = Sandbox::new(&pod);
    runtime.add(&sandbox).expect("the chain succeeds");
    assert!(sandbox.is_captured());
    runtime.del(&sandbox);
    // The primary network writes its file anew, with something changed; and somebody takes away
    // what is ours.
    let mtu = |mtu: u64| {
        let mut list = list.clone();
        list["plugins"][0]["mtu"] = json!(mtu);
        fs::write(&primary, list.to_string()).expect("it is writable");
        let follows = || {
            let text = fs::read_to_string(&own).unwrap_or_default();
            let ours: Value = serde_json::from_str(&text).unwrap_or_default();
            ours["plugins"][0]["mtu"] == json!(mtu) && ours["plugins"][1]["type"] == "adit"
        };
        eventually(SOON, "ours follows", follows);
    };
    mtu(1400);
    fs::remove_file(&own).expect("it is there");
    fs::remove_file(bin.join("adit")).expect("it is there");
    mtu(1300);
    eventually(SOON, "the binary is back", || bin.join("adit").exists());
    assert_eq!(lab.daemon(1).metric("adit_cni_installed", &[]), 1.0);
    // The daemon ends in order, as when it is upgraded; the plugin stays and holds pods up.
    lab.daemon(1).signal(nix::sys::signal::Signal::SIGTERM);
    lab.daemon(1).await_end(SOON);
    holds_for(Duration::from_millis(500), "all stays", || {
        own.exists() && bin.join("adit").exists()
    });
    let runtime = Runtime::installed(&lab, &bin, &conf);
    let sandbox = Sandbox::new(&pod);
    assert_eq!(runtime.add(&sandbox).expect_err("it waits").code(), 11);
    // Uninstalled, pods start without us.
    let args = ["cni", "uninstall", args[0], args[1], args[2], args[3]];
    let done = adit(None, &args);
    assert!(done.status.success(), "{}", done.output);
    assert!(done.answer.contains("00-adit.conflist"), "{}", done.answer);
    let left = |directory: &PathBuf| {
        let entries = fs::read_dir(directory).expect("it is there");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(left(&conf), ["10-pods.conflist"]);
    assert_eq!(left(&bin), ["bridge", "host-local"]);
    let runtime = Runtime::installed(&lab, &bin, &conf);
    let sandbox = Sandbox::new(&pod);
    runtime.add(&sandbox).expect("nobody is asked");
    assert!(!sandbox.is_captured());
}
