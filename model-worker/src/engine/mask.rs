//! Which tokens may come next: what restricts an answer beyond its likelihood.
//!
//! A mask has words of 32 bits; token `i` is allowed where bit `i % 32` of word `i / 32` is set, and tokens past the last
//! word are not.

use std::fmt::Debug;
use std::sync::Arc;

/// Why a mask could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be said which tokens are allowed here: {0}")]
pub struct MaskError(pub String);

/// What one answer may consist of, followed token by token.
///
/// For each token: [`TokenMask::compute`], which may take a while and needs no logits, so that it can run on another
/// thread while the model does; then [`TokenMask::words`]; then [`TokenMask::accept`] of the token that was chosen. An
/// answer that is resumed accepts its tokens first.
pub trait TokenMask: Debug + Send {
    /// Finds out what is allowed after the tokens accepted so far.
    ///
    /// # Errors
    /// When that cannot be said; the sequence cannot go on.
    fn compute(&mut self) -> Result<(), MaskError>;

    /// What the last [`TokenMask::compute`] found; before the first, nothing is allowed or the same as after it.
    fn words(&self) -> &[u32];

    /// Takes a token of the answer.
    ///
    /// # Errors
    /// When the token was not allowed.
    fn accept(&mut self, token: u32) -> Result<(), MaskError>;

    /// Another mask in the same state, for another answer to the same request.
    fn boxed_clone(&self) -> Box<dyn TokenMask>;
}

impl Clone for Box<dyn TokenMask> {
    fn clone(&self) -> Self {
        (**self).boxed_clone()
    }
}

/// The same tokens everywhere in the answer. Clones share them.
#[derive(Debug, Clone)]
pub struct AllowedTokens {
    words: Arc<[u32]>,
}

impl AllowedTokens {
    /// Allows these tokens and no other.
    pub fn new(tokens: &[u32]) -> Self {
        let length = tokens.iter().max().map_or(0, |last| *last as usize / 32 + 1);
        let mut words = vec![0_u32; length];
        for token in tokens {
            words[*token as usize / 32] |= 1 << (token % 32);
        }
        Self { words: words.into() }
    }

    fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

impl TokenMask for AllowedTokens {
    fn compute(&mut self) -> Result<(), MaskError> {
        Ok(())
    }

    fn words(&self) -> &[u32] {
        &self.words
    }

    fn accept(&mut self, token: u32) -> Result<(), MaskError> {
        if self.allows(token) { Ok(()) } else { Err(MaskError(format!("token {token} came and is none of these"))) }
    }

    fn boxed_clone(&self) -> Box<dyn TokenMask> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_bits_of_its_tokens_and_no_others() {
        let mut mask = AllowedTokens::new(&[0, 31, 32, 69, 69]);
        mask.compute().expect("it is always known");
        assert_eq!(mask.words(), [1 | 1 << 31, 1, 1 << 5]);
        assert!(AllowedTokens::new(&[]).words().is_empty());
    }

    #[test]
    fn what_is_not_allowed_is_not_accepted() {
        let mut mask: Box<dyn TokenMask> = Box::new(AllowedTokens::new(&[7]));
        let mut copy = mask.clone();
        assert_eq!(mask.accept(7), Ok(()));
        for token in [6, 39, 1000] {
            let error = copy.accept(token).expect_err("not allowed");
            assert!(error.to_string().contains(&token.to_string()), "{error}");
        }
    }
}
