//! The limit of open descriptors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process have as many descriptors as it may: each thread that is followed takes four. Not to be
/// called before a command is launched, which would inherit it.
pub fn allow() {
    let limit = Resource::RLIMIT_NOFILE;
    let raised = getrlimit(limit).and_then(|(_, hard)| setrlimit(limit, hard, hard));
    if let Err(error) = raised {
        log::debug!("the limit of descriptors stays: {error}");
    }
}
