//! The daemon's configuration: TOML, every key optional, no key unknown.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use super::push::Collector;
use crate::{model::Thresholds, trace::selector::Selector, units};

/// Shortest time after which growth is judged.
const MIN_AFTER: Duration = Duration::from_secs(10);

/// What the daemon does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Trace only this cgroup and those below it, named as in /proc/PID/cgroup; without it, the whole machine.
    pub cgroup: Option<String>,
    /// For the socket and the lock.
    pub runtime_directory: PathBuf,
    /// For the history.
    pub state_directory: PathBuf,
    /// Size of all ring buffers together in bytes.
    #[serde(deserialize_with = "size")]
    pub ring_buffer: u64,
    /// Of so many faults the latency of one is measured, on average; all are counted.
    pub fault_latency_sample: u32,
    /// What is hidden of command lines.
    pub redact_command_lines: Redaction,
    /// Whose heap is probed, from their start on.
    pub heap: Vec<Selector>,
    /// What all this may cost.
    pub budget: Budget,
    /// What is sampled of processes that grow, and what is called a leak candidate.
    pub growth: Growth,
    /// What is told to Prometheus.
    pub metrics: Metrics,
    /// What is pushed to a collector of OpenTelemetry.
    pub otlp: Otlp,
    /// Who may ask.
    pub socket: Socket,
    /// What is kept.
    pub history: History,
}

/// What is hidden of command lines, in answers and in the history alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Redaction {
    /// Nothing.
    #[default]
    Off,
    /// Everything but the program's name.
    Arguments,
    /// All of it.
    All,
}

/// What the daemon may cost, its programs in the kernel included.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Of all CPUs' time, in percent.
    pub cpu_percent: f64,
    /// Bytes.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
}

/// Growth by the stacks that touch memory first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Growth {
    /// Whether it is sampled at all.
    pub enabled: bool,
    /// How long a site must have grown to be a leak candidate.
    #[serde(deserialize_with = "duration")]
    pub after: Duration,
    /// Bytes that it must have grown by.
    #[serde(deserialize_with = "size")]
    pub bytes: u64,
    /// Bytes a second that it must grow by.
    #[serde(deserialize_with = "size")]
    pub bytes_per_second: u64,
}

/// The endpoint that Prometheus scrapes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Whether there is one. Whoever can connect sees the processes, which a port does not tell apart by user.
    pub enabled: bool,
    /// Address and port; port 0 for any that is free.
    pub listen: SocketAddr,
    /// Processes, and cgroups, with series of their own: those that hold most. The others are one together.
    pub top: usize,
    /// Whether profiles of probed heaps are served there too: names of functions, and what they hold.
    pub profiles: bool,
}

/// The collector that metrics are pushed to, by OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// Where it listens: `http://HOST:4318/v1/metrics`. None by default.
    pub endpoint: Option<String>,
    /// How often.
    #[serde(deserialize_with = "duration")]
    pub every: Duration,
}

/// The socket that questions come to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Socket {
    /// Members of this group may ask, and see every process as root does.
    pub group: Option<String>,
    /// Any user may ask, and sees the processes that are their own.
    pub users: bool,
    /// Clients at a time; further ones are refused.
    pub clients: usize,
}

/// How long what is kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// Whether a history is kept at all.
    pub enabled: bool,
    /// A point a second.
    #[serde(deserialize_with = "duration")]
    pub keep_1s: Duration,
    /// A point in ten seconds.
    #[serde(deserialize_with = "duration")]
    pub keep_10s: Duration,
    /// A point in five minutes; lifecycles of processes too.
    #[serde(deserialize_with = "duration")]
    pub keep_5min: Duration,
    /// Bytes of the database at most: beyond it the oldest goes first.
    #[serde(deserialize_with = "size")]
    pub size: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cgroup: None,
            runtime_directory: "/run/memtrace".into(),
            state_directory: "/var/lib/memtrace".into(),
            ring_buffer: 1 << 25,
            fault_latency_sample: 1,
            redact_command_lines: Redaction::Off,
            heap: Vec::new(),
            budget: Budget::default(),
            growth: Growth::default(),
            metrics: Metrics::default(),
            otlp: Otlp::default(),
            socket: Socket::default(),
            history: History::default(),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            cpu_percent: 2.0,
            memory: 256 << 20,
        }
    }
}

