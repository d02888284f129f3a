use std::sync::mpsc;

use muster_shared::tensor::Datatype;

use super::*;
use crate::tensor::check::Wanted;

/// Doubles each byte, fails on 13, panics on 99; says what it runs, and waits until it may.
struct Fake {
    runs: mpsc::Sender<usize>,
    may: mpsc::Receiver<()>,
}

impl TensorModel for Fake {
    fn run(&mut self, inputs: &[(usize, &Array)], _: &[usize]) -> Result<Vec<Array>, ModelError> {
        let array = inputs[0].1;
        self.runs.send(array.data.len()).expect("the test listens");
        self.may.recv().expect("the test lets it go on");
        match () {
            () if array.data.contains(&13) => Err(ModelError::Run("thirteen".to_owned())),
            () if array.data.contains(&99) => panic!("ninety-nine"),
            () => {
                let data = array.data.iter().map(|byte| byte * 2).collect::<Vec<u8>>().into();
                Ok(vec![Array { data, ..array.clone() }])
            }
        }
    }
}

struct Bench {
    batcher: Arc<Batcher>,
    threads: Vec<JoinHandle<()>>,
    runs: mpsc::Receiver<usize>,
    go: mpsc::Sender<()>,
}

impl Bench {
    fn new(waiting: usize) -> Self {
        let (runs, seen) = mpsc::channel();
        let (go, may) = mpsc::channel();
        let settings = BatcherSettings {
            name: ("fake".to_owned(), "1".to_owned()),
            batching: Some(Batching { largest: 8, preferred: Vec::new(), delay: Duration::ZERO }),
            waiting,
        };
        let (batcher, threads) = Batcher::start(settings, vec![Box::new(Fake { runs, may })]).expect("a thread");
        Self { batcher: Arc::new(batcher), threads, runs: seen, go }
    }

    fn ask(&self, data: &'static [u8]) -> tokio::task::JoinHandle<Result<Vec<u8>, RunError>> {
        self.ask_within(data, None)
    }

    fn ask_within(
        &self,
        data: &'static [u8],
        timeout: Option<Duration>,
    ) -> tokio::task::JoinHandle<Result<Vec<u8>, RunError>> {
        let array = Array { datatype: Datatype::Uint8, shape: vec![data.len()], data: data.into() };
        let request = Checked {
            inputs: vec![(0, array)],
            wanted: vec![Wanted { place: 0, classification: 0 }],
            rows: Some(data.len()),
            timeout,
            priority: 1,
        };
        let batcher = Arc::clone(&self.batcher);
        tokio::spawn(async move { batcher.run(request).await.map(|outputs| outputs[0].data.to_vec()) })
    }

    /// Lets the asking tasks run until so many requests wait.
    async fn until_waiting(&self, waiting: usize) {
        while self.batcher.load().1 != waiting {
            tokio::task::yield_now().await;
        }
    }

