//! Debian's stock kernel, from its package, without installing it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{quiet, say},
    packages,
    workspace::Workspace,
};

/// What the machine needs before it has a file system, in an order in which each finds what it
/// depends on.
const MODULES: [&str; 10] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "fuse",
    "virtiofs",
    "overlay",
];

/// A kernel that was fetched: an image and the modules that the machine needs.
pub struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// The newest of a series; one that was fetched before is used again.
    pub fn ensure(workspace: &Workspace, series: &str) -> Result<Self> {
        let cache = workspace.vm();
        if let Some(package) = newest(&names_in(&cache), series) {
            return Ok(Self {
                directory: cache.join(package),
            });
        }
        let known = packages::known("^linux-image-[0-9].*-cloud-amd64-unsigned$")?;
        let Some(package) = newest(&known, series) else {
            bail!(
                "apt-cache knows no linux-image-{series}*-cloud-amd64-unsigned: choose another \
                 series, or add the Debian suite that has it"
            );
        };
        say(&format!("fetching {package}, for the virtual machine"));
        let unpacked = packages::unpack(package, &cache)?;
        let directory = cache.join(package);
        let kept = keep(unpacked.path(), &directory);
        kept.with_context(|| format!("cannot take the kernel out of {package}"))?;
        Ok(Self { directory })
    }

    /// The package's name.
    pub fn name(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What is booted.
    pub fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The modules, in the order to load them; the others are built into the image.
    pub fn modules(&self) -> impl Iterator<Item = PathBuf> {
        MODULES
            .iter()
            .map(|name| self.directory.join(module(name)))
            .filter(|path| path.exists())
    }
}

fn module(name: &str) -> String {
    format!("{name}.ko")
}

/// Moves what is needed out of the unpacked package; the directory appears when it is whole.
fn keep(unpacked: &Path, directory: &Path) -> Result<()> {
    let whole = unpacked.join("kept");
    fs::create_dir_all(&whole)?;
    let image = files_under(&unpacked.join("boot"))?
        .into_iter()
        .find(|path| has_name(path, |name| name.starts_with("vmlinuz-")));
    fs::rename(image.context("no vmlinuz in it")?, whole.join("vmlinuz"))?;
    let files = files_under(&unpacked.join("lib/modules"))?;
    let named = |wanted: &str| {
        files
            .iter()
            .find(|path| has_name(path, |name| name == wanted))
    };
    let builtin = named("modules.builtin").context("no modules.builtin in it")?;
    let builtin = fs::read_to_string(builtin)?;
    for name in MODULES.map(module) {
        let kept = whole.join(&name);
        if let Some(path) = named(&name) {
            fs::rename(path, kept)?;
        } else if let Some(path) = named(&format!("{name}.xz")) {
            let mut decompress = Command::new("xz");
            decompress.args(["--decompress", "--stdout"]).arg(path);
            decompress.stdout(File::create(kept)?);
            quiet(&mut decompress, "decompressing a module")?;
        } else if !builtin
            .lines()
            .any(|line| line.ends_with(&format!("/{name}")))
        {
            bail!("no {name} in it");
        }
    }
    fs::rename(&whole, directory)?;
    Ok(())
}

fn has_name(path: &Path, wanted: impl Fn(&str) -> bool) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(wanted)
}

fn files_under(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The newest package of a series, `6.1` being none of `6.12`.
fn newest<'a>(packages: &'a [String], series: &str) -> Option<&'a str> {
    let prefix = format!("linux-image-{series}.");
    packages
        .iter()
        .filter(|package| package.starts_with(&prefix))
        .max_by_key(|package| numbers(package))
        .map(String::as_str)
}

/// The numbers of a name in their order: `6.1.0-9` is older than `6.1.0-56`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_found_by_its_numbers() {
        let packages = [
            "linux-image-6.1.0-9-cloud-amd64-unsigned",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.12.9+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            "run-12",
        ]
        .map(str::to_owned);
        assert_eq!(newest(&packages, "6.1"), Some(packages[1].as_str()));
        assert_eq!(newest(&packages, "6.12"), Some(packages[3].as_str()));
        assert_eq!(newest(&packages, "5.10"), None);
    }
}
