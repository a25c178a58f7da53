//! The metrics as text: OpenMetrics, which Prometheus reads since 2.5. Names and units are documented in
//! docs/METRICS.md.

use std::fmt;

use memtrace_common::histogram::{BUCKETS, upper_bound};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::metrics::{Faults, Metrics, ProcessSeries};

/// The media type of [`encode`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets of the histograms that are told: one for each power of two from 256 ns to a second.
const FIRST: usize = 8;
const LAST: usize = 96;

/// The text.
pub fn encode(metrics: &Metrics) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("memtrace");
    registry.register_collector(Box::new(Told(metrics.clone())));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Told(Metrics);

type Label = (&'static str, String);

impl Collector for Told {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        self.machine(&mut to)?;
        self.processes(&mut to)?;
        self.cgroups(&mut to)
    }
}

impl Told {
    fn machine(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        to.encode_descriptor("build", "The daemon", None, MetricType::Info)?
            .encode_info(&version)?;
        to.encode_descriptor("processes", "Processes that run", None, MetricType::Gauge)?
            .encode_gauge(&self.0.running)?;
        let lost = "Events of the kernel side that were lost";
        let mut metric = to.encode_descriptor("events_lost", lost, None, MetricType::Counter)?;
        count(&mut metric, self.0.lost)?;
        let help = "Page faults of all processes, of those that ended too";
        let mut metric = to.encode_descriptor("faults", help, None, MetricType::Counter)?;
        faults(&mut metric, &[], &self.0.faults)?;
        let help = "Latency of page faults of all processes";
        let name = "fault_latency";
        let mut metric = histogram_metric(to, name, help)?;
        histogram(&mut metric, &self.0.faults)
    }

    fn processes(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Field = fn(&ProcessSeries) -> Option<u64>;
        let gauges: [(&str, &str, Field); 3] = [
            ("process_reserved", "Mapped", |one| Some(one.reserved)),
            ("process_committed", "Resident", |one| Some(one.committed)),
            (
                "process_heap_live",
                "In live blocks of a heap that is probed",
                |one| one.heap_live,
            ),
        ];
        for (name, help, field) in gauges {
            let mut metric = bytes_metric(to, name, help)?;
            for one in &self.0.processes {
                if let Some(value) = field(one) {
                    metric.encode_family(&labels(one))?.encode_gauge(&value)?;
                }
            }
        }
        let help = "99th percentile of the latency of page faults over the last minute";
        let name = "process_fault_latency_p99";
        let unit = Some(&Unit::Seconds);
        let mut metric = to.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for one in &self.0.processes {
            if let Some(ns) = one.fault_p99_ns {
                let seconds = ns as f64 / 1e9;
                metric.encode_family(&labels(one))?.encode_gauge(&seconds)?;
            }
        }
        let help = "Page faults";
        let mut metric = to.encode_descriptor("process_faults", help, None, MetricType::Counter)?;
        for one in &self.0.processes {
            faults(&mut metric, &labels(one), &one.faults)?;
        }
        let mut metric = histogram_metric(to, "process_fault_latency", "Latency of page faults")?;
        for one in &self.0.processes {
            histogram(&mut metric.encode_family(&labels(one))?, &one.faults)?;
        }
        Ok(())
    }

    fn cgroups(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Field = fn(&super::protocol::CgroupLine) -> Option<u64>;
        let (charged, others) = self.0.other_cgroups;
        let gauges: [(&str, &str, Field); 3] = [
            ("cgroup_charged", "Charged to the cgroup", |line| {
                line.current_bytes
            }),
            (
                "cgroup_limit",
                "The lower one of memory.max and memory.high",
                |line| {
                    [line.max_bytes, line.high_bytes]
                        .into_iter()
                        .flatten()
                        .min()
                },
            ),
            (
                "cgroup_headroom",
                "Left to the nearest limit, its own or an ancestor's",
                |line| line.headroom_bytes,
            ),
        ];
        for (name, help, field) in gauges {
            let mut metric = bytes_metric(to, name, help)?;
            for line in &self.0.cgroups {
                if let Some(value) = field(line) {
                    let container = line.container.clone().unwrap_or_default();
                    let labels = [("cgroup", line.path.clone()), ("container", container)];
                    metric.encode_family(&labels)?.encode_gauge(&value)?;
                }
            }
            if name == "cgroup_charged" && others > 0 {
                let labels = [("cgroup", "other".to_owned()), ("container", String::new())];
                metric.encode_family(&labels)?.encode_gauge(&charged)?;
            }
        }
        Ok(())
    }
}

