//! The hub: an aggregated apiserver in the parent cluster that proxies requests to child clusters over
//! tunnels which their agents opened.
//!
//! One request: [`listen`] → [`handle`] → [`request_info`] → [`authn`] → [`authz`] → [`route`] →
//! [`forward`] → tunnel → agent. Start reading at `handle.rs`.
//!
//! Control: [`join`] answers invitations and registrations, [`control`] turns approved requests into
//! clusters and writes what is known of them; the watch fills [`catalog`]; the request path only reads it.

pub mod apigroup;
pub mod app;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod catalog;
pub mod certificates;
pub mod config;
pub mod control;
pub mod forward;
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
pub mod generate;
pub mod grant;
pub mod handle;
pub mod issued;
pub mod join;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod peers;
pub mod queue;
pub mod refusal;
pub mod request_info;
mod rewatch;
pub mod route;
pub mod running;
pub mod shares;
pub mod told;
pub mod tunnels;
