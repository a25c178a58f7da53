//! The functions of a file that have an allocator's names, and whose they are.

use std::collections::BTreeMap;

use memtrace_common::heap::Function;

use super::{
    flow,
    image::{Image, Symbol},
    names::{self, Family, Known},
};

/// All names of one address.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'data> {
    pub(super) name: &'data str,
    pub(super) known: Known,
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) throws: bool,
    pub(super) indirect: bool,
    pub(super) family: Option<Family>,
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
            let second = ["cfree", "_Zna", "_Zda"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            (known.cpp, known.alias, known.family.is_some(), second)
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
pub(super) fn families<'data>(image: &Image<'data>) -> BTreeMap<Family, Vec<Candidate<'data>>> {
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
pub(super) fn library(image: &Image<'_>) -> Option<Family> {
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
