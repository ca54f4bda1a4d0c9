//! The bad network of the package `tests`, here over pipes and in virtual time.

#![expect(unreachable_pub, reason = "a library in its own package")]

#[path = "../../../../../../tests/src/faults/link.rs"]
pub(crate) mod link;
#[path = "../../../../../../tests/src/faults/schedule.rs"]
pub(crate) mod schedule;
