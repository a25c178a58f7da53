//! Metrics pushed by OTLP, taken by a receiver of the test's that reads them with OpenTelemetry's own messages.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use memtrace_tests::child::deadline;
use memtrace_tests::daemon::Daemon;
use memtrace_tests::steps::{LIVE_BYTES, Steps};
use memtrace_tests::workload::workload;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point};
use prost::Message;

/// Answers every push with a status, and hands the messages over.
fn receiver(status: &'static str) -> (u16, Receiver<ExportMetricsServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let (mut length, mut head) = (0, String::new());
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
                let lower = line.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length: ") {
                    length = value.trim().parse().expect("a length");
                }
                head += &lower;
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).expect("the whole message");
            assert!(head.starts_with("post /v1/metrics http/1.1\r\n"), "{head}");
            assert!(
                head.contains("content-type: application/x-protobuf\r\n"),
                "{head}"
            );
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.get_mut().write_all(answer.as_bytes());
            let message = ExportMetricsServiceRequest::decode(&body[..]).expect("a message");
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    (port, received)
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|one| one.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn metric<'a>(message: &'a ExportMetricsServiceRequest, name: &str) -> &'a Metric {
    let metrics = &message.resource_metrics[0].scope_metrics[0].metrics;
    let found = metrics.iter().find(|metric| metric.name == name);
    found.unwrap_or_else(|| panic!("no {name}"))
}

/// The value of the process `pid`; of one kind, where there are kinds.
fn value(
    message: &ExportMetricsServiceRequest,
    name: &str,
    pid: &str,
    kind: Option<&str>,
) -> Option<u64> {
    let points = match metric(message, name).data.as_ref()? {
        Data::Gauge(gauge) => &gauge.data_points,
        Data::Sum(sum) => &sum.data_points,
        _ => return None,
    };
    let point = points.iter().find(|point| {
        text(&point.attributes, "pid").as_deref() == Some(pid)
            && kind.is_none_or(|kind| text(&point.attributes, "kind").as_deref() == Some(kind))
    })?;
    match point.value? {
        number_data_point::Value::AsInt(value) => u64::try_from(value).ok(),
        number_data_point::Value::AsDouble(_) => None,
    }
}

#[test]
fn what_is_pushed_is_what_the_report_says() {
    let (port, received) = receiver("200 OK");
    let daemon = Daemon::with(&format!(
        "[otlp]\nendpoint = 'http://127.0.0.1:{port}/v1/metrics'\nevery = '1s'\n"
    ));
    let mut steps = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    let pid = steps.pid().to_string();
    daemon.line(steps.pid(), |_| true);
    daemon.ask(&["heap", "on", "-p", &pid]).exited(0);
    steps.round();
    let line = daemon.line(steps.pid(), |line| line.heap_live_bytes == Some(LIVE_BYTES));
    let until = deadline();
    let message = loop {
        let message = received
            .recv_timeout(until - Instant::now())
            .expect("a message in time");
        if value(&message, "memtrace.process.heap_live", &pid, None) == Some(LIVE_BYTES) {
            break message;
        }
    };
    let told = |name: &str| value(&message, name, &pid, None);
    assert_eq!(
        told("memtrace.process.committed"),
        Some(line.committed_bytes)
    );
    assert_eq!(told("memtrace.process.reserved"), Some(line.reserved_bytes));
    let faults = daemon.process_now(steps.pid()).faults;
    let minor = value(&message, "memtrace.process.faults", &pid, Some("minor"));
    assert_eq!(minor, Some(faults.minor));
    let Some(Data::Histogram(histogram)) = &metric(&message, "memtrace.process.fault_latency").data
    else {
        panic!("latencies are a histogram");
    };
    let own = histogram
        .data_points
        .iter()
        .find(|point| text(&point.attributes, "pid").as_deref() == Some(pid.as_str()));
    let own = own.expect("its latencies");
    assert_eq!(own.count, faults.minor + faults.major);
    assert_eq!(own.bucket_counts.iter().sum::<u64>(), own.count);
    assert_eq!(own.bucket_counts.len(), own.explicit_bounds.len() + 1);
    assert!(own.explicit_bounds.is_sorted() && own.start_time_unix_nano < own.time_unix_nano);
    let resource = message.resource_metrics[0].resource.as_ref();
    let about = &resource.expect("a resource").attributes;
    assert_eq!(text(about, "service.name").as_deref(), Some("memtrace"));
    steps.end(0);
}

#[test]
fn a_collector_that_refuses_is_told_of_and_holds_nothing_up() {
    let (port, received) = receiver("503 Service Unavailable");
    let mut daemon = Daemon::with(&format!(
        "[otlp]\nendpoint = 'http://127.0.0.1:{port}/v1/metrics'\nevery = '1s'\n"
    ));
    daemon
        .process()
        .stderr_has("takes no metrics: it answers 503");
    let until = deadline();
    // It is tried again, and answers go on meanwhile.
    for _ in 0..3 {
        received
            .recv_timeout(until - Instant::now())
            .expect("another message");
        daemon.ps();
    }
    daemon.stop().exited(0);
}
