//! memtrace: a system memory tracer for Linux.
//!
//! One direction, no way back:
//!
//! ```text
//! probe → ring buffers → stream (decode) → Event → Model::apply → report | export
//!                                           │
//!                                           └→ store (replay gives the same Events to the same Model)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod cli;
pub mod daemon;
pub mod event;
pub mod export;
pub mod model;
pub mod probe;
pub mod python;
pub mod report;
pub mod seed;
pub mod stack;
pub mod store;
pub mod stream;
pub mod trace;
pub mod units;
pub mod unwind;

#[cfg(test)]
mod damage_tests;
