//! Openings for the fuzz targets (`fuzz/`): what the agent does with heads from a hub and from a child, without the
//! connections around it. Each function is one call of what the product calls; nothing here decides anything.

use api::identity::Identity;
use api::secret::Secret;
use api::status::Status;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tunnel_proto::UpgradeProtocol;

use crate::impersonate::{self, ImpersonateError, Inbound};
use crate::serve;
use crate::upstream;

/// Who asks, as the tunnel says.
///
/// # Errors
/// What the hub would be told.
pub fn identity(headers: &HeaderMap) -> Result<Identity, Status> {
    serve::identity(headers)
}

/// The request to the child as this person; an upgrade if it names a protocol.
///
/// # Errors
/// The person cannot exist in the child, or the request brings an identity of its own.
pub fn request_as(
    who: &Identity,
    token: &Secret,
    inbound: Inbound<'_>,
    upgrade: Option<UpgradeProtocol>,
) -> Result<Request<()>, ImpersonateError> {
    let body = serve::full(Bytes::new());
    let request = match upgrade {
        None => impersonate::plain(who, token, inbound, body),
        Some(protocol) => impersonate::upgrade(who, token, inbound, protocol, body),
    };
    Ok(request?.into_request().map(drop))
}

/// The head of a child's answer as it goes into the tunnel; `None` if it does not.
pub fn relayed(answer: Response<()>) -> Option<Response<()>> {
    let answer = answer.map(|()| serve::full(Bytes::new()));
    upstream::relayed(answer).ok().map(|answer| answer.map(drop))
}
