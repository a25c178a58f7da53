//! The HTTP endpoint that is scraped: `GET /metrics` by Prometheus, `GET /debug/pprof/heap` by profilers where the
//! configuration says so, and nothing else.

use std::{cell::RefCell, convert::Infallible, net::SocketAddr, rc::Rc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task,
    time::timeout,
};

use super::{
    DaemonError,
    exposition::{self, MEDIA_TYPE},
    metrics::Metrics,
    profiles::Profiles,
};

/// Connections at a time; a server that scrapes has one.
const CONNECTIONS: usize = 8;
/// How long one may stay: longer than the pause between two scrapes, so that it serves many.
const STAY: Duration = Duration::from_secs(300);

/// The listening endpoint.
pub struct Endpoint {
    listener: TcpListener,
    told: Rc<Told>,
}

/// What is told.
struct Told {
    metrics: Rc<RefCell<Metrics>>,
    profiles: Option<Profiles>,
}

impl Endpoint {
    /// Listens.
    pub async fn open(
        address: SocketAddr,
        metrics: Rc<RefCell<Metrics>>,
        profiles: Option<Profiles>,
    ) -> Result<Self, DaemonError> {
        let failed = |source| DaemonError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        log::info!("metrics at http://{bound}/metrics");
        let told = Rc::new(Told { metrics, profiles });
        Ok(Self { listener, told })
    }

    /// Answers until the daemon ends. Beyond the limit a connection is closed at once.
    pub async fn serve(self) {
        let connections = Rc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::warn!("a scrape was not accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (connections, told) = (Rc::clone(&connections), Rc::clone(&self.told));
            task::spawn_local(async move {
                if let Ok(_place) = connections.try_acquire() {
                    connection(stream, told).await;
                }
            });
        }
    }
}

async fn connection(stream: TcpStream, told: Rc<Told>) {
    let service = service_fn(|request| {
        let told = Rc::clone(&told);
        async move { Ok::<_, Infallible>(answer(&request, &told).await) }
    });
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    match timeout(STAY, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => log::debug!("a scrape broke off: {error}"),
    }
}

async fn answer(request: &Request<Incoming>, told: &Told) -> Response<Full<Bytes>> {
    let profiles = told.profiles.as_ref();
    match (request.uri().path(), profiles) {
        ("/metrics" | "/debug/pprof/heap", _) if request.method() != Method::GET => {
            plain(StatusCode::METHOD_NOT_ALLOWED, None)
        }
        ("/metrics", _) => match exposition::encode(&told.metrics.borrow()) {
            Ok(text) => of_type(MEDIA_TYPE, text.into()),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, None),
        },
        ("/debug/pprof/heap", Some(profiles)) => match profiles.heap(request.uri().query()).await {
            Ok(profile) => of_type("application/octet-stream", profile),
            Err(refusal) => plain(refusal.status, Some(&refusal.message)),
        },
        _ => plain(StatusCode::NOT_FOUND, None),
    }
}

fn of_type(media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let media_type = hyper::header::HeaderValue::from_static(media_type);
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// A status, and why in words.
fn plain(status: StatusCode, message: Option<&str>) -> Response<Full<Bytes>> {
    let reason = message.or_else(|| status.canonical_reason());
    let mut response = Response::new(Full::from(format!("{}\n", reason.unwrap_or_default())));
    *response.status_mut() = status;
    response
}