pub(super) fn labels(one: &ProcessSeries) -> Vec<Label> {
    let (pid, command, container) = match &one.who {
        Some(who) => (who.pid.to_string(), who.comm.clone(), who.container.clone()),
        None => ("other".to_owned(), "other".to_owned(), String::new()),
    };
    vec![("pid", pid), ("command", command), ("container", container)]
}

fn bytes_metric<'a>(
    to: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    to.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)
}

fn histogram_metric<'a>(
    to: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)
}

fn count(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn faults(metric: &mut MetricEncoder<'_>, who: &[Label], faults: &Faults) -> fmt::Result {
    for (kind, value) in [("minor", faults.minor), ("major", faults.major)] {
        let labels: Vec<Label> = who
            .iter()
            .cloned()
            .chain([("kind", kind.to_owned())])
            .collect();
        count(&mut metric.encode_family(&labels)?, value)?;
    }
    Ok(())
}

/// Upper bounds in seconds and counts of the buckets that are told.
pub(super) fn told_buckets(faults: &Faults) -> Vec<(f64, u64)> {
    let mut from = 0;
    let mut buckets = Vec::new();
    for last in (FIRST..=LAST).step_by(4).chain([BUCKETS - 1]) {
        let bound = match last {
            LAST.. if last > LAST => f64::INFINITY,
            _ => upper_bound(last) as f64 / 1e9,
        };
        buckets.push((bound, faults.buckets[from..=last].iter().sum()));
        from = last + 1;
    }
    buckets
}

fn histogram(metric: &mut MetricEncoder<'_>, faults: &Faults) -> fmt::Result {
    let buckets = told_buckets(faults);
    let count = faults.buckets.iter().sum();
    let sum = faults.spent_ns as f64 / 1e9;
    metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{metrics::Who, protocol::CgroupLine};

    fn lines(text: &str, of: &str) -> Vec<String> {
        let is = |line: &&str| line.starts_with(of);
        text.lines().filter(is).map(str::to_owned).collect()
    }

    #[test]
    fn names_have_units_and_labels_are_escaped() {
        let mut faults = Faults {
            minor: 3,
            major: 1,
            spent_ns: 2_500,
            ..Faults::default()
        };
        faults.buckets[8] = 2;
        faults.buckets[9] = 1;
        faults.buckets[BUCKETS - 1] = 1;
        let who = Who {
            pid: 7,
            comm: "a\"b".into(),
            container: "docker:1".into(),
        };
        let process = ProcessSeries {
            who: Some(who),
            reserved: 4096,
            committed: 2048,
            heap_live: None,
            fault_p99_ns: Some(1_279),
            faults,
        };
        let cgroup = CgroupLine {
            path: "/a".into(),
            container: None,
            processes: 1,
            current_bytes: Some(10),
            max_bytes: Some(30),
            high_bytes: Some(20),
            growth_per_second: 0.0,
            headroom_bytes: Some(10),
            seconds_left: None,
        };
        let mut metrics = Metrics::new(1);
        metrics.processes = vec![process, ProcessSeries::default()];
        metrics.cgroups = vec![cgroup];
        let text = encode(&metrics).unwrap();
        assert_eq!(
            lines(&text, "memtrace_process_committed_bytes{"),
            [
                "memtrace_process_committed_bytes{pid=\"7\",command=\"a\\\"b\",container=\"docker:1\"} 2048",
                "memtrace_process_committed_bytes{pid=\"other\",command=\"other\",container=\"\"} 0",
            ]
        );
        assert_eq!(lines(&text, "memtrace_process_heap_live_bytes{"), [""; 0]);
        assert_eq!(
            lines(&text, "memtrace_process_fault_latency_p99_seconds{"),
            [
                "memtrace_process_fault_latency_p99_seconds{pid=\"7\",command=\"a\\\"b\",container=\"docker:1\"} 0.000001279"
            ]
        );
        let of_seven = "memtrace_process_fault_latency_seconds_bucket{le=\"";
        let buckets: Vec<String> = lines(&text, of_seven)
            .into_iter()
            .filter(|line| line.contains("pid=\"7\""))
            .collect();
        assert!(
            buckets[0].starts_with("memtrace_process_fault_latency_seconds_bucket{le=\"2.55e-7\"")
        );
        let counts: Vec<&str> = buckets
            .iter()
            .map(|line| line.rsplit(' ').next().unwrap())
            .collect();
        assert_eq!((counts[0], counts[1], counts[22]), ("2", "3", "3"));
        assert_eq!((counts.last(), counts.len()), (Some(&"4"), 24));
        assert_eq!(
            lines(&text, "memtrace_cgroup_limit_bytes{"),
            ["memtrace_cgroup_limit_bytes{cgroup=\"/a\",container=\"\"} 20"]
        );
        assert!(text.ends_with("# EOF\n"));
    }
}
