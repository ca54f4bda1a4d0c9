//! Replays what the fuzz targets have collected.

#[path = "../fuzz/replay.rs"]
mod replay;

/// Runs `target` on each file of its corpus, and tells how many there were.
fn each_of(corpus: &str, target: fn(&[u8])) -> std::io::Result<usize> {
    let folder = format!("{}/fuzz/corpus/{corpus}", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(folder)? {
        target(&std::fs::read(entry?.path())?);
        count += 1;
    }
    Ok(count)
}

#[test]
fn nothing_in_the_corpus_of_hello_breaks_it() {
    assert!(each_of("hello", replay::hello).unwrap() >= 8);
}

#[test]
fn nothing_in_the_corpus_of_the_byte_stream_breaks_it() {
    assert!(each_of("websocket_stream", replay::websocket_stream).unwrap() >= 8);
}
