//! Names for the code addresses of a process: asked for here, looked up wherever there is time.

use std::time::SystemTime;

use super::Session;
use crate::{
    event::{Event, EventKind, Pid, Symbol},
    seed,
    stack::symbolize::{Blaze, Frame, Mapping, Process, Symbolizer as _},
};

/// Addresses of a process that have no name yet, and where its code is.
pub struct Naming {
    pid: Pid,
    mappings: Vec<Mapping>,
    frames: Vec<Frame>,
}

/// Names that were found.
pub struct Named {
    pid: Pid,
    symbols: Vec<Symbol>,
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
        Named {
            pid: naming.pid,
            symbols: self.0.symbolize(&process, &naming.frames),
        }
    }
}

impl Session {
    /// What is to be named of a process; `None` where everything has its name.
    pub fn unnamed(&self, pid: Pid) -> Option<Naming> {
        let unnamed = self.model.unnamed(pid);
        let callers = unnamed.callers.into_iter().map(Frame::caller);
        let instructions = unnamed.instructions.into_iter().map(Frame::instruction);
        let frames: Vec<Frame> = callers.chain(instructions).collect();
        (!frames.is_empty()).then(|| Naming {
            pid,
            mappings: self.modules.of(pid).to_vec(),
            frames,
        })
    }

    /// When the trace began.
    pub fn began(&self) -> SystemTime {
        self.began
    }

    /// Takes names that were found.
    pub fn name(&mut self, named: Named) {
        let (time_ns, pid) = (seed::now_ns(), named.pid);
        for symbol in named.symbols {
            let kind = EventKind::Symbol(Box::new(symbol));
            self.consume(Event {
                time_ns,
                pid,
                tid: 0,
                kind,
            });
        }
    }
}
