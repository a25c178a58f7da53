//! Symbolization with blazesym: ELF symbols, DWARF with inlined functions, split debug files.

use std::panic::{AssertUnwindSafe, catch_unwind};

use blazesym::symbolize::{
    self, CodeInfo, Input, Sym, Symbolized,
    source::{Elf, Source},
};
use rustc_hash::FxHashMap;

use super::{
    module::{ModuleId, Modules},
    symbolize::{Frame, Mapping, Process, Symbolizer},
};
use crate::event::{Symbol, SymbolFunction};

/// Names kept; a program with more call sites has them looked up again.
const NAMES: usize = 1 << 18;

/// Symbolizer on blazesym.
///
/// Debug files are found by `.gnu_debuglink` and by build ID, under /usr/lib/debug and /lib/debug.
/// Files are mapped while they are read: one that is cut short in that moment ends the process with
/// SIGBUS, as it does with any tool that maps files.
#[derive(Debug)]
pub struct Blaze {
    inner: symbolize::Symbolizer,
    modules: Modules,
    names: FxHashMap<(ModuleId, u64), Box<[SymbolFunction]>>,
}

impl Default for Blaze {
    fn default() -> Self {
        Self {
            inner: inner(),
            modules: Modules::default(),
            names: FxHashMap::default(),
        }
    }
}

/// Files are kept open by [`Modules`], so none that is known already needs to be looked at again.
fn inner() -> symbolize::Symbolizer {
    symbolize::Symbolizer::builder()
        .set_debug_dirs(None::<[&str; 0]>)
        .enable_auto_reload(false)
        .enable_code_info(true)
        .enable_inlined_fns(true)
        .enable_demangling(true)
        .build()
}

/// A frame with the file it lies in.
struct Located<'a> {
    mapping: &'a Mapping,
    module: ModuleId,
    /// Offset to look up.
    offset: u64,
}

impl Symbolizer for Blaze {
    fn symbolize(&mut self, process: &Process<'_>, frames: &[Frame]) -> Vec<Symbol> {
        let located: Vec<_> = frames
            .iter()
            .map(|frame| self.locate(process, *frame))
            .collect();
        if self.names.len() >= NAMES {
            self.names.clear();
        }
        let mut missing: FxHashMap<ModuleId, Vec<u64>> = FxHashMap::default();
        for at in located.iter().flatten() {
            if !self.names.contains_key(&(at.module, at.offset)) {
                missing.entry(at.module).or_default().push(at.offset);
            }
        }
        for (module, mut offsets) in missing {
            offsets.sort_unstable();
            offsets.dedup();
            self.look_up(module, &offsets);
        }
        frames
            .iter()
            .zip(&located)
            .map(|(frame, at)| self.symbol(*frame, at.as_ref()))
            .collect()
    }
}

impl Blaze {
    fn locate<'a>(&mut self, process: &Process<'a>, frame: Frame) -> Option<Located<'a>> {
        let address = frame.lookup();
        let holds = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&address);
        let mapping = process.mappings.iter().rev().find(holds)?;
        if !is_module(&mapping.path) {
            return None;
        }
        let offset = (address - mapping.start).checked_add(mapping.offset)?;
        Some(Located {
            mapping,
            module: self.modules.find(process.pid, mapping),
            offset,
        })
    }

    fn look_up(&mut self, module: ModuleId, offsets: &[u64]) {
        let found = self
            .modules
            .get(module)
            .and_then(|module| module.path.clone())
            .and_then(|path| {
                let source = Source::Elf(Elf::new(path));
                // blazesym trusts what debug information says of itself in places and may panic on a
                // damaged file. What it was doing then is not to be relied on: it is replaced.
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    let found = self
                        .inner
                        .symbolize(&source, Input::FileOffset(offsets))
                        .ok()?;
                    Some(found.iter().map(functions).collect::<Vec<_>>())
                }));
                caught.unwrap_or_else(|_panic| {
                    self.inner = inner();
                    self.modules.give_up(module);
                    None
                })
            });
        let found = found.unwrap_or_default();
        for (index, &offset) in offsets.iter().enumerate() {
            self.names.insert(
                (module, offset),
                found.get(index).cloned().unwrap_or_default(),
            );
        }
    }

    fn symbol(&self, frame: Frame, located: Option<&Located<'_>>) -> Symbol {
        let Some(at) = located else {
            return Symbol {
                address: frame.address,
                module: None,
                build_id: None,
                offset: None,
                functions: Box::default(),
            };
        };
        Symbol {
            address: frame.address,
            module: Some(at.mapping.path.clone()),
            build_id: self
                .modules
                .get(at.module)
                .and_then(|module| module.build_id.clone()),
            offset: Some(at.offset + (frame.address - frame.lookup())),
            functions: self
                .names
                .get(&(at.module, at.offset))
                .cloned()
                .unwrap_or_default(),
        }
    }
}

/// Files, and the kernel's page of code; not anonymous memory under its many names.
fn is_module(path: &str) -> bool {
    path == "[vdso]" || (path.starts_with('/') && !path.starts_with("//"))
}

/// The innermost inlined function first, the one that has a symbol last.
fn functions(found: &Symbolized<'_>) -> Box<[SymbolFunction]> {
    let Symbolized::Sym(Sym {
        name,
        code_info,
        inlined,
        ..
    }) = found
    else {
        return Box::default();
    };
    inlined
        .iter()
        .rev()
        .map(|inlined| function(&inlined.name, inlined.code_info.as_ref()))
        .chain(std::iter::once(function(name, code_info.as_deref())))
        .collect()
}

fn function(name: &str, info: Option<&CodeInfo<'_>>) -> SymbolFunction {
    SymbolFunction {
        name: name.into(),
        file: info.map(|info| info.to_path().to_string_lossy().into_owned().into()),
        line: info.and_then(|info| info.line).filter(|&line| line > 0),
    }
}

#[cfg(test)]
#[path = "blaze_tests.rs"]
mod tests;