    /// Rows of the run that has just begun.
    async fn next_run(&self) -> usize {
        loop {
            match self.runs.try_recv() {
                Ok(rows) => return rows,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    fn go_on(&self) {
        self.go.send(()).expect("the instance waits");
    }
}

#[tokio::test]
async fn what_came_meanwhile_runs_together_and_each_gets_its_own() {
    let bench = Bench::new(8);
    let first = bench.ask(&[1]);
    assert_eq!(bench.next_run().await, 1);
    let (second, third) = (bench.ask(&[2, 3]), bench.ask(&[4]));
    bench.until_waiting(2).await;
    bench.go_on();
    assert_eq!(bench.next_run().await, 3);
    bench.go_on();
    let answers = [first, second, third].map(async |answer| answer.await.expect("no panic").expect("an answer"));
    let [first, second, third] = answers;
    assert_eq!((first.await, second.await, third.await), (vec![2], vec![4, 6], vec![8]));
    let read = bench.batcher.recorder().read("fake", "1");
    assert_eq!((read.inference_count, read.execution_count, read.batch_stats.len()), (4, 2, 2));
}

#[tokio::test]
async fn a_request_at_fault_fails_alone() {
    let bench = Bench::new(8);
    let first = bench.ask(&[1]);
    bench.next_run().await;
    let (bad, good) = (bench.ask(&[13]), bench.ask(&[5]));
    bench.until_waiting(2).await;
    (0..4).for_each(|_| bench.go_on()); // the first, both together, each alone
    assert!(matches!(bad.await.expect("no panic"), Err(RunError::Failed(_))));
    assert_eq!(good.await.expect("no panic").expect("an answer"), [10]);
    first.await.expect("no panic").expect("an answer");
    assert_eq!(bench.batcher.recorder().read("fake", "1").inference_stats.fail.count, 1);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_those_who_left_make_room() {
    let bench = Bench::new(1);
    let first = bench.ask(&[1]);
    bench.next_run().await;
    let second = bench.ask(&[2]);
    bench.until_waiting(1).await;
    let refused = bench.ask(&[3]).await.expect("no panic");
    assert!(matches!(refused, Err(RunError::Overloaded { running: 1, waiting: 1 })), "{refused:?}");
    second.abort();
    assert!(second.await.expect_err("it was given up").is_cancelled());
    let third = bench.ask(&[3]);
    bench.go_on();
    first.await.expect("no panic").expect("an answer");
    assert_eq!(bench.next_run().await, 1, "the request that was given up does not run");
    bench.go_on();
    assert_eq!(third.await.expect("no panic").expect("an answer"), [6]);
}

#[tokio::test]
async fn a_request_whose_timeout_is_over_does_not_run() {
    let bench = Bench::new(8);
    let running = bench.ask(&[1]);
    bench.next_run().await;
    let late = bench.ask_within(&[2], Some(Duration::from_millis(1))).await.expect("no panic");
    assert!(matches!(late, Err(RunError::Late(_))), "{late:?}");
    bench.go_on();
    assert_eq!(running.await.expect("no panic").expect("an answer"), [2]);
    let third = bench.ask(&[3, 4, 5]);
    assert_eq!(bench.next_run().await, 3, "the late one does not run");
    bench.go_on();
    third.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn a_timeout_does_not_count_once_the_run_has_begun() {
    let brief = Duration::from_millis(1);
    let (reply, answer) = oneshot::channel();
    let begun = AtomicBool::new(true);
    let run = async {
        tokio::time::sleep(5 * brief).await; // longer than the timeout, which is the point
        reply.send(Ok(Vec::new())).expect("it is waited for");
    };
    let (answer, ()) = tokio::join!(wait(answer, (Instant::now(), Some(brief)), &begun), run);
    assert_eq!(answer.expect("an answer"), []);
}

#[tokio::test]
async fn when_the_batcher_is_gone_its_threads_end() {
    let bench = Bench::new(8);
    let first = bench.ask(&[1]);
    bench.next_run().await;
    bench.go_on();
    first.await.expect("no panic").expect("an answer");
    let Bench { batcher, threads, .. } = bench;
    drop(batcher);
    threads.into_iter().for_each(|thread| thread.join().expect("it ends in peace"));
}

#[tokio::test]
async fn a_panic_is_known_and_leaves_nobody_waiting() {
    let bench = Bench::new(8);
    let first = bench.ask(&[99]);
    bench.next_run().await;
    let second = bench.ask(&[1]);
    bench.until_waiting(1).await;
    bench.go_on();
    assert!(matches!(first.await.expect("no panic here"), Err(RunError::Stopped)));
    assert!(matches!(second.await.expect("no panic here"), Err(RunError::Stopped)));
    bench.batcher.crashed().cancelled().await;
    assert!(!bench.batcher.is_alive());
}

#[tokio::test]
async fn what_waits_is_shed_and_what_runs_is_answered() {
    let bench = Bench::new(8);
    let running = bench.ask(&[1]);
    bench.next_run().await;
    let waiting = [bench.ask(&[2]), bench.ask(&[3])];
    bench.until_waiting(2).await;
    bench.batcher.shed();
    assert_eq!(bench.batcher.load(), (1, 0));
    for answer in waiting {
        let answer = answer.await.expect("no panic");
        assert!(matches!(answer, Err(RunError::Shed)), "{answer:?}");
    }
    bench.go_on();
    assert_eq!(running.await.expect("no panic").expect("an answer"), [2]);
}
