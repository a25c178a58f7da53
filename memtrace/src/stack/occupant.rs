//! What lay at an address, where several files did one after the other.
//!
//! A stack is known by its addresses alone. Where a library was loaded in place of another, a return address is that
//! of a file in which a call ends there; mostly that is one of them.

use std::{fs::File, os::unix::fs::FileExt as _};

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::{
    module::Module,
    symbolize::{Frame, Mapping, Process},
};

/// The mappings of different code that held a frame's address, the latest last.
pub(super) fn occupants<'a>(process: &Process<'a>, frame: Frame) -> Vec<&'a Mapping> {
    let address = frame.lookup();
    let code = |mapping: &Mapping| mapping.offset.wrapping_sub(mapping.start);
    let mut found: Vec<&Mapping> = Vec::new();
    for mapping in process.mappings {
        if !(mapping.start..mapping.end).contains(&address) {
            continue;
        }
        // A mapping from before the trace has no build ID.
        let same_build = |one: &Mapping| {
            let (id, other) = (&one.build_id, &mapping.build_id);
            id == other || id.is_empty() || other.is_empty()
        };
        let is_same = |one: &Mapping| {
            one.path == mapping.path && code(one) == code(mapping) && same_build(one)
        };
        found.retain(|one| !is_same(one));
        found.push(mapping);
    }
    found
}

/// Whether the frame may be of a file that it has this offset in: not, if it is a return address and no call ends
/// there.
pub(super) fn may_hold(module: Option<&Module>, offset: u64, frame: Frame) -> bool {
    let file = module.and_then(|module| File::open(module.path.as_ref()?).ok());
    let Some(file) = file.filter(|_| !frame.exact) else {
        return true;
    };
    let length = offset.min(LONGEST_CALL as u64) as usize;
    let mut before = [0; LONGEST_CALL];
    let before = &mut before[..length];
    file.read_exact_at(before, offset - length as u64).is_err() || ends_with_call(before)
}

/// A call through memory with a prefix, a scaled index and a displacement.
const LONGEST_CALL: usize = 9;

/// Whether the last instruction in these bytes may be a call.
fn ends_with_call(code: &[u8]) -> bool {
    (0..code.len()).any(|start| {
        let code = &code[start..];
        let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
        let calls = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        );
        calls && instruction.len() == code.len()
    })
}

/// The names of files, each once.
pub(super) fn names(occupants: &[&Mapping]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for mapping in occupants {
        let name = mapping.path.rsplit('/').next().unwrap_or(&mapping.path);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_every_form_are_seen_and_what_only_looks_at_them_is_not() {
        let forms: [&[u8]; 7] = [
            &[0xe8, 1, 2, 3, 4],                            // call rel32
            &[0xff, 0xd0],                                  // call rax
            &[0x41, 0xff, 0xd7],                            // call r15
            &[0xff, 0x15, 1, 2, 3, 4],                      // call [rip + disp32]
            &[0xff, 0x50, 0x18],                            // call [rax + 24]
            &[0x41, 0xff, 0x94, 0xc4, 1, 2, 3, 4],          // call [r12 + rax * 8 + disp32]
            &[0x3e, 0x41, 0xff, 0x94, 0xc4, 0x11, 2, 3, 4], // notrack call [r12 + rax * 8 + disp32]
        ];
        for form in forms {
            assert!(ends_with_call(form), "{form:x?}");
            let padded = [&[0x90; 9][..], form].concat();
            assert!(
                ends_with_call(&padded[padded.len() - LONGEST_CALL..]),
                "{form:x?}"
            );
            assert!(!ends_with_call(&form[..form.len() - 1]), "{form:x?}");
        }
        let others: [&[u8]; 4] = [
            &[],
            &[0xe9, 1, 2, 3, 4],    // jmp rel32
            &[0x48, 0x89, 0xe5],    // mov rbp, rsp
            &[0xff, 0x25, 1, 2, 3], // jmp [rip + disp32], cut
        ];
        for other in others {
            assert!(!ends_with_call(other), "{other:x?}");
        }
    }
}
