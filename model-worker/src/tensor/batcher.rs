//! The instances of one version of a model: threads that each own a session, behind one bounded queue.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::batch::{self, Inputs};
use super::check::Checked;
use super::queue::{Batching, Next, Queue, Waiting};
use super::statistics::{Recorder, Run};
use crate::metrics::TensorMetrics;
use crate::model::ModelError;
use crate::model::tensor::{Array, TensorModel};

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The queue is full.
    #[error("{running} requests run and {waiting} wait, which is all that this model takes")]
    Overloaded {
        /// Requests that run.
        running: usize,
        /// Requests that wait.
        waiting: usize,
    },
    /// It waited for longer than it wants.
    #[error("the request waited for its timeout of {} µs and did not begin", .0.as_micros())]
    Late(Duration),
    /// It waited when the machine ran short of memory.
    #[error(
        "this worker's machine is short of memory, and it gives up the requests that wait in it, so that another takes them"
    )]
    Shed,
    /// The graph failed.
    #[error(transparent)]
    Failed(#[from] ModelError),
    /// The threads have ended.
    #[error("the model has stopped")]
    Stopped,
}

/// How the instances of a version work.
#[derive(Debug, Clone)]
pub struct BatcherSettings {
    /// The model's name and version, for threads, metrics and the log.
    pub name: (String, String),
    /// How requests go together; absent: each alone.
    pub batching: Option<Batching>,
    /// Requests that may wait.
    pub waiting: usize,
}

/// The instances of one version. They end when this is gone and the queue is empty.
#[derive(Debug)]
pub struct Batcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: BatcherSettings,
    state: Mutex<State>,
    wake: Condvar,
    running: AtomicUsize,
    /// Instances whose thread has not ended.
    alive: AtomicUsize,
    crashed: CancellationToken,
    recorder: Recorder,
    metrics: TensorMetrics,
}

#[derive(Debug)]
struct State {
    queue: Queue<Job>,
    /// The batcher is gone: what waits is finished, and nothing more will come.
    closed: bool,
}

/// A request as an instance runs it.
#[derive(Debug)]
struct Job {
    inputs: Inputs,
    /// Set when it has begun, from when on its timeout does not count.
    begun: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<Vec<Array>, RunError>>,
}

