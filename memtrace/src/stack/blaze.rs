//! Symbolization with blazesym: ELF symbols, DWARF with inlined functions, split debug files, the kernel's
//! symbols. What is in no file, generated code and the vDSO, is looked up here.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::SystemTime,
};

use blazesym::{
    MaybeDefault,
    symbolize::{
        self, CodeInfo, Input, Sym, Symbolized,
        source::{Elf, Kernel, Source},
    },
};
use rustc_hash::FxHashMap;

use super::{
    debug_file::{DebugFile, DebugFiles},
    module::{ModuleId, Modules},
    occupant::{may_hold, names, occupants},
    perf_map::PerfMap,
    symbolize::{Frame, Mapping, Process, Symbolizer},
    vdso::Vdso,
};
use crate::event::{Symbol, SymbolFunction};

/// Names kept; a program with more call sites has them looked up again.
const NAMES: usize = 1 << 18;

/// Symbolizer on blazesym.
///
/// Debug files are found by `.gnu_debuglink` and as [`DebugFiles`] says.
/// Files are mapped while they are read: one that is cut short in that moment ends the process with
/// SIGBUS, as it does with any tool that maps files.
#[derive(Debug)]
pub struct Blaze {
    inner: symbolize::Symbolizer,
    modules: Modules,
    debug_files: DebugFiles,
    /// Debug files of modules that were asked for.
    found: FxHashMap<ModuleId, Option<DebugFile>>,
    names: FxHashMap<(ModuleId, u64), Box<[SymbolFunction]>>,
    perf_maps: FxHashMap<u32, PerfMap>,
    vdso: Option<Vdso>,
    since: SystemTime,
    /// See [`Blaze::take_ambiguous`].
    ambiguous: u64,
}

/// What is written before a kernel function's name in place of a module.
const KERNEL: &str = "[kernel]";
/// The upper half of the address space is the kernel's.
const KERNEL_HALF: u64 = 1 << 63;

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
    /// The files it may be of, where that is not known.
    either: Option<String>,
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
            self.look_up(process.pid, module, &offsets);
        }
        let kernel = self.look_up_kernel(frames);
        frames
            .iter()
            .zip(&located)
            .map(|(frame, at)| match (at, kernel.get(frame)) {
                (None, Some(functions)) => Symbol {
                    module: Some(KERNEL.into()),
                    functions: functions.clone(),
                    ..nameless(frame.address)
                },
                (None, None) => self.generated(process, *frame),
                (Some(at), _) => match &at.either {
                    Some(files) => {
                        self.ambiguous += 1;
                        reused(*frame, at, files)
                    }
                    None => self.symbol(*frame, at),
                },
            })
            .collect()
    }
}

impl Blaze {
    /// A symbolizer for processes of which none that has ended by now started before `since`.
    pub fn new(since: SystemTime) -> Self {
        Self::with(since, DebugFiles::of_machine())
    }

    pub(super) fn with(since: SystemTime, debug_files: DebugFiles) -> Self {
        Self {
            inner: inner(),
            modules: Modules::default(),
            debug_files,
            found: FxHashMap::default(),
            names: FxHashMap::default(),
            perf_maps: FxHashMap::default(),
            vdso: None,
            since,
            ambiguous: 0,
        }
    }

    /// Addresses whose file could not be told from another that was mapped there before or after, since the last
    /// call.
    pub fn take_ambiguous(&mut self) -> u64 {
        std::mem::take(&mut self.ambiguous)
    }

