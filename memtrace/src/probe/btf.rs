//! Structure offsets of the running kernel, from its BTF.
//!
//! rustc emits no CO-RE relocations, so the few fields that no tracepoint tells are looked up here and
//! handed to the programs when they are loaded.

use btf_rs::{Btf, Type};
use memtrace_common::target::{KernelOffsets, UNKNOWN};

/// Where the kernel shows its BTF.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The offsets, each [`UNKNOWN`] where the kernel has no such field, or no BTF.
pub fn kernel_offsets() -> KernelOffsets {
    // Read whole first: from the file, the parser asks the kernel for its place at each of 100,000 types.
    let btf = std::fs::read(KERNEL_BTF)
        .map_err(|error| error.to_string())
        .and_then(|bytes| Btf::from_bytes(&bytes).map_err(|error| error.to_string()));
    match btf {
        Ok(btf) => offsets(&btf),
        Err(error) => {
            log::warn!("{KERNEL_BTF}: {error}; exact totals at exit are not measured");
            KernelOffsets::NONE
        }
    }
}

fn offsets(btf: &Btf) -> KernelOffsets {
    let offset = |structure: &str, field: &str| {
        member(btf, structure, field).map_or(UNKNOWN, |member| member.offset)
    };
    let within = |outer: (&str, &str), inner: (&str, &str)| match (
        offset(outer.0, outer.1),
        offset(inner.0, inner.1),
    ) {
        (UNKNOWN, _) | (_, UNKNOWN) => UNKNOWN,
        (outer, inner) => outer + inner,
    };
    let (inode_modified_s, inode_modified_ns) = inode_modified(btf);
    let rss = member(btf, "mm_struct", "rss_stat");
    let counter = rss.as_ref().and_then(|rss| rss_layout(btf, rss));
    let (rss_stride, rss_count, rss_percpu) = counter.unwrap_or((UNKNOWN, UNKNOWN, UNKNOWN));
    KernelOffsets {
        task_mm: offset("task_struct", "mm"),
        task_pid: offset("task_struct", "pid"),
        task_status: within(("task_struct", "thread_info"), ("thread_info", "status")),
        task_flags: offset("task_struct", "flags"),
        task_comm: offset("task_struct", "comm"),
        binprm_filename: offset("linux_binprm", "filename"),
        task_signal: offset("task_struct", "signal"),
        task_exit_code: offset("task_struct", "exit_code"),
        signal_live: offset("signal_struct", "live"),
        task_min_flt: offset("task_struct", "min_flt"),
        task_maj_flt: offset("task_struct", "maj_flt"),
        signal_min_flt: offset("signal_struct", "min_flt"),
        signal_maj_flt: offset("signal_struct", "maj_flt"),
        mm_flags: offset("mm_struct", "flags"),
        mm_rss_stat: if counter.is_some() {
            rss.map_or(UNKNOWN, |rss| rss.offset)
        } else {
            UNKNOWN
        },
        rss_stride,
        rss_count,
        rss_percpu,
        task_rss_count: within(("task_struct", "rss_stat"), ("task_rss_stat", "count")),
        mm_total_vm: offset("mm_struct", "total_vm"),
        mm_hiwater_rss: offset("mm_struct", "hiwater_rss"),
        mm_hiwater_vm: offset("mm_struct", "hiwater_vm"),
        mm_arg_start: offset("mm_struct", "arg_start"),
        mm_brk: offset("mm_struct", "brk"),
        mm_start_brk: offset("mm_struct", "start_brk"),
        mm_start_stack: offset("mm_struct", "start_stack"),
        mm_xol_area: within(
            ("mm_struct", "uprobes_state"),
            ("uprobes_state", "xol_area"),
        ),
        xol_area_address: offset("xol_area", "vaddr"),
        vma_start: offset("vm_area_struct", "vm_start"),
        vma_end: offset("vm_area_struct", "vm_end"),
        vma_flags: offset("vm_area_struct", "vm_flags"),
        vma_page_offset: offset("vm_area_struct", "vm_pgoff"),
        vma_file: offset("vm_area_struct", "vm_file"),
        file_inode: offset("file", "f_inode"),
        inode_number: offset("inode", "i_ino"),
        inode_super_block: offset("inode", "i_sb"),
        inode_size: offset("inode", "i_size"),
        super_block_device: offset("super_block", "s_dev"),
        inode_modified_s,
        inode_modified_ns,
    }
}

/// Where an inode's time of change is: `i_mtime_sec` and `i_mtime_nsec` since 6.11, a `timespec64` before.
fn inode_modified(btf: &Btf) -> (u32, u32) {
    let offset = |field| member(btf, "inode", field).map(|member| member.offset);
    let time = offset("i_mtime").map(|time| (time, time + 8));
    let since_6_11 = offset("i_mtime_sec").zip(offset("i_mtime_nsec"));
    since_6_11.or(time).unwrap_or((UNKNOWN, UNKNOWN))
}

/// A field found in a structure.
struct Member {
    /// In bytes, from the start of the named structure.
    offset: u32,
    type_id: u32,
}

/// Size, offset of the count and of the per-CPU parts of one member of `mm->rss_stat`: an array of
/// `percpu_counter` since 6.2, a `struct mm_rss_stat` of `atomic_long_t` before.
fn rss_layout(btf: &Btf, rss: &Member) -> Option<(u32, u32, u32)> {
    match btf.resolve_type_by_id(rss.type_id).ok()? {
        Type::Array(_) => {
            let counter = structure(btf, "percpu_counter")?;
            let Type::Struct(layout) = &counter else {
                return None;
            };
            let count = member(btf, "percpu_counter", "count")?.offset;
            let parts = member(btf, "percpu_counter", "counters")?.offset;
            Some((layout.size() as u32, count, parts))
        }
        Type::Struct(_) => Some((8, 0, UNKNOWN)),
        _ => None,
    }
}

fn structure(btf: &Btf, name: &str) -> Option<Type> {
    let types = btf.resolve_types_by_name(name).ok()?;
    types
        .into_iter()
        .find(|found| matches!(found, Type::Struct(_)))
}

fn member(btf: &Btf, structure_name: &str, field: &str) -> Option<Member> {
    let Type::Struct(found) = structure(btf, structure_name)? else {
        return None;
    };
    find(btf, &found.members, field, 0)
}

/// Fields of anonymous structures and unions belong to the structure around them (mm_struct is one).
fn find(btf: &Btf, members: &[btf_rs::Member], field: &str, base: u32) -> Option<Member> {
    for candidate in members {
        let offset = base + candidate.bit_offset() / 8;
        let name = btf.resolve_name(candidate).unwrap_or_default();
        if name == field {
            return Some(Member {
                offset,
                type_id: btf_rs::BtfType::get_type_id(candidate)?,
            });
        }
        if name.is_empty()
            && let Ok(Type::Struct(inner) | Type::Union(inner)) =
                btf.resolve_chained_type(candidate)
            && let Some(found) = find(btf, &inner.members, field, offset)
        {
            return Some(found);
        }
    }
    None
}
