//! Which uprobes a set of allocators needs, before any is placed.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    rc::Rc,
};

use memtrace_common::heap::{GROUP_SIZE, Point};

use super::{
    allocator::{Allocator, Exit, FoundFunction},
    heap::FileId,
};

/// Where in a function a uprobe stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// At the entry, or soon behind it.
    Entry,
    /// Where it returns.
    Return,
}

/// One uprobe.
#[derive(Clone, Debug)]
pub struct Part {
    /// The file it stands on.
    pub file: Rc<File>,
    /// The same, wherever it is mounted.
    pub id: FileId,
    /// Offset in it.
    pub offset: u64,
    /// Allocator and function, for the report.
    pub name: String,
    /// Where in the function.
    pub placed: Placed,
}

/// An entry uprobe and what the program needs to know of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The uprobe.
    pub part: Part,
    /// Virtual address: its place in a page is the key of the point.
    pub address: u64,
    /// The point.
    pub point: Point,
}

/// Uprobes to be placed together.
#[derive(Debug, Default)]
pub struct Batch {
    entries: Vec<Entry>,
    /// Return probes.
    pub returns: Vec<Part>,
    /// `ret` instructions of functions that an exception may leave; each place once.
    pub return_instructions: Vec<Part>,
}

impl Batch {
    /// Adds what one function needs. A function whose result cannot be seen gets nothing.
    pub fn add(
        &mut self,
        id: FileId,
        file: &Rc<File>,
        allocator: &Allocator,
        found: &FoundFunction,
    ) {
        let name = format!("{}:{}", allocator.name, found.name);
        let part = |offset, placed| Part {
            file: Rc::clone(file),
            id,
            offset,
            name: name.clone(),
            placed,
        };
        // A return probe takes [rsp] for the return address: it cannot stand behind a push, and the entry
        // probe shares its breakpoint.
        let behind_push = found.exit == Exit::ReturnProbe && found.entry.pushed != 0;
        let (offset, pushed) = if behind_push {
            (found.file_offset, 0)
        } else {
            (found.entry.file_offset, found.entry.pushed)
        };
        match &found.exit {
            Exit::None => {}
            Exit::ReturnProbe => self.returns.push(part(offset, Placed::Return)),
            Exit::Instructions { file_offsets, .. } => {
                for &offset in file_offsets {
                    let there =
                        |other: &Part| other.offset == offset && Rc::ptr_eq(&other.file, file);
                    if !self.return_instructions.iter().any(there) {
                        self.return_instructions.push(part(offset, Placed::Return));
                    }
                }
            }
            Exit::Unknown { .. } => return,
        }
        let address = found.virtual_address + (offset - found.file_offset);
        let point = Point {
            function: found.function as u16,
            pushed,
            has_return_probe: u16::from(found.exit == Exit::ReturnProbe),
            internal_start: allocator.internal.start.wrapping_sub(address) as i64,
            internal_end: allocator.internal.end.wrapping_sub(address) as i64,
        };
        self.entries.push(Entry {
            part: part(offset, Placed::Entry),
            address,
            point,
        });
    }

    /// The entries by table of points: within one, no two stand at the same place in a page. `tables` holds the
    /// places that are taken, and is kept from batch to batch.
    pub fn entry_groups(&self, tables: &mut Vec<HashSet<u64>>) -> BTreeMap<u32, Vec<Entry>> {
        let mut groups: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
        for entry in &self.entries {
            let key = entry.address % u64::from(GROUP_SIZE);
            let table = tables.iter().position(|taken| !taken.contains(&key));
            let table = table.unwrap_or_else(|| {
                tables.push(HashSet::new());
                tables.len() - 1
            });
            tables[table].insert(key);
            groups.entry(table as u32).or_default().push(entry.clone());
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::heap::Function;

    use super::*;
    use crate::probe::placement::Placement;

    fn function(address: u64, exit: Exit) -> FoundFunction {
        FoundFunction {
            name: format!("f{address:x}"),
            function: Function::Malloc,
            file_offset: address,
            virtual_address: address,
            size: 16,
            entry: Placement {
                file_offset: address + 1,
                pushed: 8,
                emulated: true,
            },
            exit,
        }
    }

    fn batch(functions: &[FoundFunction]) -> Batch {
        let file = Rc::new(tempfile::tempfile().unwrap());
        let id = FileId::of(std::path::Path::new("/")).unwrap();
        let allocator = Allocator {
            name: "a",
            functions: vec![],
            internal: 0x1000..0x2000,
            unseen: vec![],
        };
        let mut batch = Batch::default();
        for found in functions {
            batch.add(id, &file, &allocator, found);
        }
        batch
    }

    #[test]
    fn entries_at_one_place_in_a_page_are_in_two_groups() {
        let batch =
            batch(&[0x1010, 0x2010, 0x3020].map(|address| function(address, Exit::ReturnProbe)));
        let mut tables = Vec::new();
        let addresses = |groups: &BTreeMap<u32, Vec<Entry>>| {
            let of = |group: &Vec<Entry>| group.iter().map(|entry| entry.address).collect();
            groups.values().map(of).collect::<Vec<Vec<u64>>>()
        };
        let first = batch.entry_groups(&mut tables);
        assert_eq!(addresses(&first), [vec![0x1010, 0x3020], vec![0x2010]]);
        let again = batch.entry_groups(&mut tables);
        assert_eq!(again.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_return_probe_does_not_stand_behind_a_push() {
        let batch = batch(&[
            function(0x1010, Exit::ReturnProbe),
            function(0x1050, Exit::None),
        ]);
        assert_eq!(batch.returns[0].offset, 0x1010);
        let entries = &batch.entry_groups(&mut Vec::new())[&0];
        assert_eq!(
            (entries[0].part.offset, entries[0].point.pushed),
            (0x1010, 0)
        );
        assert_eq!(
            (entries[1].part.offset, entries[1].point.pushed),
            (0x1051, 8)
        );
        // The allocator's own code, as far away as it is from where the probe stands.
        let own = |at: usize| {
            let point = entries[at].point;
            (point.internal_start, point.internal_end)
        };
        assert_eq!((own(0), own(1)), ((-0x10, 0xff0), (-0x51, 0xfaf)));
        let told = |at: usize| entries[at].point.has_return_probe;
        assert_eq!((told(0), told(1)), (1, 0));
    }

    #[test]
    fn a_shared_ret_is_probed_once() {
        let exit = Exit::Instructions {
            file_offsets: vec![0x1080],
            incomplete: None,
        };
        let batch = batch(&[function(0x1010, exit.clone()), function(0x1050, exit)]);
        assert_eq!(batch.return_instructions.len(), 1);
    }
}
