//! Language models whose attention is `GroupQueryAttention`: keys and values are written in place.
//!
//! Each layer has one slab of keys and one of values, `[rows, kv_heads, columns, head_size]`, reserved once. A run binds
//! consecutive rows of it as past and as present; the operator sees equal pointers and appends the new columns. Only the
//! sum of a row of the attention mask and its width count, never where its ones are; what lies beyond a row's length is
//! never read. One run takes one token each of several rows, or several tokens of one row: the operator refuses more.

use super::super::{CausalModel, CausalShape, ModelError, Next, Positions, Row};
use super::lent::{Bound, Lent, LentCache, LentSession, Number, f16};
use super::rewrite::{self, Head};
use super::session::CausalSession;
use super::tuning::Tuning;
use super::{CausalIo, run_error};

/// Columns a row may hold beyond what is needed before their memory is given back: taking pages anew costs more than
/// to keep them for the row's next sequence.
const SPARE_COLUMNS: usize = 256;

/// A number of a cache or of the logits.
pub(super) trait Float: Number + Default {
    /// The logits as `f32`, converted into `room` where they are not.
    fn widen<'a>(logits: &'a mut [Self], room: &'a mut Vec<f32>) -> &'a mut [f32];
}

impl Float for f32 {
    fn widen<'a>(logits: &'a mut [Self], _: &'a mut Vec<f32>) -> &'a mut [f32] {
        logits
    }
}

impl Float for f16 {
    fn widen<'a>(logits: &'a mut [Self], room: &'a mut Vec<f32>) -> &'a mut [f32] {
        room.resize(logits.len(), 0.0);
        half::slice::HalfFloatSliceExt::convert_to_f32_slice(logits, room);
        room
    }
}

/// A language model in the layout of ONNX Runtime GenAI's model builder; `C` are the numbers of its caches, `L` those of
/// its logits.
#[derive(Debug)]
pub(super) struct GqaModel<C, L> {
    session: LentSession<C>,
    tuning: Option<Tuning>,
    inputs: Inputs,
    logits: Lent<L>,
    widened: Vec<f32>,
    head: Head,
    slab: Slab,
    shape: CausalShape,
    /// Columns of each row that were ever written since its memory was last given back.
    touched: Vec<usize>,
}

/// What a run is told besides keys and values; reserved for the largest run there can be.
#[derive(Debug)]
struct Inputs {
    ids: Lent<i64>,
    mask: Lent<i64>,
    positions: Option<Lent<i64>>,
    wanted: Lent<i64>,
}

/// Where a row lies in a slab, counted in numbers.
#[derive(Debug, Clone, Copy)]
struct Slab {
    heads: usize,
    /// Of one head of one row.
    head: usize,
    /// Of one column of one head.
    column: usize,
}

/// One run of the graph.
struct Run {
    /// First row and count.
    rows: (usize, usize),
    /// New tokens of each row.
    new: usize,
    /// Tokens of the longest row, the new ones included.
    width: usize,
    /// Positions of each row whose logits are wanted: so many, up to the last.
    wanted: usize,
}

impl<C: Float, L: Float> GqaModel<C, L> {
    /// Reserves memory for every row and lends it to a loaded graph.
    pub(super) fn new(graph: CausalSession, io: &CausalIo, shape: CausalShape) -> Result<Self, ModelError> {
        let sizes = [shape.rows, io.kv_heads, shape.context, io.head_size];
        let bytes = |numbers: usize| numbers.saturating_mul(size_of::<C>());
        let no_memory = |source| ModelError::Reserve {
            bytes: bytes(sizes.iter().product::<usize>().saturating_mul(io.caches.len())),
            source,
        };
        let lend = |cache: &super::CacheIo| {
            let memory = Lent::new(sizes.iter().product()).map_err(no_memory)?;
            Ok(LentCache { past: cache.past.clone(), present: cache.present.clone(), memory })
        };
        let caches = io.caches.iter().map(lend).collect::<Result<Vec<_>, ModelError>>()?;
        let tokens = shape.context.max(shape.rows);
        let inputs = || {
            Ok(Inputs {
                ids: Lent::new(tokens)?,
                mask: Lent::new(shape.rows * shape.context)?,
                positions: io.position_ids.then(|| Lent::new(tokens)).transpose()?,
                wanted: Lent::new(tokens)?,
            })
        };
        let column = io.head_size;
        let CausalSession { session, head, twin } = graph;
        Ok(Self {
            session: LentSession::new(session, caches, sizes),
            tuning: twin.and_then(Tuning::new),
            inputs: inputs().map_err(no_memory)?,
            logits: Lent::new(shape.rows * shape.vocab).map_err(no_memory)?,
            widened: Vec::new(),
            head,
            slab: Slab { heads: io.kv_heads, head: shape.context * column, column },
            touched: vec![0; shape.rows],
            shape: CausalShape { all_positions: head != Head::Last, ..shape },
        })
    }

