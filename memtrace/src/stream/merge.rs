//! Several ring buffers as one.
//!
//! A record's time is taken before there is room for it in its buffer, and after all that it refers to was written, by
//! the clock that all processors share. So if one record was written before what another tells of had happened, all that
//! lies before the first in its buffer is older than the second. Taking whichever buffer's next record is the oldest
//! therefore never delivers an effect before its cause, as long as no buffer has anything of before the moment up to
//! which is read that is not there to be seen: one that is still being written holds all of them up.

use super::decode::Decoded;

/// A buffer of decoded records.
pub trait Source {
    /// The next one.
    fn next(&mut self) -> Next;
}

/// What a buffer has next.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// A record.
    Record(Decoded),
    /// One that is not written to its end yet.
    Unfinished,
    /// Nothing.
    Nothing,
}

/// What a round left in the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Records of the moment up to which was read, or younger.
    Younger,
    /// More than there was room for.
    More,
    /// What a record that is still being written holds up.
    Held,
}

/// Buffers that are read together.
pub struct Merge<S> {
    sources: Vec<(S, Option<Decoded>)>,
}

impl<S: Source> Merge<S> {
    /// Of these buffers.
    pub fn new(sources: impl IntoIterator<Item = S>) -> Self {
        let sources = sources.into_iter().map(|source| (source, None));
        Self {
            sources: sources.collect(),
        }
    }

    /// The buffers.
    pub fn sources_mut(&mut self) -> impl Iterator<Item = &mut S> {
        self.sources.iter_mut().map(|(source, _)| source)
    }

    /// Takes records that are older than `until_ns`, a moment before this call, until there are `most` in `into`.
    pub fn take(&mut self, until_ns: u64, most: usize, into: &mut Vec<Decoded>) -> Left {
        for (source, head) in &mut self.sources {
            if head.is_none() && !fill(source, head) {
                return Left::Held;
            }
        }
        while let Some((first, first_ns, others_ns)) = self.oldest() {
            if first_ns >= until_ns {
                return Left::Younger;
            }
            let (source, head) = &mut self.sources[first];
            let is_next = |record: &mut Decoded| {
                (..until_ns).contains(&record.time_ns()) && record.time_ns() <= others_ns
            };
            while let Some(record) = head.take_if(is_next) {
                if into.len() == most {
                    *head = Some(record);
                    return Left::More;
                }
                into.push(record);
                if !fill(source, head) {
                    return Left::Held;
                }
            }
        }
        Left::Nothing
    }

    /// The buffer with the oldest record, when that was, and when the oldest of the others.
    fn oldest(&self) -> Option<(usize, u64, u64)> {
        let (mut first, mut first_ns, mut second_ns) = (None, u64::MAX, u64::MAX);
        for (index, (_, head)) in self.sources.iter().enumerate() {
            let Some(time_ns) = head.as_ref().map(Decoded::time_ns) else {
                continue;
            };
            if first.is_none() || time_ns < first_ns {
                second_ns = first_ns;
                (first, first_ns) = (Some(index), time_ns);
            } else {
                second_ns = second_ns.min(time_ns);
            }
        }
        Some((first?, first_ns, second_ns))
    }
}

