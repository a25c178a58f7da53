//! What outlives a trace: [`recording`], the events of one trace in a file, and [`history`], the numbers that the
//! daemon saw.

pub mod history;
pub mod parquet;
pub mod recording;
