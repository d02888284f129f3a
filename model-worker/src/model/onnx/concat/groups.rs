//! Which rows share a run.

/// What one more run costs, in dead columns that it may save.
///
/// A run reads all weights; a dead column is copied by every run, and attention looks at it. Qwen2.5 0.5B in q4 spends
/// 36 ms of two cores on a run beside what its rows cost, and 0.04 ms on a column: 900 of them. Larger models grow in
/// both, and float32 weights take longer to read.
const RUN: usize = 1024;

/// Splits rows of such lengths into groups, so that runs and padding together cost least; each group lists its rows.
///
/// Within a group every row is padded to the longest. Usually all rows are one group; one very long sequence is set
/// apart, so that short ones are not made as long. Rows that all grow by a token a step stay together, since only
/// the differences of their lengths count.
pub(super) fn groups(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..lengths.len()).collect();
    rows.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    // The cheapest way to run the first so many of these rows, and where its last group begins.
    let mut best = vec![(0, 0)];
    for end in 1..=rows.len() {
        let ways = (0..end).map(|start| {
            let longest = lengths[rows[start]];
            let padding: usize = rows[start..end].iter().map(|&row| longest - lengths[row]).sum();
            (best[start].0 + RUN + padding, start)
        });
        best.push(ways.min().unwrap_or_default());
    }
    let mut groups = Vec::new();
    let mut end = rows.len();
    while end > 0 {
        let start = best[end].1;
        groups.push(rows[start..end].to_vec());
        end = start;
    }
    // In the order of rows, logits need no sorting where there is one group.
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn padding(lengths: &[usize], group: &[usize]) -> usize {
        let longest = group.iter().map(|&row| lengths[row]).max().expect("a group is not empty");
        group.iter().map(|&row| longest - lengths[row]).sum()
    }

    #[test]
    fn rows_of_like_length_run_together_and_a_very_long_one_apart() {
        assert_eq!(groups(&[10, 500, 300]), [[0, 1, 2]]);
        assert_eq!(groups(&[100, 8000, 90, 80]), [vec![0, 2, 3], vec![1]]);
        assert_eq!(groups(&[4000, 8000, 4000, 7000]), [[0, 2], [1, 3]]);
        assert!(groups(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_group_and_padding_is_bounded(lengths in prop::collection::vec(0_usize..10_000, 0..20)) {
            let groups = groups(&lengths);
            let padded: usize = groups.iter().map(|group| padding(&lengths, group)).sum();
            let cost = groups.len() * RUN + padded;
            // Not worse than every row alone, nor than all in one run.
            prop_assert!(cost <= lengths.len() * RUN);
            let together: Vec<usize> = (0..lengths.len()).collect();
            prop_assert!(together.is_empty() || cost <= RUN + padding(&lengths, &together));
            let mut rows: Vec<usize> = groups.into_iter().flatten().collect();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
        }

        #[test]
        fn groups_stay_as_rows_grow(lengths in prop::collection::vec(0_usize..10_000, 0..20), steps in 0_usize..5000) {
            let grown: Vec<usize> = lengths.iter().map(|length| length + steps).collect();
            prop_assert_eq!(groups(&grown), groups(&lengths));
        }
    }
}
