//! libFuzzer around one of the targets: the one that `TOWLINE_FUZZ_TARGET` names. `hack/fuzz.sh` runs it.

#![no_main]

use std::sync::OnceLock;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<fuzz::Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("TOWLINE_FUZZ_TARGET").expect("TOWLINE_FUZZ_TARGET names no target");
        fuzz::TARGETS.iter().find(|target| target.name == name).copied().expect("there is no such target")
    });
    (target.run)(data);
});
