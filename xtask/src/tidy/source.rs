//! As much of Rust's grammar as the rules need: tokens with their lines, and the paths that code
//! names, `use` trees multiplied out.

/// An identifier, or one character of punctuation (`::` is a token too).
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// As written.
    pub text: String,
    /// From 1.
    pub line: usize,
}

impl Token {
    fn is_identifier(&self) -> bool {
        self.text
            .starts_with(|c: char| c == '_' || c.is_alphabetic())
    }
}

/// A path such as `std::fs::File`, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedPath {
    /// Segments joined by `::`.
    pub path: String,
    /// From 1.
    pub line: usize,
}

/// Splits code into tokens and drops comments, strings, characters and numbers.
pub fn tokens(code: &str) -> Vec<Token> {
    let chars: Vec<char> = code.chars().collect();
    let mut found = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < chars.len() {
        let start = at;
        at = match chars[at] {
            '/' if next_is(&chars, at, '/') => skip_until(&chars, at, |c| c == '\n'),
            '/' if next_is(&chars, at, '*') => skip_block_comment(&chars, at),
            '"' => skip_string(&chars, at),
            '\'' => skip_quote(&chars, at),
            c if c.is_ascii_digit() => skip_until(&chars, at, |c| !is_word(c)),
            c if is_word(c) => {
                let end = skip_until(&chars, at, |c| !is_word(c));
                let word: String = chars[at..end].iter().collect();
                match literal_end(&chars, &word, end) {
                    Some(after) => after,
                    None => {
                        found.push(Token { text: word, line });
                        end
                    }
                }
            }
            c if c.is_whitespace() => at + 1,
            ':' if next_is(&chars, at, ':') => {
                found.push(Token {
                    text: "::".to_owned(),
                    line,
                });
                at + 2
            }
            c => {
                found.push(Token {
                    text: c.to_string(),
                    line,
                });
                at + 1
            }
        };
        line += chars[start..at.min(chars.len())]
            .iter()
            .filter(|c| **c == '\n')
            .count();
    }
    found
}

/// Every path of two segments or more, with `use` trees multiplied out.
pub fn paths(tokens: &[Token]) -> Vec<NamedPath> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let token = &tokens[at];
        if token.text == "use" {
            at = use_tree(tokens, at + 1, "", &mut found);
        } else if token.is_identifier() {
            let line = token.line;
            let (path, end) = plain_path(tokens, at);
            if path.contains("::") {
                found.push(NamedPath { path, line });
            }
            at = end;
        } else {
            at += 1;
        }
    }
    found
}

fn plain_path(tokens: &[Token], start: usize) -> (String, usize) {
    let mut path = tokens[start].text.clone();
    let mut at = start + 1;
    while let [separator, segment, ..] = &tokens[at.min(tokens.len())..]
        && separator.text == "::"
        && segment.is_identifier()
    {
        path = format!("{path}::{}", segment.text);
        at += 2;
    }
    (path, at)
}

/// Reads `a::{b, c::d as e}` and returns where it ends.
fn use_tree(tokens: &[Token], start: usize, prefix: &str, found: &mut Vec<NamedPath>) -> usize {
    let mut path = prefix.to_owned();
    let mut at = start;
    let mut line = tokens.get(at).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(tokens, at, &path, found);
                    if tokens.get(at).is_some_and(|token| token.text == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "as" => at += 2,
            "*" => at += 1,
            _ if token.is_identifier() => {
                line = token.line;
                path = if path.is_empty() || token.text == "self" && !prefix.is_empty() {
                    if path.is_empty() {
                        token.text.clone()
                    } else {
                        path
                    }
                } else {
                    format!("{path}::{}", token.text)
                };
                at += 1;
            }
            _ => break,
        }
    }
    if !path.is_empty() {
        found.push(NamedPath { path, line });
    }
    // Something that is no use tree must not hold up the reader.
    at.max(start + usize::from(at == start && !ends_a_tree(tokens.get(at))))
}

