//! Every reason for which the hub answers a request by itself, and the one place where a reason becomes a
//! `metav1.Status`. What a caller may not know (whether a cluster exists, what the parent said) is not in it.

use api::identity::InvalidIdentity;
use api::mapping::MappingRefusal;
use api::names::ClusterId;
use api::status::{Reason, Status};
use http::StatusCode;

use crate::shares::Full;

/// Why the hub answers by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No identity that we believe.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The identity headers of the parent do not make an identity.
    #[error("the parent sent an identity that is none: {0}")]
    InvalidIdentity(#[from] InvalidIdentity),
    /// The parent's RBAC says no, or there is no such cluster: the same answer, so that nobody learns which.
    #[error("cluster {0} does not exist, or you may not {1} it")]
    ClusterForbidden(ClusterId, &'static str),
    /// The parent's RBAC says no to something that is no cluster.
    #[error("{0}")]
    Forbidden(String),
    /// A user who has no meaning in a child.
    #[error(transparent)]
    Unmapped(#[from] MappingRefusal),
    /// The parent could not say whether this is allowed.
    #[error("the parent cluster did not answer whether this is allowed ({0}); try again")]
    AuthorizerUnavailable(String),
    /// The parent could not say whose token it is.
    #[error("the parent cluster did not answer whose token this is ({0}); try again")]
    AuthenticatorUnavailable(String),
    /// No such path here.
    #[error("{0}")]
    NotFound(String),
    /// The path exists, not for this method.
    #[error("{0}")]
    MethodNotAllowed(String),
    /// None of the media types that the caller accepts.
    #[error("this is served as {0} only")]
    NotAcceptable(&'static str),
    /// A request that could be read in two ways, or not at all.
    #[error("{0}")]
    BadRequest(String),
    /// One user or one cluster has used up its share of the hub.
    #[error("{0}")]
    ShareUsedUp(String),
    /// One source address has shown too many tokens that are nobody's; it may go on after so many seconds.
    #[error("too many tokens from this address were refused; try again in {0} s, with a good one")]
    FailedTokens(u32),
    /// More agents come at once than can be let in; this one may come again after so many seconds.
    #[error("more agents are connecting to this hub replica than it can let in at once; try again")]
    TunnelsQueued(u32),
    /// The audit log cannot follow.
    #[error("the hub's audit log cannot be written as fast as requests come; try again")]
    AuditBehind,
    /// The body is over a limit.
    #[error("the request body is over {0} bytes")]
    BodyTooLarge(usize),
    /// No tunnel; lost moments ago, so it will be back.
    #[error("cluster {0} lost its connection {1} and is expected back at once; try again")]
    JustLost(String, String),
    /// The replica that held the tunnel holds it no more, and this one has not learnt yet which does.
    #[error("the connection of cluster {0} has just moved to another replica of the hub; try again")]
    StalePresence(String),
    /// No tunnel, for longer.
    #[error(
        "cluster {0} is not connected: {1}; look at its agent: kubectl -n clusternet-system logs deploy/clusternet-agent"
    )]
    Offline(String, String),
    /// The hub has not read yet whom it may believe. Agents take a 401 for the end of their credential.
    #[error("this hub replica is starting; try again")]
    Starting,
    /// The hub is stopping.
    #[error("this hub replica is shutting down; try again")]
    Stopping,
    /// The tunnel broke before the child answered.
    #[error("the connection to cluster {0} broke before it answered: {1}")]
    TunnelBroke(String, String),
    /// The child's answer cannot be passed on.
    #[error("cluster {0} gave an answer that cannot be passed on: {1}")]
    BadAnswer(String, String),
    /// The child did not answer in time.
    #[error("cluster {0} did not answer within {1} s; the request may or may not have been carried out")]
    Timeout(String, u64),
    /// An answer that a part of the hub made itself.
    #[error("{}", .0.message)]
    Other(Box<Status>),
}

impl Refusal {
    /// The answer.
    pub fn to_status(&self) -> Status {
        let (code, reason) = match self {
            Self::Unauthenticated(_) | Self::InvalidIdentity(_) => {
                (StatusCode::UNAUTHORIZED, Reason::Unauthorized)
            }
            Self::ClusterForbidden(..) | Self::Forbidden(_) | Self::Unmapped(_) => {
                (StatusCode::FORBIDDEN, Reason::Forbidden)
            }
            Self::AuthorizerUnavailable(_) | Self::AuthenticatorUnavailable(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, Reason::InternalError)
            }
            Self::NotFound(_) => (StatusCode::NOT_FOUND, Reason::NotFound),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, Reason::MethodNotAllowed),
            Self::NotAcceptable(_) => (StatusCode::NOT_ACCEPTABLE, Reason::NotAcceptable),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, Reason::BadRequest),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, Reason::RequestEntityTooLarge),
            Self::ShareUsedUp(_) | Self::FailedTokens(_) => {
                (StatusCode::TOO_MANY_REQUESTS, Reason::TooManyRequests)
            }
            Self::JustLost(..)
            | Self::StalePresence(_)
            | Self::Offline(..)
            | Self::Starting
            | Self::Stopping
            | Self::TunnelsQueued(_)
            | Self::AuditBehind => (StatusCode::SERVICE_UNAVAILABLE, Reason::ServiceUnavailable),
            Self::TunnelBroke(..) | Self::BadAnswer(..) => (StatusCode::BAD_GATEWAY, Reason::Unknown),
            Self::Timeout(..) => (StatusCode::GATEWAY_TIMEOUT, Reason::Timeout),
            Self::Other(status) => return (**status).clone(),
        };
        let status = Status::new(code, reason, self.to_string());
        // client-go retries any 5xx with Retry-After ten times: only for what passes by itself.
        let passes = matches!(
            self,
            Self::JustLost(..)
                | Self::StalePresence(_)
                | Self::Starting
                | Self::Stopping
                | Self::ShareUsedUp(_)
                | Self::AuditBehind
        );
        if let Self::FailedTokens(seconds) | Self::TunnelsQueued(seconds) = self {
            return status.retry_after(*seconds);
        }
        if passes { status.retry_after(1) } else { status }
    }

    /// The label of the metric: bounded, and the same for all clusters.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "unauthenticated",
            Self::InvalidIdentity(_) => "invalid_identity",
            Self::ClusterForbidden(..) => "cluster_forbidden",
            Self::Forbidden(_) => "forbidden",
            Self::Unmapped(_) => "unmapped",
            Self::AuthorizerUnavailable(_) => "authorizer_unavailable",
            Self::AuthenticatorUnavailable(_) => "authenticator_unavailable",
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::NotAcceptable(_) => "not_acceptable",
            Self::BadRequest(_) => "bad_request",
            Self::ShareUsedUp(_) => "share_used_up",
            Self::FailedTokens(_) => "failed_tokens",
            Self::TunnelsQueued(_) => "tunnels_queued",
            Self::AuditBehind => "audit_behind",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::JustLost(..) => "just_lost",
            Self::StalePresence(_) => "stale_presence",
            Self::Offline(..) => "offline",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::TunnelBroke(..) => "tunnel_broke",
            Self::BadAnswer(..) => "bad_answer",
            Self::Timeout(..) => "timeout",
            Self::Other(_) => "other",
        }
    }
}

impl Refusal {
    /// A share is used up: the user's, or the cluster's.
    pub fn share_used_up(whose: &str, full: Full) -> Self {
        Self::ShareUsedUp(match full {
            Full::InFlight(most) => {
                format!(
                    "{whose} has {most} requests and streams open through this hub, which is the limit; close some"
                )
            }
            Full::Rate(most) => format!("{whose} has more than {most} requests a second; slow down"),
        })
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Other(Box::new(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_asks_for_a_retry() {
        let lost = Refusal::JustLost("a".into(), "2 s ago".into()).to_status();
        let offline = Refusal::Offline("a".into(), "since 12:00".into()).to_status();
        assert_eq!((lost.code.as_u16(), lost.retry_after), (503, Some(1)));
        assert_eq!((offline.code.as_u16(), offline.retry_after), (503, None));
    }

    #[test]
    fn unknown_and_forbidden_clusters_answer_alike() {
        let answer = |id: &str| Refusal::ClusterForbidden(id.parse().unwrap(), "get").to_status();
        assert_eq!(answer("a").message.replace(" a ", " b "), answer("b").message);
        assert_eq!(answer("a").code, StatusCode::FORBIDDEN);
    }
}
