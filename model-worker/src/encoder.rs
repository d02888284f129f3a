//! The encoder of one embedding model: a thread that alone owns the model, and a handle to it.
//!
//! * [`batch`]: which waiting texts run together.
//! * [`head`]: what becomes of the graph's numbers; [`pooling`]: from the vectors of a text's tokens to one.

pub mod batch;
pub mod head;
pub mod pooling;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::engine::EngineError;
use crate::metrics::EncoderMetrics;
use crate::model::{EncoderBatch, EncoderModel, EncoderOutput, ModelError};
use head::{Encoded, Given, Head, Tokens};

/// How texts go through a graph.
#[derive(Clone)]
pub struct EncoderSettings {
    /// What becomes of the graph's numbers.
    pub head: Arc<dyn Head>,
    /// The token that fills up shorter texts of a batch.
    pub padding: u32,
    /// Requests that may be in the encoder at once.
    pub requests: usize,
}

/// A handle to an encoder. The encoder ends when every handle is gone.
#[derive(Debug, Clone)]
pub struct EncoderHandle {
    commands: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    requests: usize,
}

/// What a request's texts became, or why nothing did.
type Answer = Result<Vec<Encoded>, EngineError>;

#[derive(Debug)]
struct Request {
    texts: Vec<Tokens>,
    reply: oneshot::Sender<Answer>,
    permit: OwnedSemaphorePermit,
}

impl EncoderHandle {
    /// Starts an encoder on a thread of its own.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        model: Box<dyn EncoderModel>,
        settings: EncoderSettings,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        // A request needs a permit before it is sent, so the channel never holds more than there are permits.
        let (commands, received) = mpsc::channel(settings.requests);
        let handle = Self { commands, room: Arc::new(Semaphore::new(settings.requests)), requests: settings.requests };
        let encoder = Encoder {
            model,
            settings,
            metrics: EncoderMetrics::new(name),
            pending: HashMap::new(),
            next_request: 0,
            queue: VecDeque::new(),
        };
        let thread =
            std::thread::Builder::new().name(format!("encoder {name}")).spawn(move || encoder.run(received))?;
        Ok((handle, thread))
    }

    /// Encodes texts, each of at least one token; gives what became of them in the same order.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] at once when there is no room.
    pub async fn encode(&self, texts: Vec<Tokens>) -> Answer {
        let permit = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| EngineError::Overloaded { slots: 1, waiting: self.requests - 1 })?;
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Request { texts, reply, permit }).map_err(|_| EngineError::Stopped)?;
        answer.await.unwrap_or(Err(EngineError::Stopped))
    }

    /// Requests in the encoder.
    pub fn load(&self) -> usize {
        self.requests - self.room.available_permits()
    }

    /// Resolves when the encoder's thread has died.
    pub async fn died(&self) {
        self.commands.closed().await;
    }

    /// Whether the encoder's thread still takes requests.
    pub fn is_alive(&self) -> bool {
        !self.commands.is_closed()
    }
}

/// A request whose texts are being embedded.
struct Pending {
    reply: oneshot::Sender<Answer>,
    /// One for each text, once it is encoded.
    encoded: Vec<Option<Encoded>>,
    missing: usize,
    permit: OwnedSemaphorePermit,
}

/// One text that waits.
struct Text {
    request: u64,
    index: usize,
    tokens: Tokens,
}

struct Encoder {
    model: Box<dyn EncoderModel>,
    settings: EncoderSettings,
    metrics: EncoderMetrics,
    pending: HashMap<u64, Pending>,
    next_request: u64,
    queue: VecDeque<Text>,
}

impl Encoder {
    /// Runs until every handle is gone and the queue is empty.
    fn run(mut self, mut commands: mpsc::Receiver<Request>) {
        loop {
            if self.queue.is_empty() {
                match commands.blocking_recv() {
                    Some(request) => self.accept(request), // idle: sleep here
                    None => return,
                }
            }
            while let Ok(request) = commands.try_recv() {
                self.accept(request); // busy: look, never wait
            }
            self.drop_abandoned();
            self.step();
        }
    }

    fn accept(&mut self, Request { texts, reply, permit }: Request) {
        let request = self.next_request;
        self.next_request += 1;
        let (encoded, missing) = (vec![None; texts.len()], texts.len());
        self.pending.insert(request, Pending { reply, encoded, missing, permit });
        let texts = texts.into_iter().enumerate();
        self.queue.extend(texts.map(|(index, tokens)| Text { request, index, tokens }));
    }

    fn drop_abandoned(&mut self) {
        self.pending.retain(|_, pending| !pending.reply.is_closed());
        self.queue.retain(|text| self.pending.contains_key(&text.request));
    }

