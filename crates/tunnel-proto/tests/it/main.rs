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
mod leaks;
mod requests;
mod simulation;
mod upgrades;

/// A test with a runtime of its own is not looked behind: here there is none.
#[test]
fn every_test_of_a_tunnel_is_looked_behind() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let bare = text.lines().filter(|line| line.starts_with("#[tokio::test") && !line.contains("leaks"));
        assert_eq!(bare.count(), 0, "{}", path.display());
    }
}
