//! Unwind rules, compact enough for the kernel, and the step from a frame to its caller.
//!
//! A module's rules are rows sorted by offset in its file; each holds from its offset to the next row's. Both
//! sides walk by [`step`]: the kernel at the probe, the user side over a copied stack.

/// Frames of one stack at most.
pub const MAX_FRAMES: usize = 128;

/// Set in a frame that was found by the frame pointer, since no rules cover the one it called.
pub const BY_FRAME_POINTER: u64 = 1 << 63;

/// Set in a frame that a signal interrupted: its address is that of an instruction, not one behind a call.
pub const INTERRUPTED: u64 = 1 << 62;

/// The address in a frame.
pub const ADDRESS: u64 = (1 << 57) - 1;

/// Room for the executable mappings of one process and an end mark; those beyond have no rules.
pub const MAX_CODE_MAPPINGS: usize = 256;

/// The first row that holds a rule. In the one below the user side counts how often it was about to write rows over:
/// a rule that was looked up meanwhile may be another file's.
pub const FIRST_ROW: u32 = 1;

/// Rows that a search may span, as a power of two.
pub const SEARCH_STEPS: u32 = 22;

/// How the caller's frame is found.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cfa {
    /// No rules cover this code.
    None = 0,
    /// The stack pointer and an offset.
    StackPointer = 1,
    /// The frame pointer and an offset.
    FramePointer = 2,
    /// The word at the frame pointer less an offset: a function that aligned its stack (DRAP).
    Dereferenced = 3,
    /// An entry of the procedure linkage table: the offset depends on where in its 16 bytes it is.
    Plt = 4,
    /// The trampoline that a signal handler returns to: the kernel left the interrupted registers on the stack.
    Signal = 5,
    /// The thread's first function.
    Start = 6,
    /// Rules that are not expressible here.
    Unsupported = 7,
}

/// Where the return address and the caller's frame pointer are. The return address is always at CFA - 8.
///
/// Bits 0 to 2: [`Cfa`]. Bits 3 to 19: its offset in words. Bits 20 to 31: the caller's frame pointer, 0 where the
/// register still holds it, else n for CFA - 8 n; for [`Cfa::Dereferenced`], 1 for the word that the register
/// points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule(pub u32);

impl Rule {
    /// Covered by nothing.
    pub const NONE: Self = Self(Cfa::None as u32);

    /// A rule without offsets.
    pub const fn plain(cfa: Cfa) -> Self {
        Self(cfa as u32)
    }

    /// A rule with offsets in bytes; `None` where they are not whole words or too far.
    pub const fn new(cfa: Cfa, offset: u64, saved_bp: u64) -> Option<Self> {
        let (words, saved) = (offset / 8, saved_bp / 8);
        if !offset.is_multiple_of(8)
            || !saved_bp.is_multiple_of(8)
            || words >= 1 << 17
            || saved >= 1 << 12
        {
            return None;
        }
        Some(Self(
            cfa as u32 | (words as u32) << 3 | (saved as u32) << 20,
        ))
    }

    /// [`Cfa`] as a number.
    pub const fn cfa(self) -> u32 {
        self.0 & 7
    }

    /// Bytes.
    #[inline(always)]
    const fn offset(self) -> u64 {
        ((self.0 >> 3) as u64 & 0x1_ffff) * 8
    }

    #[inline(always)]
    const fn saved_bp(self) -> u64 {
        (self.0 >> 20) as u64 * 8
    }
}

/// A row: offset in the file above, [`Rule`] below.
pub const fn row(offset: u32, rule: Rule) -> u64 {
    (offset as u64) << 32 | rule.0 as u64
}

/// The rule for an offset: that of the last row at or below it.
#[inline(always)]
pub fn search(first: u32, rows: u32, offset: u32, row: impl Fn(u32) -> Option<u64>) -> Rule {
    let (mut low, mut high) = (first, first.wrapping_add(rows));
    let mut found = Rule::NONE;
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        let Some(row) = row(middle) else { break };
        if (row >> 32) as u32 <= offset {
            found = Rule(row as u32);
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    found
}

/// What a walk goes by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
}

