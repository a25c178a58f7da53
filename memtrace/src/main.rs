//! memtrace: parses, runs, and gives the exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    memtrace::cli::main()
}
