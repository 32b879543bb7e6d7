//! Which file an object comes from, and what a new reading of a file changes. Pure: no I/O.
//!
//! Rules:
//!
//! 1. Of two files with one object, the first by path counts; within a file, the first place. The
//!    others are shadowed, which is a [`Problem`], and take over once the first is gone.
//! 2. An invalid object leaves its last good version standing, if it came from the same file.
//! 3. While a file holds an invalid object whose name cannot be read, nothing of that file is
//!    removed, since any of its missing objects may be the one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::source::{Change, Key, Object, Problem};

/// How an entry of a chunk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is what counts.
    Good,
    /// It is invalid, or gone unseen; its last good version counts, if there is one.
    Held,
    /// Another place has the same object.
    Shadowed,
}

/// One object in a chunk.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) state: State,
}

/// The objects in a chunk: nearly always one.
#[derive(Clone, Debug, Default)]
pub(super) enum Entries {
    #[default]
    None,
    One(Entry),
    Many(Box<[Entry]>),
}

impl Entries {
    pub(super) fn collect(mut entries: Vec<Entry>) -> Self {
        match entries.len() {
            0 => Self::None,
            1 => entries.pop().map_or(Self::None, Self::One),
            _ => Self::Many(entries.into()),
        }
    }

    pub(super) fn all(&self) -> &[Entry] {
        match self {
            Self::None => &[],
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    fn all_mut(&mut self) -> &mut [Entry] {
        match self {
            Self::None => &mut [],
            Self::One(entry) => std::slice::from_mut(entry),
            Self::Many(entries) => entries,
        }
    }
}

/// The hash of a chunk that must be read again in any case, since something in it is wrong.
pub(super) const UNSETTLED: u64 = 0;

/// A chunk of a file, as remembered.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) hash: u64,
    pub(super) line: u32,
    pub(super) entries: Entries,
}

impl Chunk {
    /// Whether a chunk of the same text needs no reading.
    pub(super) fn settled(&self) -> bool {
        let mut entries = self.entries.all().iter();
        self.hash != UNSETTLED && entries.all(|entry| entry.state == State::Good)
    }
}

/// A new reading of a file.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) chunks: Vec<Chunk>,
    /// The objects that were read anew, in the order of their entries, each with its chunk's index.
    pub(super) objects: Vec<(usize, Object)>,
    /// What is invalid in it.
    pub(super) problems: Vec<Problem>,
    /// Whether an invalid object's name could not be read.
    pub(super) unnamed: bool,
}

/// A file, by number.
pub(super) type FileId = u32;

#[derive(Clone, Copy, Debug)]
struct Owner {
    file: FileId,
    round: u32,
}

/// Who owns which object.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    owners: HashMap<Key, Owner>,
    /// What is shadowed somewhere, or was.
    shadowed: HashSet<Key>,
    paths: Vec<PathBuf>,
    round: u32,
}

/// What entering a reading has led to, beside changes.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Objects that now belong to another file than before: they are shadowed there.
    pub(super) taken: Vec<(FileId, Key)>,
    /// Objects that are gone and may be shadowed in another file.
    pub(super) freed: HashSet<Key>,
}

impl Ledger {
    /// The number of a path, the same each time.
    pub(super) fn file(&mut self, path: &Path) -> FileId {
        let at = self.paths.iter().position(|known| known == path);
        let at = at.unwrap_or_else(|| {
            self.paths.push(path.to_owned());
            self.paths.len() - 1
        });
        FileId::try_from(at).expect("fewer than 2^32 files fit on a command line")
    }

    /// The path of a number.
    pub(super) fn path(&self, file: FileId) -> &Path {
        &self.paths[file as usize]
    }