    /// Runs the graph on what `inputs` hold; gives the wanted logits of each row, row by row.
    fn run(&mut self, run: &Run) -> Result<&mut [f32], ModelError> {
        let (rows, vocab) = (run.rows.1, self.shape.vocab);
        let given = match self.head {
            Head::Positions => run.wanted,
            Head::Last => 1,
            Head::All => run.new,
        };
        self.make_room(rows * given * vocab)?;
        let pair = |columns: usize| vec![rows as i64, columns as i64];
        let Inputs { ids, mask, positions, wanted } = &mut self.inputs;
        let mut inputs = vec![
            Bound { name: "input_ids", memory: ids, shape: pair(run.new) },
            Bound { name: "attention_mask", memory: mask, shape: pair(run.width) },
        ];
        inputs.extend(positions.as_mut().map(|memory| Bound { name: "position_ids", memory, shape: pair(run.new) }));
        if self.head == Head::Positions {
            let first = run.new - run.wanted;
            for (position, slot) in (first..run.new).zip(wanted.as_mut_slice()) {
                *slot = position as i64;
            }
            inputs.push(Bound { name: rewrite::POSITIONS, memory: wanted, shape: vec![run.wanted as i64] });
        }
        let shape = vec![rows as i64, given as i64, vocab as i64];
        let logits = Bound { name: "logits", memory: &mut self.logits, shape };
        if let Some(tuning) = &mut self.tuning {
            tuning.choose(&mut self.session);
        }
        self.session.run(run.rows, &mut inputs, logits).map_err(run_error)?;
        // Several rows have one position each; of one row, the last positions are wanted.
        let end = rows * given * vocab;
        let wanted = end - rows * given.min(run.wanted) * vocab..end;
        Ok(L::widen(&mut self.logits.as_mut_slice()[wanted], &mut self.widened))
    }

    /// Makes the memory of the logits hold so many.
    fn make_room(&mut self, logits: usize) -> Result<(), ModelError> {
        if self.logits.as_slice().len() < logits {
            let reserve = |source| ModelError::Reserve { bytes: logits * size_of::<L>(), source };
            self.logits = Lent::new(logits).map_err(reserve)?;
        }
        Ok(())
    }

    fn touch(&mut self, row: usize, columns: usize) {
        self.touched[row] = self.touched[row].max(columns);
    }

    /// Gives back what a row holds in memory beyond so many columns, if that is worth it.
    fn trim(&mut self, row: usize, columns: usize) {
        if self.touched[row] <= columns + SPARE_COLUMNS {
            return;
        }
        let (slab, touched) = (self.slab, self.touched[row]);
        for cache in self.session.caches_mut() {
            for head in 0..slab.heads {
                let start = slab.start(row, head);
                cache.discard(start + columns * slab.column..start + touched * slab.column);
            }
        }
        self.touched[row] = columns;
    }
}

impl Slab {
    fn start(&self, row: usize, head: usize) -> usize {
        (row * self.heads + head) * self.head
    }
}

impl<C: Float, L: Float> CausalModel for GqaModel<C, L> {
    fn shape(&self) -> CausalShape {
        self.shape
    }

    fn read(
        &mut self,
        Row(row): Row,
        tokens: &[u32],
        past: usize,
        wanted: Positions,
    ) -> Result<&mut [f32], ModelError> {
        let (new, width) = (tokens.len(), past + tokens.len());
        self.trim(row, width);
        self.touch(row, width);
        let Inputs { ids, mask, positions, .. } = &mut self.inputs;
        for (slot, token) in ids.as_mut_slice().iter_mut().zip(tokens) {
            *slot = i64::from(*token);
        }
        mask.as_mut_slice()[..width].fill(1);
        if let Some(positions) = positions {
            for (slot, position) in positions.as_mut_slice().iter_mut().zip(past..width) {
                *slot = position as i64;
            }
        }
        let wanted = match wanted {
            Positions::None => 0,
            Positions::Last => 1,
            Positions::All => new,
        };
        self.run(&Run { rows: (row, 1), new, width, wanted })
    }

