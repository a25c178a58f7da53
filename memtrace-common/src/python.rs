//! Where CPython 3.11, 3.12 and 3.13 keep what their frames are read from: the same in all of a series, as its ABI is
//! kept.
//!
//! Offsets in bytes, by Include/internal/pycore_runtime.h, pycore_interp.h, pycore_frame.h, cpython/pystate.h,
//! cpython/code.h, cpython/unicodeobject.h and bytesobject.h. What of 3.13 is used is told by the program itself too
//! (`_Py_DebugOffsets`), and compared.

/// A series of which frames are read, as `Py_Version` has it in its upper half.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Each call of the interpreter's loop has a record on the C stack, and frames say which one it began with.
    V3_11 = 0x030b,
    /// Each call of the loop has a frame of its own on the C stack.
    V3_12 = 0x030c,
    /// The same, and the thread knows its frame without a record.
    V3_13 = 0x030d,
}

impl Series {
    /// The series of a `Py_Version`.
    pub const fn of(version: u64) -> Option<Self> {
        match version >> 16 {
            0x030b => Some(Self::V3_11),
            0x030c => Some(Self::V3_12),
            0x030d => Some(Self::V3_13),
            _ => None,
        }
    }

    /// What a process's frames are found by: [`crate::unwind::CodeSpace::python`]. `runtime` is where `_PyRuntime` is.
    pub const fn place(self, runtime: u64) -> u64 {
        let way = match self {
            Self::V3_11 => RUNTIME_THREAD,
            Self::V3_12 => 48,
            Self::V3_13 => 640,
        };
        (runtime.wrapping_add(way) & ADDRESS) | (self as u64) << SERIES_SHIFT
    }
}

/// `_PyRuntimeState.gilstate.tstate_current` of 3.11: the thread that holds the interpreter's lock. In its place later
/// series have `_PyRuntimeState.interpreters.main`, the interpreter.
const RUNTIME_THREAD: u64 = 576;

/// The address in a place.
pub const ADDRESS: u64 = (1 << SERIES_SHIFT) - 1;

/// The series is above it in a place: addresses of programs have 47 bits.
pub const SERIES_SHIFT: u32 = 48;

/// `PyInterpreterState.ceval.gil` of 3.12.
pub const INTERPRETER_LOCK_3_12: u64 = 384;
/// The same of 3.13.
pub const INTERPRETER_LOCK_3_13: u64 = 16;

/// `_gil_runtime_state.last_holder`, the thread; `locked`, whether it still holds it, follows.
pub const LOCK_HOLDER: u64 = 8;

/// `PyThreadState.cframe`, to 3.12: on the C stack of the innermost call of the interpreter's loop.
pub const THREAD_CFRAME: u64 = 56;

/// `PyThreadState.current_frame` of 3.13.
pub const THREAD_FRAME: u64 = 72;

/// `_PyCFrame.current_frame` of 3.11; it is first in 3.12.
pub const CFRAME_FRAME: u64 = 8;

/// `_PyCFrame.previous` of 3.11: of the next outer call of the loop.
pub const CFRAME_PREVIOUS: u64 = 16;

/// Words of a `_PyInterpreterFrame` up to the one with `stacktop`.
pub const FRAME_WORDS: usize = 9;
/// Words of 3.11: `f_code` and `previous`.
pub const FRAME_3_11: (usize, usize) = (4, 6);
/// Words of later series: `f_code` or `f_executable`, and `previous`.
pub const FRAME: (usize, usize) = (0, 1);
/// The word of the instruction: `prev_instr` or `instr_ptr`.
pub const FRAME_INSTRUCTION: usize = 7;
/// The word of `stacktop`. In 3.11 its fifth byte is `is_entry`, later its seventh is `owner`.
pub const FRAME_FLAGS: usize = 8;
/// `FRAME_OWNED_BY_CSTACK`: an `owner`. The frame is no function's, but that of a call of the loop.
pub const OWNED_BY_C_STACK: u64 = 3;
/// `FRAME_OWNED_BY_GENERATOR`: an `owner`.
pub const OWNED_BY_GENERATOR: u64 = 1;

/// Where the words of a code object that are read begin.
pub const CODE: u64 = 64;
/// Words that are read of it: up to [`first_traceable`]. In 3.11 the last is of the instructions.
pub const CODE_WORDS: usize = 16;
/// The words of `co_filename`, `co_qualname` and `co_linetable`.
pub const CODE_FILE: usize = 6;
/// See [`CODE_FILE`].
pub const CODE_NAME: usize = 8;
/// See [`CODE_FILE`].
pub const CODE_LINES: usize = 9;

/// `PyCodeObject.co_firstlineno`, of the words that are read.
pub const fn first_line(series: u64, words: &[u64; CODE_WORDS]) -> u32 {
    if series == Series::V3_11 as u64 {
        words[1] as u32
    } else {
        (words[0] >> 32) as u32
    }
}

/// `PyCodeObject.co_code_adaptive`: the instructions.
pub const fn instructions(series: u64) -> u64 {
    if series == Series::V3_11 as u64 {
        184
    } else if series == Series::V3_12 as u64 {
        192
    } else {
        200
    }
}

/// `PyCodeObject._co_firsttraceable`, from 3.12 on, of the words that are read: the first instruction that is not of the
/// frame's own making. It lies two words before the instructions.
pub const fn first_traceable(series: u64) -> usize {
    if series == Series::V3_12 as u64 {
        14
    } else {
        15
    }
}

const _: () = assert!(CODE + 8 * 14 + 16 == instructions(Series::V3_12 as u64));
const _: () = assert!(CODE + 8 * 15 + 16 == instructions(Series::V3_13 as u64));

/// `PyVarObject.ob_size`, `PyASCIIObject.length`; `hash` and `state` follow the latter.
pub const OBJECT_SIZE: u64 = 16;

/// `PyBytesObject.ob_sval`
pub const BYTES_DATA: u64 = 32;

/// Characters of a compact string begin here, by its `state`.
pub const fn characters(series: u64, state: u32) -> u64 {
    // 3.11 has `wstr`, and of a string that is not ASCII its length.
    match (is_ascii(state), series == Series::V3_11 as u64) {
        (true, true) => 48,
        (true, false) => 40,
        (false, true) => 72,
        (false, false) => 56,
    }
}

/// Bytes of a character, of a string's `state`.
pub const fn character_bytes(state: u32) -> u32 {
    state >> 2 & 7
}

/// Whether all characters are ASCII, of a string's `state`.
pub const fn is_ascii(state: u32) -> bool {
    state & 1 << 6 != 0
}

/// Python functions of one stack at most.
pub const MAX_PYTHON_FRAMES: usize = 127;
