//! A command line that is not understood: one line says what is wrong with it.

use std::{path::Path, process::ExitCode};

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

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
        .or_else(|| recording(error))
        .unwrap_or_default();
    format!("{what}{guess} (--help says more)")
}

/// A file in the place of a report's or a table's name is meant as a recording.
fn recording(error: &Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    };
    let (place, value) = (
        text(ContextKind::InvalidArg)?,
        text(ContextKind::InvalidValue)?,
    );
    let is_it = !place.starts_with('-') && Path::new(value).is_file();
    is_it.then(|| format!("; a recording is read with --from {value}"))
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
    fn a_file_in_place_of_a_name_is_taken_for_a_recording() {
        for words in ["report Cargo.toml", "export Cargo.toml -o out.parquet"] {
            let line = told(words);
            let hint = "; a recording is read with --from Cargo.toml (--help says more)";
            assert!(line.ends_with(hint), "{line}");
        }
        assert!(!told("attach -p Cargo.toml").contains("--from"));
        assert!(!told("report nothing.toml").contains("--from"));
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
