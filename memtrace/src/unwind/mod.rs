//! Unwinding: what the kernel side walks stacks by, and the walk over a stack that it copied.
//!
//! The kernel side walks at the probe, by two tables that are made here: the rules of every module, compiled
//! once from its `.eh_frame` and shared by all processes that map it ([`tables`]), and the executable mappings
//! of each process ([`spaces`]). Where a process has just mapped code the tables are behind for a moment. Then
//! the kernel side copies the stack, and it is walked here by the same rules ([`walk`]).
//!
//! When are they behind? The kernel side counts what changes a process's code, additions and removals apart,
//! and a table says up to which count it was made. With a removal outstanding nothing in it is believed, since
//! another file may be mapped at the same place; with an addition outstanding what is in it holds.
//!
//! Rows of files that no process maps are written over when room is wanted ([`tables`]). A rule that the kernel side
//! looked up meanwhile is not believed: it reads before and after how often that happened.

pub mod compile;
mod room;
mod spaces;
pub mod tables;
mod unwinder;
mod walk;

pub use unwinder::{Kernel, Unwinder};
pub use walk::CopiedStack;
