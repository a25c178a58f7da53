//! `cargo xtask`: everything a developer, a user with a clone, or CI does with memtrace.
//!
//! Each command first installs what it needs and is missing, says what it installs, and is quick
//! when nothing is. A failure is one line: what failed, on what, what to do.

mod bench;
mod build;
mod command;
mod ebpf;
mod linker;
mod lint;
mod package;
mod packages;
mod programs;
mod run;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod vm;
mod workspace;

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Set-up, build, run and test of memtrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install everything that building and testing need and is missing
    Setup,
    /// Compile the kernel side to target/bpf/memtrace-ebpf
    BuildEbpf,
    /// Set up what is missing and build target/release/memtrace
    Build,
    /// Build, and pack a Debian package into target/package
    Package,
    /// Build, then run memtrace with all the words that follow
    #[command(disable_help_flag = true)]
    Memtrace {
        /// What memtrace is given, unchanged
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Set up, build, and run every test (needs root)
    Test {
        /// What `cargo test` is given besides
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measure what tracing costs, beside other tools (needs root; some minutes a row)
    Bench(bench::Bench),
    /// Run tests, or a command, as root on Debian's stock kernel in an emulated machine
    Vm(vm::Vm),
    /// Check formatting, clippy with warnings denied, and tidy
    Lint,
    /// Check the architecture rules
    Tidy,
}

fn main() -> ExitCode {
    match dispatch() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<ExitCode> {
    let workspace = Workspace::of_this_xtask();
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(arguments) = words_after_memtrace(&words) {
        run::memtrace(&workspace, arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let done = match Arguments::parse_from(words).task {
        Task::Setup => setup::everything(&workspace),
        Task::BuildEbpf => ebpf::build(&workspace, &setup::for_ebpf(&workspace)?),
        Task::Build => build::memtrace(&workspace, build::Output::Shown),
        Task::Package => package::debian(&workspace),
        Task::Memtrace { arguments } => run::memtrace(&workspace, &arguments),
        Task::Test { arguments } => return test(&workspace, &arguments),
        Task::Bench(bench) => bench.run(&workspace),
        Task::Vm(vm) => return vm.run(&workspace),
        Task::Lint => lint::all(&workspace),
        Task::Tidy => tidy::check(&workspace),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// The tests on this kernel and, unless some were chosen, those that depend on it on an older one.
fn test(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    test::all(workspace, arguments)?;
    if arguments.is_empty() {
        return vm::Vm::usual().run(workspace);
    }
    Ok(ExitCode::SUCCESS)
}

/// clap drops the first `--`, which memtrace must see: its words never go through clap.
fn words_after_memtrace(words: &[OsString]) -> Option<&[OsString]> {
    match words {
        [_, task, rest @ ..] if task == OsStr::new("memtrace") => Some(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn memtrace_gets_every_word_unchanged() {
        for rest in [
            "-- run",
            "run -- ls -- -l",
            "--help",
            "",
            "run --json -o - -- sh -c x",
        ] {
            let given = words(&format!("xtask memtrace {rest}"));
            assert_eq!(
                words_after_memtrace(&given),
                Some(&words(rest)[..]),
                "{rest}"
            );
        }
        assert_eq!(words_after_memtrace(&words("xtask test memtrace")), None);
        assert_eq!(words_after_memtrace(&words("xtask")), None);
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn test_passes_a_double_dash_on() {
        let parsed = Arguments::try_parse_from(words("xtask test -p x -- --nocapture"));
        let Ok(Arguments {
            task: Task::Test { arguments },
        }) = parsed
        else {
            panic!("not understood as `test`");
        };
        assert_eq!(arguments, words("-p x -- --nocapture"));
    }
}
