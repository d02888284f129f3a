//! What is asked of every live worker that knows tensors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use muster_shared::client::ClientError;
use muster_shared::problem::{Kind, Problem, chain};
use muster_shared::tensor::{
    BatchStatistics, Duration as Spent, IndexEntry, InferStatistics, ModelState, ModelStatistics,
};
use muster_shared::transport::Transport;

use super::super::Upstream;
use super::super::job::{silent, worker_failed};
use super::super::peer::Peer;
use super::{TENSORS, http};

/// Longest wait for a worker's word about its models.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for loading one, which reads files, and for unloading one, which waits for what runs.
const LOADING: Duration = Duration::from_secs(600);

/// What shall become of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is loaded, or loaded again.
    Load,
    /// It is unloaded.
    Unload,
}

impl Upstream {
    /// What the runs of a model have cost, or of all models: the sum over all workers. One that does not answer is left
    /// out, and its runs with it.
    ///
    /// # Errors
    /// When no worker knows the model, or none answers.
    pub(crate) async fn statistics(
        &self,
        model: Option<&str>,
        version: Option<&str>,
    ) -> Result<Vec<ModelStatistics>, Problem> {
        if let Some(models) = model.and_then(|model| self.0.view.stands_for(model)) {
            return self.statistics_of_all(&models, version).await;
        }
        let peers = self.speaking(model);
        if let Some(model) = model.filter(|_| peers.is_empty()) {
            return Err(not_served(model));
        }
        let answers = join_all(
            peers
                .into_iter()
                .map(|peer| async move { within(&peer, PATIENCE, self.statistics_of(&peer, model, version)).await }),
        );
        Ok(sum(heard(answers.await)?.into_iter().flatten()))
    }

    /// Those of all models that an alias stands for. One that no worker knows, or that none has in that version, is left
    /// out.
    async fn statistics_of_all(
        &self,
        models: &[String],
        version: Option<&str>,
    ) -> Result<Vec<ModelStatistics>, Problem> {
        let asked = models.iter().map(|model| Box::pin(self.statistics(Some(model), version)));
        let (mut found, mut last) = (Vec::new(), None);
        for answer in join_all(asked).await {
            match answer {
                Ok(statistics) => found.extend(statistics),
                Err(problem) => last = Some(problem),
            }
        }
        last.filter(|_| found.is_empty()).map_or(Ok(found), Err)
    }

    async fn statistics_of(
        &self,
        peer: &Peer,
        model: Option<&str>,
        version: Option<&str>,
    ) -> Result<Vec<ModelStatistics>, ClientError> {
        #[derive(serde::Deserialize)]
        struct Statistics {
            model_stats: Vec<ModelStatistics>,
        }
        if peer.transport == Transport::Grpc {
            return self.grpc(&peer.address, PATIENCE).model_statistics(model, version).await;
        }
        let path = model.map_or_else(|| "/v2/models".to_owned(), |model| http::model_path(model, version));
        let statistics: Statistics = http::get(peer, self.authorization(), &format!("{path}/stats")).await?;
        Ok(statistics.model_stats)
    }

    /// Every model of every worker, each version once: ready where one worker is.
    ///
    /// # Errors
    /// When there are workers, and none answers.
    pub(crate) async fn repository_index(&self) -> Result<Vec<IndexEntry>, Problem> {
        let mut index: BTreeMap<(String, String), IndexEntry> = BTreeMap::new();
        for entry in
            heard(self.indices().await.into_iter().map(|(_, entries)| entries).collect())?.into_iter().flatten()
        {
            let key = (entry.name.clone(), entry.version.clone());
            let better =
                index.get(&key).is_none_or(|known| entry.state == ModelState::Ready && known.state != entry.state);
            if better {
                index.insert(key, entry);
            }
        }
        Ok(index.into_values().collect())
    }

    /// Loads or unloads a model at every live worker that has it.
    ///
    /// # Errors
    /// When no worker has it, or one of them failed: then it may have changed at others.
    pub(crate) async fn change(&self, model: &str, change: Change) -> Result<(), Problem> {
        let has = |entries: &Vec<IndexEntry>| entries.iter().any(|entry| entry.name == model);
        let indices = self.indices().await.into_iter();
        let peers: Vec<_> =
            indices.filter(|(_, entries)| entries.as_ref().is_ok_and(has)).map(|(peer, _)| peer).collect();
        if peers.is_empty() {
            return Err(not_served(model));
        }
        let count = peers.len();
        let changed = join_all(
            peers
                .into_iter()
                .map(|peer| async move { within(&peer, LOADING, self.change_at(&peer, model, change)).await }),
        );
        let failed: Vec<Problem> = changed.await.into_iter().filter_map(|changed| changed.err().map(words)).collect();
        match failed.first() {
            None => Ok(()),
            Some(problem) if failed.len() == count => Err(problem.clone()),
            Some(problem) => {
                let message =
                    format!("{} of {count} workers failed, the others did it: {}", failed.len(), problem.message);
                Err(Problem { message, ..problem.clone() })
            }
        }
    }

