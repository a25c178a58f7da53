//! The daemon: an area traced from boot on, within a budget, and questions answered from it at any moment.
//!
//! It wires the same stages as `run` and `attach`, a second time: a [`crate::trace::Session`] over an [`area`] in
//! place of single processes. Single faults are not sent; their counts and latencies come from the kernel side's
//! maps, what is resident from /proc. Once a second the model's rows become the [`table`] that questions are
//! answered from, and go to the [history](crate::store::history).
//!
//! Everything runs on one thread, so that an answer is of one moment; the history has a thread of its own, so that
//! a slow disk holds nothing up. Clients wait in tasks with limits and time-outs ([`socket`]).
//!
//! [`area`]: crate::probe::area

mod access;
mod archive;
mod budget;
pub mod cgroup;
pub mod client;
pub mod config;
mod cost;
mod error;
mod exposition;
mod frame;
mod grown;
mod instance;
mod metrics;
mod naming;
mod otlp;
mod past;
mod places;
mod privileges;
mod profiles;
pub mod protocol;
mod push;
mod redact;
mod scrape;
mod service;
mod socket;
mod supervise;
mod table;
pub mod within;

pub use config::Config;
pub use error::DaemonError;
pub use supervise::run;
