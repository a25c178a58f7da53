//! Where CPython 3.11 keeps what its frames are read from: the same in all of 3.11, as its ABI is kept within a series.
//!
//! Offsets in bytes, by Include/internal/pycore_runtime.h, pycore_frame.h, cpython/pystate.h, cpython/code.h,
//! cpython/unicodeobject.h and bytesobject.h.

/// The series, as `Py_Version` has it in its upper half.
pub const SERIES: u64 = 0x030b;

/// `_PyRuntimeState.gilstate.tstate_current`: the thread that holds the interpreter's lock.
pub const RUNTIME_THREAD: u64 = 576;

/// `PyThreadState.cframe`: on the C stack of the innermost call of the interpreter's loop.
pub const THREAD_CFRAME: u64 = 56;

/// `_PyCFrame.current_frame`
pub const CFRAME_FRAME: u64 = 8;

/// `_PyCFrame.previous`: of the next outer call of the loop.
pub const CFRAME_PREVIOUS: u64 = 16;

/// `_PyInterpreterFrame.f_code`; `frame_obj`, `previous`, `prev_instr` and `stacktop` follow, then `is_entry`.
pub const FRAME_CODE: u64 = 32;

/// `PyCodeObject.co_firstlineno`; up to `co_linetable` there are nine words.
pub const CODE_FIRST_LINE: u64 = 72;

/// `PyCodeObject.co_code_adaptive`: the instructions.
pub const CODE_INSTRUCTIONS: u64 = 184;

/// `PyVarObject.ob_size`, `PyASCIIObject.length`; `hash` and `state` follow the latter.
pub const OBJECT_SIZE: u64 = 16;

/// `PyBytesObject.ob_sval`
pub const BYTES_DATA: u64 = 32;

/// Characters of a compact string: of ASCII, and of any other.
pub const ASCII_DATA: u64 = 48;
/// See [`ASCII_DATA`].
pub const UNICODE_DATA: u64 = 72;

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
