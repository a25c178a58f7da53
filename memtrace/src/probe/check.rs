//! What this machine lets memtrace do: each facility is tried, and given back at once.

use std::{fs, rc::Rc};

use nix::unistd::geteuid;

use super::{
    fault::FaultProbes,
    heap::{HeapProbes, Verdict, Watch},
    libraries,
    object::{LoadOptions, Object},
    perf::Scope,
    points::{self, Group},
    sideband::Sideband,
    tracefs::Tracefs,
    version,
};

/// One facility.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub what: String,
    /// What came of it.
    pub state: State,
}

/// What came of trying a facility.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Works {
        /// A word on it.
        detail: String,
    },
    /// Tracing works, with something left out.
    Limited {
        /// What is left out.
        detail: String,
        /// The command or setting that mends it; empty where nothing does.
        remedy: String,
    },
    /// Tracing does not work.
    Broken {
        /// Why.
        detail: String,
        /// The command or setting that mends it.
        remedy: String,
    },
}

fn works(what: &str, detail: impl Into<String>) -> Finding {
    Finding {
        what: what.to_owned(),
        state: State::Works {
            detail: detail.into(),
        },
    }
}

fn limited(what: &str, detail: impl Into<String>, remedy: &str) -> Finding {
    let state = State::Limited {
        detail: detail.into(),
        remedy: remedy.to_owned(),
    };
    Finding {
        what: what.to_owned(),
        state,
    }
}

fn broken(what: &str, detail: impl Into<String>, remedy: &str) -> Finding {
    let state = State::Broken {
        detail: detail.into(),
        remedy: remedy.to_owned(),
    };
    Finding {
        what: what.to_owned(),
        state,
    }
}

/// Tries everything, on this process alone.
pub fn all() -> Vec<Finding> {
    let mut findings = vec![kernel(), privileges(), lockdown(), btf()];
    match Object::load(&LoadOptions::default()) {
        Ok(mut object) => {
            findings.push(works(
                "BPF programs",
                "loaded; the verifier takes all of them",
            ));
            findings.push(rings(&mut object));
            findings.extend(tracepoints(&mut object));
            findings.push(faults(&object));
            findings.push(mappings());
            findings.extend(heap(&mut object));
        }
        Err(error) => findings.push(broken(
            "BPF programs",
            error.to_string(),
            "run memtrace doctor as root",
        )),
    }
    findings
}

fn kernel() -> Finding {
    let release = version::release();
    if version::is_at_least((6, 1)) {
        works("kernel", release)
    } else {
        limited(
            "kernel",
            format!("{release}; memtrace is made for 6.1 and later"),
            "",
        )
    }
}

fn privileges() -> Finding {
    if geteuid().is_root() {
        works("privileges", "root")
    } else {
        broken("privileges", "not root", "sudo memtrace …")
    }
}

/// Lockdown refuses nothing that memtrace needs in integrity mode; confidentiality mode refuses BPF reads.
fn lockdown() -> Finding {
    let Ok(text) = fs::read_to_string("/sys/kernel/security/lockdown") else {
        return works(
            "lockdown",
            "not told (securityfs is not mounted); the programs below tell",
        );
    };
    if text.contains("[confidentiality]") {
        let remedy = "boot with lockdown=integrity or without lockdown";
        return broken(
            "lockdown",
            "confidentiality: BPF may not read memory",
            remedy,
        );
    }
    works("lockdown", text.trim())
}

fn btf() -> Finding {
    match fs::metadata("/sys/kernel/btf/vmlinux") {
        Ok(_) => works("BTF", "/sys/kernel/btf/vmlinux"),
        Err(error) => broken(
            "BTF",
            format!("/sys/kernel/btf/vmlinux: {error}"),
            "a kernel built with CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

fn rings(object: &mut Object) -> Finding {
    match object.take_rings() {
        Ok(rings) => {
            let size = LoadOptions::default().ring_bytes >> 20;
            works(
                "ring buffers",
                format!("{}, {size} MiB together", rings.len()),
            )
        }
        Err(error) => broken(
            "ring buffers",
            error.to_string(),
            "rebuild with cargo xtask build",
        ),
    }
}

fn tracepoints(object: &mut Object) -> Vec<Finding> {
    let finding = |status: points::Status| {
        let what = format!("tracepoint {}", status.name);
        match status.failure {
            None => works(&what, "attached"),
            Some(failure) => limited(&what, failure, ""),
        }
    };
    let without: &[Group] = if points::tell_ends() {
        &[]
    } else {
        &[Group::PrepareExec]
    };
    match points::attach(object, without) {
        Ok(statuses) => statuses.into_iter().map(finding).collect(),
        Err(error) => vec![broken("tracepoints", error.to_string(), "")],
    }
}

fn faults(object: &Object) -> Finding {
    match FaultProbes::default().follow(object, std::process::id(), true) {
        Ok(()) => works(
            "page-fault latency",
            "software events with a program attached",
        ),
        Err(error) => limited(
            "page-fault latency",
            error.to_string(),
            "sysctl kernel.perf_event_paranoid=2",
        ),
    }
}

fn mappings() -> Finding {
    match Sideband::new().and_then(|mut sideband| sideband.follow(std::process::id(), true)) {
        Ok(()) => works(
            "mapping records",
            "perf records of files as they are mapped",
        ),
        Err(error) => limited(
            "mapping records",
            error.to_string(),
            "sysctl kernel.perf_event_mlock_kb=4096",
        ),
    }
}

/// tracefs, and the allocators of this process's own libraries.
fn heap(object: &mut Object) -> Vec<Finding> {
    let tracefs = match Tracefs::open() {
        Ok(tracefs) => Rc::new(tracefs),
        Err(error) => {
            let remedy = "mount -t tracefs nodev /sys/kernel/tracing";
            return vec![limited(
                "tracefs",
                format!("{error}; no heap probes"),
                remedy,
            )];
        }
    };
    let mut findings = vec![works("tracefs", "open")];
    findings.push(others(&tracefs));
    let mut probes = HeapProbes::new(tracefs);
    let (own, inherit) = (std::process::id(), false);
    if let Err(error) = probes.follow(own, Scope::Thread { tid: own, inherit }, Watch::default()) {
        findings.push(limited("uprobes", error.to_string(), ""));
        return findings;
    }
    for path in libraries::c_libraries() {
        let what = format!("heap probes in {}", path.display());
        findings.push(match probes.probe(object, &path) {
            Ok(Verdict::Probed { name }) => works(&what, name),
            Ok(Verdict::None) => limited(&what, "no allocator found", ""),
            Ok(Verdict::Hidden { reason }) => limited(&what, reason, ""),
            Err(error) => limited(&what, error.to_string(), ""),
        });
    }
    findings
}

/// Uprobes that others defined: they add to what each allocation costs.
fn others(tracefs: &Tracefs) -> Finding {
    match tracefs.definitions() {
        Ok(names) if names.is_empty() => works("other uprobes", "none defined in tracefs"),
        Ok(names) => limited(
            "other uprobes",
            names.join(", "),
            "each slows the functions it stands on",
        ),
        Err(error) => limited("other uprobes", error.to_string(), ""),
    }
}
