//! pprof: the gzipped protobuf that `go tool pprof`, its many relatives and profile stores read.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use super::Export;
use super::sample::{Measure, samples};
use crate::report::document::Document;

mod build;
mod message;

/// A profile with four sample types for heaps (`alloc_objects`, `alloc_space`, `inuse_objects`,
/// `inuse_space`; in use is what is live at the end, and at the peak for [`Measure::Peak`]) and three for
/// faults (`faults`, `major_faults`, `latency`). Samples are labelled with `process` and `pid`.
pub(super) struct Pprof;

impl Export for Pprof {
    fn name(&self) -> &'static str {
        "pprof"
    }

    fn is_binary(&self) -> bool {
        true
    }

    fn export(&self, document: &Document, measure: Measure, out: &mut dyn Write) -> io::Result<()> {
        let mut profile = build::Builder::new(measure);
        for sample in samples(document, measure) {
            profile.add(&sample);
        }
        let mut gzip = GzEncoder::new(out, Compression::default());
        gzip.write_all(&profile.finish(document).encode_to_vec())?;
        gzip.finish()?.flush()
    }
}
