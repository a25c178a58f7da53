//! What is too large is neither written nor read.

use std::sync::Arc;

use memtrace_common::unwind::End;

use super::{
    WriteError, Writer, decode, detail,
    encode::Rows,
    schema::{self, Tag},
    tests::{Scratch, replay},
};
use crate::event::{Event, EventKind, Symbol, SymbolFunction};

#[test]
fn an_event_beyond_the_limit_is_left_out() {
    const FRAMES: usize = super::EVENT_BYTES / super::FRAME_BYTES;
    let scratch = Scratch::new();
    let path = scratch.path("large");
    let event = |kind| Event {
        time_ns: 1,
        pid: 2,
        tid: 3,
        kind,
    };
    let stack = |frames: usize| {
        event(EventKind::Stack {
            id: 1,
            frames: vec![7; frames].into(),
            end: End::Start,
        })
    };
    let mut writer = Writer::create(&path).unwrap();
    let error = writer.write(&stack(FRAMES + 1)).unwrap_err();
    assert!(
        matches!(error, WriteError::EventTooLarge { kind: "stack", .. }),
        "{error}"
    );
    writer.write(&stack(FRAMES)).unwrap();
    writer.write(&event(EventKind::End)).unwrap();
    writer.finish().unwrap();
    let (read, end) = replay(&path);
    assert!(!end.unwrap());
    assert!(read == [stack(FRAMES), event(EventKind::End)]);
}

fn inlined(count: usize) -> Event {
    let function = SymbolFunction {
        name: "".into(),
        file: None,
        line: None,
    };
    let symbol = Symbol {
        frame: 7,
        module: None,
        build_id: None,
        offset: None,
        functions: vec![function; count].into(),
    };
    Event {
        time_ns: 1,
        pid: 2,
        tid: 3,
        kind: EventKind::Symbol(Box::new(symbol)),
    }
}

#[test]
fn functions_of_a_name_count_for_what_they_take() {
    let mut rows = Rows::new(Arc::new(schema::schema()));
    // 37 bytes of JSON each: less than the limit without, more than that with what they take beside it.
    let symbol = inlined(1000);
    for _ in 0..1000 {
        let detail = rows.detail_of(&symbol).unwrap();
        rows.push(&symbol, detail);
    }
    assert!(rows.variable_bytes() > super::EVENT_BYTES + super::BATCH_VARIABLE_BYTES);
    let mut read = decode::Rows::new(&rows.finish().unwrap(), decode::State::default()).unwrap();
    let mut good = 0;
    let error = loop {
        match read.next().unwrap() {
            Ok(event) => assert_eq!(event, symbol),
            Err(error) => break error,
        }
        good += 1;
    };
    assert!(error.contains("more than memtrace writes"), "{error}");
    assert!(good * 1000 * size_of::<SymbolFunction>() > super::BATCH_VARIABLE_BYTES);

    // The writer ends its batches before that.
    let scratch = Scratch::new();
    let path = scratch.path("names");
    let mut writer = Writer::create(&path).unwrap();
    (0..1000).for_each(|_| writer.write(&symbol).unwrap());
    writer.finish().unwrap();
    let (read, end) = replay(&path);
    assert!(!end.unwrap() && read == vec![symbol; 1000]);
}

#[test]
fn arguments_count_for_what_they_take() {
    let mut rows = Rows::new(Arc::new(schema::schema()));
    let command = Event {
        time_ns: 1,
        pid: 2,
        tid: 3,
        kind: EventKind::CommandLine {
            arguments: vec![String::new(); 10_000].into(),
            truncated: false,
        },
    };
    // 30 kB of JSON each.
    for _ in 0..200 {
        let detail = rows.detail_of(&command).unwrap();
        rows.push(&command, detail);
    }
    let batch = rows.finish().unwrap();
    let mut read = decode::Rows::new(&batch, decode::State::default()).unwrap();
    let errors = std::iter::from_fn(|| read.next()).filter_map(Result::err);
    let error = { errors }.next().unwrap();
    assert!(error.contains("more than memtrace writes"), "{error}");

    let most = super::EVENT_BYTES / super::ARGUMENT_BYTES;
    let read = |count: usize| {
        let arguments = vec![r#""""#; count].join(",");
        let text = format!(r#"{{"arguments":[{arguments}],"truncated":false}}"#);
        detail::from_json(Tag::CommandLine, &text)
    };
    assert!(read(most).is_ok());
    let error = read(most + 1).unwrap_err();
    assert!(error.to_string().contains("a list is too long"), "{error}");
}

#[test]
fn a_name_of_too_many_functions_is_neither_written_nor_read() {
    let most = super::EVENT_BYTES / super::FUNCTION_BYTES;
    let scratch = Scratch::new();
    let mut writer = Writer::create(scratch.path("names")).unwrap();
    let error = writer.write(&inlined(most)).unwrap_err();
    assert!(
        matches!(error, WriteError::EventTooLarge { kind: "symbol", .. }),
        "{error}"
    );
    let name = |count: usize| {
        let functions = vec![r#"["",null,null]"#; count].join(",");
        let text =
            format!(r#"{{"module":null,"build_id":null,"offset":null,"functions":[{functions}]}}"#);
        serde_json::from_str::<detail::Name>(&text)
    };
    assert_eq!(name(most).unwrap().functions.len(), most);
    let error = name(most + 1).unwrap_err();
    assert!(error.to_string().contains("a list is too long"), "{error}");
}
