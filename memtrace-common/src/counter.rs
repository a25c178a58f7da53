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
    /// No room in the ring buffer for a page that is in the sample of growth.
    LostTouch = "ring_full_growth",
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
    /// Two stacks had the same hash; the later one got another id.
    StackCollision = "stack_hash_collision",
    /// A stack ended in code without unwind rules, where the frame pointer led nowhere.
    UnwindNoRules = "unwind_no_rules",
    /// A stack could not be read.
    UnwindUnreadable = "unwind_unreadable",
    /// A stack ended in code whose unwind rules are not supported.
    UnwindUnsupported = "unwind_unsupported_rule",
    /// A stack ended at a return address in no executable mapping.
    UnwindNoMapping = "unwind_no_mapping",
    /// A stack ended since its stack pointer would not rise.
    UnwindStackPointer = "unwind_stack_pointer",
    /// A stack was copied and walked by the user side: the process had just mapped code.
    UnwindCopied = "unwind_copied",
    /// A stack in code just mapped was cut to the direct caller: the ring buffer had no room for a copy.
    UnwindNotCopied = "unwind_not_copied",
    /// A stack was cut to the direct caller: all scratch memory of this CPU was in use.
    UnwindScratchBusy = "unwind_scratch_busy",
    /// A child's mappings were not copied from its parent: its first stacks are copied.
    UnwindMappingsFull = "unwind_mappings_full",
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
                | Counter::StackCollision
                | Counter::UnwindNoRules
                | Counter::UnwindUnreadable
                | Counter::UnwindUnsupported
                | Counter::UnwindNoMapping
                | Counter::UnwindStackPointer
                | Counter::UnwindCopied
                | Counter::UnwindNotCopied
                | Counter::UnwindScratchBusy
                | Counter::UnwindMappingsFull
        )
    }
}
