//! The walk over a copied stack, by the rules that the kernel side goes by.

use memtrace_common::{
    frame::interrupted,
    unwind::{
        BY_FRAME_POINTER, CodeMapping, End, INTERRUPTED, MAX_FRAMES, Memory, Registers, StackHash,
        Step, search, step,
    },
};

/// A stack that the kernel side copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedStack {
    /// When, in nanoseconds.
    pub time_ns: u64,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Whether it is a fault's.
    pub of_fault: bool,
    /// Of the caller, as the call returns to it; of a fault in user mode, as it was taken.
    pub registers: Registers,
    /// Instruction of the kernel that took the fault, 0 for none.
    pub kernel_ip: u64,
    /// Where the thread's call in flight has the trampoline for its return address, 0 for nowhere.
    pub trampoline_at: u64,
    /// What is behind the trampoline.
    pub returns_to: u64,
    /// What lies at the stack pointer and above.
    pub bytes: Box<[u8]>,
}

/// What a walk found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Walked {
    /// The id that the kernel side gives these frames.
    pub id: u64,
    /// Words of [`memtrace_common::frame`], innermost first.
    pub frames: Box<[u64]>,
    /// Why there are no more.
    pub end: End,
}

/// Walks a copied stack; `row` reads the table of rules.
pub(super) fn walk(
    copy: &CopiedStack,
    mappings: impl Fn(u64) -> Option<CodeMapping>,
    row: impl Fn(u32) -> Option<u64>,
) -> Walked {
    let mut stack = Copied {
        start: copy.registers.sp,
        bytes: &copy.bytes,
    };
    let mut registers = copy.registers;
    let mut hash = StackHash::EMPTY;
    let mut frames = Vec::new();
    let mut bits = 0;
    if copy.kernel_ip != 0 {
        frames.push(interrupted(copy.kernel_ip));
        hash.add(frames[0]);
    } else if copy.of_fault {
        bits = INTERRUPTED;
    }
    let end = loop {
        if frames.len() == MAX_FRAMES {
            break End::Truncated;
        }
        let pc = if bits & INTERRUPTED == 0 {
            registers.ip.wrapping_sub(1)
        } else {
            registers.ip
        };
        let Some(mapping) = mappings(pc) else {
            let place = registers.sp.wrapping_sub(8);
            if place == copy.trampoline_at && registers.ip != copy.returns_to {
                registers.ip = copy.returns_to;
                continue;
            }
            break End::NoMapping;
        };
        frames.push(registers.ip | bits);
        hash.add(registers.ip | bits);
        let offset = ((pc - mapping.start) as u32).wrapping_add(mapping.offset);
        let rule = search(mapping.first_row, mapping.rows, offset, &row);
        bits = match step(&mut registers, rule, &mut stack) {
            Step::Caller => 0,
            Step::ByFramePointer => BY_FRAME_POINTER,
            Step::Interrupted => INTERRUPTED,
            Step::End(end) => break end,
        };
    };
    if frames.is_empty() {
        frames.push(copy.registers.ip | bits);
        hash.add(copy.registers.ip | bits);
    }
    Walked {
        id: hash.id(),
        frames: frames.into(),
        end,
    }
}

struct Copied<'a> {
    start: u64,
    bytes: &'a [u8],
}

impl Memory for Copied<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let word = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(word.try_into().ok()?))
    }

    fn pair(&mut self, address: u64) -> Option<[u64; 2]> {
        // What lies below the stack pointer was not copied, and is no one's.
        let below = self.word(address).or((address < self.start).then_some(0))?;
        Some([below, self.word(address.checked_add(8)?)?])
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
