//! Peers that take their time. On paused time: the clock jumps to the next deadline as soon as nobody has
//! anything to do, which a stranger who sends nothing leaves the hub with.

use tokio::time::Instant;

use super::*;

/// Lets the peer say `bytes` and then nothing; how long until the hub has closed, in seconds.
async fn closed_after(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    bytes: &[u8],
) -> u64 {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut received = Vec::new();
    tokio::time::pause();
    let began = Instant::now();
    let ended = tokio::time::timeout(Duration::from_mins(10), stream.read_to_end(&mut received)).await;
    let took = began.elapsed().as_secs();
    tokio::time::resume();
    assert!(ended.is_ok(), "still open: {received:?}");
    took
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_silent_stranger_is_closed_in_time() {
    let world = World::start().await;
    let tcp = async || TcpStream::connect(world.address).await.unwrap();
    // The first bytes of a ClientHello that announces 512.
    let hello = &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..];
    for bytes in [&b""[..], &hello[..1], hello] {
        let took = closed_after(tcp().await, bytes).await;
        assert!((9..=11).contains(&took), "{bytes:?} took {took} s");
    }
    // Nothing is awaited of what is no TLS at all, or begins with an alert that says goodbye.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n"[..], b"\x15\x03\x01\x00\x02\x01\x00"] {
        assert_eq!(closed_after(tcp().await, bytes).await, 0);
    }
    for wire in [Wire::H1, Wire::H1WithoutAlpn, Wire::H2] {
        for certificate in [None, Some(world.aggregator())] {
            let took = closed_after(world.dial(certificate, wire).await, b"").await;
            assert!((9..=11).contains(&took), "after the handshake: {took} s");
        }
    }
    let half = closed_after(world.dial(None, Wire::H2).await, b"PRI * HTTP/2.0\r\n\r\nSM").await;
    assert!((9..=11).contains(&half), "half a preface: {half} s");
    assert_eq!(world.hub.metrics.connections.get(), 0, "none is counted any more");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_head_that_comes_byte_by_byte_is_cut_off() {
    let world = World::start().await;
    let head = b"GET /livez HTTP/1.1\r\nHost: hub\r\nX-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let (mut reader, mut writer) = tokio::io::split(world.dial(Some(world.aggregator()), Wire::H1).await);
    tokio::time::pause();
    let began = Instant::now();
    let ended = async {
        let mut received = Vec::new();
        let _ = reader.read_to_end(&mut received).await;
    };
    let drip = async {
        for byte in head {
            if writer.write_all(&[*byte]).await.is_err() || writer.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = ended => {}
        () = drip => panic!("the whole head was taken at one byte per second"),
    }
    let took = began.elapsed().as_secs();
    assert!((9..=11).contains(&took), "{took} s");
    // And a second head on a connection that has shown a good one.
    tokio::time::resume();
    let mut stream = world.dial(Some(world.aggregator()), Wire::H1).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: hub\r\n\r\n").await.unwrap();
    let mut answer = [0; 4096];
    assert!(stream.read(&mut answer).await.unwrap() > 0);
    let took = closed_after(stream, b"GET /livez HTTP/1.1\r\nHost:").await;
    assert!((9..=11).contains(&took), "the second head: {took} s");
}

#[tokio::test(crate = "crate::handle::in_process::leaks")]
async fn a_body_that_never_comes_holds_nobody_up() {
    let (mut world, recorder) = World::recorded().await;
    let request = format!(
        "POST {BASE}/c1/proxy/direct/api HTTP/1.1\r\nHost: hub\r\nX-Remote-User: alice\r\n\
         Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    );
    let mut stream = world.dial(Some(world.aggregator()), Wire::H1).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    // The hub asks for the body, since the child reads it; then nothing comes.
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    let other = world.get(Wire::H2, "alice", &format!("{BASE}/c1/proxy/direct/other")).await;
    assert_eq!(text(other).await, "seen", "others are served meanwhile");
    // The caller is told when the time of a short request is over, and its connection is closed.
    tokio::time::pause();
    let mut rest = Vec::new();
    let began = Instant::now();
    tokio::time::timeout(Duration::from_mins(10), stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    tokio::time::resume();
    assert!(
        String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 504 "),
        "{}",
        String::from_utf8_lossy(&rest)
    );
    assert!(began.elapsed() <= Duration::from_secs(81), "{:?}", began.elapsed());
    let seen: Vec<_> = world.seen(&recorder).await.iter().map(recorder::Seen::short).collect();
    assert_eq!(
        seen,
        ["POST /api as alice:clusternet:view +cut", "GET /other"],
        "the child is not kept waiting"
    );
}
