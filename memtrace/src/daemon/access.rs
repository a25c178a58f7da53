//! Who asks, and what they may see: the kernel tells the peer of a Unix socket.

use std::{ffi::CString, os::unix::fs::MetadataExt as _};

use nix::unistd::{Gid, Uid, User, getgrouplist};
use tokio::net::unix::UCred;

/// What a client may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// Everything: root, and members of the socket's group.
    All,
    /// The processes of one user.
    Own(u32),
}

impl Viewer {
    /// What the peer may see, given the socket's group.
    pub fn of(peer: &UCred, group: Option<Gid>) -> Self {
        let (uid, gid) = (peer.uid(), peer.gid());
        let member = |group: Gid| group.as_raw() == gid || groups_of(uid).contains(&group);
        if uid == 0 || group.is_some_and(member) {
            Self::All
        } else {
            Self::Own(uid)
        }
    }

    /// Whether a process is theirs. The owner of its /proc directory is root where the process gained privileges or
    /// is not dumpable, so that nothing is told of those (proc(5)).
    pub fn may_see(self, pid: u32) -> bool {
        match self {
            Self::All => true,
            Self::Own(uid) => {
                std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == uid)
            }
        }
    }
}

/// The groups that a user is a member of by the system's database.
fn groups_of(uid: u32) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else {
        return Vec::new();
    };
    let Ok(name) = CString::new(user.name) else {
        return Vec::new();
    };
    getgrouplist(&name, user.gid).unwrap_or_default()
}
