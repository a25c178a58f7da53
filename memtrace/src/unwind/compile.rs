//! `.eh_frame` and `.debug_frame` of a file, as rows of [`Rule`]s.

use std::ops::Range;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EndianSlice, Register, RegisterRule, RunTimeEndian,
    UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow,
};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use memtrace_common::unwind::{Cfa, Rule, SEARCH_STEPS, row};
use object::{
    Endianness, Object as _, ObjectSection as _, ReadRef, elf,
    read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _},
};

/// Registers by their DWARF numbers: System V ABI for x86-64, section 3.6.2.
const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RETURN_ADDRESS: Register = Register(16);

/// Rows of one file at most: what a search spans.
const MAX_ROWS: usize = (1 << SEARCH_STEPS) - 1;

/// Functions are aligned to this many bytes at most; a gap between two that is as wide holds code without rules.
const ALIGNMENT: u64 = 16;

/// Code of a larger segment is not looked at: what is between its functions passes for padding.
const MAX_CODE: u64 = 64 << 20;

/// Why a file has no rules.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Not an ELF file, or a damaged one.
    #[error("not a readable ELF file: {reason}")]
    Elf {
        /// What the parser says.
        reason: String,
    },
    /// Code of another kind.
    #[error("not x86-64 code")]
    Machine,
    /// More rules than a table may have.
    #[error("more than {MAX_ROWS} unwind rules")]
    TooMany,
}

type Slice<'data> = EndianSlice<'data, RunTimeEndian>;

/// Compiles the rules of a file. None where it has no unwind tables; what follows a damaged entry is left out.
pub fn compile<'data>(data: impl ReadRef<'data>) -> Result<Vec<u64>, CompileError> {
    let elf = ElfFile64::<Endianness, _>::parse(data).map_err(|error| CompileError::Elf {
        reason: error.to_string(),
    })?;
    if elf.elf_header().e_machine(elf.endian()) != elf::EM_X86_64 {
        return Err(CompileError::Machine);
    }
    let mut functions = Vec::new();
    if let Some((address, data)) = section(&elf, ".eh_frame") {
        let bases = bases(&elf).set_eh_frame(address);
        read(gimli::EhFrame::from(data), &bases, &mut functions);
    }
    if let Some((_, data)) = section(&elf, ".debug_frame") {
        let mut table = gimli::DebugFrame::from(data);
        table.set_address_size(8);
        read(table, &bases(&elf), &mut functions);
    }
    // Stable: where both tables describe a function, .eh_frame comes first.
    functions.sort_by_key(|function| function.range.start);
    let segments = segments(&elf, data);
    let mut rows = Rows::default();
    for function in &functions {
        rows.add(function, &segments)?;
    }
    Ok(rows.finish())
}

fn section<'data>(
    elf: &ElfFile64<'data, Endianness, impl ReadRef<'data>>,
    name: &str,
) -> Option<(u64, Slice<'data>)> {
    let section = elf.section_by_name(name)?;
    let data = section.data().ok().filter(|data| !data.is_empty())?;
    Some((
        section.address(),
        EndianSlice::new(data, RunTimeEndian::Little),
    ))
}

fn bases<'data>(elf: &ElfFile64<'data, Endianness, impl ReadRef<'data>>) -> BaseAddresses {
    let mut bases = BaseAddresses::default();
    if let Some(text) = elf.section_by_name(".text") {
        bases = bases.set_text(text.address());
    }
    bases
}

/// An executable segment.
struct Segment<'data> {
    addresses: Range<u64>,
    offset: u64,
    /// Its bytes; none where it is too large, or the file cut short.
    code: &'data [u8],
}

impl Segment<'_> {
    /// Whether no code that runs is between two functions.
    fn is_padding(&self, gap: Range<u64>) -> bool {
        let place = |address: u64| (address.saturating_sub(self.addresses.start)) as usize;
        let bytes = self.code.get(place(gap.start)..place(gap.end));
        let bytes = bytes.unwrap_or_default();
        let padding = |instruction: Instruction| {
            matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
        };
        gap.end - gap.start < ALIGNMENT
            && (bytes.iter().all(|&byte| byte == 0)
                || Decoder::new(64, bytes, DecoderOptions::NONE)
                    .into_iter()
                    .all(padding))
    }
}

fn segments<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, Endianness, R>,
    data: R,
) -> Vec<Segment<'data>> {
    let endian = elf.endian();
    let code = |header: &&elf::ProgramHeader64<Endianness>| {
        header.p_type(endian) == elf::PT_LOAD && header.p_flags(endian).contains(elf::PF_X)
    };
    let segment = |header: &elf::ProgramHeader64<Endianness>| {
        let start = header.p_vaddr(endian);
        Segment {
            addresses: start..start.saturating_add(header.p_filesz(endian)),
            offset: header.p_offset(endian),
            code: (header.p_filesz(endian) <= MAX_CODE)
                .then(|| header.data(endian, data).ok())
                .flatten()
                .unwrap_or_default(),
        }
    };
    elf.elf_program_headers()
        .iter()
        .filter(code)
        .map(segment)
        .collect()
}

/// A function's rules, by address.
struct Function {
    range: Range<u64>,
    rules: Vec<(u64, Rule)>,
}

