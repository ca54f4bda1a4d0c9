//! exec, attach, port-forward: an extended CONNECT out of the tunnel becomes an HTTP/1.1 upgrade to the
//! child. A state machine with one door: no byte of the client goes on before the child has answered 101 to
//! exactly this protocol (CVE-2018-1002105), any other answer is relayed as an answer and its connection
//! closed, and a redirect is none (CVE-2020-8559).

use api::identity::Identity;
use api::secret::Secret;
use api::status::{Reason, Status};
use bytes::Bytes;
use http::header;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::sync::OwnedSemaphorePermit;
use tunnel_proto::upgrade::connect_answer;
use tunnel_proto::{Body, UpgradeProtocol};

use crate::impersonate::{self, Inbound};
use crate::limits::COPY_BUFFER;
use crate::serve::{Service, UntilRefused, from_impersonate, from_upstream, full};
use crate::upstream::body::holding;
use crate::upstream::clean;

/// What an upgraded stream counts against, for as long as it lives.
type Places = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Service {
    /// Answers an extended CONNECT.
    pub(crate) async fn upgrade(
        &self,
        mut request: Request<Incoming>,
        who: &Identity,
        token: &Secret,
        protocol: UpgradeProtocol,
        method: &Method,
        (places, refused): (Places, UntilRefused),
    ) -> Result<Response<Body>, Status> {
        let tunnel = hyper::upgrade::on(&mut request);
        let inbound = Inbound { method, uri: request.uri(), headers: request.headers() };
        let outbound = impersonate::upgrade(who, token, inbound, protocol, full(Bytes::new()))
            .map_err(|error| from_impersonate(&error))?;
        let mut answer = self.upstream.upgrade(outbound).await.map_err(|error| from_upstream(&error))?;

        let status = answer.status();
        if status == StatusCode::UNAUTHORIZED {
            return Err(self.token_refused());
        }
        if status != StatusCode::SWITCHING_PROTOCOLS {
            // 2xx would tell the hub that it has a stream, and 3xx would send the client elsewhere.
            if !(400..600).contains(&status.as_u16()) {
                return Err(bad_gateway(format!("the child answered {status} to an upgrade")));
            }
            clean(answer.headers_mut());
            answer.extensions_mut().clear();
            return Ok(answer.map(|body| holding(body, places)));
        }
        if protocol == UpgradeProtocol::WebSocket
            && !answer.headers().contains_key(header::SEC_WEBSOCKET_ACCEPT)
        {
            return Err(bad_gateway("the child's answer to the WebSocket upgrade is incomplete".to_owned()));
        }
        let Some(accepted) = connect_answer(protocol, answer.headers(), full(Bytes::new())) else {
            return Err(bad_gateway(
                "the child switched to another protocol than it was asked for".to_owned(),
            ));
        };
        let child = hyper::upgrade::on(&mut answer);
        self.tasks.spawn(async move {
            tokio::select! {
                () = copy(tunnel, child, places) => {}
                // Dropping both ends is an error to both sides.
                why = refused => tracing::info!(%why, "an upgraded stream was ended by the policy"),
            }
        });
        Ok(accepted)
    }
}

fn bad_gateway(message: String) -> Status {
    Status::new(StatusCode::BAD_GATEWAY, Reason::Unknown, message)
}

/// Copies both ways until both have ended; the end of one is passed on while the other goes on, which is
/// how `kubectl exec` without a terminal ends its input. An error ends both at once.
async fn copy(tunnel: OnUpgrade, child: OnUpgrade, places: Places) {
    let (tunnel, child) = match futures::join!(tunnel, child) {
        (Ok(tunnel), Ok(child)) => (tunnel, child),
        (Err(error), _) | (_, Err(error)) => {
            tracing::debug!(%error, "an upgraded stream did not begin");
            return;
        }
    };
    let (mut tunnel, mut child) = (TokioIo::new(tunnel), TokioIo::new(child));
    match copy_bidirectional_with_sizes(&mut tunnel, &mut child, COPY_BUFFER, COPY_BUFFER).await {
        Ok((up, down)) => tracing::debug!(up, down, "an upgraded stream ended"),
        Err(error) => tracing::debug!(%error, "an upgraded stream broke off"),
    }
    drop(places);
}
