//! An ELF file's bytes as far as probes need them. A program may be hundreds of megabytes, most of them debug
//! information and data, and is looked at while events wait.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, path::Path};

use object::{
    Endianness, elf,
    read::{
        ReadCache, ReadRef as _,
        elf::{FileHeader as _, SectionHeader as _},
    },
};

/// Smaller sections are read whatever they hold.
const SMALL: u64 = 64 << 10;

/// The bytes of a file, at their places; what was not read is zero, and takes no memory.
pub struct Contents {
    /// As long as the file.
    pub data: Vec<u8>,
    /// Code, to be read by [`Contents::read_code`].
    code: Vec<Range<u64>>,
}

/// The bytes of a regular file but for its code.
pub fn without_code(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let size = usize::try_from(metadata.len()).map_err(io::Error::other)?;
    Ok(Contents::read(&file, size)?.data)
}

impl Contents {
    /// Reads headers, symbols, unwind tables and what else is no code, no debug information and no data.
    ///
    /// The file is read, not mapped: one that is cut short meanwhile gives an error, not a signal.
    pub fn read(file: &File, size: usize) -> io::Result<Self> {
        let mut contents = Self {
            data: vec![0; size],
            code: Vec::new(),
        };
        let Some(layout) = Layout::of(file, size as u64) else {
            file.read_exact_at(&mut contents.data, 0)?;
            return Ok(contents);
        };
        for range in layout.needed {
            contents.fill(file, &range)?;
        }
        contents.code = layout.code;
        Ok(contents)
    }

    /// Reads the code as well.
    pub fn read_code(&mut self, file: &File) -> io::Result<()> {
        for range in std::mem::take(&mut self.code) {
            self.fill(file, &range)?;
        }
        Ok(())
    }

    fn fill(&mut self, file: &File, range: &Range<u64>) -> io::Result<()> {
        let range = range.start as usize..range.end as usize;
        match self.data.get_mut(range.clone()) {
            Some(bytes) => file.read_exact_at(bytes, range.start as u64),
            // A damaged header; what it points to is not there.
            None => Ok(()),
        }
    }
}

/// Which parts of a file to read.
struct Layout {
    needed: Vec<Range<u64>>,
    code: Vec<Range<u64>>,
}

impl Layout {
    /// `None`: no 64-bit ELF file, or none with sections.
    fn of(file: &File, size: u64) -> Option<Self> {
        type Header = elf::FileHeader64<Endianness>;
        let cache = ReadCache::new(file);
        let header = Header::parse(&cache).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, &cache).ok()?;
        if sections.is_empty() {
            return None;
        }
        let table = |start: u64, count: usize, each: u16| {
            start
                ..start
                    .saturating_add(count as u64 * u64::from(each))
                    .min(size)
        };
        let programs = header.program_headers(endian, &cache).ok()?.len();
        let mut needed = vec![
            0..(size_of::<Header>() as u64).min(cache.len().ok()?),
            table(header.e_phoff(endian), programs, header.e_phentsize(endian)),
            table(
                header.e_shoff(endian),
                sections.len(),
                header.e_shentsize(endian),
            ),
        ];
        let mut code = Vec::new();
        for section in sections.iter() {
            let Some((start, length)) = section.file_range(endian) else {
                continue;
            };
            let range = start..start.saturating_add(length);
            let name = sections.section_name(endian, section).unwrap_or_default();
            let program_bits = section.sh_type(endian) == elf::SHT_PROGBITS;
            if section.sh_flags(endian).contains(elf::SHF_EXECINSTR) && length > SMALL {
                code.push(range);
            } else if !program_bits || length <= SMALL || name == b".eh_frame" {
                needed.push(range);
            }
        }
        Some(Self { needed, code })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libc() -> (File, Vec<u8>) {
        let path = "/usr/lib/x86_64-linux-gnu/libc.so.6";
        (File::open(path).unwrap(), std::fs::read(path).unwrap())
    }

    #[test]
    fn what_is_read_stands_where_it_stands_in_the_file() {
        let (file, whole) = libc();
        let mut contents = Contents::read(&file, whole.len()).unwrap();
        assert_eq!(contents.data.len(), whole.len());
        assert_ne!(contents.data, whole, "the code comes later");
        contents.read_code(&file).unwrap();
        let same = |at: usize| contents.data[at] == whole[at];
        let (equal, other): (Vec<usize>, Vec<usize>) = (0..whole.len()).partition(|&at| same(at));
        assert!(equal.len() > other.len());
        assert!(other.into_iter().all(|at| contents.data[at] == 0));
    }

    #[test]
    fn what_is_no_elf_file_is_read_whole() {
        let path = "/etc/passwd";
        let whole = std::fs::read(path).unwrap();
        let contents = Contents::read(&File::open(path).unwrap(), whole.len()).unwrap();
        assert_eq!(contents.data, whole);
    }
}
