//! Bodies of requests.

use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::{Bytes, BytesMut};
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;
use muster_shared::problem::{BoxError, Kind, Problem};
use muster_shared::serve::{self, Timely};

use tokio::sync::Semaphore;

use crate::encoding::decompress;
use crate::state::State;
use crate::upstream::job::stopping;

/// What a client may send beyond the limit before the connection is cut: it is read and thrown away, since a client
/// that is still sending does not hear the answer.
const PATIENCE_BYTES: usize = 64 << 20;
/// Time a client has to send that.
const PATIENCE: Duration = Duration::from_secs(5);

/// Large bodies that are worked on at once in a process: each may take ten times its length meanwhile.
static LARGE: Semaphore = Semaphore::const_new(8);
/// Largest body that is read as JSON where it arrives: a larger one would hold up the other requests of its thread.
const AT_ONCE: usize = 256 << 10;

/// The bytes of a body, whatever its `Content-Type` says.
///
/// # Errors
/// [`Kind::TooLarge`] beyond the limit, [`Kind::TooSlow`] when it stands still or drips, [`Kind::Invalid`] when it breaks
/// off.
pub(crate) async fn read<B>(state: &State, body: B) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let cut = state.upstream.cut();
    let mut body = Timely::new(body, state.upstream.config().body_timeout);
    cut.run_until_cancelled(collect(&mut body, state.body_limit)).await.unwrap_or_else(|| Err(stopping()))
}

async fn collect<B>(body: &mut B, limit: usize) -> Result<Bytes, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    let told = body.size_hint().lower();
    if told > limit as u64 {
        if told <= (limit + PATIENCE_BYTES) as u64 {
            discarded(body).await;
        }
        return Err(too_large(limit)); // who says much more before has not sent it yet
    }
    loop {
        let Some(data) = next(body).await? else { break };
        let length = first.len() + more.len() + data.len();
        if length > limit {
            drop((first, more));
            discarded(body).await;
            return Err(too_large(limit));
        }
        if length == data.len() {
            first = data; // most come in one piece, and are not copied
        } else {
            if more.is_empty() {
                let told = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
                more.reserve(length.saturating_add(told).min(limit));
                more.extend_from_slice(&std::mem::take(&mut first));
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

fn too_large(limit: usize) -> Problem {
    let message = format!("the body is larger than the {limit} bytes this gateway takes; send less at once");
    Problem::new(Kind::TooLarge, message)
}

/// The next piece of a body; `None` at its end.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
            Some(Err(error)) => {
                return Err(match serve::too_slow(&*error.into()) {
                    Some(slow) => Problem::new(Kind::TooSlow, slow.to_string()),
                    None => Problem::new(Kind::Invalid, "the body could not be read"),
                });
            }
        }
    }
}

/// A body as it was before its sender coded it.
///
/// What is small, coded and not, is read where it arrives; how much comes of a little is only known when it is there.
///
/// # Errors
/// See [`decompress`].
pub(crate) async fn decoded(headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, Problem> {
    if !headers.contains_key(CONTENT_ENCODING) {
        return Ok(body);
    }
    let little = AT_ONCE.min(limit);
    if body.len() <= little {
        match decompress(headers, body.clone(), little) {
            Err(problem) if problem.kind == Kind::TooLarge && little < limit => {}
            read => return read,
        }
    }
    let headers = headers.clone();
    let _turn = LARGE.acquire().await; // never closed
    let read = tokio::task::spawn_blocking(move || decompress(&headers, body, limit)).await;
    read.unwrap_or_else(|panic| Err(Problem::new(Kind::Bug, panic.to_string())))
}

/// Reads and checks a body, beside other requests where it is large.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn parse<T: Send + 'static>(
    body: Bytes,
    parse: impl FnOnce(&[u8]) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    beside(body.len(), move || parse(&body)).await
}

/// Works on so many bytes, beside other requests where they are many.
///
/// # Errors
/// Those of the work.
pub(crate) async fn beside<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    if length <= AT_ONCE {
        return work();
    }
    let _turn = LARGE.acquire().await; // never closed
    let worked = tokio::task::spawn_blocking(work).await;
    worked.unwrap_or_else(|panic| Err(Problem::new(Kind::Bug, panic.to_string())))
}

