//! The programs that tests run or compile with. Only `cargo xtask test` needs them.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{
    command::{find, say},
    packages,
    workspace::Workspace,
};

/// How to see that a need is met without asking a package manager.
enum Sign {
    Program(&'static str),
    File(&'static str),
    Library(&'static str),
}

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => find(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
            Self::Library(name) => packages::has_library(name),
        }
    }
}

struct Need {
    sign: Sign,
    package: &'static str,
    /// Kept beside the need so that one that no test has any more can be seen and dropped.
    #[expect(dead_code, reason = "read by people")]
    reason: &'static str,
}

const fn need(sign: Sign, package: &'static str, reason: &'static str) -> Need {
    Need {
        sign,
        package,
        reason,
    }
}

const LIBRARY: &str = "PostgreSQL, which is unpacked, is linked with it";

const NEEDS: &[Need] = &[
    need(
        Sign::Program("gcc"),
        "gcc",
        "compiles the workloads; traced as a tree of processes",
    ),
    need(
        Sign::Program("g++"),
        "g++",
        "C++ workloads: new and delete, a caught bad_alloc",
    ),
    need(
        Sign::Program("musl-gcc"),
        "musl-tools",
        "workloads on musl, dynamic and static",
    ),
    need(
        Sign::Library("libjemalloc.a"),
        "libjemalloc-dev",
        "jemalloc, dynamic and static",
    ),
    need(
        Sign::Library("libtcmalloc.a"),
        "libgoogle-perftools-dev",
        "tcmalloc, dynamic and static",
    ),
    need(
        Sign::Library("libmimalloc.so"),
        "libmimalloc-dev",
        "mimalloc",
    ),
    // Not the package redis-server, whose installation starts a server, now and at each boot:
    // the program is the same file as redis-check-rdb, under another name.
    need(
        Sign::Program("redis-check-rdb"),
        "redis-tools",
        "a server attached to while it works",
    ),
    need(
        Sign::Program("redis-benchmark"),
        "redis-tools",
        "the load on that server",
    ),
    need(
        Sign::Program("sqlite3"),
        "sqlite3",
        "a real program that fills a table",
    ),
    need(
        Sign::Program("heaptrack"),
        "heaptrack",
        "counts allocations, to compare with",
    ),
    need(
        Sign::Program("zstd"),
        "zstd",
        "unpacks what heaptrack recorded",
    ),
    need(
        Sign::Program("valgrind"),
        "valgrind",
        "counts allocations exactly, to compare with",
    ),
    need(
        Sign::Program("gdb"),
        "gdb",
        "a debugger beside memtrace; stacks to compare with",
    ),
    need(
        Sign::Program("bpftrace"),
        "bpftrace",
        "another tracer on the same symbol",
    ),
    need(
        Sign::Program("xz"),
        "xz-utils",
        "makes MiniDebugInfo as distributions do",
    ),
    need(
        Sign::Program("node"),
        "nodejs",
        "generates code and tells its names",
    ),
    need(Sign::Program("go"), "golang-go", "Go with cgo under trace"),
    need(
        Sign::File("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
        "libfaketime",
        "sets the clock of one process",
    ),
    need(
        Sign::Program("systemd-analyze"),
        "systemd",
        "reads the daemon's unit",
    ),
    need(Sign::Library("libpq.so.5"), "libpq5", LIBRARY),
    need(Sign::Library("libldap-2.5.so.0"), "libldap-2.5-0", LIBRARY),
    need(Sign::Library("libicui18n.so.72"), "libicu72", LIBRARY),
    need(Sign::Library("libxml2.so.2"), "libxml2", LIBRARY),
    need(
        Sign::File("/usr/bin/python3"),
        "python3",
        "a real program: Debian's own, not a manager's",
    ),
];

const VM_NEEDS: &[Need] = &[
    need(
        Sign::Program("qemu-system-x86_64"),
        "qemu-system-x86",
        "emulates a machine; its packages bring virtiofsd, too",
    ),
    need(
        Sign::Program("cpio"),
        "cpio",
        "packs the file system that the kernel starts from",
    ),
    need(
        Sign::Program("xz"),
        "xz-utils",
        "decompresses the modules of later kernels",
    ),
    need(
        Sign::Program("mkfs.ext4"),
        "e2fsprogs",
        "the machine's disk",
    ),
];

/// Installs what tests need and is missing.
pub fn ensure(workspace: &Workspace) -> Result<()> {
    install_missing(NEEDS, "for tests")?;
    redis_server(workspace)?;
    unpacked(
        workspace,
        "prometheus",
        "usr/bin",
        &["prometheus", "promtool"],
    )?;
    unpacked(workspace, "nginx", "usr/sbin", &["nginx"])?;
    unpacked(workspace, POSTGRES.0, POSTGRES.1, &POSTGRES.2)
}

/// Installs what the virtual machine needs and is missing.
pub fn ensure_vm() -> Result<()> {
    install_missing(VM_NEEDS, "for the virtual machine")
}

fn install_missing(needs: &[Need], why: &str) -> Result<()> {
    let mut missing: Vec<&str> = needs
        .iter()
        .filter(|need| !need.sign.is_there())
        .map(|need| need.package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    packages::install(&missing, why)
}

/// A `redis-server` on the tests' PATH where none is installed.
fn redis_server(workspace: &Workspace) -> Result<()> {
    let link = workspace.tools().join("bin/redis-server");
    if find("redis-server").is_some() || link.exists() {
        return Ok(());
    }
    let program = find("redis-check-rdb").context("redis-tools brought no redis-check-rdb")?;
    say("making redis-server a link to redis-check-rdb, which is the same program");
    std::fs::create_dir_all(workspace.tools().join("bin"))
        .and_then(|()| std::os::unix::fs::symlink(program, &link))
        .with_context(|| format!("cannot make {}", link.display()))
}

/// Package, directory and programs. They find what else they need by where they are.
const POSTGRES: (&str, &str, [&str; 3]) = (
    "postgresql-15",
    "usr/lib/postgresql/15/bin",
    ["initdb", "postgres", "pgbench"],
);

/// Programs on the tests' PATH where they are not installed: the package's installation would start a server, now and
/// at each boot.
fn unpacked(workspace: &Workspace, package: &str, directory: &str, names: &[&str]) -> Result<()> {
    let bin = workspace.tools().join("bin");
    let is_there = |name: &&str| find(name).is_some() || bin.join(name).exists();
    if names.iter().all(is_there) {
        return Ok(());
    }
    let installed = Path::new("/").join(directory);
    let place = workspace.tools().join(package);
    let from = if installed.join(names[0]).exists() {
        installed
    } else {
        if !place.exists() {
            say(&format!("unpacking {}, for tests", names.join(", ")));
            let unpacked = packages::unpack(package, &workspace.tools())?;
            std::fs::rename(unpacked.keep(), &place)
                .with_context(|| format!("cannot make {}", place.display()))?;
        }
        place.join(directory)
    };
    std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    for name in names.iter().filter(|name| !is_there(name)) {
        let (program, link) = (from.join(name), bin.join(name));
        if !program.exists() {
            bail!("the package {package} brought no {name}");
        }
        // One to a program that is gone.
        _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(())
}
