//! The directory of one run of the machine: its images, sockets and what it reports.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

const PREFIX: &str = "run-";

/// A directory under target/vm, named after this process and removed at the end.
pub struct Workplace {
    path: PathBuf,
}

impl Workplace {
    /// Makes it, and removes those of runs that were killed.
    pub fn new(workspace: &Workspace) -> Result<Self> {
        let parent = workspace.vm();
        remove_those_of_the_dead(&parent);
        let path = parent.join(format!("{PREFIX}{}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // Nothing is mounted in it here: the mounts are in a namespace of their own.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn remove_those_of_the_dead(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(pid) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