impl Default for Growth {
    fn default() -> Self {
        let Thresholds {
            after_ns,
            bytes,
            bytes_per_second,
        } = Thresholds::default();
        Self {
            enabled: true,
            after: Duration::from_nanos(after_ns),
            bytes,
            bytes_per_second,
        }
    }
}

impl Growth {
    /// As the model takes them.
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            after_ns: u64::try_from(self.after.as_nanos()).unwrap_or(u64::MAX),
            bytes: self.bytes,
            bytes_per_second: self.bytes_per_second,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9753)),
            top: 20,
            profiles: false,
        }
    }
}

impl Default for Otlp {
    fn default() -> Self {
        Self {
            endpoint: None,
            every: Duration::from_secs(10),
        }
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            group: None,
            users: false,
            clients: 64,
        }
    }
}

impl Default for History {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            enabled: true,
            keep_1s: Duration::from_secs(HOUR),
            keep_10s: Duration::from_secs(24 * HOUR),
            keep_5min: Duration::from_secs(30 * 24 * HOUR),
            size: 1 << 30,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A key or a value is wrong.
    #[error("{path}:{line}: {message}", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what there is.
        message: String,
    },
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Parses the text of a file; `path` is for the message.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |line, message| ConfigError::Wrong {
            path: path.to_owned(),
            line,
            message,
        };
        let config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count()
                + 1;
            wrong(line, error.message().replace('\n', " "))
        })?;
        let line_of = |key: &str| {
            let at = text
                .lines()
                .position(|line| line.trim_start().starts_with(key));
            at.map_or(1, |index| index + 1)
        };
        match config.fault() {
            Some((key, message)) => Err(wrong(line_of(key), format!("{key} {message}"))),
            None => Ok(config),
        }
    }

    /// A value that is of the right type and still makes no sense: its key, and what is wrong.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        let History {
            keep_1s,
            keep_10s,
            keep_5min,
            size,
            ..
        } = self.history;
        if !self.ring_buffer.is_power_of_two() || !(4096..=1 << 30).contains(&self.ring_buffer) {
            return Some(("ring_buffer", "is a power of two from 4KiB to 1GiB"));
        }
        if !(1..=1000).contains(&self.fault_latency_sample) {
            return Some(("fault_latency_sample", "is 1 to 1000"));
        }
        let is_pid = |selector: &Selector| matches!(selector, Selector::Pid(_));
        if self.heap.iter().any(is_pid) {
            return Some((
                "pid",
                "is of a process that runs: memtrace heap on -p PID, or command, exe, user, cgroup or container here",
            ));
        }
        if !(0.0..=100.0).contains(&self.budget.cpu_percent) {
            return Some(("cpu_percent", "is 0 to 100"));
        }
        if self.metrics.profiles && !self.metrics.enabled {
            return Some(("profiles", "are served where metrics are: enabled = true"));
        }
        if self.growth.after < MIN_AFTER {
            return Some(("after", "is 10s at least: everything is read once a second"));
        }
        let endpoint = self.otlp.endpoint.as_deref().map(Collector::parse);
        if endpoint.is_some_and(|parsed| parsed.is_none()) {
            return Some((
                "endpoint",
                "is http://HOST:PORT/PATH; a collector beside the daemon speaks TLS for it",
            ));
        }
        if self.otlp.every < Duration::from_secs(1) {
            return Some(("every", "is 1s at least"));
        }
        if self.socket.clients == 0 {
            return Some(("clients", "is 1 at least"));
        }
        if keep_10s < keep_1s || keep_5min < keep_10s {
            return Some(("keep_", "times rise: keep_1s, keep_10s, keep_5min"));
        }
        if size < 1 << 20 {
            return Some(("size", "is 1MiB at least"));
        }
        None
    }

    /// Where questions go.
    pub fn socket_path(&self) -> PathBuf {
        self.runtime_directory.join("socket")
    }

    /// Where the history is.
    pub fn history_path(&self) -> PathBuf {
        self.state_directory.join("history.sqlite")
    }
}