    fn locate<'a>(&mut self, process: &Process<'a>, frame: Frame) -> Option<Located<'a>> {
        let address = frame.lookup();
        let mut mappings = occupants(process, frame);
        if mappings.len() > 1 {
            let all = mappings.clone();
            mappings.retain(|mapping| {
                let module = self.modules.find(process.pid, mapping);
                let offset = (frame.address - mapping.start).saturating_add(mapping.offset);
                may_hold(self.modules.get(module), offset, frame)
            });
            if mappings.is_empty() {
                mappings = all;
            }
        }
        let either = (mappings.len() > 1).then(|| names(&mappings));
        let mapping = mappings.pop()?;
        if !is_module(&mapping.path) {
            return None;
        }
        let offset = (address - mapping.start).checked_add(mapping.offset)?;
        Some(Located {
            mapping,
            module: self.modules.find(process.pid, mapping),
            offset,
            either,
        })
    }

    fn look_up(&mut self, pid: Option<u32>, module: ModuleId, offsets: &[u64]) {
        let found = self.read(pid, module, offsets);
        for (&offset, functions) in offsets.iter().zip(found) {
            self.names.insert((module, offset), functions);
        }
    }

    /// Names from the module's debug file, and from the module what that does not name.
    fn read(
        &mut self,
        pid: Option<u32>,
        module: ModuleId,
        offsets: &[u64],
    ) -> Vec<Box<[SymbolFunction]>> {
        let mut names = vec![Box::default(); offsets.len()];
        let Some((path, build_id)) = self.modules.get(module).and_then(|module| {
            let path = module.path.clone()?;
            Some((path, module.build_id.clone()))
        }) else {
            if let Some(vdso) = self.vdso_of(module) {
                let named = |offset: &u64| vdso.find(*offset).map(bare).into_iter().collect();
                return offsets.iter().map(named).collect();
            }
            return names;
        };
        if !self.found.contains_key(&module) {
            let found = self.debug_files.find(pid, &path, build_id.as_deref());
            self.found.insert(module, found);
        }
        if let Some(Some(debug)) = self.found.get(&module) {
            let places: Vec<(usize, u64)> = (offsets.iter().enumerate())
                .filter_map(|(at, &offset)| Some((at, debug.address(offset)?)))
                .collect();
            let addresses: Vec<u64> = places.iter().map(|(_, address)| *address).collect();
            let debug = debug.path();
            let found = self.query(module, &debug, Input::VirtOffset(&addresses));
            for ((at, _), functions) in places.into_iter().zip(found) {
                names[at] = functions;
            }
        }
        let rest: Vec<usize> = (0..names.len())
            .filter(|&at| names[at].is_empty())
            .collect();
        let asked: Vec<u64> = rest.iter().map(|&at| offsets[at]).collect();
        let found = self.query(module, &path, Input::FileOffset(&asked));
        for (at, functions) in rest.into_iter().zip(found) {
            names[at] = functions;
        }
        names
    }

    /// Asks blazesym, for symbols alone where the debug information cannot be read. Empty if the file cannot.
    fn query(
        &mut self,
        module: ModuleId,
        path: &Path,
        input: Input<&[u64]>,
    ) -> Vec<Box<[SymbolFunction]>> {
        let elf = |debug_syms| {
            let mut elf = Elf::new(path);
            elf.debug_syms = debug_syms;
            Source::Elf(elf)
        };
        // blazesym trusts what debug information says of itself in places and may panic on a damaged file.
        // What it was doing then is not to be relied on: it is replaced.
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let found = self.inner.symbolize(&elf(true), input);
            let found = found.or_else(|_| self.inner.symbolize(&elf(false), input));
            Some(found.ok()?.iter().map(functions).collect::<Vec<_>>())
        }));
        let found = caught.unwrap_or_else(|_panic| {
            self.inner = inner();
            self.modules.give_up(module);
            None
        });
        found.unwrap_or_default()
    }

    /// Names of the frames in the kernel, from /proc/kallsyms: not that of another kernel's image on the disk.
    fn look_up_kernel(&mut self, frames: &[Frame]) -> FxHashMap<Frame, Box<[SymbolFunction]>> {
        let frames: Vec<Frame> = frames
            .iter()
            .copied()
            .filter(|frame| frame.address >= KERNEL_HALF)
            .collect();
        if frames.is_empty() {
            return FxHashMap::default();
        }
        let addresses: Vec<u64> = frames.iter().map(|frame| frame.lookup()).collect();
        let source = Source::Kernel(Kernel {
            vmlinux: MaybeDefault::None,
            debug_syms: false,
            ..Kernel::default()
        });
        match self.inner.symbolize(&source, Input::AbsAddr(&addresses)) {
            Ok(found) => frames
                .into_iter()
                .zip(found.iter().map(functions))
                .collect(),
            Err(error) => {
                log::debug!("the kernel's symbols: {error}");
                FxHashMap::default()
            }
        }
    }

    /// Code in no file: perhaps a runtime generated it and told its name.
    fn generated(&mut self, process: &Process<'_>, frame: Frame) -> Symbol {
        let Some(pid) = process.pid else {
            return nameless(frame.address);
        };
        let since = self.since;
        let map = self.perf_maps.entry(pid);
        let map = map.or_insert_with(|| PerfMap::of(pid, since));
        let functions = map.find(frame.lookup()).map(bare).into_iter().collect();
        Symbol {
            functions,
            ..nameless(frame.address)
        }
    }

    fn vdso_of(&mut self, module: ModuleId) -> Option<&Vdso> {
        let is_vdso = self.modules.get(module)?.is_vdso;
        is_vdso.then(|| &*self.vdso.get_or_insert_with(Vdso::read))
    }

    fn symbol(&self, frame: Frame, at: &Located<'_>) -> Symbol {
        Symbol {
            frame: frame.address,
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

fn reused(frame: Frame, at: &Located<'_>, files: &str) -> Symbol {
    Symbol {
        module: Some(at.mapping.path.clone()),
        offset: Some(at.offset + (frame.address - frame.lookup())),
        functions: Box::new([bare(&format!("[{files}]"))]),
        ..nameless(frame.address)
    }
}

fn nameless(address: u64) -> Symbol {
    Symbol {
        frame: address,
        module: None,
        build_id: None,
        offset: None,
        functions: Box::default(),
    }
}

/// A function of which only the name is known.
fn bare(name: &str) -> SymbolFunction {
    SymbolFunction {
        name: name.into(),
        file: None,
        line: None,
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
pub(super) mod tests;
