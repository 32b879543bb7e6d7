//! Writes down which namespaces are of the mesh, for a plugin that finds the daemon away.
//!
//! The file is whole at every moment, root's alone, and changes only with what it says.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::api::plugin::{NAMESPACES, Namespaces};
use crate::identify::Index;

/// What is written, and where.
#[derive(Debug)]
pub(crate) struct Left {
    path: PathBuf,
    boot: String,
    said: Namespaces,
    written: bool,
}

impl Left {
    /// Nothing is written yet; what an earlier daemon wrote stays until then.
    pub(crate) fn new(run_dir: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            path: run_dir.join(NAMESPACES),
            boot: boot.trim().to_owned(),
            said: Namespaces::default(),
            written: false,
        }
    }

    /// What was said last.
    pub(crate) fn said(&self) -> &Namespaces {
        &self.said
    }

    /// Says it anew, if it is anything new.
    ///
    /// # Errors
    ///
    /// The file could not be written; it is tried again with the next call.
    pub(crate) fn say(&mut self, index: &Index) -> io::Result<()> {
        let said = self.of(index);
        if self.written && said == self.said {
            return Ok(());
        }
        self.said = said;
        self.written = false;
        self.write()?;
        self.written = true;
        Ok(())
    }

    /// Takes back whatever was said: there is no plugin any more that would go by it.
    pub(crate) fn forget(&mut self) {
        self.written = false;
        let _ = fs::remove_file(&self.path);
    }

    fn of(&self, index: &Index) -> Namespaces {
        let (mut enrolled, mut others) = (BTreeSet::new(), BTreeSet::new());
        for (name, enrols) in index.namespaces() {
            let to = if enrols { &mut enrolled } else { &mut others };
            to.insert(name.to_string());
        }
        // A pod's own label enrols it wherever it is; the next pod there may have it as well.
        for pod in index.snapshot().workloads().filter(|pod| pod.enrolled()) {
            if others.remove(&*pod.namespace) {
                enrolled.insert(pod.namespace.to_string());
            }
        }
        Namespaces {
            version: Namespaces::VERSION,
            boot: self.boot.clone(),
            enrolled,
            others,
        }
    }

    fn write(&self) -> io::Result<()> {
        let aside = self.path.with_extension("tmp");
        let _ = fs::remove_file(&aside);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(&serde_json::to_vec(&self.said)?)?;
        drop(file);
        fs::rename(&aside, &self.path)
    }
}
