//! What any process of ours needs and nothing else: its [`config`], small [`files`], no core [`dumps`], logs, a port to
//! [`listen`] on, the end ([`stop`]), [`readiness`], the [`admin`] endpoint, the serving certificate ([`tls`]), [`traces`], [`backoff`],
//! and where a [`watch`] may end.

pub mod admin;
pub mod backoff;
pub mod config;
pub mod dumps;
pub mod files;
pub mod listen;
pub mod logs;
pub mod readiness;
pub mod stop;
pub mod tls;
pub mod traces;
pub mod watch;
