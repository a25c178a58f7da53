//! An ELF file as the probes need it: functions, their bounds, file offsets, and where its PLT leads.

use std::{cell::OnceCell, collections::HashMap, ops::Range};

use gimli::UnwindSection as _;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, elf,
    read::elf::{ElfFile64, ElfSymbol64, FileHeader as _, ProgramHeader as _, Sym as _},
};

/// Why bytes could not be read as an ELF file that probes can use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageError {
    /// The file does not begin with an ELF header.
    #[error("not an ELF file")]
    NotElf,
    /// The arguments of 32-bit code are elsewhere than the kernel-side program looks for them.
    #[error("a 32-bit program")]
    ThirtyTwoBit,
    /// The header is there, what it points to is not.
    #[error("damaged ELF file: {reason}")]
    Damaged {
        /// What the parser said.
        reason: String,
    },
}

/// `DT_FLAGS_1`: a position-independent program (binutils' include/elf/common.h).
const DF_1_PIE: u64 = 0x0800_0000;

/// Binding of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// Seen by other object files.
    Global,
    /// The same, but yields to a global one.
    Weak,
    /// Private to its object file.
    Local,
}

/// A function that the file defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol<'data> {
    /// Name without the `@VERSION` that some linkers keep in `.symtab`.
    pub name: &'data str,
    /// Virtual address, as the file counts.
    pub address: u64,
    /// Size in bytes; 0 where the symbol table does not say.
    pub size: u64,
    /// Who sees it.
    pub binding: Binding,
    /// The address is a resolver that picks the function at load time (`STT_GNU_IFUNC`).
    pub indirect: bool,
}

#[derive(Clone, Debug)]
struct Segment {
    address: u64,
    memory_size: u64,
    offset: u64,
    file_size: u64,
    executable: bool,
}

/// A parsed ELF file. Nothing in it is trusted: offsets are checked when they are used.
#[derive(Debug)]
pub struct Image<'data> {
    data: &'data [u8],
    elf: ElfFile64<'data, Endianness>,
    segments: Vec<Segment>,
    symbols: Vec<Symbol<'data>>,
    plt_sections: Vec<Range<u64>>,
    slots: OnceCell<HashMap<u64, &'data str>>,
    frames: OnceCell<Vec<Range<u64>>>,
}

