//! Containers, by cgroups laid out as their runtimes lay them out: names, filters, and whose heap is probed.

use std::process::Command;

use memtrace::daemon::protocol::Listing;
use memtrace_tests::daemon::{Cgroup, Daemon};
use memtrace_tests::steps::{LIVE_BYTES, Steps};
use memtrace_tests::vm::in_vm;
use memtrace_tests::workload::workload;

const POD: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";

/// An id as runtimes make them.
fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// Where each runtime puts a container, and what it is called then: systemd's driver and cgroupfs.
fn layouts() -> Vec<(String, String)> {
    let under = POD.replace('-', "_");
    let burstable =
        format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice");
    vec![
        (
            format!("system.slice/docker-{}.scope", id('1')),
            "docker:111111111111".to_owned(),
        ),
        (
            format!("docker/{}", id('2')),
            "docker:222222222222".to_owned(),
        ),
        (
            format!("machine.slice/libpod-{}.scope/container", id('3')),
            "podman:333333333333".to_owned(),
        ),
        (
            format!("{burstable}/cri-containerd-{}.scope", id('4')),
            format!("pod:{POD}/444444444444"),
        ),
        (
            format!("{burstable}/crio-{}.scope", id('5')),
            format!("pod:{POD}/555555555555"),
        ),
    ]
}

#[test]
#[ignore = "needs the memory controller in the hierarchy of version 2: cargo xtask vm"]
fn each_container_is_named_and_found() {
    in_vm();
    let cgroup = Cgroup::new();
    let layouts = layouts();
    let places: Vec<Cgroup> = layouts.iter().map(|(path, _)| cgroup.below(path)).collect();
    let start = |place: &Cgroup| Steps::of(place.holds(&mut Command::new(workload("steps.c"))));
    let mut inside: Vec<Steps> = places.iter().map(start).collect();
    let pids: Vec<u32> = inside.iter().map(Steps::pid).collect();
    let daemon = Daemon::over(cgroup, "[[heap]]\ncontainer = 'docker:1111'\n");
    for (pid, (_, name)) in pids.iter().zip(&layouts) {
        let line = daemon.line(*pid, |_| true);
        assert_eq!(line.container.as_deref(), Some(name.as_str()));
    }

    let listed = |arguments: &[&str]| -> Vec<u32> {
        let told = daemon.ask(&[&["ps", "--format", "json"], arguments].concat());
        told.exited(0);
        let listing: Listing = serde_json::from_slice(&told.stdout).expect("a listing");
        let cgroups: u64 = listing.cgroups.iter().map(|line| line.processes).sum();
        assert_eq!(listing.processes.len() as u64, cgroups, "{arguments:?}");
        listing.processes.iter().map(|line| line.pid).collect()
    };
    let reported = |arguments: &[&str]| -> Vec<u32> {
        let document = daemon.report(arguments);
        let mut pids: Vec<u32> = document.processes.iter().map(|one| one.pid).collect();
        pids.sort_unstable();
        pids
    };
    let pod = [pids[3], pids[4]];
    for (name, expected) in [
        (layouts[0].1.as_str(), &pids[..1]),
        (&id('2'), &pids[1..2]),
        ("3333", &pids[2..3]),
        (POD, &pod),
        (layouts[4].1.as_str(), &pids[4..]),
    ] {
        assert_eq!(
            listed(&["--container", name, "--sort", "pid"]),
            expected,
            "{name}"
        );
        assert_eq!(reported(&["--container", name]), expected, "{name}");
        let past = reported(&["--container", name, "--since", "1h"]);
        assert_eq!(past, expected, "{name}");
    }
    let slice = format!("{}/kubepods.slice", daemon.cgroup.path());
    assert_eq!(listed(&["--cgroup", &slice, "--sort", "pid"]), pod);
    assert_eq!(reported(&["--cgroup", &slice]), pod);
    let none = daemon.ask(&["report", "--container", "docker:9999"]);
    none.exited(1);
    assert!(none.one_line().contains("no such process is traced"));

    // One by the configuration, two by their pod; the others' heaps are left alone.
    daemon.ask(&["heap", "on", "--container", POD]).exited(0);
    inside.iter_mut().for_each(Steps::round);
    for index in [0, 3, 4] {
        daemon.line(pids[index], |line| line.heap_live_bytes == Some(LIVE_BYTES));
    }
    for index in [1, 2] {
        assert_eq!(daemon.line(pids[index], |_| true).heap_live_bytes, None);
    }
    daemon.ask(&["heap", "off", "--container", POD]).exited(0);
    daemon.line(pids[3], |line| line.heap_live_bytes.is_none());
    inside.into_iter().for_each(|steps| steps.end(0));
}
