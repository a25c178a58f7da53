//! Call stacks: names for the addresses in them.

mod blaze;
mod module;
pub mod symbolize;
