//! Objects from files: what has changed since the last look.
//!
//! [`Files::poll`] compares, reads what it must and says exactly what is new. It is synchronous and
//! meant to be called every quarter of a second or so from a thread that may block. Rules:
//!
//! - **A file counts whole or not at all.** One that is malformed anywhere changes nothing: what
//!   it last said stands, and the [`Problem`] names the line. An object that is well-formed and
//!   invalid (a bad address) is held back alone, and the rest of its file takes effect.
//! - **Only what changed is read.** A file with a new stamp is cut into chunks, and a chunk whose
//!   hash is known is not parsed. A stamp so young that a write could hide behind it is not
//!   trusted: such a file is cut again.
//! - **A file in motion waits.** One that was written in place within the last 100 ms waits for
//!   the next poll (thrice at most), as does one that changes while it is read.
//!   A file that goes from something to zero bytes, or vanishes from its directory, must be so on
//!   two polls in a row.
//! - **What was asked for must be there.** While a path given to [`Files::new`] is missing or
//!   cannot be read, that is a problem, and what it last said stands: a lost mount must not lift
//!   policies. A file that vanishes from a directory takes its objects with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File as Open;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::source::chunk::{Format, Malformed, Parsed, parse};
use crate::source::ledger::{
    Chunk, Entries, Entry, FileId, Ledger, Outcome, Reading, State, UNSETTLED,
};
use crate::source::listing::{Listing, Stamp};
use crate::source::outline::{Failure, Segment};
use crate::source::{Change, Interner, Problem};
use crate::source::{ledger, outline, outline_json};

/// A file written in place more recently than this may still be half of itself.
const SETTLE: Duration = Duration::from_millis(100);

/// How often a file may be found in motion before it is read or reported all the same.
const PATIENCE: u32 = 3;

/// Problems of one file that are listed; more are counted.
const MAX_PROBLEMS: usize = 100;

/// What a look at the files has found.
#[derive(Clone, Debug)]
pub struct Poll {
    /// What is new since the last poll, to be applied in this order.
    pub changes: Vec<Change>,
    /// Everything that is wrong now. The same `Arc` as in the last poll while nothing in it
    /// changed.
    pub problems: Arc<[Problem]>,
    /// What a person may want to know once: kinds that are not read.
    pub notes: Vec<String>,
}

/// Files and directories that describe the cluster.
#[derive(Debug)]
pub struct Files {
    roots: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    ledger: Ledger,
    interner: Interner,
    noted: HashSet<String>,
    problems: Arc<[Problem]>,
}

#[derive(Debug)]
struct File {
    id: FileId,
    /// The stamp of what was last read; `None` when the file must be read again in any case.
    stamp: Option<Stamp>,
    /// Whether an object that it has shadowed is now its own, so that it must be read again.
    inherits: bool,
    chunks: Vec<Chunk>,
    problems: Vec<Problem>,
    /// On how many polls in a row it was found in motion, empty or gone.
    unsettled: u32,
}

/// What a look at one file has come to.
enum Look {
    Read(Stamp, Reading),
    Malformed(Stamp, Problem),
    Moving,
    Unreadable(Problem),
}

