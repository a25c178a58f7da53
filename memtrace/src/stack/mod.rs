//! Call stacks: names for the addresses in them.

mod blaze;
mod debug_file;
mod debuginfod;
pub(crate) mod module;
mod occupant;
mod perf_map;
pub mod symbolize;
pub(crate) mod vdso;
