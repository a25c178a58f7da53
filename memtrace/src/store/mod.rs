//! What outlives a trace: [`recording`], the events of one trace in a file.

pub mod recording;
