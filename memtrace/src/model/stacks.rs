//! The stacks of a trace by short numbers: a site's number is its stack's.
//!
//! There may be a million of them, so frames are kept as differences, which mostly fit into three bytes, and nothing
//! here doubles in size when it grows.

use hashbrown::HashTable;
use memtrace_common::unwind::End;
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher as _;

use crate::event::StackId;

/// A stack that something was done at, or whose frames were told.
#[derive(Clone, Copy, Debug)]
struct Stack {
    id: StackId,
    /// Where its frames begin in [`Stacks::frames`]; [`UNTOLD`] until they were told.
    at: u64,
}

const UNTOLD: u64 = u64::MAX;

/// See [`Stacks::is_full`]. 200 bytes each, of ten frames.
const MAX_SAMPLED: usize = 1 << 18;

/// Stacks and their numbers, for the whole trace.
#[derive(Debug, Default)]
pub struct Stacks {
    /// Numbers, by id.
    index: HashTable<u32>,
    stacks: Vec<Stack>,
    /// For each stack why it ended, the number of frames, and the difference of each to the one before: as varints.
    frames: Vec<u8>,
}

impl Stacks {
    /// The frames of a stack were told, once or again, as the words of [`memtrace_common::frame`].
    pub fn define(&mut self, id: StackId, frames: &[u64], end: End) {
        let number = self.intern(id) as usize;
        if self.stacks[number].at != UNTOLD {
            return;
        }
        self.stacks[number].at = self.frames.len() as u64;
        let mut last = 0;
        push(&mut self.frames, end as u64);
        push(&mut self.frames, frames.len() as u64);
        for &frame in frames {
            push(&mut self.frames, zigzag(frame.wrapping_sub(last)));
            last = frame;
        }
    }

    /// Whether there are so many that those of a sample are not added any more: a daemon lives long, and what runs
    /// meanwhile may be without number.
    pub fn is_full(&self) -> bool {
        self.stacks.len() >= MAX_SAMPLED
    }

    /// The number of a stack of a sample; `None` where none was taken, or there are too many.
    pub fn find_sampled(&mut self, id: StackId) -> Option<u32> {
        let is_it = |number: &u32| self.stacks[*number as usize].id == id;
        let known = self.index.find(FxBuildHasher.hash_one(id), is_it).copied();
        match known {
            None if id != 0 && !self.is_full() => Some(self.intern(id)),
            known => known.filter(|_| id != 0),
        }
    }

    /// The number of a stack.
    pub fn intern(&mut self, id: StackId) -> u32 {
        let stacks = &mut self.stacks;
        let hash = |id: StackId| FxBuildHasher.hash_one(id);
        let is_it = |number: &u32| stacks[*number as usize].id == id;
        if let Some(&number) = self.index.find(hash(id), is_it) {
            return number;
        }
        let number = stacks.len() as u32;
        make_room(stacks);
        stacks.push(Stack { id, at: UNTOLD });
        let rehash = |number: &u32| hash(stacks[*number as usize].id);
        self.index.insert_unique(hash(id), number, rehash);
        number
    }

    /// The frames of a stack, innermost first; empty where none were told.
    pub fn frames(&self, number: u32) -> Vec<u64> {
        let Some(mut bytes) = self.told(number) else {
            return Vec::new();
        };
        pull(&mut bytes);
        let count = pull(&mut bytes);
        let mut last = 0u64;
        let frame = |_| {
            last = last.wrapping_add(unzigzag(pull(&mut bytes)));
            last
        };
        (0..count).map(frame).collect()
    }

    /// Why a stack has no more frames; `None` where none were told.
    pub fn end(&self, number: u32) -> Option<End> {
        let end = pull(&mut self.told(number)?);
        End::from_raw(u8::try_from(end).ok()?)
    }

    /// What was written of a stack, if it was told.
    fn told(&self, number: u32) -> Option<std::slice::Iter<'_, u8>> {
        let at = self.stacks.get(number as usize)?.at;
        Some(self.frames.get(usize::try_from(at).ok()?..)?.iter())
    }
}

/// Room for one more, and for an eighth more where that is not there.
pub(super) fn make_room<T>(vec: &mut Vec<T>) {
    if vec.len() == vec.capacity() {
        vec.reserve_exact(vec.len() / 8 + 8);
    }
}

/// Small for small differences in either direction.
fn zigzag(difference: u64) -> u64 {
    difference << 1 ^ (difference as i64 >> 63) as u64
}

fn unzigzag(number: u64) -> u64 {
    number >> 1 ^ (number & 1).wrapping_neg()
}

/// LEB128: seven bits a byte, the lowest first; the eighth bit says that more follow.
fn push(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        make_room(bytes);
        let more = number >> 7 != 0;
        bytes.push((number & 0x7f) as u8 | u8::from(more) << 7);
        number >>= 7;
        if !more {
            return;
        }
    }
}

/// What [`push`] wrote; 0 where nothing is left.
fn pull(bytes: &mut std::slice::Iter<'_, u8>) -> u64 {
    let mut number = 0;
    for (byte, shift) in bytes.zip((0..64).step_by(7)) {
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_numbered_once() {
        let mut stacks = Stacks::default();
        let (small, large) = (stacks.intern(7), stacks.intern(9));
        assert_eq!(stacks.intern(7), small);
        stacks.define(9, &[1, 2], End::Truncated);
        stacks.define(9, &[1, 2], End::Truncated);
        assert_eq!(stacks.frames(large), [1, 2]);
        assert_eq!(stacks.end(large), Some(End::Truncated));
        assert_eq!(stacks.end(small), None);
        assert_eq!(stacks.frames(small), [0u64; 0]);
        assert_eq!(stacks.frames(77), [0u64; 0]);
    }

    #[test]
    fn frames_come_back() {
        let mut stacks = Stacks::default();
        let far = [
            0x7fff_1234_5678,
            0x5555_5555_0000,
            u64::MAX,
            0,
            1,
            1 << 63,
            1 << 56,
        ];
        let all: Vec<Vec<u64>> = (0..10_000u64)
            .map(|id| {
                (0..id % 130)
                    .map(|at| far[at as usize % 7] ^ (id * at))
                    .collect()
            })
            .collect();
        for (id, frames) in all.iter().enumerate() {
            stacks.define(id as u64, frames, End::Start);
        }
        for (id, frames) in all.iter().enumerate() {
            let number = stacks.intern(id as u64);
            assert_eq!(stacks.frames(number), *frames);
        }
    }
}
