//! What is installed beside the program: its unit and its configurations.

use std::fs;
use std::process::Command;

use memtrace_tests::Running;
use memtrace_tests::Scratch;
use memtrace_tests::child::run;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::memtrace;
use memtrace_tests::scratch::workspace;
use memtrace_tests::workload::tool;
use nix::sys::signal::Signal;

#[test]
fn systemd_accepts_the_unit() {
    let scratch = Scratch::new();
    let unit = fs::read_to_string(workspace().join("packaging/systemd/memtrace.service"));
    let binary = memtrace::<&str>(&[]).get_program().to_owned();
    let binary = binary.to_str().expect("a path in UTF-8");
    // It is not installed here.
    let unit = unit.expect("a unit").replace("/usr/bin/memtrace", binary);
    let unit = scratch.write("memtrace.service", unit);
    let mut verify = Command::new(tool("systemd-analyze", "systemd"));
    let verified = run(verify.arg("verify").arg(unit));
    verified.exited(0);
    assert_eq!(verified.messages(), "");
}

#[test]
fn the_daemon_accepts_the_packaged_configurations() {
    let scratch = Scratch::new();
    let packaging = workspace().join("packaging");
    let pods = fs::read_to_string(packaging.join("kubernetes/daemonset.yaml")).expect("a manifest");
    let within = pods
        .split_once("memtrace.toml: |\n")
        .expect("a configuration")
        .1;
    let within = within.split_once("---").expect("an end").0;
    let in_pods = scratch.write("memtrace.toml", within);
    for path in [packaging.join("memtrace.toml"), in_pods] {
        run(memtrace(&["daemon", "--check", "--config"]).arg(path)).exited(0);
    }
}

/// The capabilities that the unit leaves the daemon, as setpriv(1) writes them.
fn bounds_of_the_unit() -> Vec<String> {
    let unit = fs::read_to_string(workspace().join("packaging/systemd/memtrace.service"));
    let unit = unit.expect("a unit");
    let bounds = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = bounds.expect("bounds").split(' ');
    names
        .map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect()
}

#[test]
fn the_daemon_begins_within_the_bounds_of_its_unit() {
    let mut daemon = Daemon::start();
    daemon.stop().exited(0);
    let bounds = bounds_of_the_unit();
    let without: Vec<String> = bounds
        .iter()
        .filter(|name| *name != "+setpcap")
        .cloned()
        .collect();
    assert!(without.len() < bounds.len());
    // The second is what a container may leave it.
    for bounds in [bounds, without] {
        // Stands for LimitMEMLOCK=infinity, which not everybody may set.
        let bounds = format!("-all,{},+ipc_lock", bounds.join(","));
        let plain = daemon.command();
        let mut bounded = Command::new(tool("setpriv", "util-linux"));
        bounded.args(["--bounding-set", &bounds, "--no-new-privs"]);
        bounded.arg(plain.get_program()).args(plain.get_args());
        let running = Running::start(&mut bounded);
        running.stderr_has("msg=\"ready\"");
        daemon.ps();
        running.signal(Signal::SIGTERM);
        running.finish().exited(0);
    }
}
