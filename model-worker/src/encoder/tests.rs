use std::sync::mpsc as std_mpsc;

use super::head::EmbeddingHead;
use super::pooling::Pooling;
use super::*;
use crate::model::{EncoderBatch, EncoderOutput, ModelError};

/// Gives each token a vector of its id and 1, and fails on id 13. Tells of each run, and waits for leave to begin it.
struct Fake {
    runs: std_mpsc::Sender<usize>,
    leave: Option<std_mpsc::Receiver<()>>,
}

impl EncoderModel for Fake {
    fn encode(&mut self, batch: &EncoderBatch) -> Result<EncoderOutput, ModelError> {
        let _ = self.runs.send(batch.rows); // not every test looks
        if let Some(leave) = &self.leave {
            leave.recv().map_err(|_| ModelError::Run("the test is over".to_owned()))?;
        }
        if batch.ids.contains(&13) {
            return Err(ModelError::Run("thirteen".to_owned()));
        }
        if batch.ids.contains(&666) {
            panic!("a broken kernel");
        }
        let values = batch.ids.iter().flat_map(|&id| [id as f32, 1.0]).collect();
        Ok(EncoderOutput::Tokens { values, width: 2 })
    }
}

fn number(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("not zero")
}

fn settings() -> EncoderSettings {
    EncoderSettings {
        head: Arc::new(EmbeddingHead::pooling(Pooling::Mean)),
        padding: 99,
        limits: BatchLimits::PROCESSOR,
        requests: number(4),
        tokens: number(1000),
    }
}

/// An encoder whose threads need no leave.
fn start(threads: usize) -> (EncoderHandle, Vec<JoinHandle<()>>) {
    let (runs, _) = std_mpsc::channel();
    let session = |_| Box::new(Fake { runs: runs.clone(), leave: None }) as Box<dyn EncoderModel>;
    EncoderHandle::start("fake", (0..threads).map(session).collect(), settings()).expect("threads")
}

/// An encoder with one thread, each run of which is told of and waits for leave.
struct Led {
    encoder: EncoderHandle,
    runs: std_mpsc::Receiver<usize>,
    leave: std_mpsc::Sender<()>,
}

fn lead() -> Led {
    let (told, runs) = std_mpsc::channel();
    let (leave, taken) = std_mpsc::channel();
    let session = Box::new(Fake { runs: told, leave: Some(taken) });
    let (encoder, _) = EncoderHandle::start("fake", vec![session], settings()).expect("a thread");
    Led { encoder, runs, leave }
}

impl Led {
    fn ask(&self, texts: &[&[u32]]) -> tokio::task::JoinHandle<Answer> {
        let (encoder, texts) = (self.encoder.clone(), tokens(texts));
        tokio::spawn(async move { encoder.encode(texts, None).await })
    }

    /// Waits until a run has begun; gives the number of its texts.
    async fn begun(&mut self) -> usize {
        tokio::task::block_in_place(|| self.runs.recv_timeout(std::time::Duration::from_secs(20))).expect("a run")
    }

    fn go_on(&self) {
        self.leave.send(()).expect("the thread lives");
    }

    /// Waits until so many requests are in the encoder.
    async fn hold(&self, requests: usize) {
        while self.encoder.requests.held() != requests {
            tokio::task::yield_now().await;
        }
    }
}

fn tokens(texts: &[&[u32]]) -> Vec<Tokens> {
    texts.iter().map(|text| Tokens::one(text.to_vec())).collect()
}

fn dense(vectors: &[[f32; 2]]) -> Vec<Encoded> {
    vectors.iter().map(|vector| Encoded::Dense(vector.to_vec())).collect()
}

#[tokio::test]
async fn vectors_come_in_the_order_of_the_texts_and_padding_does_not_count() {
    for threads in [1, 3] {
        let (encoder, joins) = start(threads);
        let texts = tokens(&[&[1, 3], &[5; 200], &[2], &[4, 4]]);
        let vectors = encoder.encode(texts, None).await.expect("an answer");
        assert_eq!(vectors, dense(&[[2.0, 1.0], [5.0, 1.0], [2.0, 1.0], [4.0, 1.0]]));
        assert_eq!(encoder.load(), (0, 0));
        drop(encoder);
        assert_eq!(joins.len(), threads);
        joins.into_iter().for_each(|join| join.join().expect("a thread ends with the last handle"));
    }
}

