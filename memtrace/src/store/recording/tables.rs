//! What is told once for a recording and named by its number afterwards: codes, paths and names of symbols.
//!
//! A *code* is an instruction by the module it lies in: `(module, offset)`. The same program lies elsewhere in each
//! process, and its codes are the same. Where a module lies is told once for each process; module 0 begins at 0 in
//! all of them and takes what lies in no file. A *path* is the codes of a stack, innermost first, and why there are
//! no more.
//!
//! Writer and reader number alike, and both forget everything at the same row, when [`Fill::is_full`] says so. What
//! is needed afterwards is told again.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::RandomState,
    ops::Range,
    sync::Arc,
};

use memtrace_common::unwind::End;
use rustc_hash::FxBuildHasher;

use super::detail::Name;
use crate::event::{Pid, StackId};

/// The module of what lies in no file.
pub(super) const NO_MODULE: u32 = 0;

/// An instruction: its module, and how far behind the module's base its frame's word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Code {
    pub(super) module: u32,
    pub(super) offset: u64,
}

/// How much was told; the same on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fill {
    codes: usize,
    path_codes: usize,
    name_bytes: usize,
    bases: usize,
}

impl Fill {
    fn is_full(self) -> bool {
        self.codes >= 1 << 20
            || self.path_codes >= 1 << 22
            || self.name_bytes >= 1 << 25
            || self.bases >= 1 << 20
    }
}

/// Where a module lies in a process, as the writer has told it.
#[derive(Debug)]
struct Base {
    at: u64,
    /// The row that last had a frame by it.
    row: u64,
}

/// Whether a frame can be told by a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// It was told.
    Known,
    /// It is to be told in this row.
    New,
    /// Frames of this row are by another base of the same module: whoever reads the row has one for all of them.
    Taken,
}

/// The writer's side: numbers of what was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    fill: Fill,
    /// Rows begun.
    row: u64,
    codes: HashMap<Code, u32, FxBuildHasher>,
    bases: HashMap<(Pid, u32), Base, FxBuildHasher>,
    paths: HashMap<Box<[u32]>, u32, FxBuildHasher>,
    /// The codes of the path that was told last.
    last_path: Vec<u32>,
    names: HashMap<Box<str>, u32, FxBuildHasher>,
}

/// A number, and whether it is told for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) number: u32,
    pub(super) is_new: bool,
}

impl Told {
    /// To be called before each row.
    pub(super) fn begin_row(&mut self) {
        if self.fill.is_full() {
            *self = Self::default();
        }
        self.row += 1;
    }

    /// Notes that a frame of this row is by a module's base.
    pub(super) fn base(&mut self, pid: Pid, module: u32, at: u64) -> Telling {
        if module == NO_MODULE {
            return Telling::Known;
        }
        let row = self.row;
        match self.bases.entry((pid, module)) {
            Entry::Occupied(mut known) if known.get().at == at => {
                known.get_mut().row = row;
                return Telling::Known;
            }
            Entry::Occupied(known) if known.get().row == row => return Telling::Taken,
            Entry::Occupied(mut known) => *known.get_mut() = Base { at, row },
            Entry::Vacant(free) => {
                free.insert(Base { at, row });
            }
        }
        self.fill.bases += 1;
        Telling::New
    }

    pub(super) fn code(&mut self, code: Code) -> Number {
        let next = self.codes.len() as u32;
        let number = *self.codes.entry(code).or_insert(next);
        let is_new = number == next;
        self.fill.codes += usize::from(is_new);
        Number { number, is_new }
    }

    /// The path of codes with the number of its [`End`] behind them.
    pub(super) fn path(&mut self, codes: &[u32]) -> Number {
        if let Some(&number) = self.paths.get(codes) {
            return Number {
                number,
                is_new: false,
            };
        }
        let number = self.paths.len() as u32;
        self.paths.insert(codes.into(), number);
        self.fill.path_codes += codes.len();
        Number {
            number,
            is_new: true,
        }
    }

    /// Of a path that is told now, how many of the outermost codes are those of the path told before: most stacks differ
    /// in their innermost frames alone.
    pub(super) fn shared_with_last(&mut self, codes: &[u32]) -> usize {
        let pairs = codes.iter().rev().zip(self.last_path.iter().rev());
        let shared = pairs.take_while(|(one, other)| one == other).count();
        self.last_path.clear();
        self.last_path.extend_from_slice(codes);
        shared
    }

