//! `/livez`, `/readyz`, `/healthz` in the form that Kubernetes gives them (apiserver
//! `pkg/server/healthz/healthz.go`), and `/metrics` in OpenMetrics text. [`answer`] is pure; [`serve`] puts
//! it on a plain HTTP port of its own for the kubelet's probes.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::readiness::Readiness;
use crate::stop::Stop;

/// Most probe connections at once; kubelet and a scraper need three. 32 KiB each.
const MAX_CONNECTIONS: usize = 64;
/// A probe sends its head at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

fn text(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The answer to a health path, or `None` if the path is none. A live process is always live: a check that
/// fails is a reason to send no traffic, not one to kill it.
pub fn answer(readiness: &Readiness, path: &str, query: Option<&str>) -> Option<Response<Full<Bytes>>> {
    let (endpoint, one) = match path.strip_prefix('/')?.split_once('/') {
        Some((endpoint, name)) => (endpoint, Some(name)),
        None => (&path[1..], None),
    };
    let checks = match endpoint {
        "readyz" => readiness.report(),
        "livez" | "healthz" => vec![("ping", Ok(()))],
        _ => return None,
    };
    let pairs = || query.unwrap_or_default().split('&');
    let verbose = pairs().any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    let excluded = |name: &str| pairs().any(|pair| pair.strip_prefix("exclude=") == Some(name));

    if let Some(name) = one {
        let (_, state) = checks.into_iter().find(|(known, _)| *known == name)?;
        return Some(match state {
            Ok(()) => text(StatusCode::OK, "ok".to_owned()),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{name}: {why}\n")),
        });
    }
    let mut lines = String::new();
    let mut healthy = true;
    for (name, state) in checks.iter().filter(|(name, _)| !excluded(name)) {
        let _ = match state {
            Ok(()) => writeln!(lines, "[+]{name} ok"),
            Err(why) => {
                healthy = false;
                writeln!(lines, "[-]{name} failed: {why}")
            }
        };
    }
    Some(match (healthy, verbose) {
        (true, false) => text(StatusCode::OK, "ok".to_owned()),
        (true, true) => text(StatusCode::OK, format!("{lines}{endpoint} check passed\n")),
        (false, _) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{endpoint} check failed\n")),
    })
}

/// All metrics of the registry.
pub fn encode_metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = String::new();
    if prometheus_client::encoding::text::encode(&mut body, registry).is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be encoded\n".to_owned());
    }
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    response
}

/// Serves health and metrics on a listener of their own until `stop`.
pub async fn serve(listener: TcpListener, readiness: Readiness, registry: Arc<Registry>, stop: Stop) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                connections.spawn(serve_one(socket, peer, readiness.clone(), registry.clone()));
            }
            Err(error) => tracing::warn!(%error, "the admin listener could not accept a connection"),
        }
    }
    connections.shutdown().await;
}

async fn serve_one(
    socket: tokio::net::TcpStream,
    peer: SocketAddr,
    readiness: Readiness,
    registry: Arc<Registry>,
) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (readiness, registry) = (readiness.clone(), registry.clone());
        async move {
            let path = request.uri().path();
            let response = match answer(&readiness, path, request.uri().query()) {
                Some(response) => response,
                None if path == "/metrics" => encode_metrics(&registry),
                None => text(StatusCode::NOT_FOUND, "here are /livez, /readyz and /metrics\n".to_owned()),
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = http.serve_connection(TokioIo::new(socket), service).await {
        tracing::debug!(%peer, %error, "an admin connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn body(response: Response<Full<Bytes>>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn readyz_tells_which_check_fails_and_livez_does_not_care() {
        let readiness = Readiness::new(&["catalog", "certificates"]);
        readiness.set("catalog", Ok(()));
        let answer = |path, query| answer(&readiness, path, query);

        let not_ready = answer("/readyz", None).unwrap();
        assert_eq!(not_ready.status(), 500);
        assert_eq!(
            body(not_ready).await,
            "[+]catalog ok\n[-]certificates failed: starting\nreadyz check failed\n"
        );
        assert_eq!(answer("/readyz", Some("exclude=certificates")).unwrap().status(), 200);
        assert_eq!(answer("/readyz/catalog", None).unwrap().status(), 200);
        assert_eq!(answer("/readyz/certificates", None).unwrap().status(), 500);
        assert_eq!(body(answer("/livez", None).unwrap()).await, "ok");
        assert_eq!(
            body(answer("/healthz", Some("verbose")).unwrap()).await,
            "[+]ping ok\nhealthz check passed\n"
        );
        assert!(answer("/version", None).is_none());
    }
}
