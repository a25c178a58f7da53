//! Which part of what is traced a question is about.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::protocol::Listing;
use crate::seed::container;

/// A container or a cgroup; empty for everything.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Within {
    /// Only this container, pod or unit, named as ps does, or by the first digits of the container's id.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// Only this cgroup and those below it, named as in /proc/PID/cgroup.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
}

impl Within {
    /// Whether it is everything.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what is in this cgroup is meant.
    pub fn has(&self, cgroup: &str) -> bool {
        let container = self.container.as_deref();
        let path = self.cgroup.as_deref();
        container.is_none_or(|name| container::is_in(cgroup, name))
            && path.is_none_or(|path| container::is_below(cgroup, path))
    }

    /// Leaves only what is meant in a listing.
    pub fn narrow(&self, listing: &mut Listing) {
        listing.processes.retain(|line| self.has(&line.cgroup));
        listing.cgroups.retain(|line| self.has(&line.path));
    }
}
