//! The Debian package: the release binary, its unit, its configuration, and what watches it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Output},
    command::{answer, quiet, say},
    workspace::Workspace,
};

/// Files of the clone, where they go, and with which mode.
const FILES: [(&str, &str, u32); 10] = [
    ("packaging/memtrace.toml", "etc/memtrace.toml", 0o644),
    (
        "packaging/systemd/memtrace.service",
        "usr/lib/systemd/system/memtrace.service",
        0o644,
    ),
    (
        "packaging/prometheus/memtrace.rules.yml",
        "usr/share/memtrace/prometheus/memtrace.rules.yml",
        0o644,
    ),
    (
        "packaging/grafana/memtrace.json",
        "usr/share/memtrace/grafana/memtrace.json",
        0o644,
    ),
    ("README.md", "usr/share/doc/memtrace/README.md", 0o644),
    (
        "docs/METRICS.md",
        "usr/share/doc/memtrace/METRICS.md",
        0o644,
    ),
    ("LICENSE-MIT", "usr/share/doc/memtrace/copyright", 0o644),
    ("packaging/debian/postinst", "DEBIAN/postinst", 0o755),
    ("packaging/debian/prerm", "DEBIAN/prerm", 0o755),
    ("packaging/debian/postrm", "DEBIAN/postrm", 0o755),
];

/// What tells one package of the same files from another.
struct Edition<'a> {
    version: &'a str,
    /// As dpkg-deb names it.
    compressor: &'a str,
}

/// Builds memtrace and packs it into target/package.
pub fn debian(workspace: &Workspace) -> Result<()> {
    build::memtrace(workspace, Output::Shown)?;
    let edition = Edition {
        version: VERSION,
        compressor: "xz",
    };
    let binary = workspace.memtrace();
    let package = pack(workspace, &binary, &workspace.package(), &edition)?;
    say(&format!("packed {}", package.display()));
    Ok(())
}

/// The package, and the same under a higher version, which upgrades it; large, and packed at
/// once. memtrace is built already.
pub fn with_its_upgrade(workspace: &Workspace, into: &Path) -> Result<[PathBuf; 2]> {
    let next = format!("{VERSION}+next");
    let packed = |version| {
        let compressor = "none";
        let edition = Edition {
            version,
            compressor,
        };
        pack(workspace, &workspace.memtrace(), into, &edition)
    };
    Ok([packed(VERSION)?, packed(&next)?])
}

/// Packs a binary with what belongs to it; the result is the package's path.
fn pack(workspace: &Workspace, binary: &Path, into: &Path, edition: &Edition) -> Result<PathBuf> {
    let version = edition.version;
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    let staging = tempfile::tempdir_in(into).context("cannot make a directory to pack")?;
    let root = staging.path();
    for (from, to, mode) in FILES {
        put(&workspace.root().join(from), &root.join(to), mode)?;
    }
    let program = root.join("usr/bin/memtrace");
    put(binary, &program, 0o755)?;
    let mut strip = Command::new("strip");
    quiet(
        strip.arg("--strip-debug").arg(&program),
        "stripping memtrace",
    )?;
    write(&root.join("DEBIAN/conffiles"), "/etc/memtrace.toml\n")?;
    write(&root.join("DEBIAN/control"), &control(version))?;
    fs::set_permissions(root, Permissions::from_mode(0o755))
        .context("cannot open the staging directory")?;
    let package = into.join(format!("memtrace_{version}_amd64.deb"));
    let mut pack = Command::new("dpkg-deb");
    pack.arg("-Z").arg(edition.compressor);
    pack.args(["--build", "--root-owner-group"]);
    quiet(pack.arg(root).arg(&package), "packing")?;
    Ok(package)
}

/// The workspace has one version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The libraries must be no older than those that the binary was linked with.
fn control(version: &str) -> String {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Version}", "libc6"]);
    let libc = answer(&mut query).unwrap_or_default();
    let upstream = libc.split('-').next().unwrap_or_default();
    let libc = match upstream {
        "" => "libc6".to_owned(),
        upstream => format!("libc6 (>= {upstream})"),
    };
    format!(
        "Package: memtrace\nVersion: {version}\nArchitecture: amd64\nMaintainer: The memtrace maintainers\n\
         Section: utils\nPriority: optional\nDepends: {libc}, libgcc-s1\n\
         Description: system memory tracer: lazy commit, leaks and page-fault latency\n \
         Traces commands, running processes, or every process of the machine, by eBPF:\n \
         reserved against touched memory, leaks by stack, latencies of page faults.\n \
         The service is not enabled: systemctl enable --now memtrace.\n"
    )
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let failed = || format!("cannot copy {} to {}", from.display(), to.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(failed)?;
    }
    fs::copy(from, to).with_context(failed)?;
    fs::set_permissions(to, Permissions::from_mode(mode)).with_context(failed)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_has_everything_in_its_place() -> Result<()> {
        let into = tempfile::tempdir()?;
        let workspace = Workspace::of_this_xtask();
        let binary = std::env::current_exe()?;
        let edition = Edition {
            version: "1.2+next",
            compressor: "none",
        };
        let package = pack(&workspace, &binary, into.path(), &edition)?;
        let list = answer(Command::new("dpkg-deb").arg("--contents").arg(&package))
            .context("dpkg-deb lists nothing")?;
        let placed: Vec<&str> = list
            .lines()
            .filter(|line| line.starts_with("-rw") && line.contains(" root/root "))
            .filter_map(|line| line.split_whitespace().last())
            .collect();
        for (_, path, _) in FILES {
            let listed = placed.contains(&format!("./{path}").as_str());
            assert_eq!(listed, !path.starts_with("DEBIAN/"), "{path}: {list}");
        }
        assert!(list.contains("-rwxr-xr-x root/root") && placed.contains(&"./usr/bin/memtrace"));
        let mut field = Command::new("dpkg-deb");
        field
            .arg("--field")
            .arg(&package)
            .args(["Version", "Depends"]);
        let fields = answer(&mut field).context("dpkg-deb shows no field")?;
        assert!(
            fields.contains("Version: 1.2+next\n") && fields.contains("libc6 (>= "),
            "{fields}"
        );
        Ok(())
    }
}
