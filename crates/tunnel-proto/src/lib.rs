//! The tunnel between a hub and an agent: HTTP/2 spoken in reverse over the bytes of a WebSocket.
//!
//! ```text
//!        hub                                                    agent
//!   HTTP/2 client ── extended CONNECT, requests ──────────▶ HTTP/2 server
//!   WebSocketIo   ── binary messages, each ≤ 65 KiB ──────▶ WebSocketIo
//!   WebSocket (server role) ◀── hello, then welcome ──▶ WebSocket (client role)
//!   HTTP/1.1 upgrade ◀──────────── dials ─────────────────── HTTP/1.1 upgrade
//! ```
//!
//! The agent dials, because it may stand behind NAT; the hub asks, because people ask the hub. The crate
//! works on any byte stream on which the HTTP upgrade has happened. It knows neither TLS nor Kubernetes,
//! starts no task that it does not own, and never dials. The wire is described in `SPEC.md`.
//!
//! Reading order: [`names`], [`limits`], [`opening`] (pure: the HTTP upgrade), [`hello`] (pure: who is
//! there and which version), [`websocket`] (messages to bytes), [`hub_side`], [`agent_side`], [`upgrade`]
//! (pure: exec and friends as extended CONNECT), [`error`].

pub mod agent_side;
pub mod error;
mod gather;
pub mod hello;
pub mod hub_side;
pub mod limits;
pub mod names;
pub mod opening;
mod tasks;
pub mod upgrade;
pub mod websocket;

pub use error::{Cause, SendError, StreamFault, TunnelError};
pub use hello::{Hello, HelloRefusal, RefusalReason, Welcome};
pub use upgrade::UpgradeProtocol;

/// Whatever a body can fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request that goes into a tunnel, and of an answer that comes from an agent.
pub type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, BoxError>;
