//! Frames of CPython, read as a remote profiler reads them: the chain of Python frames of the thread that holds the
//! interpreter's lock, and of each its code object and the instruction that it is at.
//!
//! A call of the interpreter's loop leaves something on the C stack, by which the walk knows the loop's frames: a
//! record in 3.11, a frame of the chain that is no function's later. A Python function is named by a hash of its code
//! object: the object may be freed, and another be where it was. What it is called is sent once, before the first
//! stack that it is in.

use core::{arch::asm, array, ffi::c_void};

use aya_ebpf::{
    helpers::{bpf_loop, bpf_probe_read_user, generated},
    macros::map,
    maps::LruHashMap,
};
use memtrace_common::{
    frame::{INTERPRETER_LOOP, MAX_WORDS, PYTHON_ENTRY, python, python_code},
    python::{
        ADDRESS, BYTES_DATA, CFRAME_FRAME, CFRAME_PREVIOUS, CODE, CODE_FILE, CODE_LINES, CODE_NAME,
        CODE_WORDS, FRAME, FRAME_3_11, FRAME_FLAGS, FRAME_INSTRUCTION, FRAME_WORDS,
        INTERPRETER_LOCK_3_12, INTERPRETER_LOCK_3_13, LOCK_HOLDER, MAX_PYTHON_FRAMES, OBJECT_SIZE,
        OWNED_BY_C_STACK, OWNED_BY_GENERATOR, SERIES_SHIFT, Series, THREAD_CFRAME, THREAD_FRAME,
        character_bytes, characters, first_line, first_traceable, instructions,
    },
    record::{Header, Kind, PYTHON_LINES_BYTES, PythonHead},
    unwind::MAX_FRAME_BYTES,
};

use crate::{
    emit::{emit_python, header},
    stack::Scratch,
    unwind::Walk,
    window::Window,
};

/// Code objects that were sent; the oldest are sent again.
#[map]
static PYTHON_CODES: LruHashMap<u64, u8> = LruHashMap::with_max_entries(65_536, 0);

const V3_11: u64 = Series::V3_11 as u64;
const V3_12: u64 = Series::V3_12 as u64;

/// The Python part of a walk.
///
/// No two words that are 0 at its beginning are neighbours: the compiler would make one call of memset of them, which
/// writes byte by byte.
#[repr(C)]
pub struct Frames {
    /// [`Series`]
    series: u64,
    /// The process.
    pid: u64,
    /// Python functions that were read.
    read: u64,
    /// The next Python frame.
    frame: u64,
    /// Of the functions that were read, such whose call of the loop was read too.
    ended: u64,
    /// In 3.11, the record of the call of the loop that the next frame is of.
    cframe: u64,
    /// Calls of the loop that the functions are of, and where each is on the C stack.
    calls: u64,
    places: [u64; MAX_PYTHON_FRAMES + 1],
    /// Calls of the loop that the walk met.
    loops: u64,
    /// Of these, such whose functions are not in the stack yet.
    left: u64,
    /// Python functions in the stack.
    pub count: u64,
    /// Their words.
    words: [u64; MAX_PYTHON_FRAMES + 1],
    /// Their code objects.
    codes: [u64; MAX_PYTHON_FRAMES + 1],
    /// Most frames of a thread lie one behind the other: one read has several.
    window: Window,
}

