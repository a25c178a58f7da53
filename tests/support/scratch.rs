//! Directories for what a test writes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory that anyone may read, removed when dropped.
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// One under the system's temporary directory.
    pub fn new() -> Scratch {
        Scratch::within(&std::env::temp_dir())
    }

    /// One on the disk that holds `target/`: the temporary directory may be in memory, where no fault is major.
    pub fn on_disk() -> Scratch {
        let parent = target_directory().join("scratch");
        fs::create_dir_all(&parent).expect("make target/scratch");
        Scratch::within(&parent)
    }

    fn within(parent: &Path) -> Scratch {
        let directory = tempfile::Builder::new()
            .prefix("memtrace-test-")
            .tempdir_in(parent)
            .expect("make a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))
            .expect("open the directory to all");
        Scratch { directory }
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Copies `source` in as `name`, with the permissions `mode`.
    pub fn copy(&self, source: &Path, name: &str, mode: u32) -> PathBuf {
        let copy = self.path(name);
        fs::copy(source, &copy)
            .unwrap_or_else(|error| panic!("copy {}: {error}", source.display()));
        fs::set_permissions(&copy, Permissions::from_mode(mode)).expect("set permissions");
        copy
    }

    /// Writes `text` as `name`.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

/// Cargo's target directory.
pub fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => workspace().join("target"),
    }
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a parent directory")
        .to_path_buf()
}
