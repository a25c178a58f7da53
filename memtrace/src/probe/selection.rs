//! What of an allocator is probed, how, and where its own code begins and ends.

use std::ops::Range;

use memtrace_common::heap::Function;

use super::{
    allocator::{Allocator, Exit, FoundFunction, Unseen},
    candidate::{Candidate, library},
    flow,
    image::{Binding, Image, Symbol},
    names::{self, Family},
    placement::{self, Placement, Surroundings},
};

/// One allocator of a file, to be described.
pub(super) struct Search<'a, 'data> {
    pub(super) image: &'a Image<'data>,
    pub(super) family: Family,
}

impl Search<'_, '_> {
    pub(super) fn allocator(&self, candidates: &[Candidate<'_>]) -> Allocator {
        let internal = self.internal(candidates);
        let mut unseen = self.left_out();
        let (callable, resolvers): (Vec<_>, Vec<_>) =
            candidates.iter().partition(|candidate| !candidate.indirect);
        unseen.extend(resolvers.iter().map(|candidate| Unseen {
            name: candidate.name.to_owned(),
            reason: "chosen at load time (IFUNC)".to_owned(),
        }));
        let wanted: Vec<_> = callable
            .iter()
            .copied()
            .filter(|candidate| self.is_entry(candidate, &callable, &internal))
            .collect();
        let entries: Vec<(u64, Function)> = wanted
            .iter()
            .map(|candidate| (candidate.address, candidate.known.function))
            .collect();
        let addresses: Vec<u64> = self
            .image
            .symbols()
            .iter()
            .map(|symbol| symbol.address)
            .collect();
        let functions = wanted
            .iter()
            .filter(|candidate| !self.is_forwarder(candidate, &entries))
            .filter_map(|candidate| self.function(candidate, &addresses))
            .collect();
        Allocator {
            name: self.family.name(),
            functions,
            internal,
            unseen,
        }
    }

    /// operator new and delete count only where they are the allocator's own.
    fn is_entry(
        &self,
        candidate: &Candidate<'_>,
        all: &[&Candidate<'_>],
        internal: &Range<u64>,
    ) -> bool {
        if !candidate.known.cpp || internal.contains(&candidate.address) {
            return true;
        }
        if matches!(self.family, Family::Glibc | Family::Musl | Family::Unknown) {
            return false;
        }
        let calls = flow::callees(self.image, &self.bounds(candidate));
        !all.iter()
            .any(|other| !other.known.cpp && calls.contains(&other.address))
    }

    /// Ends in another probed function by a jump: that one sees the call just as the program made it.
    ///
    /// An allocating function may do more than hand over arguments as they are; only of free is it known
    /// that whatever it jumps to at the end frees the same block.
    fn is_forwarder(&self, candidate: &Candidate<'_>, entries: &[(u64, Function)]) -> bool {
        if !self.image.is_x86_64() {
            return false;
        }
        let bounds = self.bounds(candidate);
        let probed = |target| entries.iter().any(|&(address, _)| address == target);
        flow::forward(self.image, &bounds).is_some_and(probed)
            || candidate.known.function == Function::Free
                && flow::jumps_at_end(self.image, &bounds).is_some_and(|targets| {
                    let frees = |target: &u64| entries.contains(&(*target, Function::Free));
                    !targets.is_empty() && targets.iter().all(frees)
                })
    }

    fn function(&self, candidate: &Candidate<'_>, entries: &[u64]) -> Option<FoundFunction> {
        let bounds = self.bounds(candidate);
        let file_offset = self.image.file_offset(candidate.address)?;
        self.image.executable_segment(candidate.address)?;
        Some(FoundFunction {
            name: candidate.name.to_owned(),
            function: candidate.known.function,
            file_offset,
            virtual_address: candidate.address,
            size: bounds.end - bounds.start,
            entry: self.entry(candidate, &bounds, file_offset, entries),
            exit: self.exit(candidate, &bounds),
        })
    }

    fn entry(
        &self,
        candidate: &Candidate<'_>,
        bounds: &Range<u64>,
        file_offset: u64,
        entries: &[u64],
    ) -> Placement {
        let first = Placement {
            file_offset,
            pushed: 0,
            emulated: false,
        };
        if !self.image.is_x86_64() {
            return first;
        }
        let Some(code) = self.image.code(bounds) else {
            return first;
        };
        let pieces = flow::fragments(self.image, bounds);
        let fragments: Vec<_> = pieces
            .iter()
            .filter_map(|piece| Some((piece.start, self.image.code(piece)?)))
            .collect();
        let around = Surroundings {
            code,
            address: bounds.start,
            fragments: &fragments,
            entries,
        };
        let choice = placement::choose(candidate.known.function, &around);
        Placement {
            file_offset: file_offset + choice.offset,
            pushed: choice.pushed,
            emulated: choice.emulated,
        }
    }

    fn exit(&self, candidate: &Candidate<'_>, bounds: &Range<u64>) -> Exit {
        if candidate.known.function == Function::Free {
            return Exit::None;
        }
        if !candidate.throws {
            return Exit::ReturnProbe;
        }
        if !self.image.is_x86_64() {
            return Exit::Unknown {
                reason: "its returns are found on x86-64 only".to_owned(),
            };
        }
        let returns = flow::returns(self.image, bounds);
        let file_offsets: Vec<u64> = returns
            .addresses
            .iter()
            .filter_map(|&address| self.image.file_offset(address))
            .collect();
        if file_offsets.is_empty() {
            let reason = returns
                .incomplete
                .unwrap_or_else(|| "no return instruction was found".to_owned());
            return Exit::Unknown { reason };
        }
        Exit::Instructions {
            file_offsets,
            incomplete: returns.incomplete,
        }
    }

    /// The whole function; just its address where no table tells where it ends.
    fn bounds(&self, candidate: &Candidate<'_>) -> Range<u64> {
        let start = candidate.address;
        if candidate.size > 0 {
            return start..start.saturating_add(candidate.size);
        }
        self.image
            .bounds(start)
            .filter(|bounds| bounds.start == start)
            .unwrap_or(start..start)
    }

    fn left_out(&self) -> Vec<Unseen> {
        let families = [Family::Jemalloc, Family::Tcmalloc, Family::Mimalloc];
        if !families.contains(&self.family) {
            return Vec::new();
        }
        self.image
            .symbols()
            .iter()
            .filter_map(|symbol| Some((symbol, names::left_out(symbol.name)?)))
            .map(|(symbol, reason)| Unseen {
                name: symbol.name.to_owned(),
                reason: reason.to_owned(),
            })
            .collect()
    }

    /// A library that is nothing but the allocator is internal as a whole. Elsewhere it is the run of
    /// the allocator's own functions around malloc, up to the nearest global function that is not.
    fn internal(&self, candidates: &[Candidate<'_>]) -> Range<u64> {
        let c = || {
            candidates
                .iter()
                .filter(|candidate| !candidate.known.cpp && !candidate.indirect)
        };
        let malloc = || c().find(|one| one.name == "malloc" || one.name.ends_with("_malloc"));
        let Some(middle) = malloc().or_else(|| c().next()) else {
            return 0..0;
        };
        if library(self.image) == Some(self.family)
            && let Some(segment) = self.image.executable_segment(middle.address)
        {
            return segment;
        }
        let symbols = self.image.symbols();
        let at = symbols.partition_point(|symbol| symbol.address < middle.address);
        let below = self
            .run(symbols[..at].iter().rev())
            .map(|symbol| symbol.address)
            .min();
        let above = self
            .run(symbols[at..].iter())
            .map(|symbol| symbol.address.saturating_add(symbol.size))
            .max();
        let end = middle.address.saturating_add(middle.size);
        below.unwrap_or(middle.address)..above.unwrap_or(end).max(end)
    }

    /// The family's own among the functions up to the first foreign one. Local and weak symbols
    /// may be anyone's (static helpers, aliases, template instantiations), and so may operators.
    fn run<'s, 'data: 's>(
        &self,
        symbols: impl Iterator<Item = &'s Symbol<'data>>,
    ) -> impl Iterator<Item = &'s Symbol<'data>> {
        let family = self.family;
        let foreign = move |symbol: &Symbol<'_>| {
            symbol.binding == Binding::Global
                && !family.owns(symbol.name)
                && names::lookup(symbol.name).is_none()
        };
        symbols
            .take_while(move |symbol| !foreign(symbol))
            .filter(move |symbol| family.owns(symbol.name))
    }
}
