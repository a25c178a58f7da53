//! The names in the page of code that the kernel maps into every process. It is the same in all 64-bit
//! ones, so our own is read.

use std::{fs::File, os::unix::fs::FileExt as _};

use object::{Object as _, ObjectSymbol as _};

/// Functions of the vDSO by address, with their length.
#[derive(Debug, Default)]
pub(super) struct Vdso {
    functions: Vec<(u64, u64, Box<str>)>,
}

impl Vdso {
    /// Reads this process's vDSO; empty if it has none.
    pub(super) fn read() -> Self {
        Self {
            functions: image()
                .and_then(|image| functions(&image))
                .unwrap_or_default(),
        }
    }

    /// The function at an offset from the first byte of the mapping.
    pub(super) fn find(&self, offset: u64) -> Option<&str> {
        let end = self
            .functions
            .partition_point(|(start, ..)| *start <= offset);
        let (start, size, name) = self.functions.get(end.checked_sub(1)?)?;
        (offset - start < *size).then_some(name)
    }
}

/// The bytes of the page.
pub(crate) fn image() -> Option<Vec<u8>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    let memory = File::open("/proc/self/mem").ok()?;
    memory.read_exact_at(&mut bytes, start).ok()?;
    Some(bytes)
}

fn functions(image: &[u8]) -> Option<Vec<(u64, u64, Box<str>)>> {
    let file = object::File::parse(image).ok()?;
    let mut functions: Vec<(u64, u64, Box<str>)> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition() && symbol.size() > 0)
        .filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?.into())))
        .collect();
    // Of several names the one that programs call.
    functions.sort_by_key(|(start, _, name)| (*start, name.starts_with("__vdso")));
    Some(functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_named() {
        let vdso = Vdso::read();
        // Where the loader found it, as readelf would list it.
        let image = image().unwrap();
        let file = object::File::parse(&*image).unwrap();
        let clock = file
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok("__vdso_clock_gettime"))
            .unwrap();
        assert_eq!(vdso.find(clock.address() + 1), Some("__vdso_clock_gettime"));
        assert_eq!(vdso.find(u64::MAX), None);
    }
}
