//! Which allocator a file holds, and where to probe it.
//!
//! The counts are the program's calls, not what the allocator does inside itself. Two rules make
//! it so. A call that comes from the allocator's own code ([`Allocator::internal`]) is not counted,
//! so what enters that code from outside is probed. A function outside of it that only calls in
//! (libstdc++'s operator new calls malloc) is not probed: it would count a block twice.

use std::{collections::BTreeMap, ops::Range};

use memtrace_common::heap::Function;

use super::{
    flow,
    image::{Binding, Image, ImageError, Symbol},
    names::{self, Family, Known},
    placement::{self, Placement, Surroundings},
};

/// An allocator inside an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// "glibc", "musl", "jemalloc", "tcmalloc", "mimalloc" or "unknown".
    pub name: &'static str,
    /// What to probe, by address, each address once.
    pub functions: Vec<FoundFunction>,
    /// Virtual addresses of the allocator's own code: a caller in there is the allocator itself.
    pub internal: Range<u64>,
    /// Functions that hand out or resize blocks and are not probed: what they do is not seen.
    pub unseen: Vec<Unseen>,
}

/// A function to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFunction {
    /// Its plainest name.
    pub name: String,
    /// Where its arguments are.
    pub function: Function,
    /// Offset of its first instruction in the file.
    pub file_offset: u64,
    /// Virtual address, as the file counts.
    pub virtual_address: u64,
    /// Bytes; 0 where unknown.
    pub size: u64,
    /// Where the entry probe stands.
    pub entry: Placement,
    /// How its result is seen.
    pub exit: Exit,
}

/// How the result of a function is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It has none of interest (free).
    None,
    /// A return probe may be put on it.
    ReturnProbe,
    /// An exception may pass through it, which a return probe turns into the program's end: probe
    /// these `ret` instructions instead.
    Instructions {
        /// Offsets into the file. A `ret` may be shared with other functions: a hit belongs to the
        /// call whose return address is at `[rsp]` and whose entry saw the same stack pointer.
        file_offsets: Vec<u64>,
        /// Why there may be more ways out, rare ones as far as seen; a call that takes one of them
        /// is not counted.
        incomplete: Option<String>,
    },
    /// An exception may pass, and where the function returns is not known: it cannot be counted.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A function that is known and not probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Why a file has nothing to be probed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoAllocator {
    /// The file could not be read.
    #[error("{source}")]
    Image {
        /// What was wrong.
        #[from]
        source: ImageError,
    },
    /// A static program without a symbol table: the allocator is inside, its names are not.
    #[error("symbols are stripped")]
    Stripped,
    /// It calls those of a library, or none.
    #[error("no allocator functions are defined here")]
    NotDefined {
        /// It has no full symbol table: an allocator of its own, beside a library's, would not show.
        stripped: bool,
    },
}

/// Finds the allocators in an ELF file: mostly one, two where a program links a prefixed one
/// (`_rjem_`, `mi_`) beside the C library's.
pub fn find(data: &[u8]) -> Result<Vec<Allocator>, NoAllocator> {
    let image = Image::parse(data)?;
    let found: Vec<Allocator> = families(&image)
        .into_iter()
        .map(|(family, candidates)| {
            Search {
                image: &image,
                family,
            }
            .allocator(&candidates)
        })
        .filter(|allocator| !allocator.functions.is_empty())
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let stripped = !image.has_symbol_table();
    if stripped && image.is_static() && image.soname().is_none() {
        return Err(NoAllocator::Stripped);
    }
    Err(NoAllocator::NotDefined { stripped })
}

/// All names of one address.
#[derive(Clone, Debug)]
struct Candidate<'data> {
    name: &'data str,
    known: Known,
    address: u64,
    size: u64,
    throws: bool,
    indirect: bool,
    family: Option<Family>,
}

impl<'data> Candidate<'data> {
    fn new(symbol: &Symbol<'data>, known: Known) -> Self {
        Self {
            name: symbol.name,
            known,
            address: symbol.address,
            size: symbol.size,
            throws: known.throws,
            indirect: symbol.indirect,
            family: known.family,
        }
    }

    /// Another name for the same address: a plain C name is better than a mangled or private one.
    fn add(&mut self, symbol: &Symbol<'data>, known: Known) {
        let rank = |name: &str, known: &Known| {
            (
                known.cpp,
                known.alias,
                known.family.is_some(),
                name == "cfree",
            )
        };
        if rank(symbol.name, &known) < rank(self.name, &self.known) {
            self.name = symbol.name;
            self.known = known;
        }
        self.size = self.size.max(symbol.size);
        self.throws |= known.throws;
        self.indirect |= symbol.indirect;
        self.family = self.family.or(known.family);
    }
}

