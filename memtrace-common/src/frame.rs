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
//! | 111 1 | a return address in the kernel |
//! | 111 0 | an instruction of the kernel that a fault interrupted |

use crate::unwind::{ADDRESS, BY_FRAME_POINTER, INTERRUPTED};

/// Of a kernel address, cleared in an instruction that was interrupted.
pub const KERNEL_CALLER: u64 = 1 << 60;

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
    if word & TAGS == BY_FRAME_POINTER {
        word & !BY_FRAME_POINTER
    } else {
        word
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
    }
}