/// Reads the Python functions of a stack that begins where the walk does. `place` is
/// [`memtrace_common::unwind::CodeSpace::python`].
#[inline(always)]
pub fn begin(walk: &mut Walk, place: u64) {
    let frames = &mut walk.python;
    frames.series = place >> SERIES_SHIFT;
    frames.pid = u64::from(walk.pid);
    frames.read = 0;
    frames.ended = 0;
    frames.calls = 0;
    frames.loops = 0;
    frames.count = 0;
    if place == 0 {
        return;
    }
    let thread = thread(frames.series, place & ADDRESS);
    // Nothing runs Python where this is 0. Where it is another thread, its calls are on another stack.
    if thread == 0 {
        return;
    }
    frames.window.clear();
    frames.cframe = word(thread.wrapping_add(THREAD_CFRAME));
    frames.frame = if frames.series == V3_11 {
        let place = frames.cframe.wrapping_add(CFRAME_FRAME);
        walk.window.word(place).unwrap_or(0)
    } else if frames.series == V3_12 {
        walk.window.word(frames.cframe).unwrap_or(0)
    } else {
        word(thread.wrapping_add(THREAD_FRAME))
    };
    let mut context: *mut Walk = walk;
    // SAFETY: the callback takes a pointer to a Walk, which outlives the loop.
    unsafe {
        bpf_loop(
            2 * MAX_PYTHON_FRAMES as u32,
            read_frame as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
}

/// The thread that holds the interpreter's lock, 0 for none.
#[inline(always)]
fn thread(series: u64, way: u64) -> u64 {
    let first = word(way);
    if series == V3_11 || first == 0 {
        return first;
    }
    let lock = if series == V3_12 {
        INTERPRETER_LOCK_3_12
    } else {
        INTERPRETER_LOCK_3_13
    };
    let holder = word(first.wrapping_add(lock)).wrapping_add(LOCK_HOLDER);
    // SAFETY: the helper checks the user address.
    match unsafe { bpf_probe_read_user(holder as *const [u64; 2]) } {
        Ok([thread, locked]) if locked as u32 != 0 => thread,
        _ => 0,
    }
}

/// Reads one frame of the chain; 1 ends the loop.
unsafe extern "C" fn read_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `begin` passes its own.
    let walk = unsafe { &mut **context.cast::<*mut Walk>() };
    let frames = &mut walk.python;
    let Some(frame) = frame(&walk.window, &mut frames.window, frames.frame) else {
        return 1;
    };
    let flags = frame[FRAME_FLAGS];
    let (code, previous, owner) = if frames.series == V3_11 {
        (frame[FRAME_3_11.0], frame[FRAME_3_11.1], 0)
    } else {
        (frame[FRAME.0], frame[FRAME.1], flags >> 48 & 0xff)
    };
    let place = frames.frame;
    frames.frame = previous;
    if owner == OWNED_BY_C_STACK {
        // None of its functions has begun: the loop's own frame stays.
        if frames.read == frames.ended {
            return i64::from(previous == 0);
        }
        let last = frames.read.wrapping_sub(1) as usize & MAX_PYTHON_FRAMES;
        frames.words[last] |= PYTHON_ENTRY;
        return end_call(frames, walk.registers.sp, place);
    }
    if frames.read >= MAX_PYTHON_FRAMES as u64 {
        return 1;
    }
    let first = code.wrapping_add(instructions(frames.series));
    let at = frame[FRAME_INSTRUCTION];
    let Some((object, hash)) = object(frames.pid, code) else {
        return 1;
    };
    if frames.series != V3_11 && owner != OWNED_BY_GENERATOR {
        // The interpreter itself passes over a frame that is not complete yet, and over those that it makes for itself.
        let own = object[first_traceable(frames.series)] as u32;
        if at < first.wrapping_add(2 * u64::from(own)) {
            return i64::from(previous == 0);
        }
    }
    // A frame that was just made is before its first instruction.
    let instruction = if at < first { 0 } else { (at - first) / 2 + 1 };
    let entry = frames.series == V3_11 && flags >> 32 & 0xff != 0;
    let index = frames.read as usize & MAX_PYTHON_FRAMES;
    frames.words[index] = python(hash, instruction, entry);
    frames.codes[index] = code;
    frames.read += 1;
    if entry {
        let place = frames.cframe;
        let previous = walk.window.word(place.wrapping_add(CFRAME_PREVIOUS));
        frames.cframe = previous.unwrap_or(0);
        return end_call(frames, walk.registers.sp, place);
    }
    i64::from(previous == 0)
}

/// A frame of the chain. That of a call of the loop is on the C stack, where the walk's window may be.
#[inline(always)]
fn frame(stack: &Window, window: &mut Window, place: u64) -> Option<[u64; FRAME_WORDS]> {
    const WORDS: u64 = FRAME_WORDS as u64;
    const BYTES: u64 = 8 * WORDS;
    if let Some(index) = stack.index(place, WORDS) {
        return Some(array::from_fn(|word| stack.at(index + word)));
    }
    if window.index(place, WORDS).is_none() {
        // The frames below are those that come next.
        window.read_up_to(place.wrapping_add(BYTES), BYTES);
    }
    let index = window.index(place, WORDS)?;
    Some(array::from_fn(|word| window.at(index + word)))
}

/// The functions that were read last were of a call of the loop that is at this place of the C stack; 1 ends the loop.
#[inline(always)]
fn end_call(frames: &mut Frames, sp: u64, place: u64) -> i64 {
    // That of another thread, or too many.
    if place.wrapping_sub(sp) > MAX_FRAME_BYTES || frames.calls >= MAX_PYTHON_FRAMES as u64 {
        return 1;
    }
    frames.places[frames.calls as usize & MAX_PYTHON_FRAMES] = place;
    frames.calls += 1;
    frames.ended = frames.read;
    i64::from(frames.frame == 0)
}

/// The mark of a frame that lies between these places of the stack, if it is that of the loop.
#[inline(always)]
pub fn mark(frames: &mut Frames, sp: u64, caller_sp: u64) -> u64 {
    if frames.loops >= frames.calls {
        return 0;
    }
    let place = frames.places[frames.loops as usize & MAX_PYTHON_FRAMES];
    if place < sp || place >= caller_sp {
        return 0;
    }
    frames.loops += 1;
    INTERPRETER_LOOP
}

/// Adds the Python functions of the loops that the walk met.
#[inline(always)]
pub fn add(walk: &mut Walk) {
    if walk.python.loops == 0 {
        return;
    }
    walk.python.left = walk.python.loops;
    let mut context: *mut Walk = walk;
    // SAFETY: the callback takes a pointer to a Walk, which outlives the loop.
    unsafe {
        bpf_loop(
            walk.python.read as u32,
            add_function as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
}

/// Adds one; 1 ends the loop.
unsafe extern "C" fn add_function(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `add` passes its own.
    let walk = unsafe { &mut **context.cast::<*mut Walk>() };
    let word = walk.python.words[index as usize & MAX_PYTHON_FRAMES];
    walk.stack.frames[walk.count as usize & (MAX_WORDS - 1)] = word;
    walk.count += 1;
    walk.hash.add(word);
    walk.python.count += 1;
    if word & PYTHON_ENTRY != 0 {
        walk.python.left -= 1;
    }
    i64::from(walk.python.left == 0)
}

/// Of a code object, the words that are read, and its hash.
#[inline(always)]
fn object(pid: u64, code: u64) -> Option<([u64; CODE_WORDS], u64)> {
    let place = code.wrapping_add(CODE);
    // SAFETY: the helper checks the user address.
    let fields = unsafe { bpf_probe_read_user(place as *const [u64; CODE_WORDS]) }.ok()?;
    let mut hash = pid.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The first line is in one of the first two, by the series; the other has sizes.
    for part in [
        code,
        fields[0],
        fields[1],
        fields[CODE_FILE],
        fields[CODE_NAME],
        fields[CODE_LINES],
    ] {
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
    let (pid, series) = (scratch.walk.python.pid, scratch.walk.python.series);
    let Some((fields, hash)) = object(pid, code) else {
        return 0;
    };
    if PYTHON_CODES.get_ptr(&hash).is_some() {
        return 0;
    }
    let record = &mut scratch.code;
    let (file_state, file_bytes) = text(&mut record.file, fields[CODE_FILE], series);
    let (name_state, name_bytes) = text(&mut record.name, fields[CODE_NAME], series);
    let lines = bytes(
        &mut record.lines,
        fields[CODE_LINES].wrapping_add(BYTES_DATA),
        word(fields[CODE_LINES].wrapping_add(OBJECT_SIZE)),
    );
    record.head = PythonHead {
        header: Header {
            extra: lines as u32,
            ..header(Kind::PythonCode)
        },
        code: hash,
        first_line: first_line(series, &fields),
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
fn text<const BYTES: usize>(into: &mut [u8; BYTES], string: u64, series: u64) -> (u32, u32) {
    let place = string.wrapping_add(OBJECT_SIZE);
    // SAFETY: the helper checks the user address.
    let Ok([length, _, state]) = (unsafe { bpf_probe_read_user(place as *const [u64; 3]) }) else {
        return (0, 0);
    };
    let state = state as u32;
    let data = characters(series, state);
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
