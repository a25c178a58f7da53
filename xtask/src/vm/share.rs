//! This machine's files for the guest, by virtiofs: served from bind mounts that nobody can write
//! through, in a mount namespace that goes with its last process.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    process::{Child, Command},
};

use anyhow::{Context, Result};

use super::workplace::Workplace;
use crate::workspace::Workspace;

/// Where packages put the server: QEMU's before 8.0, and its own.
const SERVERS: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// The names in the workplace of the socket and of what the server says.
pub const SOCKET: &str = "files.sock";
const LOG: &str = "files.log";

/// The clone may lie on a file system of its own, which the mount of `/` alone does not show.
/// The server is given a socket that listens: for one that it makes itself it would leave a file
/// under /var.
const SCRIPT: &str = r#"
set -e
mkdir root
mount --bind / root
mount --options remount,bind,ro root
mount --bind "$1" "root$1"
mount --options remount,bind,ro "root$1"
exec "$2" --fd=0 -o source="$PWD/root" -o sandbox=chroot -o cache=always -o xattr
"#;

/// The server, ended when dropped.
pub struct Share {
    server: Child,
}

impl Share {
    /// Starts it; the socket in the workplace listens when this returns.
    pub fn start(workspace: &Workspace, place: &Workplace) -> Result<Self> {
        let program = SERVERS.iter().find(|path| Path::new(path).exists());
        let program = program.context("there is no virtiofsd: install the package that has it")?;
        let socket = place.join(SOCKET);
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        let log = File::create(place.join(LOG)).context("cannot write the file server's log")?;

        let mut server = Command::new("setpriv");
        server.args(["--pdeathsig", "KILL", "unshare", "--mount"]);
        server.args(["--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
        server.arg(workspace.root()).arg(program);
        server.current_dir(place.path());
        server.stdin(OwnedFd::from(listener));
        server.stdout(log.try_clone()?).stderr(log);
        let server = server.spawn().context("cannot run setpriv")?;
        Ok(Self { server })
    }

    /// What it said last, if it has failed.
    pub fn complaint(&mut self, place: &Workplace) -> Option<String> {
        let ended = self.server.try_wait().ok().flatten()?;
        let said = fs::read_to_string(place.join(LOG)).unwrap_or_default();
        let last = said.trim().lines().last().unwrap_or("nothing");
        (!ended.success()).then(|| format!("the file server failed ({ended}): {last}"))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
