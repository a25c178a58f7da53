//! What is hidden of command lines before they reach an answer or the history.

use super::config::Redaction;

/// What stands for hidden arguments.
const HIDDEN: &str = "[hidden]";

/// Hides what the configuration says.
pub fn redact(command_line: &mut Vec<String>, redaction: Redaction) {
    match redaction {
        Redaction::Off => {}
        Redaction::Arguments if command_line.len() > 1 => {
            command_line.truncate(1);
            command_line.push(HIDDEN.to_owned());
        }
        Redaction::Arguments => {}
        Redaction::All => {
            let any = !command_line.is_empty();
            command_line.clear();
            command_line.extend(any.then(|| HIDDEN.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_with_the_arguments() {
        let redacted = |words: &[&str], redaction| {
            let mut line = words.iter().map(|&word| word.to_owned()).collect();
            redact(&mut line, redaction);
            line.join(" ")
        };
        let line = ["mysql", "-psecret"];
        assert_eq!(redacted(&line, Redaction::Off), "mysql -psecret");
        assert_eq!(redacted(&line, Redaction::Arguments), "mysql [hidden]");
        assert_eq!(redacted(&line, Redaction::All), "[hidden]");
        assert_eq!(redacted(&["mysql"], Redaction::Arguments), "mysql");
        assert_eq!(redacted(&[], Redaction::All), "");
    }
}
