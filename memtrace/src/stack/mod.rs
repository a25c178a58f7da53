//! Call stacks: names for the addresses in them.

pub mod symbolize;