    fn decode(&mut self, next: &[Next]) -> Result<&mut [f32], ModelError> {
        let width = 1 + next.iter().map(|next| next.past).max().unwrap_or_default();
        for (row, next) in next.iter().enumerate() {
            self.touch(row, next.past + 1);
            let Inputs { ids, mask, positions, .. } = &mut self.inputs;
            ids.as_mut_slice()[row] = i64::from(next.token);
            let (ones, zeros) = mask.as_mut_slice()[row * width..][..width].split_at_mut(next.past + 1);
            ones.fill(1);
            zeros.fill(0);
            if let Some(positions) = positions {
                positions.as_mut_slice()[row] = next.past as i64;
            }
        }
        self.run(&Run { rows: (0, next.len()), new: 1, width, wanted: 1 })
    }

    fn swap(&mut self, (Row(a), a_tokens): (Row, usize), (Row(b), b_tokens): (Row, usize)) {
        if a == b {
            return;
        }
        let (first, second) = if a < b { ((a, a_tokens), (b, b_tokens)) } else { ((b, b_tokens), (a, a_tokens)) };
        let slab = self.slab;
        for cache in self.session.caches_mut() {
            for head in 0..slab.heads {
                let (left, right) = cache.as_mut_slice().split_at_mut(slab.start(second.0, head));
                let left = &mut left[slab.start(first.0, head)..];
                let (ours, theirs) = (first.1 * slab.column, second.1 * slab.column);
                let both = ours.min(theirs);
                left[..both].swap_with_slice(&mut right[..both]);
                right[both..both.max(ours)].copy_from_slice(&left[both..both.max(ours)]);
                left[both..both.max(theirs)].copy_from_slice(&right[both..both.max(theirs)]);
            }
        }
        self.touch(first.0, second.1);
        self.touch(second.0, first.1);
        self.trim(first.0, second.1);
        self.trim(second.0, first.1);
    }

    fn copy(&mut self, Row(from): Row, Row(to): Row, tokens: usize) -> Result<(), ModelError> {
        let slab = self.slab;
        for cache in self.session.caches_mut() {
            for head in 0..slab.heads {
                let (from, to) = (slab.start(from, head), slab.start(to, head));
                cache.as_mut_slice().copy_within(from..from + tokens * slab.column, to);
            }
        }
        self.touch(to, tokens);
        Ok(())
    }

    fn release(&mut self, Row(row): Row) {
        self.trim(row, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::path::{Path, PathBuf};

    use super::super::runtime::{self, LibrarySearch};
    use super::super::session::{self, SessionOptions};
    use super::super::spin::Spin;
    use super::*;
    use crate::model::files::ModelFiles;
    use crate::model::manifest::{CausalManifest, Manifest};

    fn demo() -> CausalManifest {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/chat");
        let files = ModelFiles::folder(&folder).expect("it is there");
        let Ok(Manifest::Causal(manifest)) = Manifest::read(&files) else { panic!("a language model") };
        manifest
    }

    fn open(manifest: &CausalManifest, spin: Spin) -> CausalSession {
        let place = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let cache = place("XDG_CACHE_HOME").or_else(|| Some(place("HOME")?.join(".cache")));
        let search = LibrarySearch { explicit: place("ORT_DYLIB_PATH"), beside: None, cache };
        let runtime = runtime::start(&search).expect("ONNX Runtime; scripts/fetch-onnxruntime.sh gets it");
        let options = SessionOptions { threads: NonZeroUsize::new(2).expect("not zero"), spin, optimised: None };
        session::open_causal(runtime, &manifest.graph.source, &options, "demo").expect("it loads")
    }

    fn model(manifest: &CausalManifest) -> GqaModel<f32, f32> {
        let shape = CausalShape { vocab: manifest.vocab, context: 64, rows: 3, all_positions: true };
        GqaModel::new(open(manifest, Spin::Brief), &manifest.io, shape).expect("memory")
    }

    #[test]
    fn a_second_session_goes_on_with_the_same_keys_and_values_to_the_last_bit() {
        let manifest = demo();
        let (mut one, mut two) = (model(&manifest), model(&manifest));
        two.session.add(open(&manifest, Spin::Off).session);
        for row in 0..3 {
            let tokens: Vec<u32> = (0..20).map(|token| 5 + token * 3 + row as u32).collect();
            two.session.choose(row % 2);
            let logits = one.read(Row(row), &tokens, 0, Positions::Last).expect("a run").to_vec();
            assert_eq!(two.read(Row(row), &tokens, 0, Positions::Last).expect("a run"), logits);
        }
        for step in 0..12 {
            two.session.choose(step / 2 % 2);
            let next = [0, 1, 2].map(|row| Next { token: 7 + 11 * row + step as u32, past: 20 + step });
            let logits = one.decode(&next).expect("a run").to_vec();
            assert_eq!(two.decode(&next).expect("a run"), logits, "step {step}");
        }
    }
}
