//! One trace, live: probes, stream, model and recording wired together.

pub mod applier;
mod area;
mod census;
mod descriptors;
mod followed;
pub mod foreseen;
mod growing;
mod growth_pace;
mod growth_watch;
mod heap_watch;
pub mod launch;
mod memory_calls;
mod modules;
pub mod naming;
mod recorder;
mod selected;
mod selection;
pub mod selector;
mod session;
mod unfollowed;
pub mod watch;

pub use growing::Thinning;
pub use selected::SelectError;
pub use session::{Finished, Options, Session};
