//! Flame graphs as SVG, which every browser opens.

use std::io::{self, Write};

use inferno::flamegraph::{self, Options};

use super::sample::Measure;
use super::{Export, folded};
use crate::report::document::Document;

/// An image for when there is nothing to draw: no samples are no error.
const EMPTY: &str = r#"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="600" height="60" xmlns="http://www.w3.org/2000/svg"><text x="20" y="35" font-family="sans-serif" font-size="14">Nothing to show for: "#;

/// A flame graph: the outermost function at the bottom, widths by what is measured.
pub(super) struct FlameGraph;

impl Export for FlameGraph {
    fn name(&self) -> &'static str {
        "svg"
    }

    fn export(&self, document: &Document, measure: Measure, out: &mut dyn Write) -> io::Result<()> {
        let lines = folded::lines(document, measure);
        if lines.is_empty() {
            return writeln!(out, "{EMPTY}{}.</text></svg>", measure.about());
        }
        let mut options = Options::default();
        options.title = format!("memtrace: {}", measure.about());
        options.count_name = measure.columns()[measure.main_column()].unit.to_owned();
        if measure == Measure::Faults {
            options.count_name = "faults".to_owned();
        }
        // The same function has the same colour in every graph.
        options.hash = true;
        flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::super::exported;
    use super::*;
    use crate::report::fixture;

    fn svg(document: &Document, measure: Measure) -> String {
        String::from_utf8(exported("svg", document, measure)).unwrap()
    }

    #[test]
    fn functions_are_named_with_their_share() {
        let text = svg(&fixture::with_sites(), Measure::Peak);
        assert!(
            text.contains("<title>work (1,500 bytes, 96.77%)</title>"),
            "{text}"
        );
        assert!(text.contains("memtrace: bytes live at the peak of the heap"));
        assert!(text.trim_end().ends_with("</svg>"));
        assert_eq!(text, svg(&fixture::with_sites(), Measure::Peak));
        let text = svg(&fixture::with_sites(), Measure::Faults);
        assert!(
            text.contains("<title>work (121 faults, 93.08%)</title>"),
            "{text}"
        );
    }

    #[test]
    fn names_are_escaped() {
        let mut document = fixture::leaky();
        let frame = &mut document.processes[0].leaks[0].stack[1];
        frame.function = Some("Map<A&, \"b\">::put".into());
        let text = svg(&document, Measure::Leaks);
        assert!(text.contains("Map&lt;A&amp;, "), "{text}");
        assert!(!text.contains("Map<A&"));
    }

    #[test]
    fn nothing_is_an_image_too() {
        let text = svg(&fixture::empty(), Measure::Leaks);
        assert!(text.contains("Nothing to show"), "{text}");
        assert!(text.ends_with("</svg>\n"));
    }
}
