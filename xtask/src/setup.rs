//! What each command needs before it can do its work.

use std::path::PathBuf;

use anyhow::Result;

use crate::{command::say, linker, programs, toolchain::Toolchain, workspace::Workspace};

/// What compiles the kernel side.
pub struct EbpfTools {
    /// Compiles.
    pub toolchain: Toolchain,
    /// Links.
    pub linker: PathBuf,
}

/// What `build-ebpf`, and so every build, needs.
pub fn for_ebpf(workspace: &Workspace) -> Result<EbpfTools> {
    let toolchain = Toolchain::ensure()?;
    let linker = linker::ensure(workspace, &toolchain)?;
    Ok(EbpfTools { toolchain, linker })
}

/// What building and testing need.
pub fn everything(workspace: &Workspace) -> Result<()> {
    let tools = for_ebpf(workspace)?;
    programs::ensure(workspace)?;
    say(&format!(
        "set up: {}; {}; the programs that tests use",
        tools.toolchain.describe(),
        tools.linker.display()
    ));
    Ok(())
}
