//! Where control goes in x86-64 code: to which functions it leaves, and where it returns.

use std::{collections::HashSet, ops::Range};

use iced_x86::{
    Code, ConditionCode, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    Register,
};

use super::{
    image::Image,
    placement::{branch_target, decoder, is_null_test, leaves_through_memory},
};

/// A function with its slow paths is rarely more than three pieces.
const PIECES: usize = 24;

/// A forwarder moves a few arguments before it jumps.
const FORWARDER: usize = 8;

/// A function that only hands over is short: longer ones are not walked to their end.
const STEPS: usize = 256;

/// Where a function returns to its caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    /// Virtual addresses of `ret` instructions, of the function and of those it jumps to.
    pub addresses: Vec<u64>,
    /// Why there may be more of them.
    pub incomplete: Option<String>,
}

/// Finds every `ret` of a function, following jumps out of it into others of the same file.
///
/// A function that is jumped to may have other callers: at a `ret` the stack pointer is that of the
/// entry plus what the call left there, so a hit that answers no call in flight is told by it.
pub fn returns(image: &Image<'_>, function: &Range<u64>) -> Returns {
    let mut found = Returns::default();
    let mut pieces = vec![function.clone()];
    let mut next = 0;
    while let Some(piece) = pieces.get(next).cloned() {
        next += 1;
        let Some(code) = image.code(&piece) else {
            found.incomplete = Some(format!("no code at {:#x}", piece.start));
            continue;
        };
        for instruction in decoder(code, piece.start).iter() {
            match instruction.flow_control() {
                FlowControl::Return => found.addresses.push(instruction.ip()),
                FlowControl::IndirectBranch => {
                    found.incomplete = Some(format!("an indirect jump at {:#x}", instruction.ip()));
                }
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                    if let Err(reason) = add_piece(image, &mut pieces, &instruction) {
                        found.incomplete = Some(reason);
                    }
                }
                _ => {}
            }
        }
    }
    found.addresses.sort_unstable();
    found.addresses.dedup();
    found
}

/// The pieces of a function that lie elsewhere: what it jumps to, one level deep.
pub fn fragments(image: &Image<'_>, function: &Range<u64>) -> Vec<Range<u64>> {
    let mut pieces = vec![function.clone()];
    for instruction in image
        .code(function)
        .into_iter()
        .flat_map(|code| decoder(code, function.start))
    {
        let flow = instruction.flow_control();
        if flow == FlowControl::ConditionalBranch || flow == FlowControl::UnconditionalBranch {
            // What cannot be found cannot be looked into; see `placement` for what is assumed then.
            let _ = add_piece(image, &mut pieces, &instruction);
        }
    }
    pieces.split_off(1)
}

/// The function that does all the work of this one: it moves arguments at most, then jumps there.
pub fn forward(image: &Image<'_>, function: &Range<u64>) -> Option<u64> {
    let mut info = InstructionInfoFactory::new();
    for instruction in decoder(image.code(function)?, function.start)
        .iter()
        .take(FORWARDER)
    {
        match instruction.flow_control() {
            FlowControl::Next if !touches_stack(&mut info, &instruction) => {}
            FlowControl::UnconditionalBranch => {
                let target = landing(image, branch_target(&instruction)?)?;
                return (!function.contains(&target)).then_some(target);
            }
            _ => return None,
        }
    }
    None
}

/// The functions that a call ends in, if its first argument is not 0 and each way through the function ends
/// in a jump out of it with the caller's return address on top of the stack: they see the call as the
/// program made it. `None` where a way ends otherwise, or is not understood.
pub fn jumps_at_end(image: &Image<'_>, function: &Range<u64>) -> Option<Vec<u64>> {
    let code = image.code(function)?;
    let mut info = InstructionInfoFactory::new();
    let mut seen = HashSet::new();
    let mut ways = vec![Way {
        ip: function.start,
        depth: 0,
        intact: true,
        tested: false,
    }];
    let mut targets = Vec::new();
    while let Some(way) = ways.pop() {
        if !seen.insert(way) {
            continue;
        }
        let offset = usize::try_from(way.ip.checked_sub(function.start)?).ok()?;
        let instruction = decoder(code.get(offset..)?, way.ip).iter().next()?;
        if seen.len() > STEPS || instruction.is_invalid() {
            return None;
        }
        let next = way.past(&mut info, &instruction)?;
        let to = branch_target(&instruction);
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => ways.push(next),
            FlowControl::ConditionalBranch => {
                let to = to.filter(|target| function.contains(target))?;
                let null = way.tested.then(|| instruction.condition_code());
                if null != Some(ConditionCode::e) {
                    ways.push(Way { ip: to, ..next });
                }
                if null != Some(ConditionCode::ne) {
                    ways.push(next);
                }
            }
            FlowControl::UnconditionalBranch => {
                let to = to?;
                if function.contains(&to) {
                    ways.push(Way { ip: to, ..next });
                } else if way.depth == 0 {
                    targets.push(landing(image, to)?);
                } else {
                    return None;
                }
            }
            _ => return None,
        }
    }
    Some(targets)
}