/// Reads the traced process's stack.
pub trait Memory {
    /// The word at an address.
    fn word(&self, address: u64) -> Option<u64>;
    /// Two words.
    fn pair(&mut self, address: u64) -> Option<[u64; 2]>;
}

/// Why a walk ended.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The thread's first function was reached.
    Start = 0,
    /// There are more than [`MAX_FRAMES`].
    Truncated = 1,
    /// No rules cover the code, and the frame pointer leads nowhere.
    NoRules = 2,
    /// The stack could not be read.
    Unreadable = 3,
    /// The rules are of a kind that is not supported, and the frame pointer leads nowhere.
    Unsupported = 4,
    /// A return address lies in no executable mapping.
    NoMapping = 5,
    /// The stack pointer would not rise.
    StackPointer = 6,
    /// The process's mappings were not known yet, and its stack was not copied.
    NotKnown = 7,
}

impl End {
    /// The end with this number.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Start,
            1 => Self::Truncated,
            2 => Self::NoRules,
            3 => Self::Unreadable,
            4 => Self::Unsupported,
            5 => Self::NoMapping,
            6 => Self::StackPointer,
            7 => Self::NotKnown,
            _ => return None,
        })
    }
}

/// What [`step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The registers are the caller's.
    Caller,
    /// The same, by the frame pointer.
    ByFramePointer,
    /// The registers are those that a signal interrupted.
    Interrupted,
    /// There is no caller, or it cannot be found.
    End(End),
}

/// Places in the stack at the trampoline: `struct ucontext` of the kernel, its registers from byte 40 on
/// (arch/x86/include/uapi/asm/sigcontext.h).
const SIGNAL_BP: u64 = 120;
const SIGNAL_SP: u64 = 160;

/// A frame is never larger than a main thread's default stack.
pub const MAX_FRAME_BYTES: u64 = 8 << 20;

/// Goes from a frame to its caller.
#[inline(always)]
pub fn step(registers: &mut Registers, rule: Rule, memory: &mut impl Memory) -> Step {
    let Registers { ip, sp, bp } = *registers;
    let kind = rule.cfa();
    let cfa = if kind == Cfa::StackPointer as u32 {
        sp.wrapping_add(rule.offset())
    } else if kind == Cfa::FramePointer as u32 {
        bp.wrapping_add(rule.offset())
    } else if kind == Cfa::None as u32 {
        return by_frame_pointer(registers, End::NoRules, memory);
    } else if kind == Cfa::Unsupported as u32 {
        return by_frame_pointer(registers, End::Unsupported, memory);
    } else if kind == Cfa::Start as u32 {
        return Step::End(End::Start);
    } else if kind == Cfa::Plt as u32 {
        sp.wrapping_add(if ip & 15 >= 11 { 16 } else { 8 })
    } else if kind == Cfa::Dereferenced as u32 {
        match memory.word(bp.wrapping_sub(rule.offset())) {
            Some(cfa) => cfa,
            None => return Step::End(End::Unreadable),
        }
    } else {
        return interrupted(registers, memory);
    };
    if cfa <= sp || cfa - sp > MAX_FRAME_BYTES {
        return Step::End(End::StackPointer);
    }
    let Some([below, back]) = memory.pair(cfa - 16) else {
        return Step::End(End::Unreadable);
    };
    let saved = rule.saved_bp();
    if saved == 16 {
        registers.bp = below;
    } else if saved != 0 {
        let place = if kind == Cfa::Dereferenced as u32 {
            bp
        } else {
            cfa - saved
        };
        match memory.word(place) {
            Some(saved) => registers.bp = saved,
            None => return Step::End(End::Unreadable),
        }
    }
    registers.ip = back;
    registers.sp = cfa;
    if back == 0 {
        return Step::End(End::Start);
    }
    Step::Caller
}

#[inline(always)]
fn interrupted(registers: &mut Registers, memory: &mut impl Memory) -> Step {
    let sp = registers.sp;
    let Some([next_sp, ip]) = memory.pair(sp.wrapping_add(SIGNAL_SP)) else {
        return Step::End(End::Unreadable);
    };
    let Some(bp) = memory.word(sp.wrapping_add(SIGNAL_BP)) else {
        return Step::End(End::Unreadable);
    };
    *registers = Registers {
        ip,
        sp: next_sp,
        bp,
    };
    Step::Interrupted
}

