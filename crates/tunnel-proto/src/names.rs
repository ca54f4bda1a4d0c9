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

/// Header of an extended CONNECT: the method of the original request, which CONNECT has displaced.
pub const HEADER_METHOD: &str = "towline-method";
