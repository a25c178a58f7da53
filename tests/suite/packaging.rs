//! What is installed beside the program: its unit and its configurations.

use std::fs;
use std::process::Command;

use memtrace_tests::Scratch;
use memtrace_tests::child::run;
use memtrace_tests::memtrace;
use memtrace_tests::scratch::workspace;
use memtrace_tests::workload::tool;

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
