//! Files that code is mapped from, as the kernel tells them apart.

/// Key of the map `CODE_FILES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Number of the inode.
    pub inode: u64,
    /// The file system's device, as `super_block.s_dev` has it.
    pub device: u64,
}

impl FileKey {
    /// A file by what stat(2) says of it: not below an overlay, nor on btrfs.
    pub const fn new(inode: u64, major: u64, minor: u64) -> Self {
        // MKDEV(), include/linux/kdev_t.h
        Self {
            inode,
            device: major << 20 | minor,
        }
    }
}

/// What the program `mapped_file` found out.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ToldFile {
    /// The file's key, where it was found.
    pub key: FileKey,
    /// [`Answer`] as a number.
    pub answer: u64,
}

/// Whether a file was found.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No file is mapped there, or the kernel's structures are not known.
    NotKnown = 0,
    /// The key is told.
    Found = 1,
    /// Another thread is changing the mappings.
    Busy = 2,
}

/// The unwind rules of a file, and which state of it they were compiled from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRules {
    /// Size of the file.
    pub bytes: u64,
    /// Seconds of its last change.
    pub modified_s: u64,
    /// Nanoseconds of it.
    pub modified_ns: u32,
    /// First row of its rules.
    pub first_row: u32,
    /// How many there are.
    pub rows: u32,
    /// 0
    pub reserved: u32,
}

const _: () = assert!(size_of::<FileKey>() == 16);
const _: () = assert!(size_of::<FileRules>() == 32);
