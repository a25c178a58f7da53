//! One daemon at a time: its directories, and the lock that the kernel takes away with the process.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};

use super::{Config, DaemonError};

/// The lock; held while this lives.
pub struct Instance {
    _lock: Flock<File>,
}

impl Instance {
    /// Makes the directories and takes the lock.
    pub fn claim(config: &Config) -> Result<Self, DaemonError> {
        // Users who may ask must reach the socket; the history is nobody else's.
        make(&config.runtime_directory, 0o755)?;
        make(&config.state_directory, 0o700)?;
        let path = config.runtime_directory.join("lock");
        let failed = |source| DaemonError::File {
            what: "lock",
            path: path.clone(),
            source,
        };
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let pid = format!("{}\n", std::process::id());
                lock.set_len(0)
                    .and_then(|()| lock.write_all(pid.as_bytes()))
                    .map_err(failed)?;
                Ok(Self { _lock: lock })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                let pid = pid.trim().to_owned();
                Err(DaemonError::Running { lock: path, pid })
            }
            Err((_, error)) => Err(failed(io::Error::from(error))),
        }
    }
}

fn make(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    // The mode of a new directory is cut by the umask.
    let set = made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)));
    set.map_err(|source| DaemonError::File {
        what: "make the directory",
        path: path.to_owned(),
        source,
    })
}
