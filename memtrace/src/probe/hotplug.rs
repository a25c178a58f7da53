//! CPUs that go and come, as the kernel announces them: one that went and came back between two looks has the same
//! number, and its events are dead.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};

/// Messages of the kernel itself, not of udev: UEVENT_GROUP of lib/kobject_uevent.c.
const KERNEL: u32 = 1;

/// Larger than any message: UEVENT_BUFFER_SIZE, include/linux/kobject.h, and the header line.
const MESSAGE: usize = 4096;

/// The kernel's announcements of devices.
pub struct Hotplug {
    socket: OwnedFd,
}

impl Hotplug {
    /// Listens from now on; `None` where nothing can be heard (another user namespace).
    pub fn listen() -> Option<Self> {
        let open = || -> nix::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkKObjectUEvent;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
            Ok(socket)
        };
        let opened = open().inspect_err(|error| {
            log::debug!("CPUs that go and come at once are not noticed: {error}");
        });
        Some(Self {
            socket: opened.ok()?,
        })
    }

    /// The CPUs that went or came since the last call; `None` where announcements were lost, so that any may have.
    pub fn changed(&self) -> Option<Vec<u32>> {
        let mut cpus = Vec::new();
        let mut message = [0; MESSAGE];
        loop {
            match recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(length) => cpus.extend(cpu_of(&message[..length])),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return None,
                Err(_) => return Some(cpus),
            }
        }
    }
}

/// The CPU that a message is about: its first string is `online@/devices/system/cpu/cpu1`.
fn cpu_of(message: &[u8]) -> Option<u32> {
    let end = message.iter().position(|&byte| byte == 0)?;
    let header = str::from_utf8(&message[..end]).ok()?;
    let (action, device) = header.split_once('@')?;
    let number = device.strip_prefix("/devices/system/cpu/cpu")?;
    let number = number.parse().ok()?;
    matches!(action, "online" | "offline").then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_told_from_other_devices() {
        let told = |text: &str| cpu_of(text.as_bytes());
        assert_eq!(
            told("offline@/devices/system/cpu/cpu12\0ACTION=offline\0"),
            Some(12)
        );
        assert_eq!(told("online@/devices/system/cpu/cpu1\0"), Some(1));
        for other in [
            "add@/devices/system/cpu/cpu1\0",
            "online@/devices/system/memory/memory1\0",
            "online@/devices/system/cpu/cpu1/cache\0",
            "online@/devices/system/cpu/cpu1",
            "",
        ] {
            assert_eq!(told(other), None, "{other:?}");
        }
    }
}
