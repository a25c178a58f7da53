//! bpf-linker, which turns the bitcode that rustc writes into a BPF object.
//!
//! It must contain an LLVM no older than the one of the rustc whose bitcode it reads. One on PATH
//! is used when it can read that bitcode; otherwise one is built for this clone alone, under
//! target/tools, against the LLVM of rustc's own version.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{answer, capture, cargo, find, is_executable, quiet, say},
    packages,
    toolchain::Toolchain,
    workspace::Workspace,
};

const VERSION: &str = "0.13.0";

/// The LLVMs that this bpf-linker has a feature for.
const SUPPORTED_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The linker to use with this toolchain, built first if it must be.
pub fn ensure(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    let own = workspace.tools().join("bin/bpf-linker");
    let candidates = [Some(own.clone()), find("bpf-linker"), in_cargo_home()];
    for linker in candidates
        .into_iter()
        .flatten()
        .filter(|linker| is_executable(linker))
    {
        if reads_bitcode_of(workspace, toolchain, &linker)? {
            return Ok(linker);
        }
    }
    install(workspace, toolchain)?;
    if !reads_bitcode_of(workspace, toolchain, &own)? {
        bail!(
            "{} was built, but cannot read the bitcode of {}",
            own.display(),
            toolchain.describe()
        );
    }
    Ok(own)
}

/// Where a plain `cargo install bpf-linker` leaves it, on PATH or not.
fn in_cargo_home() -> Option<PathBuf> {
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME")?).join(".cargo"),
    };
    Some(home.join("bin/bpf-linker"))
}

/// Tries it on a crate of one function. The answer is kept until either program changes.
fn reads_bitcode_of(workspace: &Workspace, toolchain: &Toolchain, linker: &Path) -> Result<bool> {
    let stamp = workspace.tools().join("linker.stamp");
    let subject = subject(toolchain, linker)?;
    if fs::read_to_string(&stamp).is_ok_and(|stamped| stamped == subject) {
        return Ok(true);
    }

    let trial = workspace.tools().join("trial");
    let in_trial = || format!("cannot write under {}", trial.display());
    fs::create_dir_all(&trial).with_context(in_trial)?;
    let source = trial.join("trial.rs");
    fs::write(
        &source,
        "#![no_std]\n#[unsafe(no_mangle)]\npub extern \"C\" fn trial() {}\n",
    )
    .with_context(in_trial)?;
    let bitcode = trial.join("trial.bc");
    let mut rustc = toolchain.rustc();
    rustc.args([
        "--edition=2024",
        "--crate-type=lib",
        "--emit=llvm-bc",
        "-Cpanic=abort",
        "-o",
    ]);
    quiet(rustc.arg(&bitcode).arg(&source), "compiling a trial crate")?;

    let mut link = Command::new(linker);
    link.args(["--target=bpf", "--emit=obj", "--export=trial", "--output"]);
    link.arg(trial.join("trial.o")).arg(&bitcode);
    let works = capture(&mut link, "trying bpf-linker").is_ok_and(|linked| linked.status.success());
    if works {
        fs::write(&stamp, subject).with_context(in_trial)?;
    }
    Ok(works)
}

fn subject(toolchain: &Toolchain, linker: &Path) -> Result<String> {
    let unreadable = || format!("cannot read {}", linker.display());
    let metadata = fs::metadata(linker).with_context(unreadable)?;
    let modified = metadata.modified().with_context(unreadable)?;
    let modified = modified
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    Ok(format!(
        "{} {} {modified}\n{}\n",
        linker.display(),
        metadata.len(),
        toolchain.describe()
    ))
}

fn install(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let llvm = toolchain.version.llvm;
    if !SUPPORTED_LLVM.contains(&llvm) {
        bail!(
            "bpf-linker {VERSION} cannot be built for {}: put one on PATH that reads its bitcode",
            toolchain.describe()
        );
    }
    let prefix = llvm_prefix(llvm)?;
    let root = workspace.tools();
    say(&format!(
        "building bpf-linker {VERSION} with LLVM {llvm} into {} (about a minute)",
        root.display()
    ));
    let mut cargo = cargo();
    cargo.args([
        "install",
        "bpf-linker",
        "--version",
        VERSION,
        "--locked",
        "--force",
    ]);
    cargo.args([
        "--no-default-features",
        "--features",
        &format!("llvm-{llvm}"),
        "--root",
    ]);
    cargo.arg(&root).arg("--target-dir").arg(root.join("build"));
    cargo.current_dir(workspace.root());
    cargo
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "RUSTC",
    ] {
        cargo.env_remove(name);
    }
    quiet(&mut cargo, "building bpf-linker")?;
    // 200 MB that only another version would need again.
    fs::remove_dir_all(root.join("build")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error).with_context(|| format!("cannot remove {}", root.join("build").display())),
    })
}

/// Where LLVM's libraries for development are, installed first if they must be.
fn llvm_prefix(llvm: u32) -> Result<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if packages::available() {
        let (dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
        let missing = packages::missing(&[
            "g++",
            &dev,
            &polly,
            "zlib1g-dev",
            "libzstd-dev",
            "libxml2-dev",
        ]);
        if !missing.is_empty() {
            packages::install(&missing, "to build bpf-linker")
                .with_context(|| format!("no bpf-linker here reads the bitcode of LLVM {llvm}"))?;
        }
        return Ok(debian);
    }
    for program in [format!("llvm-config-{llvm}"), "llvm-config".to_owned()] {
        let ask = |what: &str| answer(Command::new(&program).arg(what));
        let of_version = |version: String| version.starts_with(&format!("{llvm}."));
        if ask("--version").is_some_and(of_version)
            && let Some(prefix) = ask("--prefix")
        {
            return Ok(PathBuf::from(prefix));
        }
    }
    bail!(
        "no bpf-linker here reads the bitcode of LLVM {llvm}, and no llvm-config of that version \
         is there to build one with: put a bpf-linker {VERSION} on PATH"
    )
}
