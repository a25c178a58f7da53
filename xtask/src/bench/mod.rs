//! `cargo xtask bench`: what tracing costs, beside no tracing, beside empty probes, and beside other tools.
//!
//! A [`row`](rows) is a workload under several [tools](tool). The tools take turns, round by round, so that what
//! disturbs the machine disturbs all of them ([`measure`]). Ratios are taken within a round; what is printed is
//! their median with a 95 % bound ([`statistics`]). What the daemon costs at rest is a row of its own ([`rest`]). All
//! rows take a quarter of an hour at most.

mod daemon;
mod measure;
mod redis;
mod rest;
mod rows;
mod running;
mod statistics;
mod table;
mod tool;
mod workload;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build::{self, Output},
    command::{is_root, say},
    programs,
    workspace::Workspace,
};

/// What to measure.
#[derive(Args)]
pub struct Bench {
    /// Rows whose name contains one of these words; all without
    rows: Vec<String>,
    /// Write every figure to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Bench {
    /// Builds, measures row by row and prints each table as soon as it is there.
    pub fn run(&self, workspace: &Workspace) -> Result<()> {
        if !is_root() {
            bail!("tracing takes root: run this as root");
        }
        programs::ensure(workspace)?;
        build::memtrace(workspace, Output::Shown)?;
        let place = workload::Place::prepare(workspace)?;
        let chosen: Vec<_> = rows::ROWS
            .iter()
            .filter(|row| self.is_chosen(row.name))
            .collect();
        let rest = self.is_chosen(rest::NAME);
        if chosen.is_empty() && !rest {
            let names = rows::ROWS.iter().map(|row| row.name);
            let names: Vec<_> = names.chain([rest::NAME]).collect();
            bail!("no such row; there are: {}", names.join(", "));
        }
        println!("{}\n", table::machine());
        let (mut measured, mut results) = (Vec::new(), Vec::new());
        for row in chosen {
            say(&format!(
                "{}: {} rounds, or {} s of them",
                row.name,
                row.rounds,
                row.limit.as_secs()
            ));
            let cells = measure::row(row, &place);
            println!("{}", table::text(row, &cells, &measured));
            results.push(table::json(row, &cells, &measured));
            measured.push(table::Measured { row, cells });
        }
        if rest {
            say("rest: two spans of 30 s");
            let costs = rest::measure(&workspace.memtrace())?;
            println!("{}", rest::text(&costs));
            results.push(rest::json(&costs));
        }
        // A run that failed leaves it.
        if measured
            .iter()
            .any(|one| one.cells.iter().any(|cell| cell.tool.is_daemon()))
        {
            daemon::clean()?;
        }
        println!("{}", table::claims(&measured));
        if let Some(path) = &self.json {
            let all = serde_json::json!({ "machine": table::machine(), "rows": results });
            fs::write(path, format!("{all:#}\n"))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn is_chosen(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|word| name.contains(word.as_str()))
    }
}
