//! Which waiting texts run together.
//!
//! On a processor a run is saturated at some 64 tokens and padding is pure loss, so texts of like length share a run
//! and long ones run alone. Nothing waits for company: only what is queued already is put together.

/// Most tokens of one run, padding included, when it holds more than one text.
const TOKENS: usize = 128;
/// Texts looked at for company, from the oldest on.
const WINDOW: usize = 256;

/// Chooses from the lengths of the waiting texts, oldest first, those that run now: the oldest, and others while the
/// run stays below 128 tokens and a tenth of padding. Gives indices in ascending order.
pub fn choose(lengths: &[usize]) -> Vec<usize> {
    let Some((&oldest, others)) = lengths.split_first() else { return Vec::new() };
    let mut candidates: Vec<usize> = (1..=others.len().min(WINDOW)).collect();
    candidates.sort_by_key(|&index| lengths[index].abs_diff(oldest));
    let mut chosen = vec![0];
    let (mut longest, mut sum) = (oldest, oldest);
    for index in candidates {
        let (new_longest, new_sum) = (longest.max(lengths[index]), sum + lengths[index]);
        let padded = new_longest * (chosen.len() + 1);
        if padded > TOKENS || (padded - new_sum) * 10 > padded {
            break; // the next candidate is less alike still
        }
        (longest, sum) = (new_longest, new_sum);
        chosen.push(index);
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn like_lengths_run_together_and_long_texts_alone() {
        assert_eq!(choose(&[10, 300, 10, 11, 40]), [0, 2, 3]);
        assert_eq!(choose(&[300, 10, 10]), [0]);
        assert!(choose(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_run_holds_the_oldest_and_stays_within_its_bounds(
            lengths in proptest::collection::vec(1_usize..400, 1..40),
        ) {
            let chosen = choose(&lengths);
            prop_assert_eq!(chosen[0], 0);
            prop_assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            let longest = chosen.iter().map(|&index| lengths[index]).max().unwrap_or(0);
            prop_assert!(chosen.len() == 1 || longest * chosen.len() <= TOKENS);
        }
    }
}
