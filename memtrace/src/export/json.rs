//! The document as JSON.

use std::io::{self, Write};

use super::{Export, Measure};
use crate::report::document::Document;

/// JSON as the contract has it: `json`, indented, or `json-line`, all on one line.
#[derive(Clone, Copy, Debug)]
pub struct Json {
    /// Indented, for people and `diff`.
    pub pretty: bool,
}

impl Export for Json {
    fn name(&self) -> &'static str {
        if self.pretty { "json" } else { "json-line" }
    }

    fn is_of_stacks(&self) -> bool {
        false
    }

    fn export(&self, document: &Document, _: Measure, out: &mut dyn Write) -> io::Result<()> {
        if self.pretty {
            serde_json::to_writer_pretty(&mut *out, document)?;
        } else {
            serde_json::to_writer(&mut *out, document)?;
        }
        out.write_all(b"\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::exported as bytes;
    use super::*;
    use crate::report::fixture;

    fn exported(name: &str, document: &Document) -> String {
        String::from_utf8(bytes(name, document, Measure::Leaks)).unwrap()
    }

    #[test]
    fn an_empty_document() {
        assert_eq!(
            exported("json-line", &fixture::empty()),
            concat!(
                r#"{"schema":1,"memtrace":"0.1.0","kernel":"6.12.0","arch":"x86_64","coverage":"#,
                r#"{"events":0,"lost":0,"truncated":false,"lost_by_reason":{},"undecodable":0,"#,
                r#""unmatched_frees":0,"probes":[],"processes_dropped":0,"left_out":[]},"processes":[]}"#,
                "\n"
            )
        );
    }

    #[test]
    fn both_forms_read_back() {
        let document = fixture::leaky();
        for name in ["json", "json-line"] {
            let text = exported(name, &document);
            assert_eq!(serde_json::from_str::<Document>(&text).unwrap(), document);
            assert_eq!(text.lines().count() == 1, name == "json-line");
        }
    }

    #[test]
    fn not_measured_is_null() {
        let mut document = fixture::leaky();
        document.processes[0].heap = None;
        let value: serde_json::Value = serde_json::from_str(&exported("json", &document)).unwrap();
        assert!(value["processes"][0]["heap"].is_null());
    }

    #[test]
    fn a_closed_pipe_is_told() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = Json { pretty: true }
            .export(&fixture::leaky(), Measure::Leaks, &mut Closed)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
