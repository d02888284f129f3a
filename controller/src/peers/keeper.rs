//! Probes the peers and looks at their file, for ever. Nothing that a peer or the file does ends it.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use muster_shared::id::WorkerId;
use muster_shared::topology::PeersFile;
use muster_shared::watch::{Sight, Watch};
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use super::probe::probe;
use super::pulse::{Probe, Rounds, Turn};
use super::{Peer, PeersConfig, file};
use crate::metrics;
use crate::registry::{Answer, Verdict, millis};
use crate::service::Service;

/// Time between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);
/// Newcomers that are met at the same time: so many that those that hang take no time of others, and fewer than the files
/// that a process may usually have open.
const MET_AT_ONCE: usize = 512;
/// Pause between two looks at a file that is just being written.
const REST: Duration = Duration::from_millis(50);
/// Looks after which it is taken as it is.
const RESTLESS: u32 = 20;
/// Longest wait for newcomers of a changed file to answer before it is in force.
const MEETING: Duration = Duration::from_secs(2);

/// What is known of static peers beside the registry.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    file: Mutex<Option<PeersFile>>,
    /// At which requests have failed; bounded by what fails between two wakes of the keeper.
    doubtful: Mutex<Vec<WorkerId>>,
    /// Rung when there is one more.
    wake: Notify,
}

impl Notes {
    /// How the file stands; `None`: there is none.
    pub(crate) fn file(&self) -> Option<PeersFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has these probed soon.
    pub(crate) fn doubt(&self, peers: Vec<WorkerId>) {
        if !peers.is_empty() {
            self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).extend(peers);
            self.wake.notify_one();
        }
    }

    fn take_doubtful(&self) -> Vec<WorkerId> {
        std::mem::take(&mut *self.doubtful.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, change: impl FnOnce(&mut Option<PeersFile>)) {
        change(&mut self.file.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Probes the peers of a file and follows its changes; without a file, rests.
pub(crate) async fn keep(service: &Service, config: Option<&PeersConfig>) -> Infallible {
    let Some(config) = config else { return std::future::pending().await };
    let mut keeper = Keeper {
        service,
        config,
        rounds: Rounds::new(config.probe_interval),
        text: config.text.clone(),
        trial: None,
        rng: rand::make_rng(),
    };
    keeper.put_in_force(&config.peers, Vec::new());
    keeper.run().await
}

struct Keeper<'a> {
    service: &'a Service,
    config: &'a PeersConfig,
    rounds: Rounds,
    /// What is in force.
    text: String,
    /// What will be.
    trial: Option<Trial<'a>>,
    rng: StdRng,
}

/// A changed file whose newcomers are asked before it is in force: whoever takes the place of others shall be able to at
/// once, so that no request finds nobody in between.
struct Trial<'a> {
    text: String,
    peers: Vec<Peer>,
    meetings: BoxStream<'a, (WorkerId, Result<Answer, String>)>,
    answers: Vec<(WorkerId, Answer)>,
    until: Instant,
}

impl Trial<'_> {
    /// Resolves when every newcomer has answered or failed, or had time to. Nothing is lost when the future is dropped.
    async fn end(trial: &mut Option<Self>) {
        let Some(trial) = trial else { return std::future::pending().await };
        loop {
            tokio::select! {
                met = trial.meetings.next() => match met {
                    Some((id, answer)) => trial.answers.extend(answer.ok().map(|answer| (id, answer))),
                    None => return,
                },
                () = sleep_until(Some(trial.until)) => return,
            }
        }
    }
}

impl<'a> Keeper<'a> {
    async fn run(&mut self) -> Infallible {
        let watch = Watch::new(self.config.path.clone(), self.text.clone());
        let (news, mut sights) = tokio::sync::mpsc::channel(1); // the next look comes when this one is dealt with
        let looks = look_for_ever(watch, self.config, news);
        tokio::pin!(looks);
        let mut probes = FuturesUnordered::new();
        loop {
            while let Some(due) = self.rounds.pop_due(Instant::now()) {
                let outbound = &self.service.outbound;
                probes.push(async move {
                    let answer = probe(outbound, &due.peer).await;
                    (due, answer)
                });
            }
            let next = self.rounds.next();
            tokio::select! {
                Some((due, answer)) = probes.next() => self.judge(&due, answer),
                Some(news) = sights.recv() => self.follow(news),
                () = self.service.peers.wake.notified() => self.hasten(),
                () = Trial::end(&mut self.trial) => self.end_trial(),
                () = sleep_until(next) => {}
                never = &mut looks => match never {},
            }
        }
    }

    fn hasten(&mut self) {
        let now = Instant::now();
        for id in self.service.peers.take_doubtful() {
            self.rounds.hasten(&id, now);
        }
    }

    /// Takes the end of a probe.
    fn judge(&mut self, due: &Probe, answer: Result<Answer, String>) {
        let Some(turn) = self.rounds.take(due, answer.is_ok(), Instant::now(), &mut self.rng) else { return };
        let id = &due.peer.id;
        match answer {
            Ok(answer) => self.take(&due.peer, answer),
            Err(reason) => {
                tracing::debug!(worker = %id, reason, "a probe failed");
                if self.rounds.is_down(id) {
                    let verdict = Verdict::Down(reason);
                    self.service.change(|registry, now| registry.judge_peer(id, verdict, now));
                }
            }
        }
        if turn == Some(Turn::Up) {
            self.service.change(|registry, now| registry.judge_peer(id, Verdict::Up, now));
        }
    }