fn size<'a, D: Deserializer<'a>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    units::parse_size(&text).map_err(de::Error::custom)
}

fn duration<'a, D: Deserializer<'a>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    units::parse_duration(&text).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("m.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_optional() {
        assert_eq!(parse(""), Ok(Config::default()));
        let text = "cgroup = '/a'\nredact_command_lines = 'arguments'\n[[heap]]\ncommand = 'redis-server'\n[[heap]]\nuser = 'www-data'\n[history]\nkeep_1s = '30m'\nsize = '64MiB'\n";
        let config = parse(text).unwrap();
        assert_eq!(config.cgroup.as_deref(), Some("/a"));
        assert_eq!(config.redact_command_lines, Redaction::Arguments);
        assert_eq!(
            config.heap,
            [
                Selector::Command("redis-server".into()),
                Selector::User("www-data".into())
            ]
        );
        assert_eq!(config.history.keep_1s, Duration::from_secs(1800));
        assert_eq!(config.history.size, 64 << 20);
        assert_eq!(config.history.keep_10s, Duration::from_secs(86_400));
    }

    #[test]
    fn the_packaged_file_shows_the_defaults() {
        let text = include_str!("../../../packaging/memtrace.toml");
        assert_eq!(parse(text), Ok(Config::default()));
        // What is commented out is the default, but for names that only an example can give.
        let shown: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.contains(" = ") => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .filter(|line| {
                !["cgroup", "command", "group", "endpoint"]
                    .iter()
                    .any(|example| line.starts_with(example))
            })
            .collect();
        assert!(shown.contains("\nkeep_5min = "), "{shown}");
        assert_eq!(parse(&shown), Ok(Config::default()));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_there_is() {
        let told = |text| parse(text).unwrap_err();
        assert_eq!(
            told("[history]\n\nsise = '1GiB'\n"),
            "m.toml:3: unknown field `sise`, expected one of `enabled`, `keep_1s`, `keep_10s`, `keep_5min`, `size`"
        );
        assert_eq!(
            told("redact_command_lines = 'some'\n"),
            "m.toml:1: unknown variant `some`, expected one of `off`, `arguments`, `all`"
        );
        assert_eq!(
            told("\nring_buffer = '5KiB'"),
            "m.toml:2: ring_buffer is a power of two from 4KiB to 1GiB"
        );
        assert_eq!(
            told("fault_latency_sample = 0"),
            "m.toml:1: fault_latency_sample is 1 to 1000"
        );
        assert_eq!(
            told("[history]\nkeep_1s = '2d'"),
            "m.toml:2: keep_ times rise: keep_1s, keep_10s, keep_5min"
        );
        assert!(told("[history]\nkeep_1s = 'soon'").starts_with("m.toml:2: "));
        assert_eq!(
            told("[[heap]]\ncomand = 'redis-server'"),
            "m.toml:2: unknown variant `comand`, expected one of `pid`, `command`, `exe`, `user`, `cgroup`, `container`"
        );
        assert_eq!(
            told("[otlp]\nendpoint = 'https://a/b'"),
            "m.toml:2: endpoint is http://HOST:PORT/PATH; a collector beside the daemon speaks TLS for it"
        );
        assert_eq!(
            told("[metrics]\nprofiles = true"),
            "m.toml:2: profiles are served where metrics are: enabled = true"
        );
        assert!(told("[[heap]]\npid = 1").starts_with("m.toml:2: pid is of a process that runs"));
    }
}
