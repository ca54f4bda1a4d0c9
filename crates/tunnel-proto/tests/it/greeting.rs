//! Hello and welcome, and what follows them on the wire.

use std::{fmt::Write as _, time::Duration};

use futures::SinkExt as _;
use tokio::time::{Instant, advance};
use tokio_tungstenite::tungstenite::Message;
use tunnel_proto::{
    HelloRefusal, RefusalReason, StreamFault, TunnelError, agent_side, hub_side,
    limits::{HELLO_MAX, HELLO_TIMEOUT, STREAM_WINDOW_SHORT, stream_window},
};

use crate::harness::{close_code, fake_agent, fake_hub, greeted_by_fake_agent, hello, next_binary, welcome};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn the_hub_begins_http2_with_these_bytes() {
    let (_tunnel, driver, mut agent) = greeted_by_fake_agent(64 * 1024).await;
    let first = tokio::select! {
        ended = driver => panic!("{ended:?}"),
        first = next_binary(&mut agent) => first,
    };
    assert_eq!(
        hex(&first),
        concat!(
            "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a", // preface
            "000018040000000000",                               // SETTINGS with four of them
            "000200000000",                                     // no push
            "000400080000",                                     // stream window 512 KiB
            "000500010000",                                     // frames up to 64 KiB
            "000600100000",                                     // header list up to 1 MiB
            "000004080000000000",                               // WINDOW_UPDATE of the connection
            "7fff0000",                                         // to 2^31 - 1
        )
    );
}

