//! Which files there are, and whether one has changed since it was read.
//!
//! A path that was asked for is a file or a directory. Of a directory every `*.yaml`, `*.yml` and
//! `*.json` directly in it counts, through symbolic links, so that the `..data` links of a mounted
//! ConfigMap work; names that begin with a dot do not count, as editors leave such behind.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::source::Problem;

/// What the kernel says about a file's content without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Whether both are of one file, written in place, rather than of one put in another's stead.
    pub(super) fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether the file was last written less than `span` before `now`.
    pub(super) fn written_within(&self, span: Duration, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.modified;
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds))
        else {
            return false;
        };
        let written = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        now.duration_since(written).is_ok_and(|age| age < span)
    }

    /// Whether a write right after a reading at `now` could leave the stamp as it is: file times
    /// tick every few milliseconds, on some file systems every second or two.
    pub(super) fn may_hide_a_write(&self, now: SystemTime) -> bool {
        let coarse = self.modified.1 == 0 && self.changed.1 == 0;
        let tick = if coarse { 2_000 } else { 50 };
        self.written_within(Duration::from_millis(tick), now)
    }
}

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Every file that counts, in the order in which they count.
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    pub(super) problems: Vec<Problem>,
    /// Paths that were asked for and could not be looked at.
    lost: Vec<PathBuf>,
}

impl Listing {
    /// Looks at all `roots`.
    pub(super) fn of(roots: &[PathBuf]) -> Self {
        let mut listing = Self::default();
        for root in roots {
            if let Err(error) = listing.add(root) {
                listing.lost(root, &error);
            }
        }
        listing
    }

    /// Whether `path` is absent only because nobody could look: then what it said still stands.
    pub(super) fn cannot_tell(&self, path: &Path) -> bool {
        let mut lost = self.lost.iter();
        lost.any(|root| path == root || path.parent() == Some(root))
    }

    fn add(&mut self, root: &Path) -> io::Result<()> {
        let metadata = std::fs::metadata(root)?;
        if !metadata.is_dir() {
            self.files.insert(root.to_owned(), Stamp::of(&metadata));
            return Ok(());
        }
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path();
            if !counts(&path) {
                continue;
            }
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => {
                    self.files.insert(path, Stamp::of(&metadata));
                }
                Ok(_) => {}
                // It went between the two calls, or is a link to nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.lost(&path, &error),
            }
        }
        Ok(())
    }

    fn lost(&mut self, path: &Path, error: &io::Error) {
        let message = match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no such file or directory; it is read once it appears".to_owned()
            }
            _ => format!("it cannot be looked at: {error}"),
        };
        self.lost.push(path.to_owned());
        self.problems.push(Problem {
            file: path.to_owned(),
            line: 0,
            object: String::new(),
            message,
        });
    }
}

fn counts(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}
