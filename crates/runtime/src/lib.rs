//! What any process of ours needs and nothing else: no core [`dumps`], logs, the end ([`stop`]), [`readiness`], the
//! [`admin`] endpoint, the serving certificate ([`tls`]), [`backoff`],
//! and where a [`watch`] may end.

pub mod admin;
pub mod backoff;
pub mod dumps;
pub mod logs;
pub mod readiness;
pub mod stop;
pub mod tls;
pub mod watch;
