//! Files that are written: opened before anything is traced, changed only when there is something to write.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

/// A file to write to, with what was in it before. One that was not there before goes away again unless it is
/// kept: a failed command leaves things as they were.
pub struct Target {
    path: PathBuf,
    file: Option<File>,
    created: bool,
}

impl Target {
    /// Opens the file, once: a pipe has a reader at its other end that sees every opening.
    pub fn open(path: &Path) -> io::Result<Self> {
        let created = matches!(
            fs::symlink_metadata(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound
        );
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            created,
        })
    }

    /// As it was typed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is, where that matters.
    pub fn used(&self, option: &'static str) -> Option<Used> {
        Used::new(option, &self.file.as_ref()?.metadata().ok()?, true)
    }

    /// The open file, to whom writes to it.
    pub fn file(&mut self) -> io::Result<File> {
        self.file.take().ok_or(io::ErrorKind::NotFound.into())
    }

    /// The open file without what was in it before.
    pub fn empty(mut self) -> io::Result<File> {
        let file = self.file()?;
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        self.keep();
        Ok(file)
    }

    /// The file stays.
    pub fn keep(mut self) {
        self.created = false;
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.created
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("{} stays: {error}", self.path.display());
        }
    }
}

/// A file that the command line names.
pub struct Used {
    option: &'static str,
    device: u64,
    inode: u64,
    written: bool,
}

impl Used {
    /// A file that is read.
    pub fn read(option: &'static str, path: &Path) -> Option<Self> {
        Self::new(option, &fs::metadata(path).ok()?, false)
    }

    /// Devices such as /dev/null may be named as often as one likes.
    fn new(option: &'static str, metadata: &Metadata, written: bool) -> Option<Self> {
        let kind = metadata.file_type();
        (kind.is_file() || kind.is_fifo()).then(|| Self {
            option,
            device: metadata.dev(),
            inode: metadata.ino(),
            written,
        })
    }

    fn is(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// No file may be written that is also something else; the error names the two options.
pub fn distinct(used: &[Used]) -> Result<(), String> {
    for (at, one) in used.iter().enumerate() {
        for other in used.iter().take(at) {
            if (one.written || other.written) && one.is(other) {
                let (other, one) = (other.option, one.option);
                return Err(format!("{other} and {one} name the same file"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_changes_only_when_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        fs::write(&old, "before").unwrap();
        drop(Target::open(&old).unwrap());
        drop(Target::open(&new).unwrap());
        assert_eq!(fs::read_to_string(&old).unwrap(), "before");
        assert!(!new.exists());
        drop(Target::open(&old).unwrap().empty().unwrap());
        drop(Target::open(&new).unwrap().empty().unwrap());
        assert_eq!(fs::read_to_string(&old).unwrap(), "");
        assert!(new.exists());
    }

    #[test]
    fn the_same_file_by_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let (one, link) = (directory.path().join("one"), directory.path().join("link"));
        fs::write(&one, "").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let written = |path| Target::open(path).unwrap().used("--report-file");
        let read = |path| Used::read("--from", path);
        let both =
            |used: [Option<Used>; 2]| distinct(&used.into_iter().flatten().collect::<Vec<_>>());
        assert_eq!(
            both([read(&one), written(&link)]).unwrap_err(),
            "--from and --report-file name the same file"
        );
        assert!(both([read(&one), read(&link)]).is_ok());
        let null = Path::new("/dev/null");
        assert!(both([written(null), written(null)]).is_ok());
    }
}