fn read<'data, S>(table: S, bases: &BaseAddresses, functions: &mut Vec<Function>)
where
    S: UnwindSection<Slice<'data>>,
    S::Offset: gimli::UnwindOffset<usize>,
{
    let mut context = UnwindContext::new();
    let mut entries = table.entries(bases);
    let mut total = 0;
    // What follows a damaged entry cannot be found; what came before it is still right.
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(entry) = partial.parse(S::cie_from_offset) else {
            continue;
        };
        let range = entry.initial_address()..entry.end_address();
        let signal = entry.is_signal_trampoline();
        let Ok(mut unwind) = entry.rows(&table, bases, &mut context) else {
            continue;
        };
        let mut rules = Vec::new();
        loop {
            match unwind.next_row() {
                Ok(Some(row)) => {
                    rules.push((row.start_address(), rule(&table, row, signal)));
                }
                Ok(None) => break,
                Err(_) => {
                    // From the last row on, nothing that can be relied on.
                    if let Some(last) = rules.last_mut() {
                        last.1 = Rule::plain(Cfa::Unsupported);
                    }
                    break;
                }
            }
        }
        total += rules.len();
        functions.push(Function { range, rules });
        if total > 4 * MAX_ROWS {
            break;
        }
    }
}

fn rule<'data, S>(table: &S, row: &UnwindTableRow<usize>, signal: bool) -> Rule
where
    S: UnwindSection<Slice<'data>>,
{
    let unsupported = Rule::plain(Cfa::Unsupported);
    match row.register(RETURN_ADDRESS) {
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Undefined) => return Rule::plain(Cfa::Start),
        Some(RegisterRule::Expression(_)) if signal => return Rule::plain(Cfa::Signal),
        _ => return unsupported,
    }
    let (cfa, offset) = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let cfa = match *register {
                RSP => Cfa::StackPointer,
                RBP => Cfa::FramePointer,
                _ => return unsupported,
            };
            (cfa, *offset)
        }
        CfaRule::Expression(expression) => match bytes(table, expression) {
            Some(PLT) => return Rule::plain(Cfa::Plt),
            Some(code) => match dereferenced(code) {
                Some(below) => (Cfa::Dereferenced, below),
                None => return unsupported,
            },
            None => return unsupported,
        },
    };
    let saved = match row.register(RBP) {
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => 0,
        Some(RegisterRule::Offset(offset)) if offset < -8 => -offset,
        // Saved where the register itself points: DW_OP_breg6 0.
        Some(RegisterRule::Expression(place))
            if cfa == Cfa::Dereferenced && bytes(table, &place) == Some(&[0x76, 0]) =>
        {
            8
        }
        _ => return unsupported,
    };
    u64::try_from(offset)
        .ok()
        .and_then(|offset| Rule::new(cfa, offset, saved as u64))
        .unwrap_or(unsupported)
}

/// What binutils emits for a PLT entry: CFA = rsp + 8 + ((rip & 15) >= 11) * 8.
const PLT: &[u8] = &[
    0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22,
];

fn bytes<'data, S>(table: &S, expression: &UnwindExpression<usize>) -> Option<&'data [u8]>
where
    S: UnwindSection<Slice<'data>>,
{
    expression
        .get(table)
        .ok()
        .map(|expression| expression.0.slice())
}

/// How far below the frame pointer the CFA is kept: DW_OP_breg6 -offset; DW_OP_deref.
fn dereferenced(code: &[u8]) -> Option<i64> {
    let (&[0x76, ref offset @ ..], &0x06) = (code, code.last()?) else {
        return None;
    };
    let offset = offset.get(..offset.len() - 1)?;
    let mut reader = EndianSlice::new(offset, RunTimeEndian::Little);
    let below = gimli::Reader::read_sleb128(&mut reader).ok()?;
    (reader.is_empty() && below <= 0).then(|| -below)
}

/// Rows under construction, by offset in the file.
#[derive(Default)]
struct Rows {
    rows: Vec<u64>,
    last: Option<Rule>,
    /// End of the last function, by address and by offset.
    end: Option<(u64, u32)>,
}

impl Rows {
    fn add(&mut self, function: &Function, segments: &[Segment<'_>]) -> Result<(), CompileError> {
        let start = function.range.start.max(self.end.map_or(0, |end| end.0));
        let Some(segment) = segments
            .iter()
            .find(|segment| segment.addresses.contains(&start))
        else {
            return Ok(());
        };
        let end = function.range.end.min(segment.addresses.end);
        let offset = |address: u64| {
            let distance = address.checked_sub(segment.addresses.start)?;
            u32::try_from(distance.checked_add(segment.offset)?).ok()
        };
        let (Some(_), Some(end_offset), true) = (offset(start), offset(end), start < end) else {
            return Ok(());
        };
        if let Some((last, last_offset)) = self.end
            && !segment.is_padding(last..start)
        {
            self.push(last_offset, Rule::NONE);
        }
        for (index, &(address, rule)) in function.rules.iter().enumerate() {
            let next = function.rules.get(index + 1).map_or(end, |next| next.0);
            if next > start
                && address < end
                && let Some(offset) = offset(address.max(start))
            {
                self.push(offset, rule);
            }
        }
        self.end = Some((end, end_offset));
        if self.rows.len() >= MAX_ROWS {
            return Err(CompileError::TooMany);
        }
        Ok(())
    }

    fn push(&mut self, offset: u32, rule: Rule) {
        if self.last != Some(rule) {
            self.rows.push(row(offset, rule));
            self.last = Some(rule);
        }
    }

    fn finish(mut self) -> Vec<u64> {
        if let Some((_, offset)) = self.end {
            self.push(offset, Rule::NONE);
        }
        self.rows
    }
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
