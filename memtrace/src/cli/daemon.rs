//! `memtrace daemon`: every process, or those of a cgroup, until it is told to stop.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{log_level, signals::Signals, status};
use crate::{
    daemon::{self, Config},
    probe::object::LoadOptions,
};

/// Arguments of `daemon`.
#[derive(Args)]
pub struct Daemon {
    /// The configuration; without it, /etc/memtrace.toml where there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and do nothing.
    #[arg(long)]
    check: bool,
    /// The hooks and nothing behind them, for `cargo xtask bench`.
    #[arg(long, hide = true)]
    hooks_only: bool,
}

/// Read where no file is named.
const DEFAULT: &str = "/etc/memtrace.toml";

impl Daemon {
    /// Traces until SIGTERM or SIGINT.
    pub fn execute(self, verbose: u8) -> Result<u8> {
        let default = || Some(PathBuf::from(DEFAULT)).filter(|path| path.exists());
        let config = match self.config.or_else(default) {
            Some(path) => Config::read(&path)?,
            None => Config::default(),
        };
        if self.check {
            println!("The configuration is right.");
            return Ok(status::DONE);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut signals = Signals::new().context("cannot take signals over")?;
            let stop = async move {
                signals.next().await;
                log::info!("stopping");
            };
            let ready = || log::info!("ready");
            let load = LoadOptions {
                hooks_only: self.hooks_only,
                log_level: log_level(verbose),
                ..LoadOptions::default()
            };
            daemon::run(config, load, stop, ready)
                .await
                .map_err(anyhow::Error::from)
        })?;
        Ok(status::DONE)
    }
}
