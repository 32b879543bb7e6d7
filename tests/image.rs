//! The image that `scripts/image` makes, of the debug build: well formed, the same twice, and alive.
//!
//! Needs root (chroot), `python3`, `strip` and `nft`; a test that cannot run fails and says why.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs a program to its end and gives what it prints.
#[track_caller]
fn run(command: &mut Command) -> Vec<u8> {
    let done = command.stderr(Stdio::piped()).output();
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "{command:?}: {}: {said}",
        done.status
    );
    done.stdout
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("it is text")
}

/// Makes the image as `name` in a directory, at a moment in time.
fn make(directory: &Path, name: &str) -> PathBuf {
    let output = directory.join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/image");
    let said = run(Command::new(script)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .args([
            "--binary",
            env!("CARGO_BIN_EXE_adit"),
            "--name",
            "localhost/adit:test",
            "--output",
        ])
        .arg(&output));
    assert!(text(said).contains("localhost/adit:test"));
    output
}

fn digest(path: &Path) -> String {
    let said = text(run(Command::new("sha256sum").arg(path)));
    format!("sha256:{}", said.split(' ').next().unwrap_or_default())
}

/// The layout of the archive, unpacked, with every descriptor held against what it describes.
struct Layout(PathBuf);

impl Layout {
    fn json(&self, name: &str) -> Value {
        let bytes = fs::read(self.0.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn blob(&self, descriptor: &Value) -> PathBuf {
        let said = descriptor["digest"].as_str().expect("a digest");
        let path = self.0.join("blobs").join(said.replace(':', "/"));
        assert_eq!(digest(&path), said);
        let size = fs::metadata(&path).expect("it is there").len();
        assert_eq!(descriptor["size"], size, "{said}");
        path
    }
}

#[test]
fn an_image_is_made_that_starts_and_is_the_same_when_made_again() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this needs chroot: run it as root"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("it is new");
        path
    };
    let (one, other) = (
        make(directory.path(), "one.tar"),
        make(directory.path(), "other.tar"),
    );
    assert_eq!(digest(&one), digest(&other));
    let layout = Layout(at("layout"));
    run(Command::new("tar")
        .arg("-xf")
        .arg(&one)
        .arg("-C")
        .arg(&layout.0));
    assert_eq!(layout.json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = layout.json("index.json");
    let [manifest] = &index["manifests"].as_array().expect("manifests")[..] else {
        panic!("one manifest: {index}");
    };
    let name = &manifest["annotations"]["io.containerd.image.name"];
    assert_eq!(name, "localhost/adit:test");
    let of = |path: PathBuf| -> Value {
        serde_json::from_slice(&fs::read(path).expect("it is there")).expect("it is JSON")
    };
    let manifest = of(layout.blob(manifest));
    let config = of(layout.blob(&manifest["config"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(
        config["config"]["Entrypoint"],
        serde_json::json!(["/usr/bin/adit"])
    );
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    let [layer] = &manifest["layers"].as_array().expect("layers")[..] else {
        panic!("one layer: {manifest}");
    };
    let packed = layout.blob(layer);
    let plain = directory.path().join("layer.tar");
    fs::write(&plain, run(Command::new("gzip").arg("-dc").arg(&packed))).expect("it is writable");
    assert_eq!(
        config["rootfs"]["diff_ids"],
        serde_json::json!([digest(&plain)])
    );
    // As docker has it.
    let docker = layout.json("manifest.json");
    assert_eq!(
        docker[0]["RepoTags"],
        serde_json::json!(["localhost/adit:test"])
    );
    assert!(
        layout
            .0
            .join(docker[0]["Config"].as_str().expect("a path"))
            .exists()
    );
    holds(&plain, &at("root"));
}

/// What is in the image runs there and has the rights it should have.
fn holds(layer: &Path, root: &Path) {
    let listed = text(run(Command::new("tar").arg("-tvf").arg(layer)));
    let entries: BTreeMap<_, _> = listed
        .lines()
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words[5].trim_end_matches('/'), (words[0], words[1]))
        })
        .collect();
    for (path, (mode, owner)) in &entries {
        assert_eq!(*owner, "0/0", "{path}");
        assert!(
            ["drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--"].contains(mode),
            "{path} {mode}"
        );
    }
    for shell in ["bin/sh", "usr/bin/sh", "bin/bash"] {
        assert!(!entries.contains_key(shell), "{shell}");
    }
    run(Command::new("tar")
        .arg("-xf")
        .arg(layer)
        .arg("-C")
        .arg(root));
    let inside = |words: &[&str]| {
        let mut command = Command::new("unshare");
        let command = command.env_clear().env("PATH", "/usr/sbin:/usr/bin");
        text(run(command.args(["--net", "chroot"]).arg(root).args(words)))
    };
    let version = format!("adit {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(inside(&["/usr/bin/adit", "--version"]), version);
    assert!(inside(&["nft", "--version"]).starts_with("nftables v"));
    // In a network namespace of its own.
    let rules = "table inet t {\n chain c {\n }\n}\n";
    fs::write(root.join("tmp/rules"), rules).expect("it is writable");
    inside(&["nft", "-f", "/tmp/rules"]);
}