/// The candidates of each allocator that has both something to allocate and something to free.
fn families<'data>(image: &Image<'data>) -> BTreeMap<Family, Vec<Candidate<'data>>> {
    let mut by_address: BTreeMap<u64, Candidate<'data>> = BTreeMap::new();
    for symbol in image.symbols() {
        let Some(known) = names::lookup(symbol.name) else {
            continue;
        };
        by_address
            .entry(symbol.address)
            .and_modify(|candidate| candidate.add(symbol, known))
            .or_insert_with(|| Candidate::new(symbol, known));
    }
    let plain = plain_family(image, &by_address);
    let mut families: BTreeMap<Family, Vec<Candidate<'data>>> = BTreeMap::new();
    for candidate in by_address.into_values() {
        let family = candidate.family.unwrap_or(plain);
        // musl's loader and C library keep their own blocks apart with these, malloc ends in them.
        if !(family == Family::Musl && candidate.known.alias) {
            families.entry(family).or_default().push(candidate);
        }
    }
    families.retain(|_, candidates| {
        let has = |function: &[Function]| {
            candidates
                .iter()
                .any(|one| !one.known.cpp && function.contains(&one.known.function))
        };
        has(&[Function::Malloc, Function::AlignedNew]) && has(&[Function::Free])
    });
    families
}

/// Whose the functions without a prefix are.
fn plain_family(image: &Image<'_>, candidates: &BTreeMap<u64, Candidate<'_>>) -> Family {
    let malloc = candidates
        .values()
        .find(|candidate| candidate.name == "malloc");
    if let Some(family) = malloc
        .and_then(|candidate| candidate.family)
        .or_else(|| library(image))
    {
        return family;
    }
    // A malloc that only jumps to a prefixed one is that one's.
    let target = malloc
        .and_then(|candidate| {
            flow::forward(
                image,
                &(candidate.address..candidate.address + candidate.size),
            )
        })
        .and_then(|target| candidates.get(&target));
    if let Some(family) = target.and_then(|candidate| candidate.family) {
        return family;
    }
    let defines = |name| image.defined(name).is_some();
    if defines("mallocx") {
        Family::Jemalloc
    } else if [
        "__libc_malloc_impl",
        "__malloc_alloc_meta",
        "__simple_malloc",
        "__dls3",
    ]
    .into_iter()
    .any(defines)
    {
        Family::Musl
    } else if ["__libc_memalign", "__libc_calloc", "gnu_get_libc_version"]
        .into_iter()
        .any(defines)
    {
        Family::Glibc
    } else {
        Family::Unknown
    }
}

/// The allocator that a shared library is, going by its soname.
fn library(image: &Image<'_>) -> Option<Family> {
    let soname = image.soname()?;
    [
        ("libjemalloc", Family::Jemalloc),
        ("libtcmalloc", Family::Tcmalloc),
        ("libmimalloc", Family::Mimalloc),
    ]
    .into_iter()
    .find(|(prefix, _)| soname.starts_with(prefix))
    .map(|(_, family)| family)
}

struct Search<'a, 'data> {
    image: &'a Image<'data>,
    family: Family,
}