    /// A name and what it takes, see [`name_bytes`](super::detail::name_bytes).
    pub(super) fn name(&mut self, text: &str, bytes: usize) -> Number {
        if let Some(&number) = self.names.get(text) {
            return Number {
                number,
                is_new: false,
            };
        }
        let number = self.names.len() as u32;
        self.names.insert(text.into(), number);
        self.fill.name_bytes += bytes;
        Number {
            number,
            is_new: true,
        }
    }
}

/// Numbers of stacks, in the order in which their ids were seen.
///
/// None is forgotten: a later event may name the id, and its frames are not told again. That is at most 40 bytes for
/// each stack that differs, beside its frames, which the model of the same trace keeps.
#[derive(Default)]
pub(super) struct StackNumbers(HashMap<StackId, u32, FxBuildHasher>);

impl StackNumbers {
    /// 0 for no stack, 1 for one that was not seen before, n + 1 for the one before the n-th last that was new.
    pub(super) fn age(&mut self, id: StackId) -> u32 {
        if id == 0 {
            return 0;
        }
        let next = self.0.len() as u32;
        let number = *self.0.entry(id).or_insert(next);
        next - number + 1
    }
}

/// The reader's side: what numbers stand for.
#[derive(Debug, Default)]
pub(super) struct Known {
    fill: Fill,
    codes: Vec<Code>,
    /// Where modules lie. The keys are whatever a file says: hashed so that nobody can make them collide.
    bases: HashMap<(Pid, u32), u64, RandomState>,
    path_codes: Vec<u32>,
    /// Where in `path_codes` each path ends, and its own end.
    paths: Vec<(usize, End)>,
    /// With the bytes that each took.
    names: Vec<(Arc<Name>, usize)>,
}

impl Known {
    /// To be called before each row.
    pub(super) fn begin_row(&mut self) {
        if self.fill.is_full() {
            *self = Self::default();
        }
    }

    pub(super) fn add_base(&mut self, pid: Pid, module: u32, base: u64) {
        self.bases.insert((pid, module), base);
        self.fill.bases += 1;
    }

    pub(super) fn add_code(&mut self, code: Code) {
        self.codes.push(code);
        self.fill.codes += 1;
    }

    /// The number of the path that is told next.
    pub(super) fn next_path(&self) -> u32 {
        self.paths.len() as u32
    }

    /// The path of these codes and, behind them, so many of the outermost ones of the path before. `None` where that has
    /// fewer.
    pub(super) fn add_path(&mut self, codes: &[u32], shared: usize, end: End) -> Option<()> {
        let last = self.paths.len().checked_sub(1);
        let before = last.map_or(0..0, |last| self.codes_of(last));
        let from = before.end.checked_sub(shared)?;
        if from < before.start {
            return None;
        }
        self.path_codes.extend_from_slice(codes);
        self.path_codes.extend_from_within(from..before.end);
        self.paths.push((self.path_codes.len(), end));
        // The writer counts the end too.
        self.fill.path_codes += codes.len() + shared + 1;
        Some(())
    }

    /// Where the codes of a path are.
    fn codes_of(&self, number: usize) -> Range<usize> {
        let start = number
            .checked_sub(1)
            .map_or(0, |before| self.paths[before].0);
        start..self.paths[number].0
    }

    /// The number of the name that is told next.
    pub(super) fn next_name(&self) -> u32 {
        self.names.len() as u32
    }

    pub(super) fn add_name(&mut self, name: Name, bytes: usize) {
        self.names.push((Arc::new(name), bytes));
        self.fill.name_bytes += bytes;
    }

    pub(super) fn name(&self, number: u32) -> Option<(Arc<Name>, usize)> {
        self.names.get(number as usize).cloned()
    }

    pub(super) fn code(&self, number: u32) -> Option<Code> {
        self.codes.get(number as usize).copied()
    }

    /// The word of a code's frame in a process.
    pub(super) fn frame(&self, pid: Pid, code: Code) -> Option<u64> {
        let base = match code.module {
            NO_MODULE => 0,
            module => *self.bases.get(&(pid, module))?,
        };
        Some(base.wrapping_add(code.offset))
    }

    /// The frames of a path in a process, and its end.
    pub(super) fn path(&self, pid: Pid, number: u32) -> Option<(Box<[u64]>, End)> {
        let number = number as usize;
        let &(_, end) = self.paths.get(number)?;
        let codes = self.path_codes[self.codes_of(number)].iter();
        let frames = codes.map(|&code| self.frame(pid, self.code(code)?));
        Some((frames.collect::<Option<_>>()?, end))
    }
}