impl Files {
    /// Files that are at `paths` now or later: files themselves, or directories of files.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            roots: paths,
            files: BTreeMap::new(),
            ledger: Ledger::default(),
            interner: Interner::default(),
            noted: HashSet::new(),
            problems: Arc::new([]),
        }
    }

    /// Looks at the files. The first poll reads everything.
    pub fn poll(&mut self) -> Poll {
        let listing = Listing::of(&self.roots);
        let mut poll = Poll {
            changes: Vec::new(),
            problems: self.problems.clone(),
            notes: Vec::new(),
        };
        self.drop_vanished(&listing, &mut poll);
        let now = SystemTime::now();
        for (path, stamp) in &listing.files {
            if self.is_due(path, stamp, now) {
                self.look(path, &mut poll);
            }
        }
        // An object that lost its place may be waiting elsewhere, which may free another.
        while let Some(path) = self.heir() {
            self.look(&path, &mut poll);
        }
        self.interner.sweep();
        self.report(listing, &mut poll);
        poll
    }

    fn drop_vanished(&mut self, listing: &Listing, poll: &mut Poll) {
        let mut gone = Vec::new();
        for (path, file) in &mut self.files {
            if !listing.files.contains_key(path) && !listing.cannot_tell(path) {
                file.unsettled += 1;
                if file.unsettled > 1 {
                    gone.push(path.clone());
                }
            }
        }
        for path in gone {
            if let Some(file) = self.files.remove(&path) {
                self.enter(file.id, &file.chunks, &mut Reading::default(), poll);
            }
        }
    }

    /// Whether a file is to be read now.
    fn is_due(&mut self, path: &Path, stamp: &Stamp, now: SystemTime) -> bool {
        let Some(file) = self.files.get_mut(path) else {
            return true;
        };
        let Some(known) = &file.stamp else {
            return true;
        };
        if known == stamp {
            file.unsettled = 0;
            return false;
        }
        let moving = known.same_file(stamp) && stamp.written_within(SETTLE, now);
        if moving && file.unsettled < PATIENCE {
            file.unsettled += 1;
            return false;
        }
        true
    }

    /// Reads a file and enters what it says.
    fn look(&mut self, path: &Path, poll: &mut Poll) {
        let id = self.ledger.file(path);
        let mut file = self.files.remove(path).unwrap_or(File {
            id,
            stamp: None,
            inherits: false,
            chunks: Vec::new(),
            problems: Vec::new(),
            unsettled: 0,
        });
        file.inherits = false;
        match self.read(path, &file.chunks, poll) {
            Look::Moving => {
                file.unsettled += 1;
                file.stamp = None;
                if file.unsettled > PATIENCE {
                    let message = "it keeps changing while it is read; what it last said stands";
                    file.problems = vec![problem(path, 0, message)];
                }
            }
            Look::Unreadable(problem) => {
                file.stamp = None;
                file.problems = vec![problem];
            }
            Look::Malformed(stamp, problem) => {
                file.stamp = trusted(stamp);
                file.problems = vec![problem];
            }
            Look::Read(stamp, _)
                if stamp.is_empty() && !file.chunks.is_empty() && file.unsettled == 0 =>
            {
                file.unsettled = 1;
                file.stamp = None;
            }
            Look::Read(stamp, mut reading) => {
                self.enter(id, &file.chunks, &mut reading, poll);
                file.stamp = trusted(stamp);
                file.chunks = reading.chunks;
                file.problems = reading.problems;
                file.unsettled = 0;
            }
        }
        self.files.insert(path.to_owned(), file);
    }

    fn read(&mut self, path: &Path, old: &[Chunk], poll: &mut Poll) -> Look {
        let unreadable = |error: std::io::Error| {
            Look::Unreadable(problem(path, 0, &format!("it cannot be read: {error}")))
        };
        let before = Open::open(path).and_then(|file| Ok((Stamp::of(&file.metadata()?), file)));
        let (before, file) = match before {
            Ok(opened) => opened,
            Err(error) => return unreadable(error),
        };
        let mut notes = Vec::new();
        let outcome = self.cut(path, &file, old, &mut notes);
        match file.metadata() {
            Ok(after) if Stamp::of(&after) == before => {}
            Ok(_) => return Look::Moving,
            Err(error) => return unreadable(error),
        }
        match outcome {
            Ok(reading) => {
                for kind in notes {
                    if self.noted.insert(kind.clone()) {
                        let place = path.display();
                        poll.notes
                            .push(format!("{place}: {kind} is not read, here and elsewhere"));
                    }
                }
                Look::Read(before, reading)
            }
            Err(Failure::Io(error)) => unreadable(error),
            Err(Failure::Malformed { line, message }) => Look::Malformed(
                before,
                problem(
                    path,
                    line,
                    &format!("{message}; what the file last said stands"),
                ),
            ),
        }
    }

    /// Cuts a file by its format, which its first byte tells.
    fn cut(
        &mut self,
        path: &Path,
        file: &Open,
        old: &[Chunk],
        kinds: &mut Vec<String>,
    ) -> Result<Reading, Failure> {
        let mut reader = BufReader::with_capacity(128 << 10, file);
        if first_byte(&mut reader)? != Some(b'{') {
            return self.cut_as(Format::Yaml, path, &mut reader, old, kinds);
        }
        let reading = self.cut_as(Format::Json, path, &mut reader, old, kinds);
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            return reading;
        }
        // YAML in flow style begins with a brace, too.
        reading.or_else(|_| {
            reader.seek(SeekFrom::Start(0))?;
            self.cut_as(Format::Yaml, path, &mut reader, old, kinds)
        })
    }

    fn cut_as(
        &mut self,
        format: Format,
        path: &Path,
        reader: &mut dyn BufRead,
        old: &[Chunk],
        kinds: &mut Vec<String>,
    ) -> Result<Reading, Failure> {
        let settled = old.iter().filter(|chunk| chunk.settled());
        let known: HashMap<u64, &Chunk> = settled.map(|chunk| (chunk.hash, chunk)).collect();
        let mut reading = Reading::default();
        let interner = &mut self.interner;
        let mut sink = |segment: Segment<'_>| {
            let (mut hash, line) = (segment.hash, segment.line);
            let entries = match known.get(&hash) {
                Some(chunk) => chunk.entries.clone(),
                None => {
                    let problems = reading.problems.len();
                    let entries = read_chunk(path, segment, interner, &mut reading, kinds)?;
                    if reading.problems.len() > problems {
                        hash = UNSETTLED;
                    }
                    entries
                }
            };
            reading.chunks.push(Chunk {
                hash,
                line,
                entries,
            });
            Ok(())
        };
        match format {
            Format::Json => outline_json::cut(reader, &mut sink)?,
            Format::Yaml => outline::cut(reader, &mut sink)?,
        }
        reading.chunks.shrink_to_fit();
        Ok(reading)
    }

    /// Enters a reading into the ledger and tells the other files what it did to them.
    fn enter(&mut self, id: FileId, old: &[Chunk], reading: &mut Reading, poll: &mut Poll) {
        let Outcome { taken, freed } = self.ledger.enter(id, old, reading, &mut poll.changes);
        for (loser, key) in taken {
            let path = self.ledger.path(loser).to_owned();
            if let Some(file) = self.files.get_mut(&path)
                && let Some(line) = ledger::shadow(&mut file.chunks, &key)
            {
                let problem = self.ledger.shadowed(loser, id, &key, line);
                file.problems.push(problem);
            }
        }
        if !freed.is_empty() {
            for file in self.files.values_mut() {
                file.inherits |= ledger::shadows(&file.chunks, &freed);
            }
        }
    }

    /// A file that has to be read again although it has not changed.
    fn heir(&self) -> Option<PathBuf> {
        let mut files = self.files.iter();
        let heir = files.find(|(_, file)| file.inherits);
        heir.map(|(path, _)| path.clone())
    }

    fn report(&mut self, listing: Listing, poll: &mut Poll) {
        let mut problems = listing.problems;
        for file in self.files.values() {
            problems.extend(file.problems.iter().take(MAX_PROBLEMS).cloned());
            if let Some(more) = file.problems.len().checked_sub(MAX_PROBLEMS + 1) {
                let path = self.ledger.path(file.id);
                problems.push(problem(path, 0, &format!("and {} problems more", more + 1)));
            }
        }
        if *self.problems != *problems {
            self.problems = problems.into();
        }
        poll.problems = self.problems.clone();
    }
}

