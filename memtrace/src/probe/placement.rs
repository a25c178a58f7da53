//! Where in a function the entry probe stands.
//!
//! What Linux does with the instruction under a uprobe decides the price of a hit: some it
//! emulates, anything else runs out of line under a single-step trap, which costs 2.7 to 13 times
//! as much. From `arch/x86/kernel/uprobes.c`: `branch_setup_xol_ops` (since 3.16) takes `nop`,
//! `call rel32`, `jmp rel` and `jcc rel`, and `push_setup_xol_ops` (since 4.16) takes
//! `push r64`. Not relied on: nops of several bytes (emulated since 6.16 only; `66 90` was refused
//! before 6.2), `endbr64`, and `mov` and `sub` forms (6.19 or later).
//!
//! A later instruction than the first is chosen only if each call of interest passes it exactly
//! once, with the arguments still in their registers and the return address at a known distance
//! from the stack pointer.

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};
use memtrace_common::heap::Function;

/// Where the entry probe of a function stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Offset into the file, in bytes: what perf's uprobe PMU wants.
    pub file_offset: u64,
    /// Bytes pushed since the entry: the return address is at `[rsp + pushed]`. Always 0 so far,
    /// since the first push is itself a good place; so a return probe may stand at the same offset
    /// (the kernel takes `[rsp]` for the return address, wherever in the function that is).
    pub pushed: u32,
    /// The kernel emulates the instruction; otherwise it single-steps it.
    pub emulated: bool,
}

/// A place relative to the first byte of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Bytes from the entry.
    pub offset: u64,
    /// As [`Placement::pushed`].
    pub pushed: u32,
    /// As [`Placement::emulated`].
    pub emulated: bool,
}

/// The entry itself: always right, whatever it costs.
const ENTRY: Choice = Choice {
    offset: 0,
    pushed: 0,
    emulated: false,
};

/// How far the prologue is looked through, in instructions.
const PROLOGUE: usize = 24;

/// What is known of the code around a function.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The function's own code, whole.
    pub code: &'a [u8],
    /// The address of its first byte.
    pub address: u64,
    /// Code that belongs to it but lies elsewhere (`.cold` parts), with its address: it may jump back.
    pub fragments: &'a [(u64, &'a [u8])],
    /// Addresses of functions: others may begin inside this one.
    pub entries: &'a [u64],
}

/// Chooses the instruction for the entry probe of x86-64 code.
pub fn choose(function: Function, around: &Surroundings<'_>) -> Choice {
    let Some(mut walk) = Walk::new(function, around) else {
        return ENTRY;
    };
    let mut decoder = decoder(around.code, around.address);
    let mut found = None;
    for _ in 0..PROLOGUE {
        if !decoder.can_decode() {
            break;
        }
        let instruction = decoder.decode();
        match walk.step(&instruction) {
            Step::Take(choice) => return choice,
            // Only if nothing dearer to free(NULL) comes after it.
            Step::Remember(choice) => found = Some(choice),
            Step::Skip => {}
            Step::Stop => break,
        }
    }
    found.unwrap_or(ENTRY)
}

enum Step {
    Take(Choice),
    Remember(Choice),
    Skip,
    Stop,
}

struct Walk<'a> {
    function: Function,
    around: &'a Surroundings<'a>,
    targets: Vec<u64>,
    info: InstructionInfoFactory,
    /// The flags hold the result of `test rdi, rdi`.
    null_tested: bool,
}

impl<'a> Walk<'a> {
    fn new(function: Function, around: &'a Surroundings<'a>) -> Option<Self> {
        let mut targets = Vec::new();
        let own = (around.address, around.code);
        for (address, code) in std::iter::once(own).chain(around.fragments.iter().copied()) {
            for instruction in decoder(code, address).iter() {
                // A jump table may lead anywhere, also to where the probe would stand.
                if instruction.flow_control() == FlowControl::IndirectBranch
                    && !leaves_through_memory(&instruction)
                {
                    targets.clear();
                    return first_only(function, around);
                }
                if let Some(target) = branch_target(&instruction) {
                    targets.push(target);
                }
            }
        }
        Some(Self {
            function,
            around,
            targets,
            info: InstructionInfoFactory::new(),
            null_tested: false,
        })
    }

