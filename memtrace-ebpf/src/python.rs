//! Frames of CPython, read as a remote profiler reads them: the thread's calls of the interpreter's loop, the chain of
//! Python frames, and of each its code object and the instruction that it is at.
//!
//! A call of the loop has a record on the C stack, by which the walk knows the loop's frames. A Python function is
//! named by a hash of its code object: the object may be freed, and another be where it was. What it is called is sent
//! once, before the first stack that it is in.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    helpers::{bpf_loop, bpf_probe_read_user, generated},
    macros::map,
    maps::LruHashMap,
};
use memtrace_common::{
    frame::{INTERPRETER_LOOP, MAX_WORDS, python, python_code},
    python::{
        ASCII_DATA, BYTES_DATA, CFRAME_FRAME, CFRAME_PREVIOUS, CODE_FIRST_LINE, CODE_INSTRUCTIONS,
        FRAME_CODE, MAX_PYTHON_FRAMES, OBJECT_SIZE, THREAD_CFRAME, UNICODE_DATA, character_bytes,
        is_ascii,
    },
    record::{Header, Kind, PYTHON_LINES_BYTES, PythonHead},
};

use crate::{
    emit::{emit_python, header},
    stack::Scratch,
    unwind::Walk,
};

/// Code objects that were sent; the oldest are sent again.
#[map]
static PYTHON_CODES: LruHashMap<u64, u8> = LruHashMap::with_max_entries(65_536, 0);

/// The Python part of a walk.
#[repr(C)]
pub struct Frames {
    /// Record of the next outer call of the loop, on the C stack; 0 for none.
    cframe: u64,
    /// The next Python frame.
    frame: u64,
    /// Calls of the loop that the walk met, and whose frames are not there yet.
    loops: u64,
    /// Python frames so far.
    pub count: u64,
    /// Their code objects.
    codes: [u64; MAX_PYTHON_FRAMES + 1],
}

/// `place` is [`memtrace_common::unwind::CodeSpace::python`].
#[inline(always)]
pub fn begin(frames: &mut Frames, place: u64) {
    frames.cframe = 0;
    frames.frame = 0;
    frames.loops = 0;
    frames.count = 0;
    if place == 0 {
        return;
    }
    // Nothing runs Python where this is 0. Where it is another thread, its calls are on another stack.
    let thread = word(place);
    if thread == 0 {
        return;
    }
    frames.cframe = word(thread.wrapping_add(THREAD_CFRAME));
    frames.frame = word(frames.cframe.wrapping_add(CFRAME_FRAME));
}

/// The mark of a frame that lies between these places of the stack, if it is that of the loop.
#[inline(always)]
pub fn mark(frames: &mut Frames, sp: u64, caller_sp: u64) -> u64 {
    if frames.cframe < sp || frames.cframe >= caller_sp {
        return 0;
    }
    frames.cframe = word(frames.cframe.wrapping_add(CFRAME_PREVIOUS));
    frames.loops += 1;
    INTERPRETER_LOOP
}

