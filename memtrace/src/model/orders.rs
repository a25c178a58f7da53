//! What a shard is told to do.

use super::{process::ProcessId, shard::Shard};

/// What a shard has to do at an event, which it is given with this.
#[derive(Debug)]
pub enum Order {
    /// A process that nobody announced is taken in: it was there before.
    Begin {
        /// Its number.
        id: ProcessId,
    },
    /// A process was told to be there.
    Start {
        /// Its number.
        id: ProcessId,
        /// It was not known.
        fresh: bool,
    },
    /// A process has a child.
    Fork {
        /// The parent.
        id: ProcessId,
        /// The child.
        child: ProcessId,
    },
    /// A process runs another program.
    Exec {
        /// Its number.
        id: ProcessId,
    },
    /// The last thread of a process ended.
    Exit {
        /// Its number.
        id: ProcessId,
    },
    /// The pid of a process was taken by another: it has ended, unseen.
    End {
        /// Its number.
        id: ProcessId,
    },
    /// Something else happened to a process.
    Apply {
        /// Its number.
        id: ProcessId,
        /// Number of the stack that the event names.
        site: u32,
    },
    /// A process touched a page of the sample.
    Touch {
        /// Its number.
        id: ProcessId,
        /// Where.
        by: Option<Box<Toucher>>,
    },
    /// Events of a process were lost.
    Lossy {
        /// Its number.
        id: ProcessId,
    },
    /// Events were lost that may have been anyone's.
    AllLossy,
    /// The machine was told.
    Machine,
    /// Blocks are sampled from now on.
    Sampling,
}

/// The stack that touched a page.
#[derive(Debug)]
pub struct Toucher {
    /// Its number.
    pub site: u32,
    /// Its frames.
    pub frames: Vec<u64>,
}

/// What is to become of a process that has ended.
#[derive(Clone, Copy, Debug)]
pub enum Settling {
    /// Nothing more is expected of it: what is kept is a summary.
    Summarise(ProcessId),
    /// Likewise, with few sites, since there is no room for more.
    SummariseFew(ProcessId),
    /// Its sites are too many, beside those of all the others.
    Trim(ProcessId),
    /// There are too many younger ones.
    Forget(ProcessId),
}

/// A process was summarised.
#[derive(Clone, Copy, Debug)]
pub struct Summarised {
    /// Its number.
    pub id: ProcessId,
    /// Sites of its heap that were kept.
    pub sites: usize,
}

/// Whoever has shards, and passes on what is to become of processes that have ended.
pub trait Settle {
    /// One of them.
    fn settle(&mut self, shard: usize, settling: Settling);
}

impl Settle for Vec<Shard> {
    fn settle(&mut self, shard: usize, settling: Settling) {
        self[shard].settle(settling);
    }
}

/// Whoever passes on, too, what is to be done at an event.
pub trait Shards: Settle {
    /// The event of now.
    fn order(&mut self, shard: usize, order: Order);

    /// A process that is alone in its address space goes to another shard, before the next order.
    fn hand_over(&mut self, id: ProcessId, from: usize, to: usize);
}