    /// Enters a new reading of `file`, whose chunks were `old`.
    pub(super) fn enter(
        &mut self,
        file: FileId,
        old: &[Chunk],
        reading: &mut Reading,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        self.round = self.round.wrapping_add(1);
        // Room for exactly what is known to come, since it may be a whole cluster.
        changes.reserve_exact(reading.objects.len());
        self.owners
            .reserve(reading.objects.len().saturating_sub(old.len()));
        let mut objects = std::mem::take(&mut reading.objects).into_iter().peekable();
        for (at, chunk) in reading.chunks.iter_mut().enumerate() {
            let line = chunk.line;
            for entry in chunk.entries.all_mut() {
                let object = match entry.state {
                    State::Held => None,
                    _ => objects
                        .next_if(|(of, _)| *of == at)
                        .map(|(_, object)| object),
                };
                if let Some(other) = self.claim(file, entry, object.is_some(), &mut outcome) {
                    entry.state = State::Shadowed;
                    self.shadowed.insert(entry.key.clone());
                    let problem = self.shadowed(file, other, &entry.key, line);
                    reading.problems.push(problem);
                } else if let Some(object) = object {
                    changes.push(Change::Upsert(object));
                }
            }
        }
        for entry in old.iter().flat_map(|chunk| chunk.entries.all()) {
            self.release(file, entry, reading, changes, &mut outcome);
        }
        outcome
    }

    /// Claims an entry for `file`; gives the file that keeps it, if one does.
    fn claim(
        &mut self,
        file: FileId,
        entry: &Entry,
        fresh: bool,
        outcome: &mut Outcome,
    ) -> Option<FileId> {
        let mine = Owner {
            file,
            round: self.round,
        };
        let Some(owner) = self.owners.get(&entry.key).copied() else {
            if fresh {
                self.owners.insert(entry.key.clone(), mine);
            }
            return None;
        };
        if owner.file == file {
            if owner.round == self.round {
                return (entry.state != State::Held).then_some(file);
            }
        } else if entry.state == State::Held {
            return None;
        } else if self.path(owner.file) < self.path(file) {
            return Some(owner.file);
        } else {
            self.shadowed.insert(entry.key.clone());
            outcome.taken.push((owner.file, entry.key.clone()));
        }
        self.owners.insert(entry.key.clone(), mine);
        None
    }

    /// Lets go of an entry of the old reading, unless the new one has it.
    fn release(
        &mut self,
        file: FileId,
        entry: &Entry,
        reading: &mut Reading,
        changes: &mut Vec<Change>,
        outcome: &mut Outcome,
    ) {
        let Some(owner) = self.owners.get_mut(&entry.key) else {
            return;
        };
        if owner.file != file || owner.round == self.round {
            return;
        }
        if reading.unnamed {
            owner.round = self.round;
            reading.chunks.push(Chunk {
                hash: UNSETTLED,
                line: 0,
                entries: Entries::One(Entry {
                    key: entry.key.clone(),
                    state: State::Held,
                }),
            });
            return;
        }
        self.owners.remove(&entry.key);
        changes.push(Change::Remove(entry.key.clone()));
        if self.shadowed.remove(&entry.key) {
            outcome.freed.insert(entry.key.clone());
        }
    }

    /// The problem of an object that stands in two places.
    pub(super) fn shadowed(&self, file: FileId, winner: FileId, key: &Key, line: u32) -> Problem {
        let place = if file == winner {
            "further up in this file".to_owned()
        } else {
            format!("in {}", self.path(winner).display())
        };
        Problem {
            file: self.path(file).to_owned(),
            line,
            object: key.to_string(),
            message: format!("it stands {place}, too, and that counts; this is ignored"),
        }
    }
}

/// Marks `key` as shadowed in a file's chunks; gives its line.
pub(super) fn shadow(chunks: &mut [Chunk], key: &Key) -> Option<u32> {
    for chunk in chunks {
        let line = chunk.line;
        for entry in chunk.entries.all_mut() {
            if entry.key == *key && entry.state != State::Shadowed {
                entry.state = State::Shadowed;
                return Some(line);
            }
        }
    }
    None
}

/// Whether one of `keys` is shadowed in these chunks.
pub(super) fn shadows(chunks: &[Chunk], keys: &HashSet<Key>) -> bool {
    let mut entries = chunks.iter().flat_map(|chunk| chunk.entries.all());
    entries.any(|entry| entry.state == State::Shadowed && keys.contains(&entry.key))
}