impl Batcher {
    /// Starts one thread for each of the models, which are the same graph.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        settings: BatcherSettings,
        models: Vec<Box<dyn TensorModel>>,
    ) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let state = State { queue: Queue::new(settings.batching.clone()), closed: false };
        let shared = Arc::new(Shared {
            metrics: TensorMetrics::new(&settings.name.0),
            settings,
            state: Mutex::new(state),
            wake: Condvar::new(),
            running: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            crashed: CancellationToken::new(),
            recorder: Recorder::default(),
        });
        let batcher = Self { shared };
        let start = |model: Box<dyn TensorModel>| {
            let shared = Arc::clone(&batcher.shared);
            let (name, version) = &shared.settings.name;
            let thread = std::thread::Builder::new().name(format!("tensor {name} {version}"));
            shared.alive.fetch_add(1, Ordering::Relaxed);
            thread.spawn(move || {
                let _ended = Ended(Arc::clone(&shared));
                Instance { model, shared }.run();
            })
        };
        let threads = models.into_iter().map(start).collect::<std::io::Result<_>>()?;
        Ok((batcher, threads))
    }

    /// Runs a request; gives its outputs in the order in which they are wanted. Dropping the future cancels what has not
    /// begun.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(&self, request: Checked) -> Result<Vec<Array>, RunError> {
        let (arrived, timeout) = (Instant::now(), request.timeout);
        let begun = Arc::new(AtomicBool::new(false));
        let answer = self.push(request, arrived, &begun);
        let outcome = match answer {
            Ok(answer) => wait(answer, (arrived, timeout), &begun).await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            self.shared.recorder.failed(arrived.elapsed());
            self.shared.metrics.failed();
        }
        outcome
    }

    fn push(
        &self,
        request: Checked,
        arrived: Instant,
        begun: &Arc<AtomicBool>,
    ) -> Result<oneshot::Receiver<Result<Vec<Array>, RunError>>, RunError> {
        let likeness = batch::likeness(&request);
        let (reply, answer) = oneshot::channel();
        let mut state = self.shared.lock();
        if self.shared.alive.load(Ordering::Relaxed) == 0 {
            return Err(RunError::Stopped);
        }
        if state.queue.len() >= self.shared.settings.waiting {
            state.queue.remove(|waiting| waiting.job.reply.is_closed());
        }
        if state.queue.len() >= self.shared.settings.waiting {
            let (running, waiting) = (self.shared.running.load(Ordering::Relaxed), state.queue.len());
            return Err(RunError::Overloaded { running, waiting });
        }
        state.queue.push(Waiting {
            job: Job { inputs: request.inputs, begun: Arc::clone(begun), reply },
            rows: request.rows.filter(|&rows| rows > 0),
            likeness,
            priority: request.priority,
            arrived,
            deadline: request.timeout.and_then(|timeout| arrived.checked_add(timeout)),
        });
        drop(state);
        self.shared.wake.notify_one();
        Ok(answer)
    }

    /// Refuses the requests that wait, so that another worker takes them.
    pub fn shed(&self) {
        let shed = self.shared.lock().queue.remove(|_| true);
        if shed.is_empty() {
            return;
        }
        let (model, version) = &self.shared.settings.name;
        let requests = shed.len();
        tracing::warn!(
            model,
            version,
            requests,
            "the machine is short of memory; what waited is left to other workers"
        );
        self.shared.metrics.shed(requests);
        for waiting in shed {
            // The client may have gone away meanwhile.
            let _ = waiting.job.reply.send(Err(RunError::Shed));
        }
    }

    /// Requests that run, and requests that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.shared.running.load(Ordering::Relaxed), self.shared.lock().queue.len())
    }

    /// Instances that run.
    pub fn instances(&self) -> usize {
        self.shared.alive.load(Ordering::Relaxed)
    }

    /// Most rows of a run.
    pub fn largest(&self) -> usize {
        self.shared.settings.batching.as_ref().map_or(1, |batching| batching.largest)
    }

    /// What runs have cost so far.
    pub fn recorder(&self) -> &Recorder {
        &self.shared.recorder
    }

    /// Whether every instance's thread runs.
    pub fn is_alive(&self) -> bool {
        !self.shared.crashed.is_cancelled()
    }

    /// Is cancelled when the thread of an instance has panicked.
    pub fn crashed(&self) -> CancellationToken {
        self.shared.crashed.clone()
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

async fn wait(
    mut answer: oneshot::Receiver<Result<Vec<Array>, RunError>>,
    (arrived, timeout): (Instant, Option<Duration>),
    begun: &AtomicBool,
) -> Result<Vec<Array>, RunError> {
    if let Some(timeout) = timeout {
        match tokio::time::timeout(timeout, &mut answer).await {
            Ok(Ok(answer)) => return answer,
            // The queue's own clock may be a moment ahead of this one.
            Ok(Err(_)) if !begun.load(Ordering::Acquire) && arrived.elapsed() >= timeout => {
                return Err(RunError::Late(timeout));
            }
            Ok(Err(_)) => return Err(RunError::Stopped),
            Err(_) if !begun.load(Ordering::Acquire) => return Err(RunError::Late(timeout)),
            Err(_) => {}
        }
    }
    answer.await.unwrap_or(Err(RunError::Stopped))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to run next; waits for it. `None` when nothing more will come.
    fn take(&self) -> Option<Vec<Waiting<Job>>> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            // Their askers are gone, or know by their own clocks.
            let is_late = |waiting: &Waiting<Job>| waiting.deadline.is_some_and(|deadline| deadline <= now);
            state.queue.remove(|waiting| waiting.job.reply.is_closed() || is_late(waiting));
            state = match state.queue.next(now) {
                Next::Run(jobs) => {
                    let begin = |waiting: &Waiting<Job>| waiting.job.begun.store(true, Ordering::Release);
                    jobs.iter().for_each(begin);
                    self.running.fetch_add(jobs.len(), Ordering::Relaxed);
                    if !state.queue.is_empty() {
                        self.wake.notify_one(); // for another instance
                    }
                    return Some(jobs);
                }
                Next::Wait(until) => {
                    let pause = until.saturating_duration_since(now);
                    self.wake.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
                Next::Idle if state.closed => return None,
                Next::Idle => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// Notices when an instance's thread ends.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.crashed.cancel();
        }
        if self.0.alive.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.lock().queue.remove(|_| true); // nobody is left to answer them
        }
    }
}