/// A stamp that tells whether the file has changed; none if it is too young to tell.
fn trusted(stamp: Stamp) -> Option<Stamp> {
    (!stamp.may_hide_a_write(SystemTime::now())).then_some(stamp)
}

fn problem(path: &Path, line: u32, message: &str) -> Problem {
    Problem {
        file: path.to_owned(),
        line,
        object: String::new(),
        message: message.to_owned(),
    }
}

/// The first byte that is not blank, without consuming it; a byte order mark is consumed.
fn first_byte(reader: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    if reader.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    let block = reader.fill_buf()?;
    Ok(block.iter().copied().find(|b| !b.is_ascii_whitespace()))
}

fn read_chunk(
    path: &Path,
    segment: Segment<'_>,
    interner: &mut Interner,
    reading: &mut Reading,
    kinds: &mut Vec<String>,
) -> Result<Entries, Malformed> {
    let at = reading.chunks.len();
    let mut entries = Vec::new();
    parse(segment.chunk, interner, &mut |parsed| match parsed {
        Parsed::Object(key, object) => {
            let state = State::Good;
            entries.push(Entry { key, state });
            reading.objects.push((at, object));
        }
        Parsed::Nothing => {}
        Parsed::Foreign(kind) if kinds.contains(&kind) => {}
        Parsed::Foreign(kind) => kinds.push(kind),
        Parsed::Invalid {
            key,
            object,
            line,
            message,
        } => {
            reading.unnamed |= key.is_none();
            let state = State::Held;
            entries.extend(key.map(|key| Entry { key, state }));
            reading.problems.push(Problem {
                file: path.to_owned(),
                line: segment.line + line,
                object,
                message: format!("{message}; what it last said stands"),
            });
        }
    })?;
    Ok(Entries::collect(entries))
}

#[cfg(test)]
mod tests;
