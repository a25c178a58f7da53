//! The words that stacks are made of: a frame each, innermost first.
//!
//! Bits 63, 62 and 61 say how the frame was found. In a user address they are 0, in the kernel's they are all 1
//! (as is [`KERNEL_CALLER`]), so the kernel's frames need no mark of their own:
//!
//! | upper bits | frame |
//! | --- | --- |
//! | 000 | a return address, found by unwind rules |
//! | 100 | a return address, found by the frame pointer: [`BY_FRAME_POINTER`] |
//! | 010 | an instruction that a signal or a fault interrupted: [`INTERRUPTED`] |
//! | 001 | a function of an interpreted program: [`python`] |
//! | 111 1 | a return address in the kernel |
//! | 111 0 | an instruction of the kernel that a fault interrupted |
//!
//! As the kernel side sends them, an interpreted program's functions stand behind all other frames, and the frames of
//! the interpreter's own loop, in whose place they belong, are marked with [`INTERPRETER_LOOP`].

use crate::unwind::{ADDRESS, BY_FRAME_POINTER, INTERRUPTED};

/// Of a kernel address, cleared in an instruction that was interrupted.
pub const KERNEL_CALLER: u64 = 1 << 60;

/// Set in the frame of an interpreter's loop.
pub const INTERPRETER_LOOP: u64 = 1 << 60;

/// Set in the word of a Python function that the loop was entered with: those that it called, without a call of the
/// loop's own, stand before it.
pub const PYTHON_ENTRY: u64 = 1 << 60;

/// Of the word of a Python function.
const PYTHON: u64 = 1 << 61;

const CODE_BITS: u32 = 43;

/// Instructions of a Python function that are told apart: beyond, none is known.
const MAX_INSTRUCTION: u64 = (1 << 17) - 1;

/// The word of a Python function. `code` is a hash of its code object, `instruction` 0 where it has not begun, else 1
/// and the number of code units before the instruction that it is at.
#[inline(always)]
pub const fn python(code: u64, instruction: u64, entry: bool) -> u64 {
    let instruction = if instruction > MAX_INSTRUCTION {
        MAX_INSTRUCTION
    } else {
        instruction
    };
    let entry = if entry { PYTHON_ENTRY } else { 0 };
    PYTHON | entry | instruction << CODE_BITS | python_code(code)
}

/// What a word keeps of a code object's hash.
#[inline(always)]
pub const fn python_code(hash: u64) -> u64 {
    hash & ((1 << CODE_BITS) - 1)
}

/// What the word of a Python function says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonFrame {
    /// As [`python_code`] has it.
    pub code: u64,
    /// As [`python`] takes it; `None` where it is too far to be told.
    pub instruction: Option<u64>,
    /// [`PYTHON_ENTRY`]
    pub entry: bool,
}

impl PythonFrame {
    /// Reads a word, if it is that of a Python function.
    pub const fn of(word: u64) -> Option<Self> {
        if word & TAGS != PYTHON {
            return None;
        }
        let instruction = word >> CODE_BITS & MAX_INSTRUCTION;
        Some(Self {
            code: python_code(word),
            instruction: if instruction == MAX_INSTRUCTION {
                None
            } else {
                Some(instruction)
            },
            entry: word & PYTHON_ENTRY != 0,
        })
    }
}

/// The upper half of the address space is the kernel's.
const KERNEL_HALF: u64 = 1 << 63;

/// Room for the words of one stack, a power of two.
pub const MAX_WORDS: usize = 256;

const TAGS: u64 = 7 << 61;

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Address of the code.
    pub address: u64,
    /// How it was found.
    pub found: Found,
}

/// How a frame was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A return address, by the unwind rules of the code that it returns from.
    Rules,
    /// A return address, by the frame pointer: no rules cover the code that it returns from.
    FramePointer,
    /// An instruction that a fault or a signal interrupted.
    Interrupted,
    /// A return address in the kernel.
    Kernel,
    /// A function of a Python program, which has no address.
    Python,
}

impl Frame {
    /// Reads a word.
    pub const fn of(word: u64) -> Self {
        let (address, found) = if word & TAGS == TAGS {
            let found = if word & KERNEL_CALLER == 0 {
                Found::Interrupted
            } else {
                Found::Kernel
            };
            (word | KERNEL_CALLER, found)
        } else if word & TAGS == PYTHON {
            (0, Found::Python)
        } else if word & INTERRUPTED != 0 {
            (word & ADDRESS, Found::Interrupted)
        } else if word & BY_FRAME_POINTER != 0 {
            (word & ADDRESS, Found::FramePointer)
        } else {
            (word & ADDRESS, Found::Rules)
        };
        Self { address, found }
    }

    /// Whether the address is that of an instruction, not one behind a call.
    pub const fn is_exact(self) -> bool {
        matches!(self.found, Found::Interrupted)
    }
}

/// The word of an instruction that took a fault.
#[inline(always)]
pub const fn interrupted(ip: u64) -> u64 {
    if ip >= KERNEL_HALF {
        ip & !KERNEL_CALLER
    } else {
        ip | INTERRUPTED
    }
}

/// What a frame's name is known by: how its address was found makes no difference.
pub const fn named_by(word: u64) -> u64 {
    match word & TAGS {
        TAGS => word,
        BY_FRAME_POINTER => word & !(BY_FRAME_POINTER | INTERPRETER_LOOP),
        _ => word & !INTERPRETER_LOOP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_where_and_how() {
        let (user, kernel) = (0x7fff_1234_5678, 0xffff_ffff_8123_4567);
        for (word, address, found) in [
            (user, user, Found::Rules),
            (user | BY_FRAME_POINTER, user, Found::FramePointer),
            (interrupted(user), user, Found::Interrupted),
            (kernel, kernel, Found::Kernel),
            (interrupted(kernel), kernel, Found::Interrupted),
        ] {
            assert_eq!(Frame::of(word), Frame { address, found }, "{word:#x}");
        }
        assert_eq!(named_by(user | BY_FRAME_POINTER), user);
        assert_eq!(named_by(interrupted(user)), interrupted(user));
        assert_eq!(named_by(kernel), kernel);
        assert_eq!(named_by(user | INTERPRETER_LOOP), user);
    }

    #[test]
    fn python_functions_have_words_of_their_own() {
        let word = python(u64::MAX, 7, true);
        assert_eq!(Frame::of(word).found, Found::Python);
        let read = PythonFrame {
            code: python_code(u64::MAX),
            instruction: Some(7),
            entry: true,
        };
        assert_eq!(PythonFrame::of(word), Some(read));
        assert_eq!(named_by(word), python(u64::MAX, 7, false));
        let far = PythonFrame {
            code: 1,
            instruction: None,
            entry: false,
        };
        assert_eq!(PythonFrame::of(python(1, u64::MAX, false)), Some(far));
        assert_eq!(PythonFrame::of(0x7fff_1234_5678), None);
        assert_eq!(PythonFrame::of(0xffff_ffff_8123_4567), None);
    }
}
