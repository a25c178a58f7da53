//! What events are: a heap's life, as the kernel side would tell it.

use memtrace::event::{Event, EventKind, Started};
use memtrace_common::{
    heap::Function,
    record::{Alloc, Free, Header, Kind},
};

/// Random numbers, the same in every run.
struct Random(u64);

impl Random {
    /// The one sequence.
    fn start() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// Sites of the made-up program.
const SITES: u64 = 500;

fn event(time_ns: u64, kind: EventKind) -> Event {
    Event {
        time_ns,
        pid: 4242,
        tid: 4242,
        kind,
    }
}

/// The process, told before its heap.
pub fn started() -> Event {
    let started = Started {
        parent: 1,
        start_ns: 1,
        comm: "made-up".into(),
        exe: "/bin/made-up".into(),
        already_running: false,
    };
    event(1, EventKind::Started(Box::new(started)))
}

/// The blocks of a heap of `count` live ones, some 64 bytes apart, in turn freed and handed out again.
pub struct Heap {
    random: Random,
    live: Vec<u64>,
    time_ns: u64,
    freed: Option<u64>,
}

impl Heap {
    /// The heap, and the events that fill it.
    pub fn new(count: u64) -> (Self, impl Iterator<Item = Event>) {
        let address = |number| 0x5555_5575_92a0 + 64 * number;
        let mut random = Random::start();
        let fill =
            (0..count).map(move |number| event(10 + number, alloc(address(number), &mut random)));
        let heap = Self {
            random: Random::start(),
            live: (0..count).map(address).collect(),
            time_ns: 1_000_000_000,
            freed: None,
        };
        (heap, fill)
    }
}

impl Iterator for Heap {
    type Item = Event;

    /// Frees come in runs of neighbours, as those of a list or a tree that was built in one go do.
    fn next(&mut self) -> Option<Event> {
        self.time_ns += 200 + self.random.below(900);
        let kind = match self.freed.take() {
            Some(address) => alloc(address, &mut self.random),
            None => {
                let run = self.time_ns >> 16;
                let start = run.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                let at = (start + self.random.below(64)) % self.live.len() as u64;
                let address = self.live[at as usize];
                self.freed = Some(address);
                EventKind::Free { address }
            }
        };
        Some(event(self.time_ns, kind))
    }
}

fn alloc(address: u64, random: &mut Random) -> EventKind {
    let site = random.below(SITES);
    EventKind::Alloc {
        function: Function::Malloc,
        address,
        size: 16 + site % 7 * 16,
        stack: (site + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// An event as the kernel side sends it; of the kinds that [`Heap`] has.
pub fn record(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut words = |words: &[u64]| {
        words
            .iter()
            .for_each(|word| bytes.extend(word.to_ne_bytes()))
    };
    let header = |kind: Kind| Header {
        kind: kind as u16,
        flags: 0,
        pid: event.pid,
        tid: event.tid,
        extra: 1,
        time_ns: event.time_ns,
    };
    let head = |header: Header| {
        let first = u64::from(header.kind) | u64::from(header.pid) << 32;
        [
            first,
            u64::from(header.tid) | u64::from(header.extra) << 32,
            header.time_ns,
        ]
    };
    match event.kind {
        EventKind::Alloc {
            address,
            size,
            stack,
            ..
        } => {
            words(&head(header(Kind::Alloc)));
            words(&[address, size, stack]);
            assert_eq!(bytes.len(), size_of::<Alloc>());
        }
        EventKind::Free { address } => {
            words(&head(header(Kind::Free)));
            words(&[address]);
            assert_eq!(bytes.len(), size_of::<Free>());
        }
        _ => {}
    }
    bytes
}
