//! The body of an agent's answer in as few DATA frames as its latency allows. A frame that nobody has read costs the hub
//! about 170 bytes beside what is in it, and its HTTP library ends a tunnel that has too many small ones unread; a log
//! of short lines that nobody reads would have 17,000 in one window.
//!
//! Promises: every byte, in order, and whatever ends the body after it; what comes after a silence goes at once, and
//! nothing waits longer than [`GATHER`]; no empty frame.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    Body, BoxError,
    limits::{GATHER, GATHER_MAX, SMALL_FRAME},
};

/// A body that gathers small pieces.
pub(crate) struct Gathered {
    body: Body,
    /// What has been gathered: one piece as it came, or several.
    first: Bytes,
    more: BytesMut,
    /// What comes after that.
    next: Option<Result<Frame<Bytes>, BoxError>>,
    ended: bool,
    /// Before this time no small frame goes out.
    free: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Gathered {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            first: Bytes::new(),
            more: BytesMut::new(),
            next: None,
            ended: false,
            free: None,
            timer: None,
        }
    }

    fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    fn add(&mut self, data: Bytes) {
        if self.first.is_empty() && self.more.is_empty() {
            self.first = data;
            return;
        }
        self.more.extend_from_slice(&std::mem::take(&mut self.first));
        self.more.extend_from_slice(&data);
    }

    /// Takes what is there, as far as it is small. Ready when something has to go before more can be taken.
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.next.is_none() && !self.ended && self.len() < GATHER_MAX {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                self.ended = true;
                break;
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) if data.is_empty() => {}
                Ok(Ok(data)) if data.len() < SMALL_FRAME || self.len() == 0 => {
                    let small = data.len() < SMALL_FRAME;
                    self.add(data);
                    // A large piece is not copied and waits for nothing.
                    if !small {
                        break;
                    }
                }
                Ok(Ok(data)) => self.next = Some(Ok(Frame::data(data))),
                Ok(Err(trailers)) => self.next = Some(Ok(trailers)),
                Err(error) => self.next = Some(Err(error)),
            }
        }
        Poll::Ready(())
    }

    /// Ready when a small frame may go out.
    fn poll_free(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(free) = self.free.filter(|free| *free > Instant::now()) else { return Poll::Ready(()) };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(free)));
        if timer.deadline() != free {
            timer.as_mut().reset(free);
        }
        timer.as_mut().poll(cx)
    }

    fn take(&mut self) -> Frame<Bytes> {
        self.free = Some(Instant::now() + GATHER);
        if self.more.is_empty() {
            return Frame::data(std::mem::take(&mut self.first));
        }
        Frame::data(std::mem::take(&mut self.more).freeze())
    }
}

impl hyper::body::Body for Gathered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let gathered = this.poll_gather(cx);
        if this.len() == 0 {
            ready!(gathered);
            return Poll::Ready(this.next.take());
        }
        // More may come, and what there is would be a small frame soon after another one.
        if gathered.is_pending() && this.len() < SMALL_FRAME {
            ready!(this.poll_free(cx));
        }
        Poll::Ready(Some(Ok(this.take())))
    }

    fn is_end_stream(&self) -> bool {
        self.len() == 0 && self.next.is_none() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let waiting = self.next.iter().filter_map(|next| next.as_ref().ok()?.data_ref()).map(Bytes::len);
        let here = u64::try_from(self.len() + waiting.sum::<usize>()).unwrap_or(u64::MAX);
        let below = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(below.lower().saturating_add(here));
        if let Some(upper) = below.upper() {
            hint.set_upper(upper.saturating_add(here));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use futures::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use hyper::HeaderMap;
    use proptest::prelude::*;
    use tokio::time::sleep;

    use super::*;

    /// Pieces of so many bytes, each so many milliseconds after the one before.
    fn body(pieces: Vec<(usize, u64)>) -> Gathered {
        let pieces = stream::iter(pieces.into_iter().zip(0_u8..)).then(|((size, millis), byte)| async move {
            if millis > 0 {
                sleep(Duration::from_millis(millis)).await;
            }
            Ok::<_, BoxError>(Frame::data(Bytes::from(vec![byte; size])))
        });
        Gathered::new(StreamBody::new(pieces).boxed_unsync())
    }

    /// How large each frame is and when it came.
    async fn frames(mut body: Gathered) -> Vec<(usize, u64)> {
        let (began, mut frames) = (Instant::now(), Vec::new());
        while let Some(frame) = body.frame().await {
            let size = frame.unwrap().into_data().unwrap().len();
            frames.push((size, u64::try_from(began.elapsed().as_millis()).unwrap()));
        }
        frames
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_goes_together_and_what_comes_after_a_silence_goes_at_once() {
        assert_eq!(frames(body(vec![(60, 0); 10])).await, [(600, 0)]);
        assert_eq!(frames(body(vec![(60, 100); 3])).await, [(60, 100), (60, 200), (60, 300)]);
        // The second of two that are close waits for what comes with it, and no longer.
        let gather = u64::try_from(GATHER.as_millis()).unwrap();
        assert_eq!(
            frames(body(vec![(60, 0), (60, 1), (60, 1), (60, 500)])).await,
            [(60, 0), (120, gather), (60, 502)]
        );
        assert_eq!(frames(body(vec![(0, 0), (60, 0), (0, 5), (0, 0)])).await, [(60, 0)], "nothing empty");
        assert_eq!(frames(body(vec![(0, 0), (0, 0)])).await, []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_large_neither_waits_nor_is_joined() {
        assert_eq!(frames(body(vec![(16_000, 0); 3])).await, [(16_000, 0); 3]);
        assert_eq!(frames(body(vec![(60, 0), (16_000, 0), (60, 0)])).await, [(60, 0), (16_000, 0), (60, 0)]);
        let many = frames(body(vec![(250, 0); 200])).await;
        assert!(many.iter().all(|(size, at)| *size < GATHER_MAX + SMALL_FRAME && *at == 0), "{many:?}");
    }

    #[tokio::test]
    async fn the_end_is_the_same_as_before() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x", "y".parse().unwrap());
        let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Ok(Frame::trailers(trailers.clone()))];
        let mut body = Gathered::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
        assert!(body.frame().await.is_none() && body.is_end_stream());

        let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Err("the child is gone".into())];
        let mut body = Gathered::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        assert!(body.frame().await.unwrap().is_err());

        let full = Full::new(Bytes::from_static(b"whole")).map_err(|never: Infallible| match never {});
        let mut body = Gathered::new(full.boxed_unsync());
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "whole");
        assert!(body.is_end_stream(), "no empty frame has to say so");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_byte_comes_once_and_in_order_and_none_late(
            pieces in proptest::collection::vec((0_usize..600, 0_u64..30), 0..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let expected: Vec<u8> =
                    pieces.iter().zip(0_u8..).flat_map(|((size, _), byte)| vec![byte; *size]).collect();
                let total = pieces.iter().map(|(_, millis)| millis).sum::<u64>();
                let began = Instant::now();
                let whole = body(pieces.clone()).collect().await.unwrap().to_bytes();
                assert!(whole == expected);
                let took = u64::try_from(began.elapsed().as_millis()).unwrap();
                assert!(took <= total + u64::try_from(GATHER.as_millis()).unwrap() + 1);
            });
        }
    }
}
