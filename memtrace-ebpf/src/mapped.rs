//! What is mapped at an address, asked of the kernel itself: right at any moment, and dearer than the tables of
//! mappings, which the user side makes a moment later.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::{bpf_find_vma, bpf_get_current_task_btf},
    macros::{map, raw_tracepoint},
    maps::{Array, HashMap},
    programs::RawTracePointContext,
};
use memtrace_common::code_file::{Answer, FileKey, FileRules, ToldFile};

use crate::{
    process::{field, offsets},
    unwind::unwind_search,
};

/// Rules of the files that the user side has compiled.
#[map]
static CODE_FILES: HashMap<FileKey, FileRules> =
    HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

/// What [`mapped_file`] found.
#[map]
static MAPPED_FILE: Array<ToldFile> = Array::with_max_entries(1, 0);

/// No code is mapped there.
pub const NOT_MAPPED: u64 = u64::MAX;

/// It cannot be told, or the file's rules are not there.
pub const NOT_KNOWN: u64 = u64::MAX - 1;

/// Another thread is changing the mappings.
const EBUSY: i64 = -16;

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

/// The end of the current process's mapping that holds an address; 0 where that cannot be told.
///
/// A global function, which the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mapped_end(address: u64) -> u64 {
    let mut end = 0_u64;
    // SAFETY: the callback takes a word, which outlives the call.
    unsafe {
        bpf_find_vma(
            bpf_get_current_task_btf(),
            address,
            end_of as *mut c_void,
            (&raw mut end).cast(),
            0,
        );
    }
    end
}

/// Told the `vm_area_struct` that holds the address.
unsafe extern "C" fn end_of(_task: *mut c_void, vma: u64, context: *mut c_void) -> i64 {
    // SAFETY: `mapped_end` passes its own.
    let end = unsafe { &mut *context.cast::<u64>() };
    *end = field(vma, offsets().vma_end).unwrap_or(0);
    0
}

/// The inode and the key of a mapped file.
#[inline(always)]
fn file_of(vma: u64) -> Option<(u64, FileKey)> {
    let at = offsets();
    let inode = field::<u64>(field(vma, at.vma_file)?, at.file_inode)?;
    let device = field::<u32>(field(inode, at.inode_super_block)?, at.super_block_device)?;
    let key = FileKey {
        inode: field(inode, at.inode_number)?,
        device: u64::from(device),
    };
    Some((inode, key))
}

/// Attached to nothing: the user side runs it, by BPF_PROG_TEST_RUN, to learn by which key a file is known that it has
/// mapped at an address. stat(2) tells another one where the file lies below an overlay, or on btrfs.
#[raw_tracepoint]
pub fn mapped_file(ctx: RawTracePointContext) -> u32 {
    let Some(told) = MAPPED_FILE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the pointer is to a value of an array map, and the user side runs one of these at a time.
    let told = unsafe { &mut *told };
    told.answer = Answer::NotKnown as u64;
    // SAFETY: the callback takes a FileKey, which outlives the call.
    let result = unsafe {
        let mut key = FileKey {
            inode: 0,
            device: 0,
        };
        let result = bpf_find_vma(
            bpf_get_current_task_btf(),
            ctx.arg(0),
            key_of as *mut c_void,
            (&raw mut key).cast(),
            0,
        );
        told.key = key;
        result
    };
    if result == EBUSY {
        told.answer = Answer::Busy as u64;
    } else if told.key.inode != 0 {
        told.answer = Answer::Found as u64;
    }
    0
}

/// Told the `vm_area_struct` that holds the address.
unsafe extern "C" fn key_of(_task: *mut c_void, vma: u64, context: *mut c_void) -> i64 {
    // SAFETY: `mapped_file` passes its own.
    let found = unsafe { &mut *context.cast::<FileKey>() };
    if let Some((_, key)) = file_of(vma) {
        *found = key;
    }
    0
}

#[inline(always)]
fn rule(vma: u64, pc: u64) -> Option<u64> {
    const VM_EXEC: u64 = 4;
    let at = offsets();
    if field::<u64>(vma, at.vma_flags)? & VM_EXEC == 0 {
        return Some(NOT_MAPPED);
    }
    let (inode, key) = file_of(vma)?;
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
