//! memtrace: a system memory tracer for Linux.
//!
//! One direction, no way back:
//!
//! ```text
//! probe → ring buffer → stream (decode) → Event → Model::apply → report | export
//!                                           │
//!                                           └→ store (replay gives the same Events to the same Model)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod event;
pub mod model;
pub mod report;