    /// Runs the oldest text with others of its length.
    fn step(&mut self) {
        let lengths: Vec<usize> = self.queue.iter().map(|text| text.tokens.len()).collect();
        let chosen = batch::choose(&lengths);
        // From the back, so that the indices before stay true.
        let texts: Vec<Text> = chosen.iter().rev().filter_map(|&index| self.queue.remove(index)).collect();
        if texts.is_empty() {
            return;
        }
        self.metrics.run(texts.len(), texts.iter().map(|text| text.tokens.len()).sum());
        match self.encode(&texts) {
            Ok(encoded) => texts.iter().zip(encoded).for_each(|(text, encoded)| self.deliver(text, encoded)),
            Err(error) => {
                tracing::error!(%error, texts = texts.len(), "a batch of texts failed");
                texts.iter().for_each(|text| self.fail(text, &error));
            }
        }
    }

    fn encode(&mut self, texts: &[Text]) -> Result<Vec<Encoded>, ModelError> {
        let columns = texts.iter().map(|text| text.tokens.len()).max().unwrap_or(0);
        let output = self.model.encode(&padded(texts, columns, self.settings.padding))?;
        let head = &self.settings.head;
        Ok(match &output {
            EncoderOutput::Pooled { values, width } => {
                values.chunks_exact(*width).map(|row| head.finish(Given::Text(row))).collect()
            }
            EncoderOutput::Tokens { values, width } => {
                let rows = values.chunks_exact(columns * width).zip(texts);
                let given = |(row, text): (&'_ [f32], &Text)| {
                    head.finish(Given::Tokens { values: &row[..text.tokens.len() * width], width: *width })
                };
                rows.map(given).collect()
            }
        })
    }

    fn deliver(&mut self, text: &Text, encoded: Encoded) {
        let Some(pending) = self.pending.get_mut(&text.request) else { return };
        pending.encoded[text.index] = Some(encoded);
        pending.missing -= 1;
        if pending.missing == 0
            && let Some(Pending { reply, encoded, permit, .. }) = self.pending.remove(&text.request)
        {
            drop(permit); // whoever has the answer may ask again at once
            // The client may have gone away meanwhile.
            let _ = reply.send(Ok(encoded.into_iter().flatten().collect()));
        }
    }

    fn fail(&mut self, text: &Text, error: &ModelError) {
        if let Some(pending) = self.pending.remove(&text.request) {
            let _ = pending.reply.send(Err(EngineError::Step(ModelError::Run(error.to_string()))));
        }
    }
}

fn padded(texts: &[Text], columns: usize, padding: u32) -> EncoderBatch {
    let fill = |fill: i64, value: &dyn Fn(&Tokens, usize) -> i64| -> Vec<i64> {
        let rows = texts.iter().flat_map(|Text { tokens, .. }| (0..columns).map(move |place| (tokens, place)));
        rows.map(|(tokens, place)| if place < tokens.len() { value(tokens, place) } else { fill }).collect()
    };
    EncoderBatch {
        rows: texts.len(),
        columns,
        ids: fill(i64::from(padding), &|tokens, place| i64::from(tokens.ids[place])),
        mask: fill(0, &|_, _| 1),
        types: fill(0, &|tokens, place| i64::from(place >= tokens.second)),
    }
}

#[cfg(test)]
mod tests {
    use super::head::EmbeddingHead;
    use super::pooling::Pooling;
    use super::*;

    /// Gives each token a vector of its id and 1, and fails on id 13.
    struct Fake;

    impl EncoderModel for Fake {
        fn encode(&mut self, batch: &EncoderBatch) -> Result<EncoderOutput, ModelError> {
            if batch.ids.contains(&13) {
                return Err(ModelError::Run("thirteen".to_owned()));
            }
            let values = batch.ids.iter().flat_map(|&id| [id as f32, 1.0]).collect();
            Ok(EncoderOutput::Tokens { values, width: 2 })
        }
    }

    fn start() -> (EncoderHandle, JoinHandle<()>) {
        let settings =
            EncoderSettings { head: Arc::new(EmbeddingHead::pooling(Pooling::Mean)), padding: 99, requests: 4 };
        EncoderHandle::start("fake", Box::new(Fake), settings).expect("a thread")
    }

    #[tokio::test]
    async fn vectors_come_in_the_order_of_the_texts_and_padding_does_not_count() {
        let (encoder, thread) = start();
        let texts = vec![vec![1, 3], vec![5; 200], vec![2], vec![4, 4]].into_iter().map(Tokens::one);
        let vectors = encoder.encode(texts.collect()).await.expect("an answer");
        assert_eq!(
            vectors,
            [[2.0, 1.0], [5.0, 1.0], [2.0, 1.0], [4.0, 1.0]].map(|vector| Encoded::Dense(vector.into()))
        );
        assert_eq!(encoder.load(), 0);
        drop(encoder);
        thread.join().expect("the thread ends with its last handle");
    }

    #[tokio::test]
    async fn a_failed_run_fails_its_requests_and_no_others() {
        let (encoder, _thread) = start();
        let (bad, good) =
            tokio::join!(encoder.encode(vec![Tokens::one(vec![13])]), encoder.encode(vec![Tokens::one(vec![1; 120])]));
        assert!(matches!(bad, Err(EngineError::Step(_))), "{bad:?}");
        assert_eq!(good.expect("an answer"), [Encoded::Dense(vec![1.0, 1.0])]);
    }
}
