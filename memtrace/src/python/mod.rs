//! Frames of CPython programs.
//!
//! The kernel side reads them from the interpreter at the probe. Here it is found out which mapped file is a CPython
//! that it can read ([`interpreter`]); the functions are put in the place of the interpreter's loop ([`join`]) and
//! named by their code objects, as these were when they ran ([`code`]).

pub mod code;
pub mod interpreter;
pub mod join;

use std::collections::{HashMap, HashSet};

use memtrace_common::frame::{PythonFrame, named_by};

use self::code::Code;
use crate::event::{Event, EventKind, Pid, Symbol};

/// The code objects of running processes, and what was named by them.
#[derive(Default)]
pub struct Python {
    codes: HashMap<Pid, HashMap<u64, Code>>,
    named: HashMap<Pid, HashSet<u64>>,
    unnamed: u64,
}

impl Python {
    /// A code object was told.
    pub fn add(&mut self, pid: Pid, code: Code) {
        self.codes.entry(pid).or_default().insert(code.id, code);
    }

    /// Puts the functions of a told stack in their places, and gives names to those that have none yet.
    pub fn complete(&mut self, event: &mut Event) -> Vec<Event> {
        let pid = event.pid;
        match &mut event.kind {
            EventKind::Stack { frames, .. } => {
                let Some(joined) = join::join(frames) else {
                    return Vec::new();
                };
                *frames = joined;
                let frames = frames.iter().filter_map(|&word| self.name(pid, word));
                let at = |symbol| Event {
                    time_ns: event.time_ns,
                    pid,
                    tid: 0,
                    kind: EventKind::Symbol(Box::new(symbol)),
                };
                frames.map(at).collect()
            }
            EventKind::Exec { .. } | EventKind::Exit { .. } => {
                self.codes.remove(&pid);
                self.named.remove(&pid);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Functions that have no name, since their code objects were lost, since the last call.
    pub fn take_unnamed(&mut self) -> u64 {
        std::mem::take(&mut self.unnamed)
    }

    fn name(&mut self, pid: Pid, word: u64) -> Option<Symbol> {
        let function = PythonFrame::of(word)?;
        let frame = named_by(word);
        if !self.named.entry(pid).or_default().insert(frame) {
            return None;
        }
        let code = self
            .codes
            .get(&pid)
            .and_then(|codes| codes.get(&function.code));
        self.unnamed += u64::from(code.is_none());
        let functions = code.map(|code| code.function(function.instruction));
        Some(Symbol {
            frame,
            module: None,
            build_id: None,
            offset: None,
            functions: functions.into_iter().collect(),
        })
    }
}
