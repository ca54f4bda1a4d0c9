//! Towline's data: what hub, agent, command line and tests say to each other and to Kubernetes.
//!
//! Nothing here does IO. Reading order: [`names`] (groups, labels, the newtypes that parse once),
//! [`identity`] (who asks) and [`mapping`] (who that person is in a child), [`status`] (how a request is
//! refused), [`cluster`] and [`registration`] (the objects), [`report`] (what an agent says of its cluster).
//! [`labels`], [`pem`] and [`yaml`] are the text forms that more than one crate reads or writes.

pub mod cluster;
pub mod identity;
pub mod kubeconfig;
pub mod labels;
pub mod mapping;
pub mod names;
pub mod pem;
pub mod registration;
pub mod report;
pub mod secret;
pub mod status;
pub mod yaml;
