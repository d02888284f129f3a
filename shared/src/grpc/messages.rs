//! A call's body, whose messages must come in time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;

use super::problem::to_status;
use crate::problem::{BoxError, Kind, Problem};
use crate::serve::{RATE, TooSlow};

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A body whose sender may pause for so long, and must send a kibibyte a second on the whole, of which one such pause is
/// forgiven. Only time counts for which somebody waits: one who has sent enough is not blamed for what nobody reads.
///
/// In a stream of messages its sender may rest as long as it likes after a whole one; and each has a time of its own.
#[derive(Debug)]
pub(super) struct Messages<B> {
    body: B,
    pause: Duration,
    /// Whether its sender may rest.
    rests: bool,
    place: Place,
    /// Bytes that came, of the message that comes now where it is one of a stream.
    received: u64,
    /// Time for which these were waited for.
    waited: Duration,
    /// Since somebody waits.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// Where in a message a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In what is before it, of which so many bytes have come, the last four of which are a number.
    Prefix(usize, u32),
    /// So many bytes before its end.
    Message(u32),
}

impl<B> Messages<B> {
    /// Of a call. `rests`: whether it may bring one message after the other.
    pub(super) fn new(body: B, pause: Duration, rests: bool) -> Self {
        let (place, waited) = (Place::Prefix(0, 0), Duration::ZERO);
        Self { body, pause, rests, place, received: 0, waited, since: None, timer: None }
    }

    /// Takes note of what came.
    fn note(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let taken = match self.place {
                Place::Prefix(seen, number) => {
                    let number = number << 8 | u32::from(data[0]); // the first of five is shifted out
                    self.place = match seen + 1 {
                        PREFIX => Place::Message(number),
                        seen => Place::Prefix(seen, number),
                    };
                    1
                }
                Place::Message(left) => {
                    let taken = data.len().min(left as usize);
                    self.place = Place::Message(left - taken as u32);
                    taken
                }
            };
            self.received += taken as u64;
            data = &data[taken..];
            if self.place == Place::Message(0) {
                self.place = Place::Prefix(0, 0);
                if self.rests {
                    (self.received, self.waited) = (0, Duration::ZERO);
                }
            }
        }
    }

    /// Ready when the time is over.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<TooSlow> {
        if self.rests && self.place == Place::Prefix(0, 0) {
            return Poll::Pending;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let owed = Duration::from_secs(self.received) / RATE;
        let left = (self.pause + owed).saturating_sub(self.waited);
        let until = since + self.pause.min(left);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match left < self.pause {
            true => TooSlow::Dripping { received: self.received, taken: self.waited + since.elapsed() },
            false => TooSlow::Silent(self.pause),
        })
    }
}

impl<B> Body for Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return self.poll_late(cx).map(|slow| Some(Err(status(slow).into())));
        };
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.note(data);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn status(slow: TooSlow) -> Status {
    to_status(Problem::new(Kind::TooSlow, slow.to_string()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::StreamExt as _;
    use futures_util::stream::{self, BoxStream};
    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    /// What comes, each after a time; and then nothing more, for ever.
    struct Late(BoxStream<'static, &'static [u8]>);

    impl Body for Late {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_next_unpin(cx).map(|data| data.map(|data| Ok(Frame::data(Bytes::from_static(data)))))
        }
    }

    fn late(pieces: Vec<(u64, &'static [u8])>) -> Late {
        let pieces = stream::iter(pieces).then(|(seconds, piece)| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            piece
        });
        Late(pieces.chain(stream::pending()).boxed())
    }

    /// When and why a body is given up; `None`: it never is.
    async fn given_up(pieces: Vec<(u64, &'static [u8])>, rests: bool) -> Option<(u64, String)> {
        let (mut body, begun) = (Messages::new(late(pieces), PAUSE, rests), Instant::now());
        let end = async {
            loop {
                let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
                if let Err(error) = frame.expect("it does not end") {
                    return error.downcast_ref::<Status>().expect("a status").message().to_owned();
                }
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(100_000), end).await.ok()?;
        Some((begun.elapsed().as_secs(), end))
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        let whole: &[u8] = &[0, 0, 0, 0, 2, 7, 7];
        for pieces in [vec![], vec![(29, &whole[..3])], vec![(29, whole)], vec![(20, &whole[..5])]] {
            let (taken, words) = given_up(pieces, false).await.expect("it is given up");
            assert_eq!(taken, 30, "{words}");
        }
        let (taken, words) = given_up(vec![(9, &whole[..3]), (5, &whole[3..6])], true).await.expect("it is given up");
        assert_eq!(taken, 39, "thirty seconds from its first byte: {words}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_drips_is_not_waited_for() {
        let drips: Vec<(u64, &'static [u8])> = (0..1000).map(|_| (10, &[0, 0, 1, 0, 0][..1])).collect();
        let drips = [vec![(0, &[0, 0, 1, 0, 0][..])], drips].concat();
        for rests in [false, true] {
            let (taken, words) = given_up(drips.clone(), rests).await.expect("it is given up");
            assert!(taken == 30 && words.contains("bytes a second"), "{taken}: {words}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_rest_between_messages_and_only_there() {
        let two: &[u8] = &[0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0];
        assert_eq!(given_up(vec![(5000, two), (5000, two)], true).await, None);
        assert!(given_up(vec![(5000, two), (5000, &two[..7])], true).await.is_some());
    }

    proptest! {
        #[test]
        fn messages_are_counted_however_they_are_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5), cuts in 1..40_usize,
        ) {
            let length = |message: &Vec<u8>| u32::try_from(message.len()).expect("short").to_be_bytes();
            let bytes: Vec<u8> =
                messages.iter().flat_map(|it| [&[1][..], &length(it), it].concat()).collect();
            let mut body = Messages::new((), PAUSE, true);
            bytes.chunks(cuts).for_each(|piece| body.note(piece));
            prop_assert_eq!((body.place, body.received), (Place::Prefix(0, 0), 0));
        }

        #[test]
        fn whatever_comes_is_counted(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut body = Messages::new((), PAUSE, false);
            body.note(&bytes);
            prop_assert_eq!(body.received, bytes.len() as u64);
        }
    }
}
