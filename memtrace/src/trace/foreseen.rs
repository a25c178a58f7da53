//! Programs that a command will run, as far as its words tell: probed before they start, they are counted from their
//! first instruction.
//!
//! `env`, `timeout`, `xargs` and `sh -c` name them in their arguments, scripts of whatever language in their text.
//! A guess that is wrong costs a probe in a file that nobody maps.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::File,
    io::Read as _,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use super::launch::resolve;

/// Programs at most.
const PROGRAMS: usize = 64;
/// Different words that are looked for at most: each is looked for in every directory of PATH.
const WORDS: usize = 1024;
/// Bytes of a script that are read.
const SCRIPT: u64 = 64 << 10;

/// The programs that the words of a command name, its own first word apart: in the arguments, and in the scripts
/// among its words.
pub fn programs(command: &[OsString]) -> Vec<PathBuf> {
    let mut search = Search::default();
    for argument in command.iter().skip(1) {
        search.text(argument.as_bytes(), None);
    }
    let own = command.first().and_then(|word| resolve(word).ok());
    for path in own.into_iter().chain(std::mem::take(&mut search.files)) {
        if let Some(text) = script(&path) {
            search.text(&text, path.parent());
        }
    }
    search.found
}

#[derive(Default)]
struct Search {
    seen: HashSet<Vec<u8>>,
    found: Vec<PathBuf>,
    /// What an argument names as a whole, executable or not.
    files: Vec<PathBuf>,
}

impl Search {
    /// Looks for the words of a text; of a script, beside it too, since many name their own directory by a variable.
    fn text(&mut self, text: &[u8], beside: Option<&Path>) {
        if beside.is_none() && text.len() < libc::PATH_MAX as usize {
            let path = Path::new(OsStr::from_bytes(text));
            if path.is_file() {
                self.files.push(path.to_owned());
            }
        }
        let apart = |byte: &u8| byte.is_ascii_whitespace() || b"\"'`$&|;,()<>[]{}=".contains(byte);
        for word in text.split(apart).filter(|word| !word.is_empty()) {
            if self.found.len() >= PROGRAMS || self.seen.len() >= WORDS {
                return;
            }
            if !self.seen.insert(word.to_owned()) {
                continue;
            }
            let named = resolve(OsStr::from_bytes(word)).ok();
            let near = || {
                let name = word.rsplit(|&byte| byte == b'/').next()?;
                let path = beside?.join(OsStr::from_bytes(name));
                resolve(path.as_os_str()).ok()
            };
            if let Some(path) = named.or_else(near)
                && path.is_file()
                && !self.found.contains(&path)
            {
                self.found.push(path);
            }
        }
    }
}

/// The text of a file that says what runs it, as far as it is read.
fn script(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)
        .ok()?
        .take(SCRIPT)
        .read_to_end(&mut text)
        .ok()?;
    text.starts_with(b"#!").then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn found(words: &[&str]) -> Vec<PathBuf> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        programs(&words)
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn arguments_and_what_a_shell_is_told_name_programs() {
        let script = "x=$(/bin/ls /tmp)&&/bin/cat;/no/such/program '/bin/sh' /bin/cat";
        assert_eq!(
            found(&["sh", "-c", script]),
            paths(&["/bin/ls", "/bin/cat", "/bin/sh"])
        );
        assert_eq!(
            found(&["env", "A=/bin/sh", "5", "/bin/cat", "/dev/null"]),
            paths(&["/bin/sh", "/bin/cat"])
        );
    }

    #[test]
    fn scripts_name_programs_by_path_and_beside_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8], mode| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let own = file("own", b"\x7fELF\0", 0o755);
        file("data", b"\x7fELF\0", 0o644);
        let text = b"#!/bin/sh\nd=${0%/*}\n\"$d/own\" $d/data ../own/nothing\n/bin/cat";
        let (run, read) = (file("run", text, 0o755), file("read", text, 0o644));
        let expected = [own, PathBuf::from("/bin/cat")];
        let run = run.to_str().unwrap();
        assert_eq!(found(&[run]), expected);
        assert_eq!(found(&["sh", read.to_str().unwrap()]), expected);
        let data = file("words", b"/bin/cat", 0o644);
        assert_eq!(found(&["/bin/true", data.to_str().unwrap()]), paths(&[]));
    }

    #[test]
    fn a_long_text_is_looked_at_in_part() {
        let many: Vec<OsString> = (0..3 * WORDS)
            .map(|n| format!("no-such-{n}").into())
            .collect();
        let mut search = Search::default();
        many.iter()
            .for_each(|word| search.text(word.as_bytes(), None));
        assert_eq!(search.seen.len(), WORDS);
    }
}
