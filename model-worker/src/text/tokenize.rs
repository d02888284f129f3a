//! The vocabulary of a model, for whoever wants to count, cut or look.

use muster_shared::generate::Prompt;
use muster_shared::problem::Problem;
use muster_shared::text::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

use super::prepare::check_ids;
use super::{TextModel, count};
use crate::language::LanguageModel;
use crate::tokenizer::Tokenizer;

/// What has a vocabulary.
pub trait Vocabulary {
    /// Tokens of a prompt.
    ///
    /// # Errors
    /// When it cannot be rendered or tokenized.
    fn tokens(&self, request: &TokenizeRequest) -> Result<Vec<u32>, Problem>;

    /// The tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// Tokens that the model knows.
    fn size(&self) -> u32;

    /// Longest prompt, in tokens.
    fn longest(&self) -> usize;
}

impl Vocabulary for LanguageModel {
    fn tokens(&self, request: &TokenizeRequest) -> Result<Vec<u32>, Problem> {
        self.prompt_tokens(&request.prompt, request.add_special_tokens)
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn size(&self) -> u32 {
        self.vocab()
    }

    fn longest(&self) -> usize {
        self.context()
    }
}

impl Vocabulary for TextModel {
    fn tokens(&self, request: &TokenizeRequest) -> Result<Vec<u32>, Problem> {
        match &request.prompt {
            Prompt::Text(text) => self
                .tokenizer
                .encode(text, request.add_special_tokens)
                .map_err(|error| Problem::invalid("prompt", format!("the prompt cannot be tokenized: {error}"))),
            Prompt::Tokens(tokens) => {
                check_ids("prompt", self.size(), tokens, |index| format!("prompt[{index}]"))?;
                Ok(tokens.clone())
            }
            Prompt::Chat(_) => {
                let message = format!("model `{}` has no chat template; send the text as `prompt`", self.name);
                Err(Problem::invalid("messages", message))
            }
        }
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn size(&self) -> u32 {
        self.tokenizer.vocab_size()
    }

    fn longest(&self) -> usize {
        self.max_tokens
    }
}

/// The tokens of a prompt, and their texts. Takes time in proportion to its length: not for a thread of the runtime.
///
/// # Errors
/// When it cannot be rendered or tokenized, or holds ids that the vocabulary has not.
pub fn tokenize(model: &dyn Vocabulary, request: &TokenizeRequest) -> Result<TokenizeResponse, Problem> {
    let tokens = model.tokens(request)?;
    // Ids up to the highest may have no token in between.
    let piece = |&token: &u32| model.tokenizer().piece(token).unwrap_or_default();
    Ok(TokenizeResponse { pieces: tokens.iter().map(piece).collect(), max_tokens: count(model.longest()), tokens })
}

/// The text of tokens. Takes time in proportion to their number.
///
/// # Errors
/// For an id that the vocabulary has not.
pub fn detokenize(model: &dyn Vocabulary, request: &DetokenizeRequest) -> Result<DetokenizeResponse, Problem> {
    check_ids("tokens", model.size(), &request.tokens, |index| format!("tokens[{index}]"))?;
    Ok(DetokenizeResponse { text: model.tokenizer().text(&request.tokens) })
}