/// How far a walk through a function has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Way {
    ip: u64,
    /// Bytes on the stack above the return address.
    depth: i64,
    /// The first argument is still in its register.
    intact: bool,
    /// The flags say whether it is 0.
    tested: bool,
}

impl Way {
    /// Behind an instruction; `None` where it does to the stack pointer what cannot be followed.
    fn past(self, info: &mut InstructionInfoFactory, instruction: &Instruction) -> Option<Self> {
        let adjusts = matches!(
            instruction.code(),
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
        ) && instruction.op0_register() == Register::RSP;
        let call = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        );
        let pushed = if call {
            0
        } else if adjusts {
            let bytes = instruction.immediate(1).cast_signed();
            if instruction.mnemonic() == Mnemonic::Add {
                -bytes
            } else {
                bytes
            }
        } else if matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop) {
            -i64::from(instruction.stack_pointer_increment())
        } else if touches_stack(info, instruction) {
            return None;
        } else {
            0
        };
        let intact = self.intact && !call && !writes(info, instruction, Register::RDI);
        let flags_kept = instruction.rflags_modified() == 0 && !call;
        Some(Self {
            ip: instruction.next_ip(),
            depth: self.depth.checked_add(pushed)?,
            intact,
            tested: is_null_test(instruction) && intact || self.tested && flags_kept,
        })
    }
}

/// The functions that are called or jumped to, directly or through the PLT, from the function and
/// from those it jumps to.
pub fn callees(image: &Image<'_>, function: &Range<u64>) -> Vec<u64> {
    let mut pieces = fragments(image, function);
    pieces.push(function.clone());
    pieces
        .iter()
        .filter_map(|piece| Some(decoder(image.code(piece)?, piece.start)))
        .flat_map(|decoder| decoder.into_iter())
        .filter_map(|instruction| branch_target(&instruction))
        .filter(|target| !function.contains(target))
        .filter_map(|target| landing(image, target))
        .collect()
}

/// The address a jump arrives at; through the PLT, the function of this file that has the name
/// (another file's may take its place, and is then probed there).
pub fn landing(image: &Image<'_>, target: u64) -> Option<u64> {
    if !image.in_plt(target) {
        return Some(target);
    }
    // `endbr64; bnd jmp *slot(%rip)` or `jmp *slot(%rip); push …`: at most 16 bytes.
    let code = image.code(&(target..target + 16))?;
    let jump = decoder(code, target)
        .iter()
        .take(2)
        .find(leaves_through_memory)?;
    let name = image.slot(jump.ip_rel_memory_address())?;
    image.defined(name).map(|symbol| symbol.address)
}

fn add_piece(
    image: &Image<'_>,
    pieces: &mut Vec<Range<u64>>,
    instruction: &Instruction,
) -> Result<(), String> {
    let Some(target) = branch_target(instruction) else {
        return Ok(());
    };
    if pieces.iter().any(|piece| piece.contains(&target)) {
        return Ok(());
    }
    let at = instruction.ip();
    let address =
        landing(image, target).ok_or_else(|| format!("a jump to another file at {at:#x}"))?;
    let piece = image
        .bounds(address)
        .ok_or_else(|| format!("a jump to an unknown function at {at:#x}"))?;
    if pieces.contains(&piece) {
        return Ok(());
    }
    if pieces.len() >= PIECES {
        return Err(format!("more than {PIECES} functions are jumped to"));
    }
    pieces.push(piece);
    Ok(())
}

fn touches_stack(info: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    instruction.is_stack_instruction() || writes(info, instruction, Register::RSP)
}

fn writes(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    register: Register,
) -> bool {
    info.info(instruction).used_registers().iter().any(|used| {
        used.register().full_register() == register
            && !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None
            )
    })
}
