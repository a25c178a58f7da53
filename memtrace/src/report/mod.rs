//! Reports: the document, and one file per report that renders it.

pub mod document;
