//! The file system's part of a CA directory: who may touch it, and how a file comes to be there.
//!
//! A file appears whole or not at all: it is written under another name, and linked to its own with
//! `link(2)`, which never replaces. So whoever comes second learns it, and reads the first one's.
//! What is here is checked to be under nobody else's control before it is believed.

use std::fs;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::pki::crypto::random;
use crate::pki::directory::error::Error;

/// No file of an authority is larger; a bundle of a thousand roots is half of it.
const LARGEST: u64 = 1 << 20;

/// Creates the directory (mode 0700, with its parents) unless it exists, and checks it.
pub(in crate::pki::directory) fn prepare(directory: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(access("create", directory))?;
    check_directory(directory)
}

/// Refuses a directory in which other users could replace files.
pub(in crate::pki::directory) fn check_directory(directory: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(directory).map_err(access("read", directory))?;
    check_owner(directory, &metadata)?;
    let mode = metadata.mode() & 0o7777;
    // With the sticky bit others cannot replace what is ours; what they add fails the owner check.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        let path = directory.to_owned();
        let mend = "go-w";
        return Err(Error::Exposed { path, mode, mend });
    }
    Ok(())
}

/// Reads a private key, or tells that there is none.
pub(in crate::pki::directory) fn read_key(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    read(path, 0o077, "600")
}

/// Reads certificates, or tells that there are none.
pub(in crate::pki::directory) fn read_certificates(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    read(path, 0o022, "go-w")
}

/// `forbidden` permission bits are an error, that `mend` mends. The checks are made on the file
/// that is open, so that it cannot be exchanged in between.
fn read(path: &Path, forbidden: u32, mend: &'static str) -> Result<Option<Vec<u8>>, Error> {
    // A FIFO by this name must not stop us.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(access("read", path)(error)),
    };
    let metadata = file.metadata().map_err(access("read", path))?;
    if !metadata.is_file() {
        let path = path.to_owned();
        let fault = "is not a file";
        return Err(Error::Malformed { path, fault });
    }
    check_owner(path, &metadata)?;
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden != 0 {
        let path = path.to_owned();
        return Err(Error::Exposed { path, mode, mend });
    }
    let mut text = Vec::new();
    (&mut file)
        .take(LARGEST)
        .read_to_end(&mut text)
        .map_err(access("read", path))?;
    Ok(Some(text))
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let (owner, user) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    if !trusted(owner, user) {
        let path = path.to_owned();
        return Err(Error::Owner { path, owner, user });
    }
    Ok(())
}

/// Root could take what it likes anyway.
fn trusted(owner: u32, user: u32) -> bool {
    owner == user || owner == 0
}

/// Makes `content` appear at `path` with permissions `mode`, unless something is there already:
/// then that stays as it is. Returns after both the file and its name are on the disk.
pub(in crate::pki::directory) fn publish(
    path: &Path,
    mode: u32,
    content: &[u8],
) -> Result<(), Error> {
    let draft = Draft::create(path, mode).map_err(access("write beside", path))?;
    draft.fill(content).map_err(access("write beside", path))?;
    match fs::hard_link(&draft.path, path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(access("create", path)(error)),
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(access("sync", directory))
}

/// A file under a name of its own, which goes when this does.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn create(beside: &Path, mode: u32) -> io::Result<Self> {
        let mut name = beside.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:032x}.new", u128::from_ne_bytes(random())));
        let path = beside.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        Ok(Self { path, file })
    }

    fn fill(&self, content: &[u8]) -> io::Result<()> {
        (&self.file).write_all(content)?;
        self.file.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It has its own name by now, or is of no use; a failure leaves a file that nobody reads.
        let _ = fs::remove_file(&self.path);
    }
}

fn access(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Access {
        attempt,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_root_and_of_ourselves_are_believed() {
        let check = |owner, user, expect| assert_eq!(trusted(owner, user), expect);
        check(0, 0, true);
        check(1000, 1000, true);
        check(0, 1000, true);
        check(1000, 0, false);
        check(1001, 1000, false);
    }

    #[test]
    fn what_is_there_first_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        publish(&path, 0o600, b"first").unwrap();
        publish(&path, 0o600, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_a_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = read_key(&path).unwrap_err();
        assert_eq!(error.reason(), "ca_malformed");
        assert!(
            read_key(&directory.path().join("absent"))
                .unwrap()
                .is_none()
        );
    }
}
