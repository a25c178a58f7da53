//! Probes: what hooks the kernel and the allocators, and how it is put there and taken away.
//!
//! Only this module and [`crate::stream`] know aya. Everything attached is a file descriptor owned here:
//! when memtrace ends, however it ends, the kernel takes the probes away.

pub mod allocator;
pub mod area;
pub mod btf;
pub mod calls;
mod candidate;
pub mod check;
pub mod contents;
pub mod error;
pub mod fault;
mod fault_window;
pub mod flow;
pub mod growth;
pub mod heap;
pub mod hotplug;
pub mod image;
pub mod libraries;
mod mapped_file;
pub mod names;
pub mod object;
pub mod perf;
pub mod placement;
mod plan;
pub mod points;
pub mod ring;
mod run_time;
mod selection;
pub mod sideband;
pub mod tracefs;
pub mod unwind;
pub mod version;

pub use error::Error;