    async fn change_at(&self, peer: &Peer, model: &str, change: Change) -> Result<(), ClientError> {
        if peer.transport == Transport::Grpc {
            let worker = self.grpc(&peer.address, LOADING);
            return match change {
                Change::Load => worker.load_model(model).await,
                Change::Unload => worker.unload_model(model).await,
            };
        }
        let verb = match change {
            Change::Load => "load",
            Change::Unload => "unload",
        };
        let path = format!("/v2/repository/models/{}/{verb}", http::segment(model));
        http::post(peer, self.authorization(), &path).await.map(drop)
    }

    /// The models of every worker.
    async fn indices(&self) -> Vec<(Arc<Peer>, Result<Vec<IndexEntry>, ClientError>)> {
        let ask = |peer: Arc<Peer>| async move {
            let entries = within(&peer, PATIENCE, async {
                if peer.transport == Transport::Grpc {
                    return self.grpc(&peer.address, PATIENCE).repository_index().await;
                }
                let body = http::post(&peer, self.authorization(), "/v2/repository/index").await?;
                http::read(&peer, &body)
            });
            let entries = entries.await;
            (peer, entries)
        };
        join_all(self.speaking(None).into_iter().map(ask)).await
    }

    /// Live workers that know tensors, and the model, where one is named.
    fn speaking(&self, model: Option<&str>) -> Vec<Arc<Peer>> {
        self.0.view.speaking(TENSORS, model, &self.0.peers)
    }
}

async fn within<T>(
    peer: &Peer,
    patience: Duration,
    asked: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(silent(peer.address.clone())))
}

/// What was heard. A worker that is about to go does not spoil the answers of the others.
fn heard<T>(answers: Vec<Result<T, ClientError>>) -> Result<Vec<T>, Problem> {
    let asked = !answers.is_empty();
    let (mut heard, mut last) = (Vec::new(), None);
    for answer in answers {
        match answer {
            Ok(answer) => heard.push(answer),
            Err(error) => {
                tracing::warn!(error = chain(&error), "a worker did not tell of its models");
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if asked && heard.is_empty() => Err(words(error)),
        _ => Ok(heard),
    }
}

/// What a client hears: no addresses, no causes.
fn words(error: ClientError) -> Problem {
    match error {
        ClientError::Refused { problem, .. } if problem.kind != Kind::BadKey => problem,
        _ => worker_failed(),
    }
}

fn not_served(model: &str) -> Problem {
    let message =
        format!("no live worker has the model `{model}`; POST /v2/repository/index lists those that there are");
    Problem::new(Kind::UnknownModel, message).with_param("model")
}

fn sum(all: impl Iterator<Item = ModelStatistics>) -> Vec<ModelStatistics> {
    let mut sums: BTreeMap<(String, String), ModelStatistics> = BTreeMap::new();
    for one in all {
        let key = (one.name.clone(), one.version.clone());
        match sums.get_mut(&key) {
            Some(sum) => add(sum, one),
            None => {
                sums.insert(key, one);
            }
        }
    }
    sums.into_values().collect()
}

fn add(sum: &mut ModelStatistics, one: ModelStatistics) {
    sum.last_inference = sum.last_inference.max(one.last_inference);
    sum.inference_count += one.inference_count;
    sum.execution_count += one.execution_count;
    let (to, from) = (&mut sum.inference_stats, one.inference_stats);
    let InferStatistics { success, fail, queue, compute_input, compute_infer, compute_output } = from;
    put(&mut to.success, success);
    put(&mut to.fail, fail);
    put(&mut to.queue, queue);
    put(&mut to.compute_input, compute_input);
    put(&mut to.compute_infer, compute_infer);
    put(&mut to.compute_output, compute_output);
    for batch in one.batch_stats {
        match sum.batch_stats.iter_mut().find(|known| known.batch_size == batch.batch_size) {
            Some(known) => {
                let BatchStatistics { batch_size: _, compute_input, compute_infer, compute_output } = batch;
                put(&mut known.compute_input, compute_input);
                put(&mut known.compute_infer, compute_infer);
                put(&mut known.compute_output, compute_output);
            }
            None => sum.batch_stats.push(batch),
        }
    }
    sum.batch_stats.sort_by_key(|batch| batch.batch_size);
}

fn put(sum: &mut Spent, more: Spent) {
    sum.count += more.count;
    sum.ns = sum.ns.saturating_add(more.ns);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_several_workers_are_summed_by_model_version_and_batch() {
        let one = |version: &str, batch_size, count| ModelStatistics {
            name: "m".to_owned(),
            version: version.to_owned(),
            last_inference: count,
            inference_count: count,
            execution_count: 1,
            inference_stats: InferStatistics { success: Spent { count, ns: 10 }, ..InferStatistics::default() },
            batch_stats: vec![BatchStatistics {
                batch_size,
                compute_infer: Spent { count: 1, ns: 5 },
                ..BatchStatistics::default()
            }],
        };
        let sums = sum([one("1", 4, 3), one("2", 1, 9), one("1", 2, 7), one("1", 4, 1)].into_iter());
        assert_eq!(sums.len(), 2);
        let first = &sums[0];
        assert_eq!((first.last_inference, first.inference_count, first.execution_count), (7, 11, 3));
        assert_eq!(first.inference_stats.success, Spent { count: 11, ns: 30 });
        let batches: Vec<_> =
            first.batch_stats.iter().map(|batch| (batch.batch_size, batch.compute_infer.count)).collect();
        assert_eq!(batches, [(2, 1), (4, 2)]);
    }
}
