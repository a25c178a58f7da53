//! Pushes the metrics to a collector of OpenTelemetry, by HTTP with protobuf.

use std::{cell::RefCell, rc::Rc, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Uri,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::{
    net::TcpStream,
    task,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    metrics::Metrics,
    otlp::{self, Span},
    supervise::now_ms,
};

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where metrics go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    host: String,
    port: u16,
    path: String,
}

impl Collector {
    /// From `http://HOST:PORT/PATH`; the port may be left out (4318, by OTLP's specification).
    pub fn parse(endpoint: &str) -> Option<Self> {
        let uri: Uri = endpoint.parse().ok()?;
        let is_http = uri.scheme_str() == Some("http") && uri.query().is_none();
        is_http.then_some(())?;
        Some(Self {
            host: uri.host()?.to_owned(),
            port: uri.port_u16().unwrap_or(4318),
            path: uri.path().to_owned(),
        })
    }

    async fn push(&self, body: Vec<u8>) -> Result<(), String> {
        // An IPv6 address stands in brackets in a URL, and without them here.
        let host = self.host.trim_matches(['[', ']']);
        let connected = TcpStream::connect((host, self.port)).await;
        let stream = connected.map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let connection = task::spawn_local(connection);
        let request = Request::post(&self.path)
            .header(HOST, format!("{}:{}", self.host, self.port))
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await;
        connection.abort();
        let status = answer.map_err(|error| error.to_string())?.status();
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("it answers {status}")),
        }
    }
}

/// Pushes until the daemon ends. A collector that does not answer is told of once.
pub async fn push(collector: Collector, every: Duration, metrics: Rc<RefCell<Metrics>>) {
    let wall_ns = || now_ms().max(0) as u64 * 1_000_000;
    let start_ns = wall_ns();
    let mut turns = interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        turns.tick().await;
        let span = Span {
            start_ns,
            time_ns: wall_ns(),
        };
        let body = otlp::request(&metrics.borrow(), span).encode_to_vec();
        let pushed = match timeout(PATIENCE, collector.push(body)).await {
            Ok(pushed) => pushed,
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        match &pushed {
            Ok(()) if failed => log::info!("the OTLP collector takes metrics again"),
            Err(reason) if !failed => log::warn!(
                "the OTLP collector at {}:{} takes no metrics: {reason}; it is tried again every {} s",
                collector.host,
                collector.port,
                every.as_secs()
            ),
            _ => {}
        }
        failed = pushed.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_a_port_and_a_path() {
        let parsed = |text| Collector::parse(text).map(|one| (one.host, one.port, one.path));
        let expected =
            |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        assert_eq!(
            parsed("http://127.0.0.1:4318/v1/metrics"),
            expected("127.0.0.1", 4318, "/v1/metrics")
        );
        assert_eq!(
            parsed("http://[::1]/v1/metrics"),
            expected("[::1]", 4318, "/v1/metrics")
        );
        for wrong in ["https://a/v1/metrics", "a:4318", "", "http://a/b?c=d"] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