/// Adds the Python frames of the loops that the walk met.
#[inline(always)]
pub fn add(walk: &mut Walk) {
    if walk.python.loops == 0 {
        return;
    }
    let mut context: *mut Walk = walk;
    // SAFETY: the callback takes a pointer to a Walk, which outlives the loop.
    unsafe {
        bpf_loop(
            MAX_PYTHON_FRAMES as u32,
            next_frame as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
}

/// Notes one Python frame; 1 ends the loop.
unsafe extern "C" fn next_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `add` passes its own.
    let walk = unsafe { &mut **context.cast::<*mut Walk>() };
    let place = walk.python.frame.wrapping_add(FRAME_CODE);
    // SAFETY: the helper checks the user address.
    let Ok([code, _, previous, at, flags]) =
        (unsafe { bpf_probe_read_user(place as *const [u64; 5]) })
    else {
        return 1;
    };
    let Some((_, hash)) = object(walk.pid, code) else {
        return 1;
    };
    // A frame that was just made is before its first instruction.
    let instructions = code.wrapping_add(CODE_INSTRUCTIONS);
    let instruction = if at < instructions {
        0
    } else {
        (at - instructions) / 2 + 1
    };
    // stacktop has the lower half, is_entry the byte behind it.
    let entry = flags >> 32 & 0xff != 0;
    let word = python(hash, instruction, entry);
    walk.stack.frames[walk.count as usize & (MAX_WORDS - 1)] = word;
    walk.count += 1;
    walk.hash.add(word);
    walk.python.codes[walk.python.count as usize & MAX_PYTHON_FRAMES] = code;
    walk.python.count += 1;
    walk.python.frame = previous;
    if entry {
        walk.python.loops -= 1;
    }
    i64::from(walk.python.loops == 0 || previous == 0)
}

/// Of a code object, the words from the first line to the line table, and its hash.
#[inline(always)]
fn object(pid: u32, code: u64) -> Option<([u64; 9], u64)> {
    let place = code.wrapping_add(CODE_FIRST_LINE);
    // SAFETY: the helper checks the user address.
    let fields = unsafe { bpf_probe_read_user(place as *const [u64; 9]) }.ok()?;
    let mut hash = u64::from(pid).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The first line, the path, the qualified name and the line table.
    for part in [code, fields[0], fields[5], fields[7], fields[8]] {
        hash = (hash ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    Some((fields, python_code(hash)))
}

/// Sends the code objects of a stack that were not sent before.
#[inline(always)]
pub fn tell(scratch: *mut Scratch, count: u64) {
    let mut context = scratch;
    // SAFETY: the callback takes a pointer to a Scratch, which outlives the loop.
    unsafe {
        bpf_loop(
            count as u32,
            tell_code as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
}

unsafe extern "C" fn tell_code(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `tell` passes its own.
    let scratch = unsafe { &mut **context.cast::<*mut Scratch>() };
    let code = scratch.walk.python.codes[index as usize & MAX_PYTHON_FRAMES];
    let Some((fields, hash)) = object(scratch.walk.pid, code) else {
        return 0;
    };
    if PYTHON_CODES.get_ptr(&hash).is_some() {
        return 0;
    }
    let record = &mut scratch.code;
    let (file_state, file_bytes) = text(&mut record.file, fields[5]);
    let (name_state, name_bytes) = text(&mut record.name, fields[7]);
    let lines = bytes(
        &mut record.lines,
        fields[8].wrapping_add(BYTES_DATA),
        word(fields[8].wrapping_add(OBJECT_SIZE)),
    );
    record.head = PythonHead {
        header: Header {
            extra: lines as u32,
            ..header(Kind::PythonCode)
        },
        code: hash,
        first_line: fields[0] as u32,
        name_state,
        name_bytes,
        file_state,
        file_bytes,
        reserved: 0,
    };
    if emit_python(record, lines) {
        // Where it finds no room it is sent again.
        let _ = PYTHON_CODES.insert(&hash, &1, 0);
    }
    0
}

/// Reads the characters of a string: its state, and how many bytes.
#[inline(always)]
fn text<const BYTES: usize>(into: &mut [u8; BYTES], string: u64) -> (u32, u32) {
    let place = string.wrapping_add(OBJECT_SIZE);
    // SAFETY: the helper checks the user address.
    let Ok([length, _, state]) = (unsafe { bpf_probe_read_user(place as *const [u64; 3]) }) else {
        return (0, 0);
    };
    let state = state as u32;
    let data = if is_ascii(state) {
        ASCII_DATA
    } else {
        UNICODE_DATA
    };
    let length = length.wrapping_mul(u64::from(character_bytes(state)));
    (state, bytes(into, string.wrapping_add(data), length) as u32)
}

/// Reads so many bytes, fewer than fit: how many were read.
#[inline(always)]
fn bytes<const BYTES: usize>(into: &mut [u8; BYTES], from: u64, length: u64) -> u64 {
    const { assert!(BYTES.is_power_of_two() && BYTES <= PYTHON_LINES_BYTES) };
    let most = BYTES as u64 - 1;
    let mut length = if length > most { most } else { length };
    // SAFETY: adds nothing to a register, so that the bound is told once more to the verifier.
    unsafe { asm!("{0} += 0", inout(reg) length, options(pure, nomem, nostack)) };
    let length = length & most;
    // SAFETY: fewer bytes than fit.
    let read = unsafe {
        generated::bpf_probe_read_user(into.as_mut_ptr().cast(), length as u32, from as *const _)
    };
    if read == 0 { length } else { 0 }
}

#[inline(always)]
fn word(address: u64) -> u64 {
    // SAFETY: the helper checks the user address.
    unsafe { bpf_probe_read_user(address as *const u64) }.unwrap_or(0)
}