impl Search<'_, '_> {
    fn allocator(&self, candidates: &[Candidate<'_>]) -> Allocator {
        let internal = self.internal(candidates);
        let mut unseen = self.left_out();
        let (callable, resolvers): (Vec<_>, Vec<_>) =
            candidates.iter().partition(|candidate| !candidate.indirect);
        unseen.extend(resolvers.iter().map(|candidate| Unseen {
            name: candidate.name.to_owned(),
            reason: "chosen at load time (IFUNC)".to_owned(),
        }));
        let wanted: Vec<_> = callable
            .iter()
            .copied()
            .filter(|candidate| self.is_entry(candidate, &callable, &internal))
            .collect();
        let entries: Vec<u64> = wanted.iter().map(|candidate| candidate.address).collect();
        let addresses: Vec<u64> = self
            .image
            .symbols()
            .iter()
            .map(|symbol| symbol.address)
            .collect();
        let functions = wanted
            .iter()
            .filter(|candidate| !self.is_forwarder(candidate, &entries))
            .filter_map(|candidate| self.function(candidate, &addresses))
            .collect();
        Allocator {
            name: self.family.name(),
            functions,
            internal,
            unseen,
        }
    }

    /// operator new and delete count only where they are the allocator's own.
    fn is_entry(
        &self,
        candidate: &Candidate<'_>,
        all: &[&Candidate<'_>],
        internal: &Range<u64>,
    ) -> bool {
        if !candidate.known.cpp || internal.contains(&candidate.address) {
            return true;
        }
        if matches!(self.family, Family::Glibc | Family::Musl | Family::Unknown) {
            return false;
        }
        let calls = flow::callees(self.image, &self.bounds(candidate));
        !all.iter()
            .any(|other| !other.known.cpp && calls.contains(&other.address))
    }

    /// A jump to another probed function: that one sees the call just as the program made it.
    fn is_forwarder(&self, candidate: &Candidate<'_>, entries: &[u64]) -> bool {
        self.image.is_x86_64()
            && flow::forward(self.image, &self.bounds(candidate))
                .is_some_and(|target| entries.contains(&target))
    }

    fn function(&self, candidate: &Candidate<'_>, entries: &[u64]) -> Option<FoundFunction> {
        let bounds = self.bounds(candidate);
        let file_offset = self.image.file_offset(candidate.address)?;
        self.image.executable_segment(candidate.address)?;
        Some(FoundFunction {
            name: candidate.name.to_owned(),
            function: candidate.known.function,
            file_offset,
            virtual_address: candidate.address,
            size: bounds.end - bounds.start,
            entry: self.entry(candidate, &bounds, file_offset, entries),
            exit: self.exit(candidate, &bounds),
        })
    }

    fn entry(
        &self,
        candidate: &Candidate<'_>,
        bounds: &Range<u64>,
        file_offset: u64,
        entries: &[u64],
    ) -> Placement {
        let first = Placement {
            file_offset,
            pushed: 0,
            emulated: false,
        };
        if !self.image.is_x86_64() {
            return first;
        }
        let Some(code) = self.image.code(bounds) else {
            return first;
        };
        let pieces = flow::fragments(self.image, bounds);
        let fragments: Vec<_> = pieces
            .iter()
            .filter_map(|piece| Some((piece.start, self.image.code(piece)?)))
            .collect();
        let around = Surroundings {
            code,
            address: bounds.start,
            fragments: &fragments,
            entries,
        };
        let choice = placement::choose(candidate.known.function, &around);
        Placement {
            file_offset: file_offset + choice.offset,
            pushed: choice.pushed,
            emulated: choice.emulated,
        }
    }

    fn exit(&self, candidate: &Candidate<'_>, bounds: &Range<u64>) -> Exit {
        if candidate.known.function == Function::Free {
            return Exit::None;
        }
        if !candidate.throws {
            return Exit::ReturnProbe;
        }
        if !self.image.is_x86_64() {
            return Exit::Unknown {
                reason: "its returns are found on x86-64 only".to_owned(),
            };
        }
        let returns = flow::returns(self.image, bounds);
        let file_offsets: Vec<u64> = returns
            .addresses
            .iter()
            .filter_map(|&address| self.image.file_offset(address))
            .collect();
        if file_offsets.is_empty() {
            let reason = returns
                .incomplete
                .unwrap_or_else(|| "no return instruction was found".to_owned());
            return Exit::Unknown { reason };
        }
        Exit::Instructions {
            file_offsets,
            incomplete: returns.incomplete,
        }
    }

    /// The whole function; just its address where no table tells where it ends.
    fn bounds(&self, candidate: &Candidate<'_>) -> Range<u64> {
        let start = candidate.address;
        if candidate.size > 0 {
            return start..start.saturating_add(candidate.size);
        }
        self.image
            .bounds(start)
            .filter(|bounds| bounds.start == start)
            .unwrap_or(start..start)
    }

    fn left_out(&self) -> Vec<Unseen> {
        let families = [Family::Jemalloc, Family::Tcmalloc, Family::Mimalloc];
        if !families.contains(&self.family) {
            return Vec::new();
        }
        self.image
            .symbols()
            .iter()
            .filter_map(|symbol| Some((symbol, names::left_out(symbol.name)?)))
            .map(|(symbol, reason)| Unseen {
                name: symbol.name.to_owned(),
                reason: reason.to_owned(),
            })
            .collect()
    }

    /// A library that is nothing but the allocator is internal as a whole. Elsewhere it is the run of
    /// the allocator's own functions around malloc, up to the nearest global function that is not.
    fn internal(&self, candidates: &[Candidate<'_>]) -> Range<u64> {
        let c = || {
            candidates
                .iter()
                .filter(|candidate| !candidate.known.cpp && !candidate.indirect)
        };
        let Some(middle) = c()
            .find(|one| one.known.function == Function::Malloc)
            .or_else(|| c().next())
        else {
            return 0..0;
        };
        if library(self.image) == Some(self.family)
            && let Some(segment) = self.image.executable_segment(middle.address)
        {
            return segment;
        }
        let symbols = self.image.symbols();
        let at = symbols.partition_point(|symbol| symbol.address < middle.address);
        let below = self
            .run(symbols[..at].iter().rev())
            .map(|symbol| symbol.address)
            .min();
        let above = self
            .run(symbols[at..].iter())
            .map(|symbol| symbol.address.saturating_add(symbol.size))
            .max();
        let end = middle.address.saturating_add(middle.size);
        below.unwrap_or(middle.address)..above.unwrap_or(end).max(end)
    }

    /// The family's own among the functions up to the first foreign one. Local and weak symbols
    /// may be anyone's (static helpers, aliases, template instantiations), and so may operators.
    fn run<'s, 'data: 's>(
        &self,
        symbols: impl Iterator<Item = &'s Symbol<'data>>,
    ) -> impl Iterator<Item = &'s Symbol<'data>> {
        let family = self.family;
        let foreign = move |symbol: &Symbol<'_>| {
            symbol.binding == Binding::Global
                && !family.owns(symbol.name)
                && names::lookup(symbol.name).is_none()
        };
        symbols
            .take_while(move |symbol| !foreign(symbol))
            .filter(move |symbol| family.owns(symbol.name))
    }
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
