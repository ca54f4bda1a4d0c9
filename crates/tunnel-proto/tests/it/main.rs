//! The tunnel from end to end, both sides in one process: over a pipe, or over TCP on the loopback.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are tests too, but clippy sees only functions marked so"
)]

mod ending;
mod evil;
mod fairness;
mod faults;
mod frames;
mod greeting;
mod harness;
mod requests;
mod simulation;
mod upgrades;
