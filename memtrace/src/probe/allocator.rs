//! Which allocator a file holds, and where to probe it.
//!
//! The counts are the program's calls, not what the allocator does inside itself. Two rules make
//! it so. A call that comes from the allocator's own code ([`Allocator::internal`]) is not counted,
//! so what enters that code from outside is probed. A function outside of it that only calls in
//! (libstdc++'s operator new calls malloc) is not probed: it would count a block twice.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use memtrace_common::heap::Function;

use super::{
    candidate::families,
    contents::Contents,
    image::{Image, ImageError},
    names::{self, Family},
    placement::Placement,
    selection::Search,
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
    /// these `ret` instructions instead. They are single-stepped: about 13 times the price of an
    /// emulated instruction.
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
    /// It is no ELF file of a kind that can be probed.
    #[error("{source}")]
    Image {
        /// What was wrong.
        #[from]
        source: ImageError,
    },
    /// The file could not be read.
    #[error("cannot be read: {reason}")]
    Unreadable {
        /// What the system said.
        reason: String,
    },
    /// The file is larger than [`LARGEST`].
    #[error("larger than {} MiB", LARGEST >> 20)]
    TooLarge {
        /// Its size in bytes.
        size: u64,
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

/// The largest file that is searched, in bytes.
pub const LARGEST: u64 = 512 << 20;

/// [`find`] in an open file, of which only what matters is read: its code where it has an allocator's names.
pub fn find_in(file: &File) -> Result<Vec<Allocator>, NoAllocator> {
    let mut contents = contents(file)?;
    let named = Image::parse(&contents.data)?
        .symbols()
        .iter()
        .any(|symbol| names::lookup(symbol.name).is_some());
    if named {
        contents.read_code(file).map_err(unreadable)?;
    }
    find(&contents.data)
}

fn unreadable(error: io::Error) -> NoAllocator {
    NoAllocator::Unreadable {
        reason: error.to_string(),
    }
}

fn contents(file: &File) -> Result<Contents, NoAllocator> {
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(ImageError::NotElf.into());
    }
    let size = metadata.len();
    if size > LARGEST {
        return Err(NoAllocator::TooLarge { size });
    }
    let mut magic = [0; 4];
    if file.read_at(&mut magic, 0).map_err(unreadable)? < 4 || magic != object::elf::ELFMAG {
        return Err(ImageError::NotElf.into());
    }
    let length = usize::try_from(size).map_err(|_| NoAllocator::TooLarge { size })?;
    Contents::read(file, length).map_err(unreadable)
}

/// Finds the allocators in an ELF file: mostly one, two where a program links a prefixed one
/// (`_rjem_`, `mi_`) beside the C library's.
pub fn find(data: &[u8]) -> Result<Vec<Allocator>, NoAllocator> {
    let image = Image::parse(data)?;
    let found: Vec<Allocator> = families(&image)
        .into_iter()
        .filter(|(family, _)| *family != Family::Unknown || !is_wrapper(&image))
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

/// Whether a malloc of nobody's we know hands on to another: it asks for the next one, or for the C library's own.
/// That one is probed; probing both would count each call twice.
fn is_wrapper(image: &Image<'_>) -> bool {
    ["dlsym", "dlvsym", "__libc_malloc"]
        .iter()
        .any(|name| image.imports(name))
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
