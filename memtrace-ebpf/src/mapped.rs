//! What code is mapped at an address, asked of the kernel itself: right at any moment, and dearer than the tables
//! of mappings, which the user side makes a moment later.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_find_vma, bpf_get_current_task_btf},
    macros::map,
    maps::HashMap,
};
use memtrace_common::code_file::{FileKey, FileRules};

use crate::{
    process::{field, offsets},
    unwind::unwind_search,
};

/// Rules of the files that the user side has compiled.
#[map]
static CODE_FILES: HashMap<FileKey, FileRules> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// No code is mapped there.
pub const NOT_MAPPED: u64 = u64::MAX;

/// It cannot be told, or the file's rules are not there.
pub const NOT_KNOWN: u64 = u64::MAX - 1;

/// A look-up under way.
struct Query {
    pc: u64,
    /// A rule, [`NOT_MAPPED`] or [`NOT_KNOWN`].
    answer: u64,
}

/// The rule for an address of the current process: a number, [`NOT_MAPPED`] or [`NOT_KNOWN`].
///
/// A global function, which the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mapped_look_up(pc: u64) -> u64 {
    const EBUSY: i64 = -16;
    let mut query = Query {
        pc,
        answer: NOT_MAPPED,
    };
    // SAFETY: the callback takes a Query, which outlives the call.
    let found = unsafe {
        bpf_find_vma(
            bpf_get_current_task_btf(),
            pc,
            mapping as *mut c_void,
            (&raw mut query).cast(),
            0,
        )
    };
    // Another thread is changing the mappings.
    if found == EBUSY {
        return NOT_KNOWN;
    }
    query.answer
}

/// Told the `vm_area_struct` that holds the address.
unsafe extern "C" fn mapping(_task: *mut c_void, vma: u64, context: *mut c_void) -> i64 {
    // SAFETY: `mapped_look_up` passes its own.
    let query = unsafe { &mut *context.cast::<Query>() };
    query.answer = rule(vma, query.pc).unwrap_or(NOT_KNOWN);
    0
}

#[inline(always)]
fn rule(vma: u64, pc: u64) -> Option<u64> {
    const VM_EXEC: u64 = 4;
    let at = offsets();
    if field::<u64>(vma, at.vma_flags)? & VM_EXEC == 0 {
        return Some(NOT_MAPPED);
    }
    let inode = field::<u64>(field(vma, at.vma_file)?, at.file_inode)?;
    let device = field::<u32>(field(inode, at.inode_super_block)?, at.super_block_device)?;
    let key = FileKey {
        inode: field(inode, at.inode_number)?,
        device: u64::from(device),
    };
    // SAFETY: a file's entry changes only with the file.
    let file = unsafe { CODE_FILES.get(&key) }?;
    if file.bytes != field::<u64>(inode, at.inode_size)?
        || file.modified_s != field::<u64>(inode, at.inode_modified_s)?
        || file.modified_ns != field::<u32>(inode, at.inode_modified_ns)?
    {
        return None;
    }
    let start: u64 = field(vma, at.vma_start)?;
    let pages: u64 = field(vma, at.vma_page_offset)?;
    let offset = pc.wrapping_sub(start).wrapping_add(pages << 12);
    Some(unwind_search(file.first_row, file.rows, offset as u32))
}
