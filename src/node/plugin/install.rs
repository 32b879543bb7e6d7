//! Keeps the CNI plugin installed on the node: the binary, and our place in the runtime's chain.
//!
//! [`Installer::round`] compares with what is there and mends what differs; it is called again and
//! again, because primary networks rewrite their files when they start. Nothing is removed when
//! the daemon ends: the next one is about to start, or nobody must start pods uncaptured.
//! [`uninstall`] removes everything.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::node::plugin::chain::{
    self, DROP_IN, Entry, Network, OWN, TYPE, Unusable, is_configuration, takes_drop_ins,
};

/// How temporary files begin; no runtime reads one.
const ASIDE: &str = ".adit-install-";

/// After so many rounds a primary network counts as taken away: some write their file in two steps,
/// and ours must be there when it is back.
const GONE: u32 = 20;

/// Why the plugin is not, or not surely, installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The binary cannot be put in place.
    #[error(
        "cannot install the plugin as {0}: mount the directory writable, or change --cni-bin-dir"
    )]
    Binary(PathBuf, #[source] io::Error),
    /// The configuration cannot be read or written.
    #[error("cannot use {0}: mount the directory writable, or change --cni-conf-dir")]
    Configuration(PathBuf, #[source] io::Error),
    /// There is no network yet.
    #[error("no network is configured in {0} yet: the primary CNI has not written its file")]
    NoNetwork(PathBuf),
    /// The primary network's file makes no chain.
    #[error("the primary network's file {0} makes no chain")]
    Unusable(PathBuf, #[source] Unusable),
    /// The primary network's file comes before ours.
    #[error("the primary network's file {0} comes before {OWN}: pods start uncaptured, rename it")]
    ComesFirst(PathBuf),
}

/// How we stand in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Installed {
    /// By a list of our own.
    List(PathBuf),
    /// Beside the primary network's list.
    Beside(PathBuf),
}

/// What is kept installed.
#[derive(Debug)]
pub(crate) struct Installer {
    bin: PathBuf,
    conf: PathBuf,
    source: PathBuf,
    entry: Entry,
    drops_in: bool,
    /// The installed binary as it was left: inode, length, time of change.
    left: Option<(u64, u64, i64, i64)>,
    /// Rounds in a row without a primary network.
    absent: u32,
}

impl Installer {
    /// Installs `source`, which is this program, into these directories; beside the list where the
    /// `runtime` looks there.
    pub(crate) fn new(bin: &Path, conf: &Path, entry: Entry, runtime: Option<&str>) -> Self {
        Self {
            bin: bin.to_owned(),
            conf: conf.to_owned(),
            source: PathBuf::from("/proc/self/exe"),
            entry,
            drops_in: runtime.is_some_and(takes_drop_ins),
            left: None,
            absent: 0,
        }
    }

    /// Puts in place what is not, and says how we stand; `true` if anything had to be done.
    ///
    /// # Errors
    ///
    /// Why it is not in place. What can be done is done nevertheless, in this order: first the
    /// binary, then the configuration that names it.
    pub(crate) fn round(&mut self) -> Result<(Installed, bool), Error> {
        let binary = self.binary()?;
        let (installed, configuration) = self.configuration()?;
        Ok((installed, binary || configuration))
    }

    fn binary(&mut self) -> Result<bool, Error> {
        let target = self.bin.join(TYPE);
        let there = identity(&target);
        if there.is_some() && there == self.left {
            return Ok(false);
        }
        let failed = |cause| Error::Binary(target.clone(), cause);
        let same = same_content(&self.source, &target).map_err(failed)?;
        if !same {
            sweep(&self.bin);
            let mut source = fs::File::open(&self.source).map_err(failed)?;
            replace(&target, 0o755, |to| io::copy(&mut source, to).map(drop)).map_err(failed)?;
        }
        self.left = identity(&target);
        Ok(!same)
    }

    fn configuration(&mut self) -> Result<(Installed, bool), Error> {
        let (path, network, mode) = self.primary()?;
        if self.drops_in && network.takes_more() {
            let directory = self.conf.join(&network.name);
            let ours = directory.join(DROP_IN);
            let failed = |cause| Error::Configuration(directory.clone(), cause);
            let beside = chain::beside(&self.entry);
            let wrote = !holds(&ours, &beside);
            if wrote {
                fs::create_dir_all(&directory).map_err(failed)?;
                write(&ours, mode, &beside).map_err(failed)?;
            }
            // First beside the new list, then away from where we were.
            let moved = self.remove(Some(&ours))?;
            if wrote || moved {
                self.wake()?;
            }
            return Ok((Installed::Beside(ours), wrote || moved));
        }
        let ours = self.conf.join(OWN);
        if path.file_name().is_some_and(|name| name < OWN) {
            return Err(Error::ComesFirst(path));
        }
        let list = network.with(&self.entry);
        let wrote = !holds(&ours, &list);
        if wrote {
            let failed = |cause| Error::Configuration(ours.clone(), cause);
            write(&ours, mode, &list).map_err(failed)?;
        }
        let moved = self.remove(Some(&ours))?;
        Ok((Installed::List(ours), wrote || moved))
    }

    /// The first configuration that is not ours, as the runtime would take it.
    fn primary(&mut self) -> Result<(PathBuf, Network, u32), Error> {
        let failed = |cause| Error::Configuration(self.conf.clone(), cause);
        let mut unusable = None;
        for name in names(&self.conf).map_err(failed)? {
            if name == OWN || !is_configuration(&name) {
                continue;
            }
            let path = self.conf.join(&name);
            let Ok(text) = fs::read(&path) else { continue };
            match Network::read(&text) {
                Ok(network) => {
                    self.absent = 0;
                    let mode = fs::metadata(&path).map_or(0o600, |m| m.mode() & 0o777);
                    return Ok((path, network, mode));
                }
                Err(why) => unusable = unusable.or(Some(Error::Unusable(path, why))),
            }
        }
        self.absent += 1;
        if unusable.is_none() && self.absent >= GONE && self.remove(None)? {
            // A copy of a network that was taken away would say that there still is one.
            self.wake()?;
        }
        Err(unusable.unwrap_or_else(|| Error::NoNetwork(self.conf.clone())))
    }

    fn remove(&self, but: Option<&Path>) -> Result<bool, Error> {
        let failed = |cause| Error::Configuration(self.conf.clone(), cause);
        remove(&self.conf, but).map_err(failed)
    }

    fn wake(&self) -> Result<(), Error> {
        wake(&self.conf).map_err(|cause| Error::Configuration(self.conf.clone(), cause))
    }
}

/// Removes the plugin from the node: first from the chain, then the binary, unless it is to be
/// kept. Says what was removed. What is not there is no error.
///
/// # Errors
///
/// Something is there and cannot be removed.
pub fn uninstall(bin: &Path, conf: &Path, keep_binary: bool) -> io::Result<Vec<PathBuf>> {
    let mut removed = ours(conf)?;
    if remove(conf, None)? {
        wake(conf)?;
    }
    sweep(bin);
    let binary = bin.join(TYPE);
    if !keep_binary && gone(fs::remove_file(&binary))? {
        removed.push(binary);
    }
    Ok(removed)
}

/// All configuration of ours.
fn ours(conf: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![conf.join(OWN)];
    for name in names(conf)? {
        found.push(conf.join(name).join(DROP_IN));
    }
    found.retain(|path| path.is_file());
    Ok(found)
}

/// Removes all configuration of ours but this; whether there was any.
fn remove(conf: &Path, but: Option<&Path>) -> io::Result<bool> {
    sweep(conf);
    let mut removed = false;
    for path in ours(conf)? {
        if Some(&*path) == but {
            continue;
        }
        removed |= gone(fs::remove_file(&path))?;
        if path.file_name().is_some_and(|name| name == DROP_IN) {
            // The directory may hold what is others'.
            let _ = path.parent().map(fs::remove_dir);
        }
    }
    Ok(removed)
}

/// Makes the runtime read its configuration again: it watches the directory, but not those in it,
/// and does not look when a file is only made (containerd).
fn wake(conf: &Path) -> io::Result<()> {
    let file = conf.join(format!("{ASIDE}{}", std::process::id()));
    fs::write(&file, "")?;
    gone(fs::remove_file(&file)).map(drop)
}

/// Removes temporary files that were left by whoever was killed.
fn sweep(directory: &Path) {
    for name in names(directory).unwrap_or_default() {
        if name.starts_with(ASIDE) {
            let _ = fs::remove_file(directory.join(name));
        }
    }
}

fn names(directory: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    Ok(entries.filter_map(name).collect())
}

fn gone(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn holds(path: &Path, content: &[u8]) -> bool {
    fs::read(path).is_ok_and(|there| there == content)
}

fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    replace(path, mode, |to| to.write_all(content))
}

/// Puts a file in place, whole, in one step and to last.
fn replace(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let aside = path.with_file_name(format!("{ASIDE}{}", std::process::id()));
    let _ = fs::remove_file(&aside);
    let filled = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        fill(&mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&aside, path)
    })();
    filled.inspect_err(|_| _ = fs::remove_file(&aside))
}

