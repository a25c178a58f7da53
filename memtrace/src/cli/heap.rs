//! `memtrace heap`: whose heap the daemon probes.

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{
    socket::{Socket, strange},
    status,
};
use crate::{
    daemon::protocol::{Reply, Request},
    trace::selector::Selector,
    units,
};

/// Arguments of `heap`.
#[derive(Args)]
pub struct Heap {
    /// Begin or end.
    #[arg(value_enum)]
    state: State,
    #[command(flatten)]
    whose: Whose,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    On,
    Off,
}

/// One way to name processes.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// One process, with what it forks.
    #[arg(short, long, value_parser = super::usage::pid, value_name = "PID")]
    pid: Option<u32>,
    /// Those of this name, as ps shows it.
    #[arg(long, value_name = "NAME")]
    command: Option<String>,
    /// Those that run this program.
    #[arg(long, value_name = "PATH")]
    exe: Option<String>,
    /// Those of a user.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Those in a cgroup or below it, named as in /proc/PID/cgroup.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Those in a container, pod or unit, named as ps does, or by the first digits of the container's id.
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
}

impl Whose {
    /// clap sees to it that one is there.
    fn selector(self) -> Option<Selector> {
        let Self {
            pid,
            command,
            exe,
            user,
            cgroup,
            container,
        } = self;
        pid.map(Selector::Pid)
            .or(command.map(Selector::Command))
            .or(exe.map(Selector::Exe))
            .or(user.map(Selector::User))
            .or(cgroup.map(Selector::Cgroup))
            .or(container.map(Selector::Container))
    }
}

impl Heap {
    /// Asks the daemon, and says how many processes it concerns.
    pub fn execute(self) -> Result<u8> {
        let on = self.state == State::On;
        let Some(selector) = self.whose.selector() else {
            return Err(super::usage("whose heap is not said"));
        };
        let Reply::Heap { processes } = self.socket.ask(Request::Heap { on, selector })? else {
            return Err(strange().into());
        };
        let concerned = units::counted(processes, "process", "processes");
        match on {
            true => println!("heap probes are on {concerned}"),
            false => println!("heap probes were taken from {concerned}"),
        }
        Ok(status::DONE)
    }
}
