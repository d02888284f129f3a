//! Copies live columns of keys and values into new tensors.

use std::ops::Range;

use ort::memory::Allocator;
use ort::value::{DynValue, Tensor};

use super::super::CausalIo;
use super::ledger::{Gathering, Ledger, Source};

/// Keys and values of a block, `[lanes, kv_heads, width, head_size]` each, in the order of `CausalIo::caches`.
pub(super) type Caches = Vec<DynValue>;

/// Makes the tensors of a new block.
pub(super) fn gather(io: &CausalIo, ledger: &Ledger<Caches>, gathering: &Gathering) -> ort::Result<Caches> {
    (0..io.caches.len()).map(|cache| gather_one(io, ledger, gathering, cache)).collect()
}

fn gather_one(io: &CausalIo, ledger: &Ledger<Caches>, gathering: &Gathering, cache: usize) -> ort::Result<DynValue> {
    let (heads, width, size) = (io.kv_heads, gathering.width, io.head_size);
    let shape = [gathering.lanes.len(), heads, width, size];
    let mut tensor = Tensor::<f32>::new(&Allocator::default(), shape)?;
    if width == 0 {
        return Ok(tensor.into_dyn());
    }
    let (_, lanes) = tensor.try_extract_tensor_mut::<f32>()?;
    for (lane, source) in lanes.chunks_exact_mut(heads * width * size).zip(&gathering.lanes) {
        let Some(Source { block, lane: from, columns }) = source else {
            lane.fill(0.0);
            continue;
        };
        let (_, held) = ledger.values(*block)[cache].try_extract_tensor::<f32>()?;
        let held = held.chunks_exact(ledger.width(*block) * size).skip(from * heads);
        lane.chunks_exact_mut(width * size).zip(held).for_each(|(to, held)| copy_columns(held, columns, to, size));
    }
    Ok(tensor.into_dyn())
}

/// Copies columns of `size` numbers to the beginning of `to`, and clears the rest.
///
/// What the mask hides is still multiplied, by nothing: that makes NaN of leavings that are infinite.
fn copy_columns<T: Copy + Default>(from: &[T], columns: &[Range<usize>], to: &mut [T], size: usize) {
    let mut next = 0;
    for range in columns {
        let from = &from[range.start * size..range.end * size];
        to[next..next + from.len()].copy_from_slice(from);
        next += from.len();
    }
    to[next..].fill(T::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_copied_one_after_the_other_and_the_rest_is_cleared() {
        let mut to = [9; 8];
        copy_columns(&[0, 1, 10, 11, 20, 21, 30, 31], &[0..1, 2..4], &mut to, 2);
        assert_eq!(to, [0, 1, 20, 21, 30, 31, 0, 0]);
    }
}