#[tokio::test]
async fn many_texts_of_many_clients_come_back_to_whom_they_belong() {
    let (encoder, _joins) = start(3);
    let ask = |client: u32| {
        let encoder = encoder.clone();
        let texts: Vec<Vec<u32>> = (0..60).map(|text| vec![client * 1000 + text; 1 + text as usize % 4]).collect();
        let expected: Vec<[f32; 2]> = texts.iter().map(|text| [text[0] as f32, 1.0]).collect();
        async move {
            let texts = texts.into_iter().map(Tokens::one).collect();
            assert_eq!(encoder.encode(texts, None).await.expect("an answer"), dense(&expected));
        }
    };
    for _ in 0..20 {
        tokio::join!(ask(1), ask(2), ask(3), ask(4));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_text_fails_its_own_request_and_none_of_its_company() {
    let mut led = lead();
    let first = led.ask(&[&[1; 50]]);
    led.begun().await;
    let (bad, good) = (led.ask(&[&[13, 13], &[7, 7]]), led.ask(&[&[5, 5]]));
    led.hold(3).await;
    led.go_on();
    assert_eq!(led.begun().await, 3, "all of one length run together, and fail together");
    led.go_on();
    for _ in 0..3 {
        assert_eq!(led.begun().await, 1, "then each alone");
        led.go_on();
    }
    assert!(first.await.expect("no panic").is_ok());
    let error = bad.await.expect("no panic").expect_err("thirteen");
    assert_eq!(error.to_string(), "a run of the model failed: thirteen");
    assert_eq!(good.await.expect("no panic").expect("an answer"), dense(&[[5.0, 1.0]]));
    let next = led.ask(&[&[6]]);
    led.go_on();
    assert!(next.await.expect("no panic").is_ok(), "and the next request is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_a_client_that_went_away_do_not_run() {
    let mut led = lead();
    let first = led.ask(&[&[1; 50]]);
    led.begun().await;
    let gone = led.ask(&[&[2; 10], &[3; 300]]);
    led.hold(2).await;
    gone.abort();
    assert!(gone.await.expect_err("it was told to end").is_cancelled());
    let last = led.ask(&[&[4; 100]]);
    led.hold(3).await;
    led.go_on();
    led.begun().await;
    led.go_on();
    assert!(first.await.expect("no panic").is_ok());
    assert_eq!(last.await.expect("no panic").expect("an answer"), dense(&[[4.0, 1.0]]));
    assert_eq!(led.encoder.load(), (0, 0));
    assert!(led.runs.try_recv().is_err(), "there was no third run");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_request_whose_texts_wait() {
    let mut led = lead();
    let first = led.ask(&[&[1; 50]]);
    led.begun().await;
    let soon = Instant::now() + std::time::Duration::from_millis(20);
    let late = led.encoder.encode(tokens(&[&[2; 10]]), Some(soon)).await;
    assert!(matches!(late, Err(EngineError::Late)), "{late:?}");
    let past = led.encoder.encode(tokens(&[&[2; 10]]), Some(soon)).await;
    assert!(matches!(past, Err(EngineError::Late)), "{past:?}");
    led.go_on();
    assert!(first.await.expect("no panic").is_ok());
    led.hold(0).await;
    assert!(led.runs.try_recv().is_err(), "its text did not run");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_told_which_bound_it_met() {
    let mut led = lead();
    let _first = led.ask(&[&[1; 600]]);
    led.begun().await;
    let refused = |texts: Vec<Vec<u32>>| {
        let encoder = led.encoder.clone();
        async move {
            let texts = texts.into_iter().map(Tokens::one).collect();
            encoder.encode(texts, None).await.expect_err("no room").to_string()
        }
    };
    assert_eq!(
        refused(vec![vec![1; 500]; 3]).await,
        "the texts have 1500 tokens together, and this worker takes at most 1000 in one request; send fewer texts"
    );
    assert_eq!(refused(vec![vec![1; 401]]).await, "the model's queue is full: it holds at most 1000 tokens at once");
    let _others: Vec<_> = (0..3).map(|_| led.ask(&[&[1]])).collect();
    led.hold(4).await;
    assert_eq!(refused(vec![vec![1]]).await, "the model's queue is full: it holds at most 4 requests at once");
    assert_eq!(led.encoder.load(), (1, 3));
    assert_eq!(led.encoder.capacity(), Capacity { running: 1, waiting: 3 });
}

#[tokio::test]
async fn nothing_is_encoded_of_nothing() {
    let (encoder, _joins) = start(1);
    assert_eq!(encoder.encode(Vec::new(), None).await.expect("an answer"), []);
}

#[tokio::test]
async fn a_thread_that_panics_is_noticed_and_its_request_answered() {
    let (encoder, _joins) = start(2);
    assert!(encoder.is_alive());
    let answer = encoder.encode(tokens(&[&[666]]), None).await;
    assert!(matches!(answer, Err(EngineError::Stopped)), "{answer:?}");
    encoder.died().await;
    assert!(!encoder.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_begun_is_shed_and_what_has_begun_is_answered() {
    let mut led = lead();
    // Of such different lengths that its texts do not run together.
    let begun = led.ask(&[&[1; 300], &[2; 3]]);
    assert_eq!(led.begun().await, 1);
    let next = led.ask(&[&[3; 40]]);
    led.hold(2).await;
    let shed = led.ask(&[&[4; 80], &[5; 160]]);
    led.hold(3).await;
    led.encoder.shed();
    (0..4).for_each(|_| led.go_on());
    let answer = shed.await.expect("no panic");
    assert!(matches!(answer, Err(EngineError::Shed)), "{answer:?}");
    assert_eq!(begun.await.expect("no panic").expect("an answer"), dense(&[[1.0, 1.0], [2.0, 1.0]]));
    assert_eq!(next.await.expect("no panic").expect("its turn had come"), dense(&[[3.0, 1.0]]));
    assert_eq!(led.encoder.load(), (0, 0));
}
