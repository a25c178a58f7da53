//! Names for the code addresses of a process: asked for here, looked up wherever there is time.

use std::time::SystemTime;

use super::Session;
use crate::{
    event::{Event, EventKind, Pid, Symbol},
    seed,
    stack::symbolize::{Blaze, Frame, Mapping, Process, Symbolizer as _},
};

/// Frames of a process that have no name yet, and where its code is.
pub struct Naming {
    pid: Pid,
    mappings: Vec<Mapping>,
    /// As [`memtrace_common::frame::named_by`] has them.
    words: Vec<u64>,
}

/// Names that were found.
pub struct Named {
    pid: Pid,
    symbols: Vec<Symbol>,
    /// Of these, such whose file could not be told.
    ambiguous: u64,
}

/// Looks names up.
pub struct Names(Blaze);

impl Names {
    /// Of a trace that began then: what a perf map of before says is not believed.
    pub fn new(began: SystemTime) -> Self {
        Self(Blaze::new(began))
    }

    /// Takes as long as reading the debug information of the modules does, once.
    pub fn look_up(&mut self, naming: &Naming) -> Named {
        let process = Process {
            pid: Some(naming.pid),
            mappings: &naming.mappings,
        };
        let frames: Vec<Frame> = naming.words.iter().map(|&word| Frame::of(word)).collect();
        let symbols = self.0.symbolize(&process, &frames).into_iter();
        let of_word = |(symbol, &frame): (Symbol, &u64)| Symbol { frame, ..symbol };
        Named {
            pid: naming.pid,
            symbols: symbols.zip(&naming.words).map(of_word).collect(),
            ambiguous: self.0.take_ambiguous(),
        }
    }
}

impl Session {
    /// What is to be named of a process; `None` where everything has its name.
    pub fn unnamed(&self, pid: Pid) -> Option<Naming> {
        let words = self.applier.model().unnamed(pid);
        (!words.is_empty()).then(|| Naming {
            pid,
            mappings: self.modules.of(pid).to_vec(),
            words,
        })
    }

    /// When the trace began.
    pub fn began(&self) -> SystemTime {
        self.began
    }

    /// Takes names that were found.
    pub fn name(&mut self, named: Named) {
        let (time_ns, pid) = (seed::now_ns(), named.pid);
        let symbols = named.symbols.into_iter().map(Box::new);
        let mut kinds: Vec<EventKind> = symbols.map(EventKind::Symbol).collect();
        if named.ambiguous > 0 {
            kinds.push(EventKind::Counted {
                reason: "frame_ambiguous".into(),
                count: named.ambiguous,
                loss: false,
            });
        }
        for kind in kinds {
            self.consume(Event {
                time_ns,
                pid,
                tid: 0,
                kind,
            });
        }
    }
}
