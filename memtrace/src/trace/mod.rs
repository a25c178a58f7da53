//! One trace, live: probes, stream, model and recording wired together.

pub mod launch;
mod heap_watch;
mod session;

pub use session::{Options, Session};
