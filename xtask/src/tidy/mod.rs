//! The architecture rules as code.
//!
//! Rules look at tokens, not at text: what a comment or a string says is not a dependency. Only
//! the rule on markers reads everything.

mod rules;
mod source;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// A file of the clone, with its path as written in rules: relative, with slashes.
pub struct File {
    path: String,
    text: String,
}

/// A rule broken somewhere.
#[derive(Debug, PartialEq)]
struct Violation {
    path: String,
    line: usize,
    what: String,
    reason: &'static str,
}

/// Checks the clone and prints every violation with the rule's reason.
pub fn check(workspace: &Workspace) -> Result<()> {
    let files = read_tree(workspace.root()).context("cannot read the clone")?;
    let violations = rules::check(&files);
    for Violation {
        path,
        line,
        what,
        reason,
    } in &violations
    {
        eprintln!("{path}:{line}: {what}: {reason}");
    }
    match violations.len() {
        0 => Ok(()),
        1 => bail!("tidy: 1 rule broken"),
        count => bail!("tidy: {count} rules broken"),
    }
}

fn read_tree(root: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let name = entry.file_name();
            let path = directory.join(&name);
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if name != "target" && name != ".git" {
                    directories.push(path);
                }
            } else if kind.is_file() && is_ours(&path) {
                let text = fs::read(root.join(&path))?;
                files.push(File {
                    path: path.to_string_lossy().into_owned(),
                    text: String::from_utf8_lossy(&text).into_owned(),
                });
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

/// Text that people write: no lock file, no licence, no test data.
fn is_ours(path: &Path) -> bool {
    let known = [
        "rs", "toml", "md", "sh", "c", "cc", "cpp", "h", "py", "go", "html", "js", "css",
    ];
    path == Path::new(".ci/run")
        || path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|e| known.contains(&e))
}
