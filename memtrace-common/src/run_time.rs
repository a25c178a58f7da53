//! What the programs take of the machine, by a sample of their runs.

/// Each run is in the sample with one chance in so many.
pub const ONE_IN: u32 = 64;

/// Index into the `RUN_TIMES` map: what led to the run.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A tracepoint or a software event.
    Kernel,
    /// A uprobe or uretprobe: a trap.
    User,
}

impl Hook {
    /// Every one, in the order of its index.
    pub const ALL: [Hook; 2] = [Hook::Kernel, Hook::User];
}

/// The runs of the sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// How many.
    pub runs: u64,
    /// What they took, in nanoseconds, without what it takes to measure it.
    pub ns: u64,
}
