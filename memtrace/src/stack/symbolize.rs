//! From code addresses to names, behind one door.

pub use super::blaze::Blaze;
use crate::event::Symbol;

/// A file mapping of a process, as it was when the address was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// End address, exclusive.
    pub end: u64,
    /// Offset into the file, in bytes.
    pub offset: u64,
    /// Path as the process's mount namespace names it, or a pseudo-path (`[vdso]`).
    pub path: Box<str>,
    /// GNU build ID as recorded, empty where it is not known. A file that has another one is not used.
    pub build_id: Box<[u8]>,
}

/// A process whose addresses are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process<'a> {
    /// Its id while it lives: its files are then opened through /proc, so that those of another
    /// mount namespace and deleted ones are found. Without it, or once it has exited, the paths are
    /// opened as they are.
    pub pid: Option<u32>,
    /// Its file mappings, in any order; where two overlap the later one counts.
    pub mappings: &'a [Mapping],
}

/// One address of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The address.
    pub address: u64,
    /// The address is an instruction that was about to run: the top of a stack, or the frame that a
    /// signal interrupted. All others are return addresses, which point after the call, perhaps
    /// already into another line or function: for these the byte before is looked up.
    pub exact: bool,
}

impl Frame {
    /// The frame that a word of a stack stands for.
    pub fn of(word: u64) -> Self {
        let frame = memtrace_common::frame::Frame::of(word);
        Self {
            address: frame.address,
            exact: frame.is_exact(),
        }
    }

    /// The file address whose line and function are meant.
    pub(super) fn lookup(self) -> u64 {
        if self.exact {
            self.address
        } else {
            self.address.saturating_sub(1)
        }
    }
}

/// Names code addresses.
pub trait Symbolizer {
    /// One symbol for each frame, in order, with the frame's own address. What is not found has
    /// empty `functions`; nothing makes it fail or panic, a damaged file included.
    fn symbolize(&mut self, process: &Process<'_>, frames: &[Frame]) -> Vec<Symbol>;
}
