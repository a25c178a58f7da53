//! What the user side spends on an event: decoding, applying, recording, replaying; on a mapping, and on the walk of
//! a stack that the kernel side copied. `cargo bench -p memtrace`.

#![expect(clippy::expect_used, reason = "whoever runs this is told by the panic")]

mod events;
mod own_stack;

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use memtrace::{
    event::{Event, EventKind, Syscall},
    model::{Limits, Model},
    store::recording::{Reader, Writer},
    stream::decode::decode,
};
use memtrace_common::record::Call;

use events::{Heap, record, started};

/// Events of a measured piece.
const EVENTS: usize = 100_000;

fn filled(live: u64) -> (Model, Heap) {
    let mut model = Model::new(Limits::default());
    model.apply(&started());
    let (heap, fill) = Heap::new(live);
    fill.for_each(|event| model.apply(&event));
    (model, heap)
}

fn decoding(criterion: &mut Criterion) {
    let (heap, _) = Heap::new(10_000);
    let records: Vec<Vec<u8>> = heap.take(EVENTS).map(|event| record(&event)).collect();
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("heap", |bencher| {
        bencher.iter(|| {
            for record in &records {
                _ = black_box(decode(black_box(record)));
            }
        });
    });
}

fn applying(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(EVENTS as u64));
    for live in [10_000, 100_000, 1_000_000, 10_000_000] {
        let (mut model, mut heap) = filled(live);
        group.bench_function(format!("{live} live"), |bencher| {
            let events = || heap.by_ref().take(EVENTS).collect::<Vec<_>>();
            bencher.iter_batched(
                events,
                |events| events.iter().for_each(|event| model.apply(event)),
                BatchSize::LargeInput,
            );
        });
    }
}

/// mmap and munmap among other mappings.
fn mapping(criterion: &mut Criterion) {
    let call = |call, time_ns, start: u64, result| Event {
        time_ns,
        pid: 4242,
        tid: 4242,
        kind: EventKind::Syscall(Box::new(Syscall {
            call,
            entered_ns: time_ns,
            result,
            arguments: [start, 0x2000, 3, 0x22, u64::MAX],
            offset: 0,
        })),
    };
    let at = |number: u64| 0x7000_0000_0000 + number * 0x4000;
    let mut group = criterion.benchmark_group("mappings");
    for others in [100, 10_000] {
        let mut model = Model::new(Limits::default());
        model.apply(&started());
        for number in 0..others {
            model.apply(&call(Call::Mmap, 10 + number, 0, at(number) as i64));
        }
        let mut time_ns = 1_000_000;
        group.throughput(Throughput::Elements(2));
        group.bench_function(format!("munmap and mmap among {others}"), |bencher| {
            bencher.iter(|| {
                time_ns += 2000;
                let start = at(time_ns / 2000 * 7919 % others);
                model.apply(&call(Call::Munmap, time_ns, start, 0));
                model.apply(&call(Call::Mmap, time_ns + 1000, 0, start as i64));
            });
        });
    }
}

fn recording(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("recording");
    let (heap, fill) = Heap::new(10_000);
    let events: Vec<Event> = [started()]
        .into_iter()
        .chain(fill)
        .chain(heap.take(500_000))
        .collect();
    let write = || {
        let mut writer = Writer::create(&path).expect("it can be made");
        for event in &events {
            writer.write(event).expect("it can be written");
        }
        writer.finish().expect("it can be ended")
    };
    println!("{:.2} bytes an event", write() as f64 / events.len() as f64);
    let mut group = criterion.benchmark_group("recording");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("write", |bencher| bencher.iter(write));
    group.bench_function("read", |bencher| {
        bencher.iter(|| Reader::open(&path).expect("it opens").count());
    });
    group.bench_function("replay", |bencher| {
        bencher.iter(|| {
            let mut model = Model::new(Limits::default());
            for event in Reader::open(&path).expect("it opens") {
                model.apply(&event.expect("it is whole"));
            }
            model
        });
    });
}

fn unwinding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unwind");
    let (mut unwinder, copy) = own_stack::taken();
    let Some(EventKind::Stack { frames, .. }) = unwinder.walk(&copy).map(|event| event.kind) else {
        panic!("the first walk tells the frames");
    };
    group.bench_function(
        format!("a copied stack of {} frames", frames.len()),
        |bencher| {
            bencher.iter(|| black_box(unwinder.walk(black_box(&copy))));
        },
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20);
    targets = decoding, applying, mapping, recording, unwinding
}
criterion_main!(benches);