/// Counts requests as running while it lives.
struct Running<'a>(&'a AtomicUsize, usize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// One session and its thread.
struct Instance {
    model: Box<dyn TensorModel>,
    shared: Arc<Shared>,
}

impl Instance {
    fn run(&mut self) {
        while let Some(jobs) = self.shared.take() {
            let shared = Arc::clone(&self.shared);
            let _running = Running(&shared.running, jobs.len());
            self.answer(jobs);
        }
    }

    fn answer(&mut self, jobs: Vec<Waiting<Job>>) {
        let begun = Instant::now();
        if jobs.len() > 1 {
            match self.together(&jobs) {
                Ok((answers, run)) => return self.deliver(jobs, answers, run, begun),
                Err(TogetherError::Rows) => {
                    let (model, version) = &self.shared.settings.name;
                    tracing::warn!(
                        model,
                        version,
                        "a run did not give a row for each row; from now on requests run alone"
                    );
                    self.shared.lock().queue.stop_batching();
                }
                // Perhaps only one of them is at fault: the others shall not suffer.
                Err(TogetherError::Failed) => {}
            }
        }
        jobs.into_iter().for_each(|job| self.alone(job));
    }

    fn together(&mut self, jobs: &[Waiting<Job>]) -> Result<(Vec<Vec<Array>>, Run), TogetherError> {
        let begun = Instant::now();
        let rows: Vec<usize> = jobs.iter().map(|job| job.rows.unwrap_or(1)).collect();
        let joined = batch::join(&jobs.iter().map(|job| &job.job.inputs).collect::<Vec<_>>());
        let joined_at = Instant::now();
        let outputs = self.run_graph(&joined, &jobs[0].likeness.wanted).map_err(|_| TogetherError::Failed)?;
        let ran_at = Instant::now();
        let answers = batch::split(&outputs, &rows).ok_or(TogetherError::Rows)?;
        let run = Run {
            requests: jobs.len(),
            rows: rows.iter().sum(),
            input: joined_at - begun,
            infer: ran_at - joined_at,
            output: ran_at.elapsed(),
        };
        Ok((answers, run))
    }

    fn alone(&mut self, job: Waiting<Job>) {
        let begun = Instant::now();
        match self.run_graph(&job.job.inputs, &job.likeness.wanted) {
            Ok(outputs) => {
                let none = Duration::ZERO;
                let rows = job.rows.unwrap_or(1);
                let run = Run { requests: 1, rows, input: none, infer: begun.elapsed(), output: none };
                self.deliver(vec![job], vec![outputs], run, begun);
            }
            Err(error) => {
                let (model, version) = &self.shared.settings.name;
                tracing::warn!(model, version, %error, "a request's run failed");
                // The client may have gone away meanwhile.
                let _ = job.job.reply.send(Err(error.into()));
            }
        }
    }

    fn run_graph(&mut self, inputs: &Inputs, wanted: &[usize]) -> Result<Vec<Array>, ModelError> {
        let borrowed: Vec<(usize, &Array)> = inputs.iter().map(|(place, array)| (*place, array)).collect();
        self.model.run(&borrowed, wanted)
    }

    fn deliver(&self, jobs: Vec<Waiting<Job>>, answers: Vec<Vec<Array>>, run: Run, begun: Instant) {
        let times = jobs.iter().map(|job| (begun.saturating_duration_since(job.arrived), job.arrived.elapsed()));
        self.shared.recorder.ran(run, times);
        self.shared.metrics.ran(run);
        for (job, answer) in jobs.into_iter().zip(answers) {
            // The client may have gone away meanwhile.
            let _ = job.job.reply.send(Ok(answer));
        }
    }
}

/// Why requests did not run together.
enum TogetherError {
    /// An output has other rows than the inputs.
    Rows,
    /// The run failed.
    Failed,
}

#[cfg(test)]
mod tests;
