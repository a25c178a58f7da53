//! Where things are in the clone.

use std::path::{Path, PathBuf};

/// The clone that this xtask was built from.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The path is compiled in: cargo rebuilds xtask when the clone has moved.
    pub fn of_this_xtask() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            root: manifest.parent().unwrap_or(manifest).to_owned(),
        }
    }

    /// The top of the clone.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Given to cargo explicitly: what a user's own settings say must not move
    /// `target/release/memtrace`.
    pub fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// The user side, as users get it.
    pub fn memtrace(&self) -> PathBuf {
        self.target().join("release/memtrace")
    }

    /// The kernel side's crate, which is no member of the workspace.
    pub fn ebpf_crate(&self) -> PathBuf {
        self.root.join("memtrace-ebpf")
    }

    /// Where memtrace's build script finds the BPF object.
    pub fn ebpf_object(&self) -> PathBuf {
        self.target().join("bpf/memtrace-ebpf")
    }

    /// The kernel side's own build directory, apart so that the two builds share no lock.
    pub fn ebpf_target(&self) -> PathBuf {
        self.target().join("bpf/build")
    }

    /// Kernels for the virtual machine, and what its runs write.
    pub fn vm(&self) -> PathBuf {
        self.target().join("vm")
    }

    /// Where packages go.
    pub fn package(&self) -> PathBuf {
        self.target().join("package")
    }

    /// Tools that set-up builds for this clone only.
    pub fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }
}
