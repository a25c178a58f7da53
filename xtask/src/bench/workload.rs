//! What is traced: small loops that time themselves (tests/workloads/cost.c), and real programs.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{redis, tool::Tool};
use crate::{
    command::{capture, quiet},
    workspace::Workspace,
};

/// Where the compiled workload, its data and the copy of the C library are.
pub struct Place {
    /// target/bench
    pub directory: PathBuf,
    /// The binary as users get it.
    pub memtrace: PathBuf,
}

impl Place {
    /// Compiles the workload and writes what it works on.
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        let place = Self {
            directory: workspace.target().join("bench"),
            memtrace: workspace.memtrace(),
        };
        let libraries = place.libraries();
        fs::create_dir_all(&libraries)
            .with_context(|| format!("cannot create {}", libraries.display()))?;
        let source = workspace.root().join("tests/workloads/cost.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-fno-omit-frame-pointer", "-pthread", "-o"]);
        quiet(gcc.arg(place.cost()).arg(source), "compiling cost.c")?;
        let mut gcc = Command::new("gcc");
        let printed = capture(
            gcc.arg("-print-file-name=libc.so.6"),
            "finding the C library",
        )?;
        let libc = PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim());
        copy(&libc, &place.libc())?;
        redis::prepare(&place)?;
        if let Some(allocator) = redis::allocator(&place) {
            copy(&allocator, &place.allocator(Workload::Redis))?;
        }
        write(&place.directory.join("rows.py"), PYTHON)?;
        write(
            &place.directory.join("small.c"),
            "int main(void) { return 0; }\n",
        )?;
        write(&place.directory.join("compile.sh"), COMPILE)?;
        write(&place.directory.join("table.sql"), SQL)?;
        Ok(place)
    }

    fn cost(&self) -> PathBuf {
        self.directory.join("cost")
    }

    /// For LD_LIBRARY_PATH.
    pub fn libraries(&self) -> PathBuf {
        self.directory.join("lib")
    }

    fn libc(&self) -> PathBuf {
        self.libraries().join("libc.so.6")
    }

    /// bpftrace's uprobes sit on a file and are hit by all that map it: it gets a copy of the library, which only
    /// its own workload maps.
    pub fn allocator(&self, workload: Workload) -> PathBuf {
        match workload {
            Workload::Redis => self.libraries().join("libjemalloc.so.2"),
            _ => self.libc(),
        }
    }

    /// redis's server.
    pub fn redis(&self) -> PathBuf {
        self.directory.join("redis-server")
    }

    /// Where it is asked.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// What a tool prints that watches.
    pub fn observed(&self) -> PathBuf {
        self.directory.join("observer")
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Builds and sorts objects, all from malloc: about 0.8 million allocations.
const PYTHON: &str = "\
import json
rows = [{'id': i, 'name': 'row %d' % i, 'tags': [str(i % 7), str(i % 11)]} for i in range(20000)]
rows = json.loads(json.dumps(rows))
rows.sort(key=lambda row: row['name'])
print(len(json.dumps(rows)), file=open('/dev/null', 'w'))
";

/// Each compilation is four processes that live some milliseconds.
const COMPILE: &str = "\
directory=$(dirname \"$0\")
for turn in 1 2 3 4 5 6 7 8; do gcc -o /dev/null \"$directory/small.c\" || exit 1; done
";

const SQL: &str = "\
create table t (a integer primary key, b text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 60000)
insert into t select i, 'row ' || i from n;
create index tb on t (b);
select count(*) from t where b like 'row 1%';
";

/// What a row runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Workload {
    /// malloc and free of a block of `size`.
    Pairs {
        /// Bytes.
        size: u32,
        /// Threads that work.
        threads: u32,
        /// Threads that wait meanwhile.
        idle: u32,
    },
    /// malloc and free on a stack of so many frames.
    Deep(u32),
    /// The same on so many such stacks in turn.
    Paths {
        /// Frames of each.
        frames: u32,
        /// How many.
        paths: u32,
    },
    /// free and malloc among so many live blocks.
    Live(u32),
    /// First touches of fresh anonymous memory.
    Faults,
    /// mmap and munmap.
    Maps,
    /// getppid(2).
    Calls,
    /// gcc on an empty program, eight times.
    Compile,
    /// Python with PYTHONMALLOC=malloc.
    Python,
    /// sqlite3 that fills a table in memory and indexes it.
    Sqlite,
    /// redis, set and get by clients that no tool knows of.
    Redis,
    /// So many events a second for so many seconds.
    Pace {
        /// Pairs a second; each is two events.
        rate: u32,
        /// Seconds.
        seconds: u32,
    },
}

impl Workload {
    /// Its command line, for so many operations where it takes a number.
    pub fn command(self, place: &Place, operations: u32) -> Vec<OsString> {
        let (words, file) = match self {
            Self::Pairs {
                size,
                threads,
                idle,
            } => {
                let each = operations / threads;
                (format!("pairs {size} {threads} {idle} {each}"), None)
            }
            Self::Deep(frames) => (format!("deep {frames} {operations}"), None),
            Self::Paths { frames, paths } => (format!("paths {frames} {paths} {operations}"), None),
            Self::Live(blocks) => (format!("live {blocks} {operations}"), None),
            Self::Faults => (format!("faults 4096 {}", operations / 4096), None),
            Self::Maps => (format!("maps {operations}"), None),
            Self::Calls => (format!("calls {operations}"), None),
            Self::Pace { rate, seconds } => (format!("pace {rate} {seconds}"), None),
            Self::Redis => {
                let mut command = vec![place.redis().into_os_string()];
                command.extend(redis::arguments(place).into_iter().map(OsString::from));
                return command;
            }
            Self::Compile => ("tree sh".to_owned(), Some("compile.sh")),
            Self::Python => (
                "tree env PYTHONMALLOC=malloc /usr/bin/python3".to_owned(),
                Some("rows.py"),
            ),
            Self::Sqlite => (
                "tree sqlite3 :memory: .exit -init".to_owned(),
                Some("table.sql"),
            ),
        };
        let mut command = vec![place.cost().into_os_string()];
        command.extend(words.split(' ').map(OsString::from));
        command.extend(file.map(|name| place.directory.join(name).into_os_string()));
        command
    }

    /// Operations of a round: fewer where each is dear.
    pub fn operations(self, tool: Tool) -> u32 {
        let (light, heavy) = match self {
            Self::Pairs { .. } | Self::Deep(_) | Self::Paths { .. } | Self::Live(_) => {
                (4_000_000, 60_000)
            }
            Self::Faults => (80 << 10, 80 << 10),
            Self::Maps => (50_000, 50_000),
            Self::Calls => (1_000_000, 1_000_000),
            Self::Redis => (60_000, 20_000),
            _ => (1, 1),
        };
        if tool.is_light() { light } else { heavy }
    }
}
