//! A real Prometheus scrapes the daemon: its rules are accepted, and the dashboard shows what the report says.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use memtrace_tests::Running;
use memtrace_tests::child::{deadline, run};
use memtrace_tests::daemon::Daemon;
use memtrace_tests::expect::within;
use memtrace_tests::pprof;
use memtrace_tests::scratch::{Scratch, workspace};
use memtrace_tests::steps::{ALLOCATIONS, LIVE_BYTES, REALLOCATIONS, Steps};
use memtrace_tests::workload::{tool, workload};
use nix::sys::signal::Signal;
use serde_json::Value;

/// One request, whole answer.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a time-out");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// A Prometheus that scrapes one target every second.
struct Prometheus {
    _scratch: Scratch,
    process: Running,
    address: String,
}

impl Prometheus {
    fn scraping(target: &str) -> Prometheus {
        let scratch = Scratch::new();
        let rules = workspace().join("packaging/prometheus/memtrace.rules.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\n\
             scrape_configs: [{{job_name: memtrace, static_configs: [{{targets: [{target:?}]}}]}}]\n"
        );
        let config = scratch.write("prometheus.yml", text);
        let mut command = Command::new(tool("prometheus", "prometheus"));
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                scratch.path("data").display()
            ))
            .arg("--web.listen-address=127.0.0.1:0");
        let process = Running::start(&mut command);
        let address = process.stderr_word("msg=\"Listening on\" address=");
        Prometheus {
            _scratch: scratch,
            process,
            address,
        }
    }

    /// Labels and value of each series that an expression gives.
    fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let hexadecimal = |byte: u8| format!("%{byte:02x}");
        let encoded: String = expression.bytes().map(hexadecimal).collect();
        let answer = get(&self.address, &format!("/api/v1/query?query={encoded}"));
        let start = answer.find('{').unwrap_or_else(|| panic!("{answer}"));
        let end = answer.rfind('}').expect("an object");
        let answer: Value = serde_json::from_str(&answer[start..=end]).expect("JSON");
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let series = answer["data"]["result"].as_array().expect("a vector");
        let value = |one: &Value| {
            one["value"][1]
                .as_str()
                .expect("a value")
                .parse()
                .expect("a number")
        };
        series
            .iter()
            .map(|one| (one["metric"].clone(), value(one)))
            .collect()
    }

    /// Waits until one series of an expression has a value that fits.
    #[track_caller]
    fn wait(&self, expression: &str, label: (&str, &str), fits: impl Fn(f64) -> bool) -> f64 {
        let until = deadline();
        loop {
            let series = self.query(expression);
            let own = series.iter().find(|(labels, _)| labels[label.0] == label.1);
            match own {
                Some((_, value)) if fits(*value) => return *value,
                _ => assert!(Instant::now() < until, "{expression}: {series:?}"),
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }
}

/// The dashboard's expression of a panel, with the interval that Grafana would choose.
fn panel(title: &str) -> String {
    let path = workspace().join("packaging/grafana/memtrace.json");
    let text = std::fs::read_to_string(path).expect("a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let panel = panels.iter().find(|panel| panel["title"] == title);
    let expression = &panel.expect("a panel")["targets"][0]["expr"];
    let expression = expression.as_str().expect("an expression");
    expression.replace("$__rate_interval", "1m")
}

#[test]
fn promtool_accepts_the_rules() {
    let rules = workspace().join("packaging/prometheus/memtrace.rules.yml");
    let promtool = tool("promtool", "prometheus");
    run(Command::new(&promtool).args(["check", "rules"]).arg(rules)).exited(0);
}

#[test]
fn prometheus_shows_what_the_report_says() {
    let mut daemon = Daemon::with("[metrics]\nenabled = true\nlisten = '127.0.0.1:0'\ntop = 2\n");
    let address = daemon.process().stderr_word("metrics at http://");
    let address = address.strip_suffix("/metrics").expect("an address");
    assert!(get(address, "/").starts_with("HTTP/1.1 404 "));
    let prometheus = Prometheus::scraping(address);

    let mut steps = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    let script = "import sys\nblocks = []\nfor line in sys.stdin:\n    blocks.append(bytearray(int(line)))\n    print('done', flush=True)\n";
    let mut command = Command::new("/usr/bin/python3");
    let mut python = daemon.cgroup.start(command.args(["-c", script]));
    let (own, pid) = (python.pid(), python.pid().to_string());
    daemon.line(own, |_| true);
    daemon
        .ask(&["heap", "on", "-p", &steps.pid().to_string()])
        .exited(0);
    steps.round();
    let committed = panel("Committed memory");
    prometheus.wait(&committed, ("pid", &pid), |_| true);
    python.send(b"30000000\n");
    python.stdout_lines(1);

    let line = daemon.line(own, |line| line.committed_bytes > 30_000_000);
    // Within its first minute, the last minute is all that the report has.
    let latency = daemon.process_now(own).faults.latency_ns;
    let expected = latency.expect("latencies").p99;
    let p99 = panel("Fault latency, 99th percentile");
    prometheus.wait(&p99, ("pid", &pid), |seconds| {
        (seconds * 1e9).round() as u64 == expected
    });
    assert_eq!(daemon.line(own, |_| true).fault_p99_ns, Some(expected));
    let is = |expected: u64| move |value: f64| value as u64 == expected;
    prometheus.wait(&committed, ("pid", &pid), is(line.committed_bytes));
    let process = daemon.process_now(own);
    let lazy = process.address_space.lazy_bytes;
    let shown = prometheus.wait(&panel("Lazy memory"), ("pid", &pid), |_| true);
    // The report's are those of smaps at its moment, the metrics' those of the last second.
    within(5.0, shown as u64, lazy, "bytes");
    let faults = format!("memtrace_process_faults_total{{pid=\"{pid}\", kind=\"minor\"}}");
    prometheus.wait(&faults, ("pid", &pid), is(process.faults.minor));
    let rate = prometheus.wait(&panel("Page faults by process"), ("pid", &pid), |rate| {
        rate > 0.0
    });
    let most = process.faults.minor as f64;
    assert!(rate < most, "{rate} a second of {most}");
    let chosen = steps.pid().to_string();
    prometheus.wait(&panel("Live heap"), ("pid", &chosen), is(LIVE_BYTES));

    for title in [
        "Growth",
        "Page faults",
        "Headroom of cgroups",
        "Time left of cgroups",
        "Events lost",
    ] {
        prometheus.query(&panel(title));
    }
    assert_eq!(prometheus.query("memtrace_processes == 2").len(), 1);
    python.finish().exited(0);
    steps.end(0);
    prometheus.process.signal(Signal::SIGTERM);
}

#[test]
fn go_fetches_the_heap_of_a_chosen_process() {
    let lines = "[metrics]\nenabled = true\nlisten = '127.0.0.1:0'\nprofiles = true\n";
    let mut daemon = Daemon::with(lines);
    let address = daemon.process().stderr_word("metrics at http://");
    let address = address.strip_suffix("/metrics").expect("an address");
    let url = |query: &str| format!("http://{address}/debug/pprof/heap{query}");
    assert!(get(address, "/debug/pprof/heap").starts_with("HTTP/1.1 404 "));
    let mut command = Command::new(workload("steps.c"));
    let mut steps = Steps::of(daemon.cgroup.holds(&mut command));
    let mut other = Steps::of(daemon.cgroup.holds(&mut Command::new(workload("steps.c"))));
    daemon.line(steps.pid(), |_| true);
    let pid = steps.pid().to_string();
    daemon.ask(&["heap", "on", "-p", &pid]).exited(0);
    for rounds in 1..=2 {
        steps.round();
        other.round();
        daemon.line(steps.pid(), |line| {
            line.heap_live_bytes == Some(rounds * LIVE_BYTES)
        });
        // All whose heap is probed are this one.
        for query in ["", &format!("?pid={pid}")] {
            let (totals, raw) = pprof::totals(url(query));
            let expected = (rounds * LIVE_BYTES) as i64;
            assert_eq!(totals["inuse_space"], expected, "{raw}");
            // A realloc hands a block out, too.
            let calls = (rounds * (ALLOCATIONS + REALLOCATIONS)) as i64;
            assert_eq!(totals["alloc_objects"], calls, "{raw}");
            assert!(raw.contains("one_round"), "{raw}");
        }
    }
    let refused = get(address, "/debug/pprof/heap?pid=x");
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    let gone = get(address, "/debug/pprof/heap?pid=4194304");
    assert!(gone.starts_with("HTTP/1.1 404 "), "{gone}");
    steps.end(0);
    other.end(0);
}
