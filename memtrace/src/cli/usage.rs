//! A command line that is not understood: one line says what is wrong with it.

use std::process::ExitCode;

use clap::error::{Error, ErrorKind};

use super::{complain, status};

/// Prints help and version as clap makes them, and what is wrong as one line.
pub fn refuse(error: &Error) -> ExitCode {
    let wrong =
        error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if wrong {
        complain(&line(error));
    } else if error.print().is_err() {
        return ExitCode::from(status::FAILED);
    }
    // clap's own statuses are 0 and 2.
    ExitCode::from(if error.use_stderr() {
        status::USAGE
    } else {
        status::DONE
    })
}

/// What is wrong and clap's guess, or ours, at what was meant, without the usage that `--help` has.
fn line(error: &Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let first = words.join(" ");
    let what = first.strip_prefix("error: ").unwrap_or(&first);
    let guess = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "))
        .find(|tip| tip.contains("similar") || tip.contains("memtrace "))
        .map(|tip| format!("; {tip}"))
        .unwrap_or_default();
    format!("{what}{guess} (--help says more)")
}

/// A process id, as `-p` takes it.
pub fn pid(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "a process is given by its number, as ps shows it".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{super::Arguments, *};

    fn told(words: &str) -> String {
        let words = std::iter::once("memtrace").chain(words.split_whitespace());
        match Arguments::try_parse_from(words) {
            Ok(_) => panic!("understood"),
            Err(error) => line(&error),
        }
    }

    #[test]
    fn one_line_says_what_is_wrong() {
        assert_eq!(
            told("run"),
            "the following required arguments were not provided: <COMMAND>... (--help says more)"
        );
        assert_eq!(
            told("attach -p x"),
            "invalid value 'x' for '--pid <PID>': a process is given by its number, as ps shows it \
             (--help says more)"
        );
        assert_eq!(
            told("run --no-heep true"),
            "unexpected argument '--no-heep' found; a similar argument exists: '--no-heap' \
             (--help says more)"
        );
        assert_eq!(
            told("rum"),
            "unrecognized subcommand 'rum'; a similar subcommand exists: 'run' (--help says more)"
        );
        assert_eq!(
            told("leaks --from x"),
            "unexpected argument '--from <FILE>' found; of a recording: memtrace report leaks --from FILE \
             (--help says more)"
        );
    }
}
