//! Named counters: what a kernel-side program could not record is counted here, never dropped in silence.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Index into the `COUNTERS` map; the value is the number of times it happened.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in the order of its index.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// The name used in reports (`coverage.lost_by_reason`).
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// No room in the ring buffer for an allocation.
    LostAllocation = "ring_full_allocation",
    /// No room in the ring buffer for a free.
    LostFree = "ring_full_free",
    /// No room in the ring buffer for a reallocation.
    LostReallocation = "ring_full_reallocation",
    /// No room in the ring buffer for a page fault; its latency is in the kernel histogram all the same.
    LostFault = "ring_full_fault",
    /// No room in the ring buffer for a memory system call.
    LostSyscall = "ring_full_syscall",
    /// No room in the ring buffer for a fork, exec, exit or rename.
    LostProcess = "ring_full_process",
    /// No room in the ring buffer for the frames of a stack.
    LostStack = "ring_full_stack",
    /// The map of traced processes was full: a child was not followed.
    TargetsFull = "targets_full",
    /// No room to remember a sampled block: it was not recorded, since its free would not have been.
    SampledFull = "sampled_blocks_full",
    /// A process had no entry in the histogram map: the latency of a fault was not counted.
    HistogramMissing = "fault_histogram_missing",
    /// The map of known stacks was full: frames were sent again.
    StacksFull = "stacks_full",
    /// Two threads share a slot (more threads than slots): a call in flight was dropped.
    SlotCollision = "slot_collision",
    /// A call in flight never returned (longjmp, or a call inside a call).
    CallAbandoned = "call_abandoned",
    /// The caller's address could not be read from the stack.
    CallerUnreadable = "caller_unreadable",
    /// A stack was longer than the walk.
    StackTruncated = "stack_truncated",
}

impl Counter {
    /// Whether a count of this kind means that an event was not recorded.
    pub const fn is_loss(self) -> bool {
        !matches!(
            self,
            Counter::StacksFull
                | Counter::CallAbandoned
                | Counter::CallerUnreadable
                | Counter::StackTruncated
        )
    }
}
