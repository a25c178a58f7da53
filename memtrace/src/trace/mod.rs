//! One trace, live: probes, stream, model and recording wired together.

mod area;
mod census;
mod descriptors;
mod followed;
mod heap_watch;
pub mod launch;
mod modules;
mod session;
mod unfollowed;
pub mod watch;

pub use session::{Finished, Options, Session};