fn identity(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((
        metadata.ino(),
        metadata.size(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}

/// Whether `target` is an executable file with the content of `source`.
fn same_content(source: &Path, target: &Path) -> io::Result<bool> {
    let Ok(metadata) = fs::symlink_metadata(target) else {
        return Ok(false);
    };
    let mut source = fs::File::open(source)?;
    if !metadata.is_file()
        || metadata.mode() & 0o777 != 0o755
        || metadata.len() != source.metadata()?.len()
    {
        return Ok(false);
    }
    let mut target = fs::File::open(target)?;
    let (mut here, mut there) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = source.read(&mut here)?;
        if read == 0 {
            return Ok(true);
        }
        if target.read_exact(&mut there[..read]).is_err() || here[..read] != there[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","mtu":1500}]}"#;

    struct Node {
        dir: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            let node = Self {
                dir: tempfile::tempdir().unwrap(),
            };
            for sub in ["bin", "conf"] {
                fs::create_dir(node.path(sub)).unwrap();
            }
            fs::write(node.path("program"), "one").unwrap();
            node
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.path("conf").join(name), text).unwrap();
        }

        fn installer(&self, runtime: &str) -> Installer {
            let entry = Entry {
                run_dir: "/run/adit".into(),
                own_namespace: "adit-system".into(),
                excluded: Vec::new(),
            };
            let (bin, conf) = (self.path("bin"), self.path("conf"));
            Installer {
                source: self.path("program"),
                ..Installer::new(&bin, &conf, entry, Some(runtime))
            }
        }

        /// Everything below both directories.
        fn files(&self) -> Vec<String> {
            let mut found = Vec::new();
            let mut paths = vec![self.path("bin"), self.path("conf")];
            while let Some(path) = paths.pop() {
                if path.is_dir() {
                    paths.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                } else {
                    let name = path.strip_prefix(self.dir.path()).unwrap();
                    found.push(name.to_str().unwrap().to_owned());
                }
            }
            found.sort();
            found
        }
    }

    #[test]
    fn an_old_runtime_gets_a_list_of_our_own_that_follows_the_primary() {
        let node = Node::new();
        node.put("10-pods.conflist", LIST);
        node.put(
            "99-loopback.conf",
            r#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#,
        );
        let mut installer = node.installer("containerd://1.7.1");
        let own = node.path("conf").join(OWN);
        let (installed, changed) = installer.round().unwrap();
        assert_eq!((installed, changed), (Installed::List(own.clone()), true));
        assert!(!installer.round().unwrap().1, "nothing is left to do");
        assert_eq!(fs::read(node.path("bin/adit")).unwrap(), b"one");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&node.path("bin/adit")), 0o755);
        assert_eq!(mode(&own), mode(&node.path("conf/10-pods.conflist")));
        // The primary changes a parameter, then breaks its file, then mends it.
        node.put("10-pods.conflist", &LIST.replace("1500", "1400"));
        assert!(installer.round().unwrap().1);
        let text = fs::read_to_string(&own).unwrap();
        assert!(
            text.contains("1400") && text.contains("/run/adit"),
            "{text}"
        );
        node.put("10-pods.conflist", &LIST[..20]);
        fs::remove_file(node.path("conf/99-loopback.conf")).unwrap();
        assert!(matches!(installer.round(), Err(Error::Unusable(..))));
        assert_eq!(
            fs::read_to_string(&own).unwrap(),
            text,
            "it stays meanwhile"
        );
        // Somebody removes ours.
        node.put("10-pods.conflist", LIST);
        fs::remove_file(&own).unwrap();
        fs::remove_file(node.path("bin/adit")).unwrap();
        assert!(installer.round().unwrap().1);
        // The primary is gone: there is no network, and we do not pretend that there is.
        fs::remove_file(node.path("conf/10-pods.conflist")).unwrap();
        assert!(matches!(installer.round(), Err(Error::NoNetwork(_))));
        assert!(own.exists(), "it may be back in a moment");
        for _ in 1..GONE {
            assert!(installer.round().is_err());
        }
        assert_eq!(node.files(), ["bin/adit"]);
    }

    #[test]
    fn a_new_runtime_gets_a_file_beside_the_list() {
        let node = Node::new();
        node.put("10-pods.conflist", LIST);
        // An earlier daemon, on an earlier runtime.
        node.installer("containerd://1.7.1").round().unwrap();
        let mut installer = node.installer("containerd://2.1.0");
        let beside = node.path("conf/pods/adit.conf");
        assert_eq!(
            installer.round().unwrap(),
            (Installed::Beside(beside), true)
        );
        assert!(!installer.round().unwrap().1);
        let files = ["bin/adit", "conf/10-pods.conflist", "conf/pods/adit.conf"];
        assert_eq!(node.files(), files);
        // The network gets another name.
        node.put("10-pods.conflist", &LIST.replace("pods", "other"));
        assert!(installer.round().unwrap().1);
        let files = ["bin/adit", "conf/10-pods.conflist", "conf/other/adit.conf"];
        assert_eq!(node.files(), files);
        assert!(!node.path("conf/pods").exists());
        // It is closed to what stands beside it.
        let closed = LIST
            .replace('{', "{\"loadOnlyInlinedPlugins\":true,")
            .replacen(
                ",\"plugins\":[{\"loadOnlyInlinedPlugins\":true,",
                ",\"plugins\":[{",
                1,
            );
        node.put("10-pods.conflist", &closed);
        assert!(matches!(installer.round().unwrap().0, Installed::List(_)));
        assert_eq!(
            node.files(),
            ["bin/adit", "conf/00-adit.conflist", "conf/10-pods.conflist"]
        );
    }

    #[test]
    fn another_program_replaces_the_binary_and_leaves_nothing_aside() {
        let node = Node::new();
        node.put("10-pods.conflist", LIST);
        fs::write(node.path("bin/.adit-install-1"), "half").unwrap();
        node.installer("").round().unwrap();
        fs::write(node.path("program"), "two").unwrap();
        assert!(node.installer("").round().unwrap().1);
        assert_eq!(fs::read(node.path("bin/adit")).unwrap(), b"two");
        assert_eq!(node.files().len(), 3);
    }

    #[test]
    fn a_list_that_comes_before_ours_is_told() {
        let node = Node::new();
        node.put("00-a.conflist", LIST);
        assert!(matches!(
            node.installer("").round(),
            Err(Error::ComesFirst(_))
        ));
    }

    #[test]
    fn uninstalling_leaves_what_was_there() {
        for runtime in ["containerd://1.7.1", "containerd://2.1.0"] {
            let node = Node::new();
            node.put("10-pods.conflist", LIST);
            let before = node.files();
            node.installer(runtime).round().unwrap();
            let (bin, conf) = (node.path("bin"), node.path("conf"));
            assert_eq!(uninstall(&bin, &conf, true).unwrap().len(), 1);
            assert_eq!(node.files(), ["bin/adit", "conf/10-pods.conflist"]);
            assert_eq!(uninstall(&bin, &conf, false).unwrap(), [bin.join("adit")]);
            assert_eq!(node.files(), before);
            assert!(uninstall(&bin, &conf, false).unwrap().is_empty());
            assert!(!conf.join("pods").exists());
        }
    }
}
