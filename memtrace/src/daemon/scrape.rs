//! The HTTP endpoint that Prometheus scrapes: `GET /metrics`, and nothing else.

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
};

/// Connections at a time; a server that scrapes has one.
const CONNECTIONS: usize = 8;
/// How long one may stay: longer than the pause between two scrapes, so that it serves many.
const STAY: Duration = Duration::from_secs(300);

/// The listening endpoint.
pub struct Endpoint {
    listener: TcpListener,
    metrics: Rc<RefCell<Metrics>>,
}

impl Endpoint {
    /// Listens.
    pub async fn open(
        address: SocketAddr,
        metrics: Rc<RefCell<Metrics>>,
    ) -> Result<Self, DaemonError> {
        let failed = |source| DaemonError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        log::info!("metrics at http://{bound}/metrics");
        Ok(Self { listener, metrics })
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
            let (connections, metrics) = (Rc::clone(&connections), Rc::clone(&self.metrics));
            task::spawn_local(async move {
                if let Ok(_place) = connections.try_acquire() {
                    connection(stream, metrics).await;
                }
            });
        }
    }
}

async fn connection(stream: TcpStream, metrics: Rc<RefCell<Metrics>>) {
    let service = service_fn(|request| {
        let response = answer(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    match timeout(STAY, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => log::debug!("a scrape broke off: {error}"),
    }
}

fn answer(request: &Request<Incoming>, metrics: &RefCell<Metrics>) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode| {
        let reason = status.canonical_reason().unwrap_or_default();
        let mut response = Response::new(Full::from(format!("{reason}\n")));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    match exposition::encode(&metrics.borrow()) {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            let media_type = hyper::header::HeaderValue::from_static(MEDIA_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, media_type);
            response
        }
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
}
