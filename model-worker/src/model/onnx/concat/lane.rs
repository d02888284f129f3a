//! Which columns of a tensor hold one sequence's tokens.

use std::ops::Range;

/// The columns that hold a sequence's tokens, in the order of the tokens; those between and after them are dead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Lane {
    /// Ascending, apart from each other, none empty.
    live: Vec<Range<usize>>,
}

impl Lane {
    /// A lane that holds so many tokens in its first columns.
    pub(super) fn packed(tokens: usize) -> Self {
        let mut lane = Self::default();
        lane.append(0..tokens);
        lane
    }

    /// Tokens held.
    pub(super) fn len(&self) -> usize {
        self.live.iter().map(Range::len).sum()
    }

    /// Adds tokens in columns that lie beyond all others.
    pub(super) fn append(&mut self, columns: Range<usize>) {
        match self.live.last_mut() {
            _ if columns.is_empty() => {}
            Some(last) if last.end == columns.start => last.end = columns.end,
            _ => self.live.push(columns),
        }
    }

    /// Forgets all but the first tokens.
    pub(super) fn truncate(&mut self, tokens: usize) {
        self.live = self.first(tokens);
    }

    /// The columns of the first tokens.
    pub(super) fn first(&self, tokens: usize) -> Vec<Range<usize>> {
        let mut left = tokens;
        let cut = self.live.iter().map_while(|columns| {
            let taken = columns.len().min(left);
            left -= taken;
            (taken > 0).then(|| columns.start..columns.start + taken)
        });
        cut.collect()
    }

    /// Adds a mask over `width` columns: 1 for live ones, 0 for dead ones.
    pub(super) fn mask(&self, width: usize, mask: &mut Vec<i64>) {
        let start = mask.len();
        mask.resize(start + width, 0);
        self.live.iter().for_each(|columns| mask[start..][columns.clone()].fill(1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_beside_each_other_are_one_range() {
        let mut lane = Lane::packed(3);
        lane.append(3..5);
        lane.append(5..5);
        lane.append(7..9);
        assert_eq!(lane.live, [0..5, 7..9]);
    }

    proptest! {
        #[test]
        fn a_lane_is_the_list_of_its_live_columns(
            steps in prop::collection::vec((0_usize..4, 0_usize..4, 0_usize..20), 0..20),
        ) {
            let (mut lane, mut columns, mut width) = (Lane::default(), Vec::new(), 0);
            for (gap, new, keep) in steps {
                columns.truncate(keep);
                lane.truncate(keep);
                width += gap;
                columns.extend(width..width + new);
                lane.append(width..width + new);
                width += new;
            }
            prop_assert_eq!(lane.len(), columns.len());
            prop_assert_eq!(lane.live.iter().cloned().flatten().collect::<Vec<_>>(), columns.clone());
            let mut mask = vec![7];
            lane.mask(width, &mut mask);
            let expected = (0..width).map(|column| i64::from(columns.contains(&column)));
            prop_assert_eq!(mask, std::iter::once(7).chain(expected).collect::<Vec<_>>());
        }
    }
}