fn ends_a_tree(token: Option<&Token>) -> bool {
    token.is_none_or(|token| matches!(token.text.as_str(), "," | "}" | ";"))
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn next_is(chars: &[char], at: usize, wanted: char) -> bool {
    chars.get(at + 1) == Some(&wanted)
}

fn skip_until(chars: &[char], start: usize, stop: impl Fn(char) -> bool) -> usize {
    chars[start..]
        .iter()
        .position(|c| stop(*c))
        .map_or(chars.len(), |length| start + length)
}

/// Block comments nest.
fn skip_block_comment(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match chars[at] {
            '/' if next_is(chars, at, '*') => {
                depth += 1;
                at += 2;
            }
            '*' if next_is(chars, at, '/') => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

fn skip_string(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// After `r`, `br` and the like, a string without escapes; after `b` and `c`, an ordinary one or a
/// byte. `r#name` is an identifier.
fn literal_end(chars: &[char], word: &str, end: usize) -> Option<usize> {
    match (word, chars.get(end)?) {
        ("b" | "c", '"') => Some(skip_string(chars, end)),
        ("b", '\'') => Some(skip_quote(chars, end)),
        ("r" | "br" | "cr", '"' | '#') => {
            let quote = skip_until(chars, end, |c| c != '#');
            if chars.get(quote) != Some(&'"') {
                return None;
            }
            let hashes = quote - end;
            let mut at = quote + 1;
            while at < chars.len() {
                let closed = chars[at] == '"'
                    && chars[at + 1..]
                        .iter()
                        .take(hashes)
                        .filter(|c| **c == '#')
                        .count()
                        == hashes;
                if closed {
                    return Some(at + 1 + hashes);
                }
                at += 1;
            }
            Some(chars.len())
        }
        _ => None,
    }
}

/// A character, or a lifetime, of which only the quote is skipped.
fn skip_quote(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        (Some('\\'), _) => skip_until(chars, start + 3, |c| c == '\'') + 1,
        (Some(_), Some('\'')) => start + 3,
        _ => start + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(code: &str) -> Vec<String> {
        tokens(code).into_iter().map(|token| token.text).collect()
    }

    fn named(code: &str) -> Vec<String> {
        paths(&tokens(code))
            .into_iter()
            .map(|named| named.path)
            .collect()
    }

    #[test]
    fn comments_and_literals_are_dropped() {
        assert_eq!(
            words("a // aya\nb /* aya /* aya */ aya */ c"),
            ["a", "b", "c"]
        );
        assert_eq!(
            words(r##"x "aya \" aya" y r#"aya " aya"# z b"aya" c"aya" w"##),
            ["x", "y", "z", "w"]
        );
        assert_eq!(words(r"'a' '\'' '\u{41}' b'\\' b'x' end"), ["end"]);
    }

    #[test]
    fn lifetimes_and_raw_identifiers_are_no_literals() {
        assert_eq!(words("&'a str"), ["&", "a", "str"]);
        assert_eq!(words("r#type"), ["r", "#", "type"]);
    }

    #[test]
    fn lines_count_on_through_strings_and_comments() {
        let found = tokens("\"one\ntwo\"\n/* three\nfour */ word");
        assert_eq!(
            found,
            [Token {
                text: "word".into(),
                line: 4
            }]
        );
    }

    #[test]
    fn use_trees_are_multiplied_out() {
        assert_eq!(
            named("use std::{fs::{self, File}, io::Write as _, time::*}; fn f() {}"),
            ["std::fs", "std::fs::File", "std::io::Write", "std::time"]
        );
        assert_eq!(
            named("pub use self::a::B;\nuse log;"),
            ["self::a::B", "log"]
        );
    }

    #[test]
    fn paths_in_code_are_found() {
        assert_eq!(
            named("let x: crate::store::Writer<std::fs::File> = a.b(Self::new());"),
            ["crate::store::Writer", "std::fs::File", "Self::new"]
        );
    }

    #[test]
    fn code_that_breaks_off_is_read_to_its_end() {
        for code in [
            "use a::{b",
            "use {",
            "use",
            "a::",
            "\"open",
            "/* open",
            "r#\"open",
            "'",
            "use <",
        ] {
            let _ = paths(&tokens(code));
        }
    }
}