/// Saved frame pointers rise and are aligned. In a thread's first function the register is 0 (System V ABI for
/// x86-64, section 3.4.1), which code with rules that are not understood does not tell.
#[inline(always)]
fn by_frame_pointer(registers: &mut Registers, otherwise: End, memory: &mut impl Memory) -> Step {
    let Registers { sp, bp, .. } = *registers;
    if bp == 0 && otherwise as u8 == End::NoRules as u8 {
        return Step::End(End::Start);
    }
    if bp < sp || bp - sp > MAX_FRAME_BYTES || bp & 7 != 0 {
        return Step::End(otherwise);
    }
    let Some([next, back]) = memory.pair(bp) else {
        return Step::End(otherwise);
    };
    if back == 0 {
        return Step::End(End::Start);
    }
    *registers = Registers {
        ip: back,
        sp: bp.wrapping_add(16),
        bp: next,
    };
    Step::ByFramePointer
}

/// Names a stack by its frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackHash {
    /// 64 bits of multiply and xor over all frames.
    hash: u64,
    /// Another such, to tell stacks whose ids are equal.
    check: u64,
}

impl StackHash {
    /// Of no frames.
    pub const EMPTY: Self = Self {
        hash: 0x9e37_79b9_7f4a_7c15,
        check: 0,
    };

    /// Adds a frame.
    #[inline(always)]
    pub fn add(&mut self, frame: u64) {
        self.hash = (self.hash ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.hash ^= self.hash >> 32;
        self.check = (self.check ^ self.check >> 29)
            .wrapping_add(frame)
            .wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    }

    /// The id: neither 0 nor [`crate::record::COPIED_STACK`].
    #[inline(always)]
    pub const fn id(&self) -> u64 {
        proper(self.hash)
    }

    /// The id where another stack has [`StackHash::id`].
    #[inline(always)]
    pub const fn other_id(&self) -> u64 {
        proper(self.hash ^ self.check)
    }

    /// Tells stacks apart whose ids are equal.
    #[inline(always)]
    pub const fn check(&self) -> u32 {
        (self.check >> 32) as u32
    }
}

#[inline(always)]
const fn proper(hash: u64) -> u64 {
    (hash | 1) & !(1 << 63)
}

/// An executable mapping of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeMapping {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u32,
    /// Offset into the file.
    pub offset: u32,
    /// First row of the file's rules.
    pub first_row: u32,
    /// How many there are; 0 where there are no rules (code made at run time).
    pub rows: u32,
}

impl CodeMapping {
    /// Behind all that are mapped.
    pub const NONE: Self = Self {
        start: u64::MAX,
        length: 0,
        offset: 0,
        first_row: 0,
        rows: 0,
    };

    /// Whether an address lies within.
    #[inline(always)]
    pub const fn holds(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.length as u64
    }
}

/// All executable mappings of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeSpace {
    /// [`crate::target::Target::code_changes`] when these were all there were.
    pub as_of: u64,
    /// No two tables have the same; part of the key of cached rules.
    pub generation: u64,
    /// What the frames of a CPython are found by ([`crate::python::Series::place`]); 0 for none.
    pub python: u64,
    /// By address, without overlap, then [`CodeMapping::NONE`], at least once.
    pub mappings: [CodeMapping; MAX_CODE_MAPPINGS],
}

/// Of a [`crate::target::Target::code_changes`], the part that says whether known mappings may be gone: the
/// lower half counts additions.
pub const REMOVALS: u64 = 0xffff_ffff_0000_0000;

/// Added to it when known code may be gone.
pub const REMOVAL: u64 = 1 << 32;

/// Added to it when there is new code.
pub const ADDITION: u64 = 1;

/// Stacks that may be walked on a CPU at a time: programs of several threads, where one preempts another.
pub const SCRATCH_PER_CPU: u32 = 4;

const _: () = assert!(size_of::<CodeMapping>() == 24);
const _: () = assert!(size_of::<CodeSpace>() == 24 + 24 * MAX_CODE_MAPPINGS);
