//! The privileged integration suite: what memtrace must be able to show, on the real kernel.
//!
//! Every file is a topic and every name a claim. Run as root, after `cargo xtask build`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test reports"
)]

mod allocators;
mod attach;
mod bad_input;
mod command_line;
mod daemon;
mod daemon_clock;
mod daemon_containers;
mod daemon_cost;
mod daemon_growth;
mod daemon_heap;
mod daemon_history;
mod daemon_kills;
mod daemon_metrics;
mod daemon_otlp;
mod daemon_sampling;
mod daemon_soak;
mod daemon_socket;
mod daemon_top;
mod exports;
mod fault_stacks;
mod faults;
mod heap;
mod lazy;
mod leaks;
mod no_harm;
mod overlay;
mod packaging;
mod processes;
mod programs;
mod python;
mod recording;
mod sampling;
mod stack_ends;
mod stack_oracles;
mod stacks;
mod targets;
mod truncation;
mod verifier;
mod vm_only;
mod vm_systemd;
