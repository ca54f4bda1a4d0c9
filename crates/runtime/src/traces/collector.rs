//! A collector for tests: keeps what it is sent, and says yes.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// It ends when it is dropped.
pub(crate) struct Collector {
    /// `http://` and its address.
    pub(crate) endpoint: String,
    sent: Arc<Mutex<Vec<Bytes>>>,
    _task: JoinSet<()>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&sent);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let answer = service_fn(|request: http::Request<hyper::body::Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
                        assert_eq!(request.headers()[header::CONTENT_TYPE], "application/x-protobuf");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push(body);
                        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                    }
                });
                let _ = http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(socket), answer)
                    .await;
            }
        });
        Self { endpoint, sent, _task: task }
    }

    /// Whether some message holds these bytes: strings and ids stand in it as they are.
    pub(crate) fn has(&self, wanted: impl AsRef<[u8]>) -> bool {
        let (sent, wanted) = (self.sent.lock().unwrap_or_else(PoisonError::into_inner), wanted.as_ref());
        sent.iter().any(|message| message.windows(wanted.len()).any(|part| part == wanted))
    }
}
