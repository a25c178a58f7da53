//! redis under load: a server that a tool is put onto, and clients of which no tool knows.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, Result, bail};

use super::{
    measure::{Worked, cpu_ns},
    workload::Place,
};
use crate::command::{capture, find};

/// What the server prints when it can be asked.
pub const READY: &str = "eady to accept connections";

/// Bytes of a value, and how many keys there are.
const VALUE: &str = "200";
const KEYS: &str = "100000";

/// Makes the server's program: Debian's redis-check-rdb under its other name. The package redis-server would start a
/// server, now and at each boot.
pub fn prepare(place: &Place) -> Result<()> {
    let program = place.redis();
    if program.exists() {
        return Ok(());
    }
    let found = find("redis-check-rdb").context("redis-check-rdb is missing")?;
    symlink(fs::canonicalize(found)?, &program)
        .with_context(|| format!("cannot make {}", program.display()))
}

/// The library that the server allocates with, if it has one of its own.
pub fn allocator(place: &Place) -> Option<PathBuf> {
    let listed = capture(Command::new("ldd").arg(place.redis()), "ldd").ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let line = listed.lines().find(|line| line.contains("libjemalloc"))?;
    line.split_whitespace().nth(2).map(PathBuf::from)
}

/// The arguments of the server.
pub fn arguments(place: &Place) -> Vec<String> {
    let words = [
        "--port",
        "0",
        "--save",
        "",
        "--appendonly",
        "no",
        "--unixsocket",
    ];
    let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
    arguments.push(place.socket().display().to_string());
    arguments
}

/// As many sets and as many gets, and the end of the server.
pub fn work(place: &Place, requests: u32) -> Result<Worked> {
    let server = ask(place, &["info", "server"])?;
    let pid = server
        .lines()
        .find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok())
        .context("redis does not tell its pid")?;
    let cpu = || cpu_ns(pid).context("the server is gone");
    let (before, start) = (cpu()?, Instant::now());
    let mut load = Command::new("redis-benchmark");
    load.arg("-s").arg(place.socket());
    load.args(["-t", "set,get", "-q", "-d", VALUE, "-r", KEYS, "-n"]);
    let output = capture(load.arg(requests.to_string()), "redis-benchmark")?;
    if !output.status.success() {
        bail!("redis-benchmark: {}", output.status);
    }
    let worked = Worked {
        operations: 2.0 * f64::from(requests),
        cpu_ns: cpu()? - before,
        wall_ns: start.elapsed().as_nanos() as f64,
    };
    // The server closes the connection instead of an answer.
    _ = ask(place, &["shutdown", "nosave"]);
    Ok(worked)
}

fn ask(place: &Place, question: &[&str]) -> Result<String> {
    let mut command = Command::new("redis-cli");
    command.arg("-s").arg(place.socket()).args(question);
    let output = capture(&mut command, "redis-cli")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
