//! The benchmark's parts, in reading order:
//!
//! - [`options`]: what may be asked for, and how much is measured
//! - [`stage`]: the processes; [`backend`], a fake kube-apiserver that is never the limit, and [`direct_agent`], the agent
//!   on a direct tunnel, are two of them
//! - [`peer`]: other tunnels, plugged in by a command
//! - [`load`]: the client that measures; [`ways`]: what is compared, in turns
//! - [`loopback`], [`links`], [`watches`], [`exec`], [`apiserver`], [`people`]: the sections; [`idle`]: tunnels in bulk
//! - [`usage`], [`machine`]: what the operating system says of a process, and of itself
//! - [`statistics`], [`report`], [`plot`]: from rounds to tables, JSON and plots

pub mod apiserver;
pub mod backend;
pub mod direct_agent;
pub mod exec;
pub mod idle;
pub mod links;
pub mod load;
pub mod loopback;
pub mod machine;
pub mod options;
pub mod peer;
pub mod people;
pub mod plot;
pub mod report;
pub mod stage;
pub mod statistics;
pub mod usage;
pub mod watches;
pub mod ways;