impl<'data> Image<'data> {
    /// Parses the file; both symbol tables are read, nothing is decoded yet.
    pub fn parse(data: &'data [u8]) -> Result<Self, ImageError> {
        if !data.starts_with(&elf::ELFMAG) {
            return Err(ImageError::NotElf);
        }
        if data.get(4) == Some(&1) {
            return Err(ImageError::ThirtyTwoBit);
        }
        let elf = ElfFile64::<Endianness>::parse(data).map_err(|error| ImageError::Damaged {
            reason: error.to_string(),
        })?;
        let endian = elf.endian();
        let segments = elf
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD)
            .map(|header| Segment {
                address: header.p_vaddr(endian),
                memory_size: header.p_memsz(endian),
                offset: header.p_offset(endian),
                file_size: header.p_filesz(endian),
                executable: header.p_flags(endian).contains(elf::PF_X),
            })
            .collect();
        let mut image = Self {
            data,
            segments,
            symbols: Vec::new(),
            plt_sections: plt_sections(&elf),
            slots: OnceCell::new(),
            frames: OnceCell::new(),
            elf,
        };
        image.symbols = image.read_symbols();
        Ok(image)
    }

    /// Defined functions of both symbol tables, by address, each (address, name) once.
    pub fn symbols(&self) -> &[Symbol<'data>] {
        &self.symbols
    }

    /// Whether this is x86-64 code, the only kind that is decoded.
    pub fn is_x86_64(&self) -> bool {
        self.elf.elf_header().e_machine(self.elf.endian()) == elf::EM_X86_64
    }

    /// Whether the full symbol table (`.symtab`) is there, not just what the dynamic linker needs.
    pub fn has_symbol_table(&self) -> bool {
        !self.elf.elf_symbol_table().is_empty()
    }

    /// Whether it is a program that needs no loader and no other library: all that it calls is inside. A
    /// position-independent one is told from a library by DF_1_PIE.
    pub fn is_static(&self) -> bool {
        let endian = self.elf.endian();
        let loaded = self
            .elf
            .elf_program_headers()
            .iter()
            .any(|header| header.p_type(endian) == elf::PT_INTERP);
        let program = self.elf.elf_header().e_type(endian) == elf::ET_EXEC
            || self
                .dynamic_values(elf::DT_FLAGS_1)
                .any(|flags| flags & DF_1_PIE != 0);
        program && !loaded && self.needed().is_empty()
    }

    /// `DT_SONAME`.
    pub fn soname(&self) -> Option<&'data str> {
        self.dynamic_strings(elf::DT_SONAME).into_iter().next()
    }

    /// `DT_NEEDED` entries.
    pub fn needed(&self) -> Vec<&'data str> {
        self.dynamic_strings(elf::DT_NEEDED)
    }

    /// `DT_RPATH` and `DT_RUNPATH`, colon-separated lists as they stand.
    pub fn run_paths(&self) -> Vec<&'data str> {
        let mut paths = self.dynamic_strings(elf::DT_RPATH);
        paths.extend(self.dynamic_strings(elf::DT_RUNPATH));
        paths
    }

    /// The program interpreter (`PT_INTERP`).
    pub fn interpreter(&self) -> Option<&'data str> {
        let endian = self.elf.endian();
        let headers = self.elf.elf_program_headers().iter();
        let header = headers
            .into_iter()
            .find(|header| header.p_type(endian) == elf::PT_INTERP)?;
        let start = usize::try_from(header.p_offset(endian)).ok()?;
        let length = usize::try_from(header.p_filesz(endian)).ok()?;
        let bytes = self.data.get(start..start.checked_add(length)?)?;
        std::str::from_utf8(bytes.split(|&byte| byte == 0).next()?).ok()
    }

    /// Where a virtual address is in the file; `None` outside what the file holds.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments
            .iter()
            .find(|segment| {
                (segment.address..segment.address.saturating_add(segment.file_size))
                    .contains(&address)
            })
            .and_then(|segment| (address - segment.address).checked_add(segment.offset))
    }

    /// The executable segment that holds an address.
    pub fn executable_segment(&self, address: u64) -> Option<Range<u64>> {
        self.segments
            .iter()
            .filter(|segment| segment.executable)
            .map(|segment| segment.address..segment.address.saturating_add(segment.memory_size))
            .find(|range| range.contains(&address))
    }

    /// The bytes of a range of executable addresses; `None` when the file does not hold them all.
    pub fn code(&self, range: &Range<u64>) -> Option<&'data [u8]> {
        self.executable_segment(range.start)?;
        let start = usize::try_from(self.file_offset(range.start)?).ok()?;
        let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        self.data.get(start..start.checked_add(length)?)
    }

    /// The bounds of the function an address lies in, from symbols, else from unwind tables
    /// (`.eh_frame` keeps them in stripped files too). `None` in the PLT and in the unknown.
    pub fn bounds(&self, address: u64) -> Option<Range<u64>> {
        let after = self
            .symbols
            .partition_point(|symbol| symbol.address <= address);
        let by_symbol = self.symbols[..after]
            .iter()
            .rev()
            .take_while(|symbol| address - symbol.address < MAX_FUNCTION)
            .map(|symbol| symbol.address..symbol.address.saturating_add(symbol.size))
            .find(|range| range.contains(&address));
        by_symbol.or_else(|| {
            if self.in_plt(address) {
                return None;
            }
            let frames = self.frames();
            let after = frames.partition_point(|frame| frame.start <= address);
            frames[..after]
                .last()
                .filter(|frame| frame.contains(&address))
                .cloned()
        })
    }

    /// Whether an address is in a procedure linkage table.
    pub fn in_plt(&self, address: u64) -> bool {
        self.plt_sections
            .iter()
            .any(|section| section.contains(&address))
    }

    /// The symbol that is bound to a slot of the global offset table.
    pub fn slot(&self, address: u64) -> Option<&'data str> {
        self.slots
            .get_or_init(|| slots(&self.elf))
            .get(&address)
            .copied()
    }

    /// Whether another file is to provide a function of this name.
    pub fn imports(&self, name: &str) -> bool {
        let imported = |symbol: &ElfSymbol64<'_, '_, Endianness>| {
            symbol.is_undefined() && symbol.name() == Ok(name)
        };
        self.elf.dynamic_symbols().any(|symbol| imported(&symbol))
    }

    /// The function this file itself defines under a name.
    pub fn defined(&self, name: &str) -> Option<&Symbol<'data>> {
        self.symbols.iter().find(|symbol| symbol.name == name)
    }

    fn dynamic_strings(&self, tag: elf::DynamicTag) -> Vec<&'data str> {
        let Ok(table) = self.elf.elf_dynamic_table() else {
            return Vec::new();
        };
        table
            .iter()
            .filter(|entry| entry.tag == tag)
            .filter_map(|entry| table.string(entry).ok())
            .filter_map(|name| std::str::from_utf8(name).ok())
            .collect()
    }

    fn dynamic_values(&self, tag: elf::DynamicTag) -> impl Iterator<Item = u64> {
        let table = self.elf.elf_dynamic_table().ok();
        let values: Vec<u64> = table
            .iter()
            .flat_map(|table| table.iter())
            .filter(|entry| entry.tag == tag)
            .map(|entry| entry.val)
            .collect();
        values.into_iter()
    }

    fn read_symbols(&self) -> Vec<Symbol<'data>> {
        let endian = self.elf.endian();
        let mut symbols: Vec<Symbol<'data>> = self
            .elf
            .symbols()
            .chain(self.elf.dynamic_symbols())
            .filter_map(|symbol| {
                let raw = symbol.elf_symbol();
                let indirect = raw.st_type() == elf::STT_GNU_IFUNC;
                let function = indirect || raw.st_type() == elf::STT_FUNC;
                if !function || raw.is_undefined(endian) || symbol.address() == 0 {
                    return None;
                }
                let binding = match raw.st_bind() {
                    elf::STB_LOCAL => Binding::Local,
                    elf::STB_WEAK => Binding::Weak,
                    _ => Binding::Global,
                };
                let name = symbol.name().ok()?;
                let name = name.split('@').next().unwrap_or(name);
                let size = symbol.size().min(MAX_FUNCTION);
                Some(Symbol {
                    name,
                    address: symbol.address(),
                    size,
                    binding,
                    indirect,
                })
            })
            .collect();
        symbols.sort_by(|a, b| (a.address, a.name, a.binding).cmp(&(b.address, b.name, b.binding)));
        symbols.dedup_by(|a, b| a.address == b.address && a.name == b.name);
        symbols
    }

    fn frames(&self) -> &[Range<u64>] {
        self.frames.get_or_init(|| {
            let mut frames = read_frames(&self.elf).unwrap_or_default();
            frames.sort_by_key(|frame| frame.start);
            frames
        })
    }
}