    fn step(&mut self, instruction: &Instruction) -> Step {
        let ip = instruction.ip();
        let offset = ip - self.around.address;
        let first = offset == 0;
        // From where another branch arrives, a loop may run: what follows may be passed twice.
        let joined = self.targets.contains(&ip) || self.around.entries.binary_search(&ip).is_ok();
        if instruction.is_invalid() || (joined && !first) {
            return Step::Stop;
        }
        let bytes = self.bytes(offset, instruction.len());
        let here = Choice {
            offset,
            pushed: 0,
            emulated: true,
        };
        let free_for_null =
            self.null_tested && self.function == Function::Free && is_null_check(instruction);
        let candidate = emulated(bytes);
        if candidate && !free_for_null {
            return Step::Take(here);
        }
        if instruction.flow_control() != FlowControl::Next {
            return match (free_for_null, candidate) {
                (true, true) => Step::Remember(here),
                (true, false) => Step::Skip,
                _ => Step::Stop,
            };
        }
        self.follow(instruction)
    }

    /// Goes past an instruction that is no candidate, if nothing that the probe needs is lost.
    fn follow(&mut self, instruction: &Instruction) -> Step {
        let info = self.info.info(instruction);
        let written = |register: Register| {
            info.used_registers().iter().any(|used| {
                used.register().full_register() == register
                    && !matches!(
                        used.access(),
                        OpAccess::Read | OpAccess::CondRead | OpAccess::None
                    )
            })
        };
        if written(Register::RSP)
            || arguments(self.function)
                .iter()
                .any(|&register| written(register))
        {
            return Step::Stop;
        }
        if is_null_test(instruction) {
            self.null_tested = true;
        } else if instruction.rflags_modified() != 0 {
            self.null_tested = false;
        }
        Step::Skip
    }

    fn bytes(&self, offset: u64, length: usize) -> &'a [u8] {
        let code: &'a [u8] = self.around.code;
        usize::try_from(offset)
            .ok()
            .and_then(|start| code.get(start..start.checked_add(length)?))
            .unwrap_or_default()
    }
}

/// With an unknown jump target inside the function only its first instruction is safe to take.
fn first_only<'a>(function: Function, around: &'a Surroundings<'a>) -> Option<Walk<'a>> {
    let first = decoder(around.code, around.address).iter().next()?;
    let targets = (1..=around.code.len() as u64)
        .map(|offset| around.address + offset)
        .collect();
    (!first.is_invalid()).then(|| Walk {
        function,
        around,
        targets,
        info: InstructionInfoFactory::new(),
        null_tested: false,
    })
}

pub(crate) fn decoder(code: &[u8], address: u64) -> Decoder<'_> {
    Decoder::with_ip(64, code, address, DecoderOptions::NONE)
}

/// The address a direct branch or call leads to.
pub(crate) fn branch_target(instruction: &Instruction) -> Option<u64> {
    let near = (0..instruction.op_count())
        .any(|operand| instruction.op_kind(operand) == OpKind::NearBranch64);
    near.then(|| instruction.near_branch_target())
}

/// `jmp *slot(%rip)`: how code leaves through the global offset table, never a jump table.
pub(crate) fn leaves_through_memory(instruction: &Instruction) -> bool {
    instruction.is_jmp_near_indirect() && instruction.is_ip_rel_memory_operand()
}

/// The registers whose entry values the kernel-side program reads.
fn arguments(function: Function) -> &'static [Register] {
    match function {
        Function::Malloc | Function::Pvalloc | Function::Free => &[Register::RDI],
        Function::Calloc | Function::Realloc | Function::AlignedAlloc | Function::AlignedNew => {
            &[Register::RDI, Register::RSI]
        }
        Function::Reallocarray | Function::PosixMemalign => {
            &[Register::RDI, Register::RSI, Register::RDX]
        }
    }
}

/// Whether the kernel emulates the instruction; any prefix but REX.B on a push says no here.
fn emulated(bytes: &[u8]) -> bool {
    match bytes {
        [0x90] | [0xe8, _, _, _, _] | [0xe9, _, _, _, _] | [0xeb, _] | [0x70..=0x7f, _] => true,
        [0x0f, 0x80..=0x8f, _, _, _, _] => true,
        _ => is_push(bytes),
    }
}

fn is_push(bytes: &[u8]) -> bool {
    matches!(bytes, [0x50..=0x57] | [0x41, 0x50..=0x57])
}

pub(crate) fn is_null_test(instruction: &Instruction) -> bool {
    instruction.code() == Code::Test_rm64_r64
        && instruction.op0_register() == Register::RDI
        && instruction.op1_register() == Register::RDI
}

fn is_null_check(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::ConditionalBranch
        && instruction.mnemonic() == Mnemonic::Je
        && instruction.condition_code() == ConditionCode::e
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
