//! `cargo xtask vm`: a command, or the suite, on a stock Debian kernel in a virtual machine.
//!
//! [`kernel`] fetches the kernel, [`image`] makes the file system it starts from, [`share`] gives
//! it this machine's files, [`boot`] runs it, [`suite`] says what is tested there. The processor
//! is emulated: no hardware virtualisation is needed, and everything takes some ten times as long.
//!
//! The guest sees this machine's root file system and clone, both read-only, under a layer of its
//! own that takes what it writes. It has a disk, swap, loopback and no other network. Nothing of
//! it is left when it is gone.

mod boot;
mod image;
mod kernel;
mod share;
mod suite;
mod workplace;

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{is_root, say},
    programs,
    workspace::Workspace,
};

/// What the machine is started for.
#[derive(clap::Args)]
pub struct Vm {
    /// The kernel's series, as Debian's packages name it
    #[arg(long, default_value = OLDEST)]
    kernel: String,
    /// Tests whose names have this in them, `all` for all [default: those that depend on the
    /// kernel and take minutes; with systemd, those that take it]
    #[arg(long = "tests", value_name = "NAME", conflicts_with = "words")]
    tests: Vec<String>,
    /// With systemd as the first process, and the tests or the command a service of it
    #[arg(long)]
    systemd: bool,
    /// A command to run there instead of tests
    #[arg(last = true)]
    words: Vec<OsString>,
}

/// What runs in the machine, as root.
struct Job {
    words: Vec<OsString>,
    directory: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    limit: Duration,
    systemd: bool,
}

/// The series of the oldest kernel that memtrace runs on.
const OLDEST: &str = "6.1";

/// Long enough for a command that a person waits for.
const COMMAND_LIMIT: Duration = Duration::from_secs(30 * 60);

impl Vm {
    /// The usual tests on the oldest kernel.
    pub fn usual() -> Self {
        Self {
            kernel: OLDEST.to_owned(),
            tests: Vec::new(),
            systemd: false,
            words: Vec::new(),
        }
    }

    /// Boots, runs and powers off; the exit status is the command's or the suite's.
    pub fn run(self, workspace: &Workspace) -> Result<ExitCode> {
        if !is_root() {
            bail!("the machine is given this one's files, which takes root: run this as root");
        }
        programs::ensure_vm()?;
        let kernel = kernel::Kernel::ensure(workspace, &self.kernel)?;
        let job = if self.words.is_empty() {
            suite::job(workspace, &self.tests, self.systemd)?
        } else {
            Job {
                words: self.words,
                directory: env::current_dir().context("the working directory is gone")?,
                environment: suite::environment(workspace)?,
                limit: COMMAND_LIMIT,
                systemd: self.systemd,
            }
        };
        let status = boot(workspace, &kernel, &job)?;
        Ok(ExitCode::from(status))
    }
}

fn boot(workspace: &Workspace, kernel: &kernel::Kernel, job: &Job) -> Result<u8> {
    let place = workplace::Workplace::new(workspace)?;
    image::write(workspace, kernel, job, &place)?;
    let mut share = share::Share::start(workspace, &place)?;
    say(&format!("booting {} under emulation", kernel.name()));
    let started = Instant::now();
    let status = boot::run(kernel, &place, &mut share, job.limit)?;
    say(&format!(
        "the virtual machine ran for {} s; exit status {status}",
        started.elapsed().as_secs()
    ));
    Ok(status)
}
