//! memtrace: a system memory tracer for Linux.
//!
//! One direction, no way back:
//!
//! ```text
//! probe → ring buffer → stream (decode) → Event → Model::apply → report | export
//!                                           │
//!                                           └→ store (replay gives the same Events to the same Model)
//! ```

pub mod event;
pub mod report;