    fn take(&self, peer: &Peer, answer: Answer) {
        let told = answer.models.clone().unwrap_or_default();
        self.service.with(|desk, now| {
            if desk.change(now, |registry| registry.peer_answered(&peer.id, answer, now)) {
                desk.warn_of_hidden(&peer.id, &told);
            }
        });
    }

    /// Takes what has become of the file: whole, or not at all.
    fn follow(&mut self, news: News) {
        let name = self.config.path.display().to_string();
        self.trial = None; // what it would bring is past already
        let error = match news {
            News::Unreadable(error) => error,
            News::Text(text, _) if text == self.text => {
                let mut was_wrong = false;
                self.service
                    .peers
                    .note(|file| was_wrong = file.as_mut().is_some_and(|file| file.error.take().is_some()));
                if was_wrong {
                    tracing::info!(file = name, "the peers file is again as it is in force");
                }
                return;
            }
            News::Text(text, Ok(peers)) => {
                self.trial = Some(self.try_out(text, peers));
                return;
            }
            News::Text(_, Err(mistakes)) => mistakes,
        };
        metrics::reloaded(false);
        tracing::warn!(
            "the peers file has changed, and cannot be used; the peers stay as they were read last\n{error}"
        );
        self.service.peers.note(|file| {
            if let Some(file) = file {
                file.error = Some(error);
            }
        });
    }

    fn try_out(&self, text: String, peers: Vec<Peer>) -> Trial<'a> {
        let newcomers: Vec<Peer> = peers.iter().filter(|peer| !self.rounds.knows(peer)).cloned().collect();
        let outbound = &self.service.outbound;
        let meet = move |peer: Peer| async move {
            let answer = probe(outbound, &peer).await;
            (peer.id, answer)
        };
        let meetings = stream::iter(newcomers).map(meet).buffer_unordered(MET_AT_ONCE).boxed();
        Trial { text, peers, meetings, answers: Vec::new(), until: Instant::now() + MEETING }
    }

    fn end_trial(&mut self) {
        let Some(Trial { text, peers, answers, .. }) = self.trial.take() else { return };
        self.text = text;
        self.put_in_force(&peers, answers);
        metrics::reloaded(true);
        let file = self.config.path.display();
        tracing::info!(%file, peers = peers.len(), "the peers file has changed; it is in force");
    }

    /// Makes these the peers, of which some have answered already.
    fn put_in_force(&mut self, peers: &[Peer], answers: Vec<(WorkerId, Answer)>) {
        self.service.change(|registry, now| {
            registry.set_peers(peers, now);
            for (id, answer) in answers {
                registry.peer_answered(&id, answer, now);
                registry.judge_peer(&id, Verdict::Up, now);
            }
        });
        self.rounds.set(peers, Instant::now(), &mut self.rng);
        let loaded = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let file = PeersFile {
            path: self.config.path.display().to_string(),
            loaded_ms: millis(loaded),
            peers: u32::try_from(peers.len()).unwrap_or(u32::MAX),
            error: None,
        };
        self.service.peers.note(|known| *known = Some(file));
    }
}

/// What has become of the file.
enum News {
    /// It cannot be read, for that reason.
    Unreadable(String),
    /// It has that text, and these peers or mistakes.
    Text(String, Result<Vec<Peer>, String>),
}

/// Looks at the file again and again, and tells what is new of it.
async fn look_for_ever(mut watch: Watch, config: &PeersConfig, news: tokio::sync::mpsc::Sender<News>) -> Infallible {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sight;
        (watch, sight) = look(watch).await;
        if let Some(mut sight) = sight {
            // It may be half written.
            for _ in 0..RESTLESS {
                tokio::time::sleep(REST).await;
                let next;
                (watch, next) = look(watch).await;
                match next {
                    Some(next) => sight = next,
                    None => break,
                }
            }
            if let Some(read) = understood(sight, config).await {
                // The receiver lives as long as this future does.
                let _ = news.send(read).await;
            }
        }
    }
}

/// Looks once, off the threads of the runtime: the file may lie on a network that is slow.
async fn look(mut watch: Watch) -> (Watch, Option<Sight>) {
    let before = watch.clone();
    let look = tokio::task::spawn_blocking(move || {
        let sight = watch.look();
        (watch, (sight != Sight::Same).then_some(sight))
    });
    look.await.unwrap_or((before, None))
}

/// What was seen, understood off the threads of the runtime: a file of tens of thousands of peers takes a while.
async fn understood(sight: Sight, config: &PeersConfig) -> Option<News> {
    let (name, own) = (config.path.display().to_string(), config.own);
    let read = tokio::task::spawn_blocking(move || match sight {
        Sight::Same => None,
        Sight::Unreadable(error) => Some(News::Unreadable(error)),
        Sight::Text(text) => {
            let peers = file::parse(&name, &text, Some(own)).map_err(|mistakes| mistakes.to_string());
            Some(News::Text(text, peers))
        }
    });
    read.await.ok().flatten()
}

/// Resolves at that moment, or never.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
