//! The agent: runs in a child cluster, opens a tunnel to the hub in the parent, and asks the child's own
//! kube-apiserver what the hub asks it, as the person who asked the hub.
//!
//! ```text
//! app ─ dial ──────── tunnel ────▶ hub                (credential: credentials, register, key, parent)
//!         └ each stream: serve ─ impersonate ─ upstream ─▶ the child's kube-apiserver
//!                          └ agent's own: report, credentials
//! ```
//!
//! It dials two things: the parent address from its own registration Secret, and its own kube-apiserver.
//! Nothing that arrives in a tunnel can name a third. Reading order: [`serve`], [`impersonate`],
//! [`upstream`], then [`dial`], [`register`], [`credentials`].

pub mod account;
pub mod app;
pub mod config;
pub mod credentials;
pub mod dial;
#[doc(hidden)]
pub mod fuzzing;
pub mod impersonate;
pub mod key;
pub mod limits;
pub mod metrics;
pub mod parent;
pub mod permissions;
pub mod policy;
pub mod quantity;
pub mod register;
pub mod report;
pub mod serve;
pub mod tasks;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod trouble;
pub mod upgrade;
pub mod upstream;

/// The release of this agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
