//! The names on the wire: subprotocol, capabilities, authorities, paths. Two spellings of one of them
//! would be two protocols, so they stand here once. Nothing in a tunnel ever names a host.

/// The WebSocket subprotocol. The number is that of the opening; the hello negotiates the rest.
pub const SUBPROTOCOL: &str = "v1.tunnel.towline.io";

/// Capability: the side that names it handles extended CONNECT (exec, attach, port-forward).
pub const CAPABILITY_EXTENDED_CONNECT: &str = "extended-connect";

/// Authority of a request that is meant for the child's kube-apiserver.
pub const AUTHORITY_KUBERNETES: &str = "kubernetes";
/// Authority of a request that is meant for the agent itself.
pub const AUTHORITY_AGENT: &str = "agent";

/// `GET` on [`AUTHORITY_AGENT`]: the status of the child.
pub const PATH_STATUS: &str = "/v1/status";
/// `PUT` on [`AUTHORITY_AGENT`]: a renewed credential.
pub const PATH_CREDENTIAL: &str = "/v1/credential";
/// `POST` on [`AUTHORITY_AGENT`]: the hub is about to close this tunnel. The agent opens another one at once,
/// while this one finishes its streams. An HTTP/2 server does not see its client's GOAWAY in time.
pub const PATH_GOAWAY: &str = "/v1/goaway";
/// `POST` on [`AUTHORITY_AGENT`], the name of another agent process as the body: another one wants to serve this cluster;
/// is it the successor of this one? The answer repeats the name if so, and this process opens no tunnel after that.
pub const PATH_SUCCESSOR: &str = "/v1/successor";

/// Header on every answer that is the agent's own and not the child's.
pub const HEADER_AGENT_ERROR: &str = "towline-agent-error";

/// Header of an extended CONNECT: the method of the original request, which CONNECT has displaced.
pub const HEADER_METHOD: &str = "towline-method";

/// Header of the 101 that opens a tunnel: the hub replica that holds it. The agent opens its tunnels at as many
/// different ones as it can.
pub const HEADER_HUB_INSTANCE: &str = "towline-hub-instance";
/// Header of the same answer, and of questions to [`AUTHORITY_AGENT`]: how many hub replicas are alive, this one included; a
/// decimal number of at least 1. More tunnels than that cannot be at different replicas.
pub const HEADER_HUB_REPLICAS: &str = "towline-hub-replicas";
