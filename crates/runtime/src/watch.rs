//! Where one event of a watch ends and the next one begins. A watch that ends between two events has ended as a
//! kube-apiserver ends one (after `timeoutSeconds`, or when it is restarted): the caller goes on from the last event that
//! it has seen. One that ends within an event was cut. Pure: it is shown the bytes and keeps none of them.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use hyper::body::{Body, Frame};

/// How events are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Framing {
    /// JSON: a line each (apimachinery `pkg/runtime/serializer/json`, whose encoder ends each object with a newline and
    /// writes none within).
    Lines { within: bool },
    /// Protobuf: four bytes of length, the most significant first, then as many bytes (apimachinery `pkg/util/framer`).
    Lengths { head: [u8; 4], filled: usize, left: usize },
    /// Something else: where it may end is not known.
    Unknown,
}

/// The events of one watch, as they pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events(Framing);

impl Events {
    fn of(content_type: Option<&str>) -> Self {
        let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        Self(match media {
            "application/json" => Framing::Lines { within: false },
            "application/vnd.kubernetes.protobuf" => Framing::Lengths { head: [0; 4], filled: 0, left: 0 },
            _ => Framing::Unknown,
        })
    }

    /// Those of the answer to a watch with this head; `None` of a refusal, and of one that is compressed.
    pub fn of_answer(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let plain = status == StatusCode::OK && !headers.contains_key(CONTENT_ENCODING);
        plain.then(|| Self::of(headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok())))
    }

    /// These bytes have passed.
    pub fn passed(&mut self, mut bytes: &[u8]) {
        match &mut self.0 {
            Framing::Lines { within } => {
                if let Some(last) = bytes.last() {
                    *within = *last != b'\n';
                }
            }
            Framing::Lengths { head, filled, left } => {
                while !bytes.is_empty() {
                    if *left == 0 {
                        let (missing, rest) = bytes.split_at(bytes.len().min(head.len() - *filled));
                        head[*filled..*filled + missing.len()].copy_from_slice(missing);
                        *filled += missing.len();
                        bytes = rest;
                        if *filled == head.len() {
                            (*filled, *left) = (0, u32::from_be_bytes(*head) as usize);
                        }
                        continue;
                    }
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    bytes = &bytes[taken..];
                }
            }
            Framing::Unknown => {}
        }
    }

    /// Whether the last event is whole and the next one has not begun.
    pub fn is_between(&self) -> bool {
        match &self.0 {
            Framing::Lines { within } => !within,
            Framing::Lengths { filled, left, .. } => *filled == 0 && *left == 0,
            Framing::Unknown => false,
        }
    }
}

/// A watch that ends between two events once the other future has: its caller goes on from the last one. It breaks off
/// with an error as before where that moment does not come.
pub fn ending_between<B, F>(body: B, events: Events, moved: F) -> EndingBetween<B, F> {
    EndingBetween { body: Some(body), events, moved }
}

/// See [`ending_between`].
#[derive(Debug)]
pub struct EndingBetween<B, F> {
    /// Gone once it has ended.
    body: Option<B>,
    events: Events,
    moved: F,
}

impl<B, F> Body for EndingBetween<B, F>
where
    B: Body<Data = Bytes> + Unpin,
    F: Future<Output = ()> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body: Some(body), events, moved } = &mut *self else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            events.passed(data);
        }
        if polled.is_pending() && events.is_between() && Pin::new(moved).poll(cx).is_ready() {
            self.body = None;
            return Poll::Ready(None);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::channel::{mpsc, oneshot};
    use http_body_util::combinators::UnsyncBoxBody;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    fn after(content_type: &str, pieces: &[&[u8]]) -> bool {
        let mut events = Events::of(Some(content_type));
        pieces.iter().for_each(|piece| events.passed(piece));
        events.is_between()
    }

    #[test]
    fn a_json_watch_may_end_after_a_line() {
        for kind in ["application/json", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"] {
            assert!(after(kind, &[]));
            assert!(!after(kind, &[b"{\"type\":"]));
            assert!(after(kind, &[b"{\"type\":", b"\"ADDED\"}\n"]));
            assert!(!after(kind, &[b"{}\n{"]));
            assert!(after(kind, &[b"{}\n", b""]));
        }
    }

    #[test]
    fn a_protobuf_watch_may_end_after_as_many_bytes_as_were_announced() {
        let kind = "application/vnd.kubernetes.protobuf;stream=watch";
        let whole: &[u8] = b"\0\0\0\x02ab\0\0\0\x01\n\0\0\0\0";
        let ends = [0, 6, 11, 15];
        for cut in 0..=whole.len() {
            for at in 0..=cut {
                let (first, second) = whole[..cut].split_at(at);
                assert_eq!(after(kind, &[first, second]), ends.contains(&cut), "{at} {cut}");
            }
        }
        assert!(!after(kind, &[b"\xff\xff\xff\xff", b"\n"]));
    }

    #[test]
    fn a_refusal_and_what_is_compressed_have_no_events() {
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
        assert!(Events::of_answer(StatusCode::OK, &headers).unwrap().is_between());
        assert_eq!(Events::of_answer(StatusCode::FORBIDDEN, &headers), None);
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert_eq!(Events::of_answer(StatusCode::OK, &headers), None);
    }

    #[test]
    fn nothing_is_known_of_other_kinds() {
        for kind in ["", "application/cbor-seq", "text/plain", "application/jsonlines"] {
            assert!(!after(kind, &[]), "{kind}");
            assert!(!after(kind, &[b"a\n"]), "{kind}");
        }
        assert!(!Events::of(None).is_between());
    }

    type Sender = mpsc::UnboundedSender<Result<Frame<Bytes>, &'static str>>;

    fn watch() -> (Sender, oneshot::Sender<()>, UnsyncBoxBody<Bytes, &'static str>) {
        let (events, body) = mpsc::unbounded();
        let (move_on, moved) = oneshot::channel();
        let moved = moved.map(drop);
        let events_of = Events::of(Some("application/json"));
        (events, move_on, ending_between(StreamBody::new(body), events_of, moved).boxed_unsync())
    }

    fn send(events: &Sender, text: &'static str) {
        events.unbounded_send(Ok(Frame::data(Bytes::from_static(text.as_bytes())))).unwrap();
    }

    async fn next(body: &mut UnsyncBoxBody<Bytes, &'static str>) -> Option<Bytes> {
        body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
    }

    #[tokio::test]
    async fn a_watch_ends_between_two_events_and_not_before() {
        let (events, move_on, mut body) = watch();
        send(&events, "{}\n");
        assert_eq!(next(&mut body).await.unwrap(), "{}\n");
        assert!(body.frame().now_or_never().is_none(), "nobody goes");
        move_on.send(()).unwrap();
        assert!(next(&mut body).await.is_none());
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn a_watch_that_stands_within_an_event_brings_it_to_its_end_first() {
        let (events, move_on, mut body) = watch();
        send(&events, "{\"type\":");
        assert!(next(&mut body).await.is_some());
        move_on.send(()).unwrap();
        assert!(body.frame().now_or_never().is_none(), "half an event is no end");
        send(&events, "1}\n");
        assert_eq!(next(&mut body).await.unwrap(), "1}\n");
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn a_watch_that_breaks_within_an_event_does_not_end_well() {
        let (events, move_on, mut body) = watch();
        send(&events, "{");
        events.unbounded_send(Err("broken")).unwrap();
        move_on.send(()).unwrap();
        assert!(next(&mut body).await.is_some());
        assert!(body.frame().await.unwrap().is_err());
    }
}
