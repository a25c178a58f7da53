//! Which processes are traced.

/// Value of the `TARGETS` map, keyed by thread-group id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// When tracing of this process began, or when it was forked: together with the pid its identity.
    pub start_ns: u64,
    /// [`FOLLOW`] and the like.
    pub flags: u64,
    /// How often its executable mappings changed: [`crate::unwind::REMOVALS`] above, additions below.
    pub code_changes: u64,
}

/// Children of this process are traced too.
pub const FOLLOW: u64 = 1;

/// The kernel took this process's own events away when it gained privileges at an exec, or read a program that
/// it may not read: its faults are counted where they start, and its heap is not seen.
pub const UNFOLLOWED: u64 = 2;

/// The process was forked and runs its parent's program: blocks of its heap are known under the parent's pid.
pub const INHERITED_HEAP: u64 = 4;

/// Which processes are traced beside those that are told one by one, decided when the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Id of a cgroup of the unified hierarchy (the inode of its directory).
    pub cgroup: u64,
    /// How far below the root of the hierarchy it lies.
    pub level: u32,
    /// [`AREA_NONE`], [`AREA_CGROUP`] or [`AREA_MACHINE`].
    pub kind: u32,
}

/// No process but those that are told.
pub const AREA_NONE: u32 = 0;
/// Every process in a cgroup or below it.
pub const AREA_CGROUP: u32 = 1;
/// Every process.
pub const AREA_MACHINE: u32 = 2;

impl Area {
    /// Only what is told.
    pub const NONE: Self = Self {
        cgroup: 0,
        level: 0,
        kind: AREA_NONE,
    };
}

/// Kernel structure offsets, read from BTF when the programs are loaded. `u32::MAX`: not known on this kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.pid`: the thread id.
    pub task_pid: u32,
    /// `task_struct.thread_info.status`
    pub task_status: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `linux_binprm.filename`
    pub binprm_filename: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `task_struct.min_flt`
    pub task_min_flt: u32,
    /// `task_struct.maj_flt`
    pub task_maj_flt: u32,
    /// `signal_struct.min_flt`: of threads that have ended.
    pub signal_min_flt: u32,
    /// `signal_struct.maj_flt`
    pub signal_maj_flt: u32,
    /// `mm_struct.flags`
    pub mm_flags: u32,
    /// `mm_struct.rss_stat`
    pub mm_rss_stat: u32,
    /// Bytes between the counters of two members of `rss_stat` (`percpu_counter` since 6.2, `atomic_long_t` before).
    pub rss_stride: u32,
    /// `percpu_counter.count` within a member.
    pub rss_count: u32,
    /// `percpu_counter.counters` within a member, or [`UNKNOWN`] where the counter is not per CPU.
    pub rss_percpu: u32,
    /// `task_struct.rss_stat.count`, by member, before 6.2: what a thread has not added to its address space's yet.
    pub task_rss_count: u32,
    /// `mm_struct.total_vm`
    pub mm_total_vm: u32,
    /// `mm_struct.hiwater_rss`
    pub mm_hiwater_rss: u32,
    /// `mm_struct.hiwater_vm`
    pub mm_hiwater_vm: u32,
    /// `mm_struct.arg_start`; `arg_end` follows it.
    pub mm_arg_start: u32,
    /// `mm_struct.brk`
    pub mm_brk: u32,
    /// `mm_struct.start_brk`
    pub mm_start_brk: u32,
    /// `mm_struct.start_stack`
    pub mm_start_stack: u32,
    /// `mm_struct.uprobes_state.xol_area`
    pub mm_xol_area: u32,
    /// `xol_area.vaddr`
    pub xol_area_address: u32,
    /// `vm_area_struct.vm_start`
    pub vma_start: u32,
    /// `vm_area_struct.vm_end`
    pub vma_end: u32,
    /// `vm_area_struct.vm_flags`
    pub vma_flags: u32,
    /// `vm_area_struct.vm_pgoff`
    pub vma_page_offset: u32,
    /// `vm_area_struct.vm_file`
    pub vma_file: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_ino`
    pub inode_number: u32,
    /// `inode.i_sb`
    pub inode_super_block: u32,
    /// `inode.i_size`
    pub inode_size: u32,
    /// `super_block.s_dev`
    pub super_block_device: u32,
    /// `inode.i_mtime_sec`, or `i_mtime.tv_sec` before 6.11.
    pub inode_modified_s: u32,
    /// `inode.i_mtime_nsec`, or `i_mtime.tv_nsec` before 6.11.
    pub inode_modified_ns: u32,
}

impl KernelOffsets {
    /// Nothing is known.
    pub const NONE: Self = Self {
        task_mm: UNKNOWN,
        task_pid: UNKNOWN,
        task_status: UNKNOWN,
        task_flags: UNKNOWN,
        task_comm: UNKNOWN,
        binprm_filename: UNKNOWN,
        task_signal: UNKNOWN,
        task_exit_code: UNKNOWN,
        signal_live: UNKNOWN,
        task_min_flt: UNKNOWN,
        task_maj_flt: UNKNOWN,
        signal_min_flt: UNKNOWN,
        signal_maj_flt: UNKNOWN,
        mm_flags: UNKNOWN,
        mm_rss_stat: UNKNOWN,
        rss_stride: UNKNOWN,
        rss_count: UNKNOWN,
        rss_percpu: UNKNOWN,
        task_rss_count: UNKNOWN,
        mm_total_vm: UNKNOWN,
        mm_hiwater_rss: UNKNOWN,
        mm_hiwater_vm: UNKNOWN,
        mm_arg_start: UNKNOWN,
        mm_brk: UNKNOWN,
        mm_start_brk: UNKNOWN,
        mm_start_stack: UNKNOWN,
        mm_xol_area: UNKNOWN,
        xol_area_address: UNKNOWN,
        vma_start: UNKNOWN,
        vma_end: UNKNOWN,
        vma_flags: UNKNOWN,
        vma_page_offset: UNKNOWN,
        vma_file: UNKNOWN,
        file_inode: UNKNOWN,
        inode_number: UNKNOWN,
        inode_super_block: UNKNOWN,
        inode_size: UNKNOWN,
        super_block_device: UNKNOWN,
        inode_modified_s: UNKNOWN,
        inode_modified_ns: UNKNOWN,
    };
}

/// An offset that this kernel's BTF does not tell.
pub const UNKNOWN: u32 = u32::MAX;