/// No function of an allocator is longer; bounds the decoding of a damaged file.
const MAX_FUNCTION: u64 = 1 << 20;

fn plt_sections(elf: &ElfFile64<'_, Endianness>) -> Vec<Range<u64>> {
    elf.sections()
        .filter(|section| section.name().is_ok_and(|name| name.starts_with(".plt")))
        .map(|section| section.address()..section.address().saturating_add(section.size()))
        .collect()
}

fn slots<'data>(elf: &ElfFile64<'data, Endianness>) -> HashMap<u64, &'data str> {
    let Some(relocations) = elf.dynamic_relocations() else {
        return HashMap::new();
    };
    relocations
        .filter_map(|(slot, relocation)| match relocation.target() {
            RelocationTarget::Symbol(index) => Some((slot, index)),
            _ => None,
        })
        .filter_map(|(slot, index)| {
            let strings = elf.elf_dynamic_symbol_table();
            let symbol = strings.symbol(index).ok()?;
            let name = strings.symbol_name(elf.endian(), symbol).ok()?;
            Some((slot, std::str::from_utf8(name).ok()?))
        })
        .collect()
}

fn read_frames(elf: &ElfFile64<'_, Endianness>) -> Option<Vec<Range<u64>>> {
    let section = elf.section_by_name(".eh_frame")?;
    let endian = if elf.is_little_endian() {
        gimli::RunTimeEndian::Little
    } else {
        gimli::RunTimeEndian::Big
    };
    let table = gimli::EhFrame::new(section.data().ok()?, endian);
    let mut bases = gimli::BaseAddresses::default().set_eh_frame(section.address());
    if let Some(text) = elf.section_by_name(".text") {
        bases = bases.set_text(text.address());
    }
    let mut frames = Vec::new();
    let mut entries = table.entries(&bases);
    // What follows a damaged entry cannot be found; what came before it is still right.
    while let Ok(Some(entry)) = entries.next() {
        if let gimli::CieOrFde::Fde(partial) = entry
            && let Ok(frame) = partial.parse(gimli::EhFrame::cie_from_offset)
        {
            let start = frame.initial_address();
            frames.push(start..start.saturating_add(frame.len().min(MAX_FUNCTION)));
        }
    }
    Some(frames)
}