/// The window in the SETTINGS at which these bytes begin (RFC 9113 section 6.5).
fn window(settings: &[u8]) -> u32 {
    let mut entries = settings[9..9 + usize::from(settings[2])].chunks_exact(6);
    let window = entries.find(|entry| entry[..2] == [0, 4]).unwrap();
    u32::from_be_bytes(window[2..].try_into().unwrap())
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_long_way_has_larger_windows_on_both_sides() {
    let way = Duration::from_millis(100);
    let wanted = stream_window(way);
    assert!(wanted > STREAM_WINDOW_SHORT);

    let (hub, mut agent) = fake_agent(64 * 1024).await;
    let late = async {
        advance(way).await;
        agent.send(Message::binary(hello().encode().unwrap())).await.unwrap();
        next_binary(&mut agent).await;
    };
    let (accepted, ()) = tokio::join!(hub_side::accept(hub, welcome), late);
    let (_hello, _tunnel, driver) = accepted.unwrap();
    let first = tokio::select! {
        ended = driver => panic!("{ended:?}"),
        first = next_binary(&mut agent) => first,
    };
    assert_eq!(window(&first[24..]), wanted, "the hub's, after its preface");

    let (agent, mut hub) = fake_hub(64 * 1024).await;
    let hello = hello();
    let late = async {
        next_binary(&mut hub).await;
        advance(way).await;
        hub.send(Message::binary(welcome(&hello).unwrap().encode().unwrap())).await.unwrap();
        hub.send(Message::binary(first)).await.unwrap();
    };
    let (connected, ()) = tokio::join!(agent_side::connect(agent, &hello), late);
    let serving = connected.unwrap().1.serve(|_| std::future::pending(), std::future::pending());
    let settings = tokio::select! {
        ended = serving => panic!("{ended:?}"),
        settings = next_binary(&mut hub) => settings,
    };
    assert_eq!(window(&settings), wanted, "the agent's");
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_hello_that_never_comes_ends_the_connection_in_time() {
    let (hub, mut agent) = fake_agent(1024).await;
    let began = Instant::now();
    let error = hub_side::accept(hub, welcome).await.unwrap_err();
    assert!(matches!(error, TunnelError::HelloTimeout), "{error}");
    assert_eq!(began.elapsed().as_secs(), HELLO_TIMEOUT.as_secs());
    assert_eq!(close_code(&mut agent).await, Some(1008));
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_welcome_or_an_http2_that_never_comes_ends_the_connection_in_time() {
    for welcomed in [false, true] {
        let (agent, mut hub) = fake_hub(1024).await;
        if welcomed {
            let message = welcome(&hello()).unwrap().encode().unwrap();
            hub.send(Message::binary(message)).await.unwrap();
        }
        let began = Instant::now();
        let error = agent_side::connect(agent, &hello()).await.unwrap_err();
        assert!(matches!(error, TunnelError::HelloTimeout), "{error}");
        assert_eq!(began.elapsed().as_secs(), HELLO_TIMEOUT.as_secs());
        assert_eq!(close_code(&mut hub).await, Some(1008));
    }
}

#[tokio::test(crate = "crate::leaks")]
async fn an_oversized_hello_is_closed_with_1009() {
    for size in [HELLO_MAX + 1, 100 * 1024, 1024 * 1024] {
        let (hub, mut agent) = fake_agent(2 * 1024 * 1024).await;
        agent.send(Message::binary(vec![b' '; size])).await.unwrap();
        let error = hub_side::accept(hub, welcome).await.unwrap_err();
        let TunnelError::Stream(fault) = error else { panic!("{error}") };
        assert!(matches!(fault, StreamFault::MessageTooBig | StreamFault::EndlessMessage), "{fault}");
        assert_eq!(close_code(&mut agent).await, Some(1009), "{size}");
    }
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_hello_that_cannot_be_read_is_refused_with_the_reason() {
    let (hub, mut agent) = fake_agent(64 * 1024).await;
    agent.send(Message::binary(&b"PRI * HTTP/2.0\r\n"[..])).await.unwrap();
    let error = hub_side::accept(hub, welcome).await.unwrap_err();
    assert!(matches!(error, TunnelError::Hello(_)), "{error}");
    let refusal = next_binary(&mut agent).await;
    assert!(refusal.starts_with(br#"{"refused":{"reason":"InvalidHello","#), "{refusal:?}");
    assert_eq!(close_code(&mut agent).await, Some(1008));
}

#[tokio::test(crate = "crate::leaks")]
async fn a_text_hello_is_closed_with_1003() {
    let (hub, mut agent) = fake_agent(64 * 1024).await;
    agent.send(Message::text("{}")).await.unwrap();
    let error = hub_side::accept(hub, welcome).await.unwrap_err();
    assert!(matches!(error, TunnelError::Stream(StreamFault::Text)), "{error}");
    assert_eq!(close_code(&mut agent).await, Some(1003));
}

#[tokio::test(crate = "crate::leaks", start_paused = true)]
async fn a_second_hello_breaks_the_tunnel() {
    let (tunnel, driver, mut agent) = greeted_by_fake_agent(64 * 1024).await;
    agent.send(Message::binary(hello().encode().unwrap())).await.unwrap();
    let error = driver.await.unwrap_err();
    assert!(matches!(error, TunnelError::Http2(_)), "{error}");
    assert!(tunnel.is_closed());
}

#[tokio::test(crate = "crate::leaks")]
async fn a_refusal_reaches_the_agent_as_it_was_meant() {
    let (hub, agent) = tokio::io::duplex(64 * 1024);
    let refusal = HelloRefusal::new(RefusalReason::Conflict, "cluster c-1 is served by instance i-9");
    let said = refusal.clone();
    let hello = hello();
    let (hub, agent) =
        tokio::join!(hub_side::accept(hub, move |_| Err(said)), agent_side::connect(agent, &hello));
    assert!(matches!(hub.unwrap_err(), TunnelError::Refused(told) if told == refusal));
    assert!(matches!(agent.unwrap_err(), TunnelError::Refused(told) if told == refusal));
}

#[tokio::test(crate = "crate::leaks")]
async fn versions_without_a_common_one_are_refused_with_the_list() {
    let (hub, agent) = tokio::io::duplex(64 * 1024);
    let mut hello = hello();
    (hello.protocol.min, hello.protocol.max) = (2, 3);
    let (_hub, agent) = tokio::join!(hub_side::accept(hub, welcome), agent_side::connect(agent, &hello));
    let TunnelError::Refused(refusal) = agent.unwrap_err() else { panic!("not refused") };
    assert_eq!(refusal.reason, RefusalReason::ProtocolVersion);
    assert!(refusal.message.contains("this hub speaks 1"));
}

#[tokio::test(crate = "crate::leaks")]
async fn a_hub_that_does_not_speak_http2_is_noticed() {
    let (agent, mut hub) = fake_hub(64 * 1024).await;
    hub.send(Message::binary(welcome(&hello()).unwrap().encode().unwrap())).await.unwrap();
    hub.send(Message::binary(&b"PRI * "[..])).await.unwrap();
    hub.send(Message::binary(&b"HTTP/1.1 400 Bad Request\r\n"[..])).await.unwrap();
    let error = agent_side::connect(agent, &hello()).await.unwrap_err();
    assert!(matches!(error, TunnelError::NotHttp2), "{error}");
}

#[tokio::test(crate = "crate::leaks")]
async fn a_connection_that_is_cut_in_the_hello_is_told_apart_from_one_that_is_closed() {
    let (hub, agent) = fake_agent(64 * 1024).await;
    drop(agent);
    let error = hub_side::accept(hub, welcome).await.unwrap_err();
    assert!(matches!(error, TunnelError::Stream(StreamFault::Cut)), "{error}");
    let (hub, mut agent) = fake_agent(64 * 1024).await;
    agent.close(None).await.unwrap();
    let error = hub_side::accept(hub, welcome).await.unwrap_err();
    assert!(matches!(error, TunnelError::ClosedInHello), "{error}");
}
