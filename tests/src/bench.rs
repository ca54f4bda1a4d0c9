//! The benchmark's parts: a fake kube-apiserver that is never the limit ([`backend`]), a client that measures
//! ([`load`]), the agent on a direct tunnel
//! ([`direct_agent`]), idle tunnels in bulk ([`idle`]), what a person waits for ([`people`]), and what the operating
//! system says of a process ([`usage`]).

pub mod backend;
pub mod direct_agent;
pub mod idle;
pub mod load;
pub mod people;
pub mod usage;
