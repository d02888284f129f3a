//! How well texts answer a query.

use std::sync::Arc;

use muster_shared::problem::{Kind, Problem};
use muster_shared::text::{RerankRequest, RerankResponse};

use super::{TextModel, classify, deadline, dense, prepare, total, unlike};
use crate::calls::blocking;
use crate::encoder::head::Tokens;
use crate::model::manifest::Task;
use crate::tokenizer::Cut;

/// Most bytes of a query with all of its repetitions: a query of few tokens may still be long, and is tokenized anew
/// beside each document.
const QUERIES: usize = 32 << 20;

impl TextModel {
    /// Scores the documents of a request.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an empty query or document; [`Kind::PromptTooLong`] for a query that leaves no room, and for
    /// a document that is too long, unless the request wants it cut; [`Kind::Overloaded`] at once when there is no room.
    pub async fn rerank(self: Arc<Self>, request: RerankRequest) -> Result<RerankResponse, Problem> {
        let deadline = deadline(request.timeout_ms);
        let raw_scores = request.raw_scores;
        let (model, pairs) = blocking(move || {
            let pairs = self.rerank_pairs(&request)?;
            Ok((self, pairs))
        })
        .await?;
        let prompt_tokens = total(&pairs);
        let logistic = !raw_scores && matches!(model.task, Task::Rerank { logistic: true });
        let score = |logits: Vec<f32>| match logits[..] {
            [logit] if logistic => Ok(classify::logistic(logit)),
            [logit] => Ok(logit),
            _ => Err(unlike("one number for each document")),
        };
        let encoded = model.run("rerank", pairs, deadline).await?.into_iter();
        let scores = encoded.map(|encoded| score(dense(encoded)?)).collect::<Result<_, _>>()?;
        Ok(RerankResponse { scores, prompt_tokens })
    }

    fn rerank_pairs(&self, request: &RerankRequest) -> Result<Vec<Tokens>, Problem> {
        let query = request.query.as_str();
        self.check_query(query)?;
        let all = query.len().saturating_mul(request.documents.len());
        if all > QUERIES {
            let message = format!(
                "query has {} bytes, and is read with each of {} documents; together that is {all} bytes, and {QUERIES} \
                 are taken at most: ask with fewer documents at once",
                query.len(),
                request.documents.len()
            );
            return Err(Problem::invalid("query", message));
        }
        // The query stays whole: a part of it would be another one.
        let cut = request.truncate.then_some(Cut::Last);
        prepare::each("documents", &request.documents, String::len, |place, document| {
            prepare::not_empty(place, document)?;
            self.pair(place, [query, document], cut)
        })
    }

    /// Refuses a query that leaves no room for a document.
    fn check_query(&self, query: &str) -> Result<(), Problem> {
        if query.trim().is_empty() {
            return Err(Problem::invalid("query", "query is empty; it must hold some text"));
        }
        let lengths = prepare::lengths(&self.tokenizer, query);
        let (added, own) =
            lengths.map_err(|error| Problem::invalid("query", format!("query cannot be tokenized: {error}")))?;
        let room = self.max_tokens.saturating_sub(added + 1);
        if own > room {
            let message = format!(
                "query has {own} tokens, and this model takes {} for query and document together, {added} of its own \
                 among them; shorten the query to {room} at most",
                self.max_tokens
            );
            return Err(Problem::new(Kind::PromptTooLong, message).with_param("query"));
        }
        Ok(())
    }
}
