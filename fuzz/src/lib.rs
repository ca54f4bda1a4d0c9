//! Fuzz targets: plain functions that take any bytes and panic when a promise is broken. Two run them: the test
//! `corpora` replays what stands in `corpus/` with every build, and `hack/fuzz.sh` looks for more with libFuzzer.
//!
//! Each has an oracle of its own making: lists of names and readers that are written here once more, not taken from
//! the product. Inputs are text wherever the real thing is text, so that a person can write and read a corpus. No
//! target talks to a network, a clock or a file.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a target speaks")]

mod files;
mod head;
mod headers;
mod joining;
mod path;
mod policy;
mod tunnel;

/// A function for any bytes, and the name of its corpus.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Folder below `corpus/`.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "answer", run: headers::answer },
    Target { name: "hello", run: tunnel::hello },
    Target { name: "hostile_hub", run: headers::hostile_hub },
    Target { name: "kubeconfig", run: files::kubeconfig },
    Target { name: "manifest", run: files::manifest },
    Target { name: "path", run: path::path },
    Target { name: "policy", run: policy::policy },
    Target { name: "registration", run: joining::registration },
    Target { name: "to_child", run: headers::to_child },
    Target { name: "websocket_stream", run: tunnel::websocket_stream },
    Target { name: "yaml", run: files::yaml },
];
