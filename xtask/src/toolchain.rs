//! The Rust toolchain that compiles the kernel side. It must be able to build `core` for the
//! target bpfel-unknown-none, and that takes its sources:
//!
//! - rustup's nightly with the component rust-src, or
//! - Debian's rustc-web with rust-web-src, where rustup has none and can fetch none.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    command::{answer, cargo, find, say},
    packages,
};

/// What the crates of the workspace declare as `rust-version`.
const OLDEST: (u32, u32) = (1, 95);

/// Chooses between the two kinds; unset, the first that is there.
const CHOICE: &str = "MEMTRACE_BPF_TOOLCHAIN";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];

/// What a user with rustup and its network can run instead.
const NIGHTLY: &str = "rustup toolchain install nightly --component rust-src";

/// A toolchain that is there and has core's sources.
#[derive(Debug)]
pub struct Toolchain {
    kind: Kind,
    /// What `rustc -vV` says.
    pub version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Nightly,
    Debian,
}

/// What matters of `rustc -vV`.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    release: String,
    /// The bitcode this rustc writes can be read by an LLVM of this version or a later one.
    pub llvm: u32,
}

impl Toolchain {
    /// The toolchain to use, installed first if it must be.
    pub fn ensure() -> Result<Self> {
        let choice = env::var(CHOICE).ok();
        let allowed = allowed_kinds(choice.as_deref())?;
        for kind in &allowed {
            if let Some(toolchain) = Self::installed(*kind) {
                return Ok(toolchain);
            }
        }
        if allowed.contains(&Kind::Nightly)
            && add_rust_src()
            && let Some(toolchain) = Self::installed(Kind::Nightly)
        {
            return Ok(toolchain);
        }
        if !allowed.contains(&Kind::Debian) || !packages::available() {
            bail!("no toolchain here can compile the BPF programs: run `{NIGHTLY}`");
        }
        packages::install_newest(&DEBIAN_PACKAGES, "to compile the BPF programs")
            .map_err(|error| anyhow!("{error:#} (or, with rustup: {NIGHTLY})"))?;
        Self::installed(Kind::Debian).with_context(|| {
            format!(
                "{DEBIAN_RUSTC} is not Rust {}.{} or later with the sources of core, although {} \
                 are installed: run `{NIGHTLY}`",
                OLDEST.0,
                OLDEST.1,
                DEBIAN_PACKAGES.join(" and ")
            )
        })
    }

    fn installed(kind: Kind) -> Option<Self> {
        let sysroot = answer(kind.rustc().args(["--print", "sysroot"]))?;
        if !has_sources(Path::new(&sysroot)) {
            return None;
        }
        let version = Version::parse(&answer(kind.rustc().arg("-vV"))?)?;
        version.is_recent_enough().then_some(Self { kind, version })
    }

    /// A `cargo` that compiles with this toolchain and allows what is unstable.
    pub fn cargo(&self) -> Command {
        let mut cargo = match self.kind {
            Kind::Nightly => {
                let mut rustup = rustup_nightly("cargo");
                crate::command::forget_outer_cargo(&mut rustup);
                rustup.env_remove("RUSTC");
                rustup
            }
            Kind::Debian => {
                let mut cargo = cargo();
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        // Meant for the user side, or for another build altogether.
        for name in [
            "RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_BUILD_TARGET_DIR",
            "CARGO_TARGET_DIR",
            "CARGO_UNSTABLE_BUILD_STD",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
            "RUSTDOCFLAGS",
        ] {
            cargo.env_remove(name);
        }
        cargo
    }

    /// Its compiler.
    pub fn rustc(&self) -> Command {
        self.kind.rustc()
    }

    /// A word for messages.
    pub fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::Nightly => "rustup's nightly",
            Kind::Debian => "Debian's rustc-web",
        };
        format!(
            "{kind}, Rust {}, LLVM {}",
            self.version.release, self.version.llvm
        )
    }
}

impl Kind {
    fn rustc(self) -> Command {
        match self {
            Self::Nightly => rustup_nightly("rustc"),
            Self::Debian => Command::new(DEBIAN_RUSTC),
        }
    }
}

impl Version {
    fn parse(verbose: &str) -> Option<Self> {
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name));
        let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
        Some(Self {
            release: field("release: ")?.to_owned(),
            llvm,
        })
    }

    fn is_recent_enough(&self) -> bool {
        let mut numbers = self
            .release
            .split(['.', '-'])
            .map_while(|part| part.parse::<u32>().ok());
        match (numbers.next(), numbers.next()) {
            (Some(major), Some(minor)) => (major, minor) >= OLDEST,
            _ => false,
        }
    }
}

fn allowed_kinds(choice: Option<&str>) -> Result<Vec<Kind>> {
    match choice {
        None | Some("") => Ok(vec![Kind::Nightly, Kind::Debian]),
        Some("nightly") => Ok(vec![Kind::Nightly]),
        Some("debian") => Ok(vec![Kind::Debian]),
        Some(other) => bail!("{CHOICE} is {other:?}: it may be `nightly` or `debian`"),
    }
}

fn has_sources(sysroot: &Path) -> bool {
    let sources: PathBuf = sysroot.join("lib/rustlib/src/rust/library");
    sources.join("core/Cargo.toml").exists() && sources.join("Cargo.lock").exists()
}

/// Without auto-install: asking whether nightly is there is not to fetch it.
fn rustup_nightly(program: &str) -> Command {
    let mut rustup = Command::new("rustup");
    rustup.args(["run", "nightly", program]);
    rustup.env("RUSTUP_AUTO_INSTALL", "0");
    rustup
}

/// Whether rust-src could be added to a nightly that is there. A machine set to fetch no
/// toolchains by itself can usually fetch none at all, and apt-get is the way there.
fn add_rust_src() -> bool {
    let fetches_none = env::var("RUSTUP_AUTO_INSTALL").is_ok_and(|value| value == "0");
    if find("rustup").is_none() || (fetches_none && packages::available()) {
        return false;
    }
    if answer(rustup_nightly("rustc").arg("-V")).is_none() {
        return false;
    }
    say("adding the component rust-src to rustup's nightly");
    let mut rustup = Command::new("rustup");
    let added = answer(rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]));
    if added.is_none() {
        say("rustup could not add rust-src to nightly");
    }
    added.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBOSE: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\n\
                           release: 1.97.0-nightly\nLLVM version: 22.1.4";

    #[test]
    fn the_verbose_version_is_read() {
        let version = Version::parse(VERBOSE);
        assert_eq!(
            version,
            Some(Version {
                release: "1.97.0-nightly".into(),
                llvm: 22
            })
        );
        assert_eq!(Version::parse("rustc 1.97.0"), None);
    }

    #[test]
    fn an_old_rustc_will_not_do() {
        let recent = |release: &str| {
            Version {
                release: release.into(),
                llvm: 22,
            }
            .is_recent_enough()
        };
        assert!(recent("1.95.0") && recent("1.100.0-nightly") && recent("2.0.0"));
        assert!(!recent("1.63.0") && !recent("1.9.0") && !recent("unknown"));
    }

    #[test]
    fn the_choice_is_checked() {
        assert_eq!(allowed_kinds(Some("debian")).ok(), Some(vec![Kind::Debian]));
        assert_eq!(
            allowed_kinds(None).ok(),
            Some(vec![Kind::Nightly, Kind::Debian])
        );
        assert!(allowed_kinds(Some("stable")).is_err());
    }
}