/// Throws away what still comes of a body. However that ends, the answer is the same.
async fn discarded<B: HttpBody<Data = Bytes> + Unpin>(body: &mut B) {
    let _ = tokio::time::timeout(PATIENCE, discard(body)).await;
}

async fn discard<B: HttpBody<Data = Bytes> + Unpin>(body: &mut B) {
    let mut left = PATIENCE_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        if left <= length {
            return;
        }
        left -= length;
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use axum::body::Body;
    use futures_util::{Stream, StreamExt as _, stream};
    use http_body::{Frame, SizeHint};

    use super::*;

    fn chunks(body: impl Stream<Item = &'static str> + Send + 'static) -> Body {
        Body::from_stream(body.map(Ok::<_, Infallible>))
    }

    const PAUSE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_body_may_be_slow_but_neither_stand_still_nor_drip() {
        const KIB: &str = include_str!("body.rs").split_at(1024).0;
        let pieces = |piece: &'static str, pause: Duration, count: usize| {
            chunks(stream::unfold(0, move |sent| async move {
                tokio::time::sleep(pause).await;
                (sent < count).then_some((piece, sent + 1))
            }))
        };
        let read = |body| async { collect(&mut Timely::new(body, PAUSE), 1 << 20).await.map(|body| body.len()) };
        let second = Duration::from_secs(1);
        assert_eq!(read(pieces(KIB, second, 100)).await, Ok(100 << 10));
        assert_eq!(read(pieces("x", second, 25)).await, Ok(25), "a short one may take the time that is forgiven");
        for (body, words) in [
            (pieces("x", second, 100), "30 bytes came in 30 seconds"),
            (pieces(KIB, 3 * second, 100), "bytes came in"),
            (chunks(stream::iter([KIB; 100]).chain(stream::pending())), "for 30 seconds"),
        ] {
            let problem = read(body).await.expect_err("too slow");
            assert_eq!(problem.kind, Kind::TooSlow);
            assert!(problem.message.contains(words), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused() {
        let large = || chunks(stream::iter(["12345", "67890"]));
        assert_eq!(collect(&mut large(), 10).await.as_deref(), Ok(&b"1234567890"[..]));
        assert_eq!(collect(&mut large(), 9).await.map_err(|problem| problem.kind), Err(Kind::TooLarge));
    }

    /// Pieces that say how many of them somebody keeps.
    struct Announced {
        length: u64,
        left: usize,
        kept: Arc<AtomicUsize>,
        most: usize,
    }

    struct Kept(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Kept {
        fn as_ref(&self) -> &[u8] {
            &[b' '; 10]
        }
    }

    impl Drop for Kept {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl HttpBody for Announced {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let kept = self.kept.load(Ordering::Relaxed);
            self.most = self.most.max(kept);
            if self.left == 0 {
                return Poll::Ready(None);
            }
            self.left -= 1;
            self.kept.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(Kept(Arc::clone(&self.kept)))))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.length)
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_body_that_is_announced_as_too_large() {
        let mut body = Announced { length: 100, left: 10, kept: Arc::default(), most: 0 };
        let problem = collect(&mut body, 99).await.expect_err("it is too large");
        assert_eq!((problem.kind, body.left, body.most), (Kind::TooLarge, 0, 0));
    }

    #[tokio::test]
    async fn a_large_body_is_read_as_a_small_one_is() {
        let length = |bytes: &[u8]| Ok(bytes.len());
        for size in [1, AT_ONCE, AT_ONCE + 1] {
            assert_eq!(parse(vec![0; size].into(), length).await, Ok(size));
        }
        let panics = |_: &[u8]| -> Result<(), Problem> { panic!("on purpose") };
        let problem = parse(vec![0; AT_ONCE + 1].into(), panics).await.expect_err("it panics");
        assert_eq!(problem.kind, Kind::Bug);
    }
}
