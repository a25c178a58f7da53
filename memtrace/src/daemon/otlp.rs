//! The metrics as an OTLP message: what docs/METRICS.md lists, under names as OpenTelemetry forms them.

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};

use super::{
    exposition::{labels, told_buckets},
    metrics::{Faults, Metrics, ProcessSeries},
    protocol::CgroupLine,
};

/// The moment of a message, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When counting began.
    pub start_ns: u64,
    /// Now.
    pub time_ns: u64,
}

type Labels = Vec<(&'static str, String)>;

/// The message.
pub fn request(metrics: &Metrics, span: Span) -> ExportMetricsServiceRequest {
    let mut all = machine(metrics, span);
    all.extend(processes(&metrics.processes, span));
    all.extend(cgroups(&metrics.cgroups, span));
    let scope = InstrumentationScope {
        name: "memtrace".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    // What hostname(1) prints; nothing where /proc does not tell.
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let about = vec![
        ("service.name", "memtrace".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("host.name", hostname.trim().to_owned()),
    ];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource {
                attributes: attributes(about),
                ..Resource::default()
            }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope),
                metrics: all,
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

fn machine(metrics: &Metrics, span: Span) -> Vec<Metric> {
    let none = Labels::new;
    let running = point(none(), Number::Whole(metrics.running), span);
    let lost = point(none(), Number::Whole(metrics.lost), span);
    vec![
        gauge("memtrace.processes", "{process}", vec![running]),
        sum("memtrace.events_lost", "{event}", vec![lost]),
        sum(
            "memtrace.faults",
            "{fault}",
            faults(&none(), &metrics.faults, span),
        ),
        histogram(
            "memtrace.fault_latency",
            vec![latencies(none(), &metrics.faults, span)],
        ),
    ]
}

fn processes(series: &[ProcessSeries], span: Span) -> Vec<Metric> {
    type Field = fn(&ProcessSeries) -> Option<Number>;
    let gauges: [(&str, &str, Field); 4] = [
        ("memtrace.process.reserved", "By", |one| {
            Some(Number::Whole(one.reserved))
        }),
        ("memtrace.process.committed", "By", |one| {
            Some(Number::Whole(one.committed))
        }),
        ("memtrace.process.heap_live", "By", |one| {
            one.heap_live.map(Number::Whole)
        }),
        ("memtrace.process.fault_latency_p99", "s", |one| {
            one.fault_p99_ns.map(|ns| Number::Real(ns as f64 / 1e9))
        }),
    ];
    let mut all: Vec<Metric> = gauges
        .into_iter()
        .map(|(name, unit, field)| {
            let points = series
                .iter()
                .filter_map(|one| Some(point(labels(one), field(one)?, span)));
            gauge(name, unit, points.collect())
        })
        .collect();
    let counted = series
        .iter()
        .flat_map(|one| faults(&labels(one), &one.faults, span));
    all.push(sum("memtrace.process.faults", "{fault}", counted.collect()));
    let timed = series
        .iter()
        .map(|one| latencies(labels(one), &one.faults, span));
    all.push(histogram("memtrace.process.fault_latency", timed.collect()));
    all
}

fn cgroups(lines: &[CgroupLine], span: Span) -> Vec<Metric> {
    type Field = fn(&CgroupLine) -> Option<u64>;
    let gauges: [(&str, Field); 3] = [
        ("memtrace.cgroup.charged", |line| line.current_bytes),
        ("memtrace.cgroup.limit", |line| {
            let limits = [line.max_bytes, line.high_bytes];
            limits.into_iter().flatten().min()
        }),
        ("memtrace.cgroup.headroom", |line| line.headroom_bytes),
    ];
    let metrics = gauges.into_iter().map(|(name, field)| {
        let points = lines.iter().filter_map(|line| {
            let container = line.container.clone().unwrap_or_default();
            let labels = vec![("cgroup", line.path.clone()), ("container", container)];
            Some(point(labels, Number::Whole(field(line)?), span))
        });
        gauge(name, "By", points.collect())
    });
    metrics.collect()
}

/// A value of a point.
#[derive(Clone, Copy)]
enum Number {
    Whole(u64),
    Real(f64),
}

fn point(labels: Labels, value: Number, span: Span) -> NumberDataPoint {
    let value = match value {
        Number::Whole(value) => {
            number_data_point::Value::AsInt(i64::try_from(value).unwrap_or(i64::MAX))
        }
        Number::Real(value) => number_data_point::Value::AsDouble(value),
    };
    NumberDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: span.start_ns,
        time_unix_nano: span.time_ns,
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

fn faults(labels: &Labels, faults: &Faults, span: Span) -> Vec<NumberDataPoint> {
    let kinds = [("minor", faults.minor), ("major", faults.major)];
    let points = kinds.map(|(kind, value)| {
        let mut labels = labels.clone();
        labels.push(("kind", kind.to_owned()));
        point(labels, Number::Whole(value), span)
    });
    points.into()
}

fn latencies(labels: Labels, faults: &Faults, span: Span) -> HistogramDataPoint {
    let buckets = told_buckets(faults);
    let bounds = buckets.iter().map(|bucket| bucket.0);
    HistogramDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: span.start_ns,
        time_unix_nano: span.time_ns,
        count: faults.buckets.iter().sum(),
        sum: Some(faults.spent_ns as f64 / 1e9),
        bucket_counts: buckets.iter().map(|bucket| bucket.1).collect(),
        // The last one has none.
        explicit_bounds: bounds.filter(|bound| bound.is_finite()).collect(),
        ..HistogramDataPoint::default()
    }
}

fn gauge(name: &str, unit: &str, data_points: Vec<NumberDataPoint>) -> Metric {
    metric(name, unit, Data::Gauge(Gauge { data_points }))
}

fn sum(name: &str, unit: &str, data_points: Vec<NumberDataPoint>) -> Metric {
    let sum = Sum {
        data_points,
        aggregation_temporality: AggregationTemporality::Cumulative.into(),
        is_monotonic: true,
    };
    metric(name, unit, Data::Sum(sum))
}

fn histogram(name: &str, data_points: Vec<HistogramDataPoint>) -> Metric {
    let histogram = Histogram {
        data_points,
        aggregation_temporality: AggregationTemporality::Cumulative.into(),
    };
    metric(name, "s", Data::Histogram(histogram))
}

fn metric(name: &str, unit: &str, data: Data) -> Metric {
    Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn attributes(labels: Labels) -> Vec<KeyValue> {
    let text = |(key, value): (&str, String)| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value)),
        }),
        ..KeyValue::default()
    };
    labels.into_iter().map(text).collect()
}
