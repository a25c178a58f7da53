//! Where probes stand, and what they are attached to.

pub mod allocator;
mod candidate;
pub mod flow;
pub mod image;
pub mod names;
pub mod placement;
mod search;