/// Fetches a buffer's next record. False where it is not there to be seen yet.
fn fill(source: &mut impl Source, head: &mut Option<Decoded>) -> bool {
    match source.next() {
        Next::Record(record) => *head = Some(record),
        Next::Unfinished => return false,
        Next::Nothing => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::VecDeque};

    use super::*;
    use crate::event::{Event, EventKind};

    /// Records as the kernel side writes them: time first, then room, then the rest.
    struct Buffer(VecDeque<(Decoded, bool)>);

    impl Source for &mut Buffer {
        fn next(&mut self) -> Next {
            match self.0.front() {
                None => Next::Nothing,
                Some((_, false)) => Next::Unfinished,
                Some(_) => self
                    .0
                    .pop_front()
                    .map_or(Next::Nothing, |(record, _)| Next::Record(record)),
            }
        }
    }

    fn record(time_ns: u64, number: u32) -> Decoded {
        Decoded::Event(Event {
            time_ns,
            pid: number,
            tid: 0,
            kind: EventKind::End,
        })
    }

    fn number(record: &Decoded) -> u32 {
        match record {
            Decoded::Event(event) => event.pid,
            _ => 0,
        }
    }

    fn of(records: &[(u64, bool)]) -> Buffer {
        let records = records
            .iter()
            .map(|&(time_ns, whole)| (record(time_ns, time_ns as u32), whole));
        Buffer(records.collect())
    }

    fn taken(buffers: &mut [Buffer], until_ns: u64, most: usize) -> (Vec<u32>, Left) {
        let mut into = Vec::new();
        let left = Merge::new(buffers.iter_mut()).take(until_ns, most, &mut into);
        (into.iter().map(number).collect(), left)
    }

    #[test]
    fn the_oldest_comes_first() {
        let mut buffers = [
            of(&[(10, true), (30, true), (40, true)]),
            of(&[(20, true), (50, true)]),
            of(&[]),
        ];
        let (order, left) = taken(&mut buffers, u64::MAX, 100);
        assert_eq!(
            (&order[..], left),
            (&[10, 20, 30, 40, 50][..], Left::Nothing)
        );
    }

    #[test]
    fn what_is_younger_waits_and_is_not_lost() {
        let (mut first, mut second) = (of(&[(10, true), (30, true)]), of(&[(20, true)]));
        let mut merge = Merge::new([&mut first, &mut second]);
        let mut into = Vec::new();
        assert_eq!(merge.take(25, 100, &mut into), Left::Younger);
        assert_eq!(into.iter().map(number).collect::<Vec<_>>(), [10, 20]);
        assert_eq!(merge.take(35, 100, &mut into), Left::Nothing);
        assert_eq!(into.iter().map(number).collect::<Vec<_>>(), [10, 20, 30]);
    }

    #[test]
    fn there_are_no_more_than_there_is_room_for() {
        let (mut first, mut second) =
            (of(&[(10, true), (11, true), (12, true)]), of(&[(13, true)]));
        let mut merge = Merge::new([&mut first, &mut second]);
        let mut into = Vec::new();
        assert_eq!(merge.take(u64::MAX, 2, &mut into), Left::More);
        assert_eq!(into.iter().map(number).collect::<Vec<_>>(), [10, 11]);
        assert_eq!(merge.take(u64::MAX, 4, &mut into), Left::Nothing);
        assert_eq!(
            into.iter().map(number).collect::<Vec<_>>(),
            [10, 11, 12, 13]
        );
    }

    #[test]
    fn one_that_is_being_written_holds_all_up() {
        // The fork at 20 is whole, behind what another thread has not finished; its child tells of 30.
        let mut buffers = [
            of(&[(5, true), (10, false), (20, true)]),
            of(&[(4, true), (30, true)]),
        ];
        let (order, left) = taken(&mut buffers, u64::MAX, 100);
        assert_eq!((&order[..], left), (&[4, 5][..], Left::Held));
    }

    /// Processors that write records in three steps, in any order: time, room, the rest.
    struct Machine {
        random: u64,
        now_ns: u64,
        rings: [Buffer; 3],
        under_way: Vec<UnderWay>,
        /// For each record the number of those that were written before its time was taken.
        causes: Vec<Vec<bool>>,
        written: Vec<bool>,
    }

    struct UnderWay {
        number: usize,
        time_ns: u64,
        ring: usize,
        reserved: bool,
    }

    impl Machine {
        const RECORDS: usize = 60;

        fn new(random: u64) -> Self {
            Self {
                random,
                now_ns: 0,
                rings: [of(&[]), of(&[]), of(&[])],
                under_way: Vec::new(),
                causes: Vec::new(),
                written: vec![false; Self::RECORDS],
            }
        }

        fn choose(&mut self, below: usize) -> usize {
            self.random ^= self.random >> 12;
            self.random ^= self.random << 25;
            self.random ^= self.random >> 27;
            (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % below
        }

        fn step(&mut self) {
            let began = self.causes.len();
            if began < Self::RECORDS && self.under_way.len() < 4 && self.choose(3) == 0 {
                let (time_ns, ring) = (self.now_ns, self.choose(3));
                self.causes.push(self.written.clone());
                self.under_way.push(UnderWay {
                    number: began,
                    time_ns,
                    ring,
                    reserved: false,
                });
            } else if !self.under_way.is_empty() {
                let index = self.choose(self.under_way.len());
                self.go_on(index);
            }
        }

        fn go_on(&mut self, index: usize) {
            let one = &mut self.under_way[index];
            let buffer = &mut self.rings[one.ring].0;
            if !std::mem::replace(&mut one.reserved, true) {
                buffer.push_back((record(one.time_ns, one.number as u32), false));
                return;
            }
            let number = one.number;
            let of_this = |(record, _): &&mut (Decoded, bool)| {
                super::tests::number(record) as usize == number
            };
            buffer.iter_mut().find(of_this).expect("it was reserved").1 = true;
            self.written[number] = true;
            self.under_way.swap_remove(index);
            // What this brings about has not the same time.
            self.now_ns += 1;
        }
    }

    /// A ring of a machine that goes on while it is read.
    struct Running<'a>(&'a RefCell<Machine>, usize);

    impl Source for Running<'_> {
        fn next(&mut self) -> Next {
            let mut machine = self.0.borrow_mut();
            for _ in 0..machine.choose(4) {
                machine.step();
            }
            (&mut machine.rings[self.1]).next()
        }
    }

    #[test]
    fn an_effect_never_comes_before_its_cause() {
        for seed in 1..500 {
            let machine = RefCell::new(Machine::new(seed));
            let mut merge = Merge::new([0, 1, 2].map(|ring| Running(&machine, ring)));
            let mut delivered = Vec::new();
            while delivered.len() < Machine::RECORDS {
                let (until_ns, written) = {
                    let mut machine = machine.borrow_mut();
                    machine.now_ns += 1;
                    (machine.now_ns, machine.written.clone())
                };
                let left = merge.take(until_ns, delivered.len() + 7, &mut delivered);
                let taken = |number: usize| {
                    delivered
                        .iter()
                        .any(|one| super::tests::number(one) as usize == number)
                };
                let missing =
                    (0..Machine::RECORDS).find(|&number| written[number] && !taken(number));
                if let (Left::Nothing | Left::Younger, Some(number)) = (left, missing) {
                    panic!("seed {seed}: {number} was there when {left:?} was left");
                }
            }
            drop(merge);
            let causes = machine.into_inner().causes;
            for (place, record) in delivered.iter().enumerate() {
                for later in delivered[place..].iter().map(number) {
                    let is_cause = causes[number(record) as usize][later as usize];
                    assert!(!is_cause, "seed {seed}: {later} after {record:?}");
                }
            }
        }
    }
}
