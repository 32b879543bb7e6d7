//! What becomes of a pod while the daemon is away: decided by the file that it left.
//!
//! A pod of a namespace that is known and has nothing to do with the mesh starts. Any other waits:
//! it might be one of the mesh, and would run uncaptured. The file is believed only if nobody but
//! root can have written it, and only in the boot it was written in.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::api::plugin::{NAMESPACES, Namespaces};

/// Why nothing is known of any namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untrusted {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// Others than root may have written it.
    #[error("it is not a file of root's that root alone can write")]
    NotRoots,
    /// It is no such file, or of another version.
    #[error("it is not understood: {0}")]
    Malformed(String),
    /// It tells of an earlier boot.
    #[error("it is of an earlier boot")]
    EarlierBoot,
}

/// Why a pod waits.
#[derive(Debug)]
pub(crate) enum Waits {
    /// Its namespace is of the mesh.
    Enrolled(String),
    /// Nobody has told of its namespace.
    NewNamespace(String),
    /// Nobody has told of any.
    NothingKnown(Untrusted),
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enrolled(namespace) => write!(f, "namespace {namespace} is of the mesh"),
            Self::NewNamespace(namespace) => {
                write!(
                    f,
                    "whether namespace {namespace} is of the mesh is not known"
                )
            }
            Self::NothingKnown(why) => {
                write!(
                    f,
                    "which namespaces are of the mesh is not known: no {NAMESPACES} to go by: {why}"
                )
            }
        }
    }
}

/// Whether a pod of `namespace` may start.
pub(crate) fn decide(file: Result<Namespaces, Untrusted>, namespace: &str) -> Result<(), Waits> {
    let known = file.map_err(Waits::NothingKnown)?;
    if known.enrolled.contains(namespace) {
        Err(Waits::Enrolled(namespace.to_owned()))
    } else if known.others.contains(namespace) {
        Ok(())
    } else {
        Err(Waits::NewNamespace(namespace.to_owned()))
    }
}

/// Reads the file that the daemon left in its run directory.
pub(crate) fn read(run_dir: &Path) -> Result<Namespaces, Untrusted> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(run_dir.join(NAMESPACES))?;
    understand(&mut trusted(file)?, boot.trim())
}

fn trusted(file: File) -> Result<File, Untrusted> {
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0 {
        Ok(file)
    } else {
        Err(Untrusted::NotRoots)
    }
}

fn understand(file: &mut impl Read, boot: &str) -> Result<Namespaces, Untrusted> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let known: Namespaces =
        serde_json::from_slice(&text).map_err(|error| Untrusted::Malformed(error.to_string()))?;
    if known.version != Namespaces::VERSION {
        let found = format!("version {}", known.version);
        return Err(Untrusted::Malformed(found));
    }
    if known.boot != boot {
        return Err(Untrusted::EarlierBoot);
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn known(boot: &str) -> Namespaces {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Namespaces {
            version: Namespaces::VERSION,
            boot: boot.to_owned(),
            enrolled: names(&["shop"]),
            others: names(&["default", "tools"]),
        }
    }

    #[test]
    fn only_what_is_known_to_be_outside_starts() {
        let says = |namespace| decide(Ok(known("b")), namespace).map_err(|waits| waits.to_string());
        assert_eq!(says("default"), Ok(()));
        assert_eq!(says("tools"), Ok(()));
        assert_eq!(says("shop"), Err("namespace shop is of the mesh".into()));
        let new = "whether namespace new is of the mesh is not known";
        assert_eq!(says("new"), Err(new.into()));
        assert!(decide(Err(Untrusted::NotRoots), "default").is_err());
    }

    #[test]
    fn a_file_is_believed_in_its_own_boot_and_version() {
        let read = |known: &Namespaces| {
            let text = serde_json::to_vec(known).unwrap();
            understand(&mut &text[..], "b")
        };
        assert_eq!(read(&known("b")).unwrap(), known("b"));
        assert!(matches!(read(&known("a")), Err(Untrusted::EarlierBoot)));
        let mut later = known("b");
        later.version = 2;
        assert!(matches!(read(&later), Err(Untrusted::Malformed(_))));
        let cut = understand(&mut &b"{\"version\":1"[..], "b");
        assert!(matches!(cut, Err(Untrusted::Malformed(_))));
    }

    #[test]
    fn a_file_is_believed_if_root_alone_can_have_written_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAMESPACES);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let missing = read(dir.path());
        assert!(matches!(missing, Err(Untrusted::Unreadable(_))));
        let write = |mode| {
            let text = serde_json::to_vec(&known(boot.trim())).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        // Run without root, the owner is somebody else already.
        let root = nix::unistd::getuid().is_root();
        for (mode, believed) in [(0o600, root), (0o644, root), (0o620, false), (0o602, false)] {
            write(mode);
            assert_eq!(read(dir.path()).is_ok(), believed, "{mode:o}");
        }
        if root {
            write(0o600);
            chown(&path, Some(65534), None).unwrap();
            assert!(matches!(read(dir.path()), Err(Untrusted::NotRoots)));
        }
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        symlink("elsewhere", &path).unwrap();
        assert!(matches!(read(dir.path()), Err(Untrusted::Unreadable(_))));
    }
}
