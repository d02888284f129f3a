//! Memory of ours that ONNX Runtime reads and writes in place. The only file of the worker with `unsafe` code.
//!
//! [`Lent`] is a piece of anonymous memory: reserved at once, taken from the system page by page as it is touched.
//! [`LentSession`] is a session with the memory it was lent, and sees to it that the one outlives the other; a second
//! session of the same graph can take over, on the same memory.
#![expect(unsafe_code, reason = "ONNX Runtime takes tensors in foreign memory as raw pointers")]

use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use ort::memory::{Allocator, MemoryInfo};
use ort::session::{IoBinding, Session};
use ort::value::{DynValue, TensorElementType, Value};
use ort::{AsPointer as _, ortsys};

/// A type of numbers that tensors hold and that may have any bits.
pub(super) trait Number: Copy + Send + 'static {
    /// Its name at ONNX Runtime.
    const ELEMENT: TensorElementType;
}

impl Number for i64 {
    const ELEMENT: TensorElementType = TensorElementType::Int64;
}

impl Number for f32 {
    const ELEMENT: TensorElementType = TensorElementType::Float32;
}

impl Number for f16 {
    const ELEMENT: TensorElementType = TensorElementType::Float16;
}

pub(super) use half::f16;

/// Numbers in anonymous memory, zero until written.
#[derive(Debug)]
pub(super) struct Lent<T> {
    /// Raw, since ONNX Runtime keeps pointers into it while we take slices of it.
    memory: MmapRaw,
    length: usize,
    _numbers: PhantomData<T>,
}

impl<T: Number> Lent<T> {
    /// Reserves room for so many numbers; takes no memory before they are written.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        let bytes = length.checked_mul(size_of::<T>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let memory = MmapRaw::from(MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon()?);
        // Each head of a row begins far from the next: with huge pages, its first column would take megabytes. A system
        // without huge pages refuses, which is as good.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::NoHugePage);
        Ok(Self { memory, length, _numbers: PhantomData })
    }

    pub(super) fn as_slice(&self) -> &[T] {
        // SAFETY: pages are aligned for any number, `length` of them fit, and zeroed memory is a number.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<T>(), self.length) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above; ONNX Runtime touches the memory only within `LentSession::run`, which borrows it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast::<T>(), self.length) }
    }

    /// Gives the pages that lie wholly within the range back to the system; they are zero when touched again.
    pub(super) fn discard(&mut self, range: std::ops::Range<usize>) {
        let start = (range.start * size_of::<T>()).next_multiple_of(PAGE);
        let end = range.end * size_of::<T>() / PAGE * PAGE;
        if start < end {
            #[cfg(target_os = "linux")]
            // SAFETY: no reference into the range is alive while `self` is borrowed, and any bits are numbers. A
            // refusal leaves the memory as it is, which is no more than was there.
            let _ =
                unsafe { self.memory.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }

    /// A tensor over the numbers from `offset` on.
    ///
    /// # Safety
    /// The memory must outlive the value and everything it is bound to.
    unsafe fn view(&mut self, offset: usize, shape: &[i64]) -> ort::Result<DynValue> {
        let count: usize = shape.iter().map(|&size| size as usize).product();
        assert!(
            offset + count <= self.length,
            "a tensor of {shape:?} at {offset} leaves the memory of {}",
            self.length
        );
        let info = MemoryInfo::default();
        let mut value: *mut ort::sys::OrtValue = std::ptr::null_mut();
        // SAFETY: the assertion above; the pointer comes from the mapping and not from a reference.
        let start = unsafe { self.memory.as_mut_ptr().cast::<T>().add(offset) };
        ortsys![unsafe CreateTensorWithDataAsOrtValue(
            info.ptr(),
            start.cast(),
            count * size_of::<T>(),
            shape.as_ptr(),
            shape.len(),
            T::ELEMENT.into(),
            &mut value
        )?; nonNull(value)];
        let value = NonNull::new(value.as_ptr()).expect("checked by the macro");
        // SAFETY: a fresh tensor, owned by nobody else. With an allocator `ort` takes it for one of ONNX Runtime's own
        // and never copies it: binding a tensor it knows to be borrowed blocks for ever in this release candidate.
        Ok(unsafe { Value::from_ptr(value, Some(&Allocator::default())) })
    }
}

/// A multiple of every page size in use. Advice about half a page would reach what lies before it.
const PAGE: usize = 64 << 10;

/// An input or output that is bound anew for each run.
pub(super) struct Bound<'a, T> {
    /// Its name in the graph.
    pub(super) name: &'a str,
    /// Where its numbers lie, from the first on.
    pub(super) memory: &'a mut Lent<T>,
    /// Its shape in this run.
    pub(super) shape: Vec<i64>,
}

/// Keys and values `[rows, heads, columns, head_size]` of one layer, bound as past and as present.
#[derive(Debug)]
pub(super) struct LentCache<T> {
    /// Name of the input.
    pub(super) past: String,
    /// Name of the output.
    pub(super) present: String,
    /// The numbers.
    pub(super) memory: Lent<T>,
}

/// A session, or several of the same graph, with the memory that bindings are kept to.
#[derive(Debug)]
pub(super) struct LentSession<T> {
    /// Sessions of the same graph; they stand before `caches`, into which their bindings point: fields are dropped in
    /// their order.
    sessions: Vec<BoundSession>,
    /// The one that runs.
    chosen: usize,
    caches: Vec<LentCache<T>>,
    /// `[rows, heads, columns, head_size]`.
    shape: [usize; 4],
}

/// A session and what is bound for it.
#[derive(Debug)]
struct BoundSession {
    /// For each run of rows (first, count) that was asked for: its keys and values bound in place.
    bindings: HashMap<(usize, usize), IoBinding>,
    session: Session,
}

impl BoundSession {
    fn new(session: Session) -> Self {
        Self { bindings: HashMap::new(), session }
    }
}

impl<T: Number> LentSession<T> {
    /// Lends caches, each of the given shape, to a session.
    pub(super) fn new(session: Session, caches: Vec<LentCache<T>>, shape: [usize; 4]) -> Self {
        Self { sessions: vec![BoundSession::new(session)], chosen: 0, caches, shape }
    }

    /// Lends the same caches to another session of the same graph, too.
    pub(super) fn add(&mut self, session: Session) {
        self.sessions.push(BoundSession::new(session));
    }

    /// Lets further runs go to the session that was added so many sessions after the first.
    pub(super) fn choose(&mut self, index: usize) {
        assert!(index < self.sessions.len(), "there are {} sessions, and no {index}", self.sessions.len());
        self.chosen = index;
    }

    /// Keys and values of every layer. What is bound stays valid: the memory does not move.
    pub(super) fn caches_mut(&mut self) -> impl Iterator<Item = &mut Lent<T>> {
        self.caches.iter_mut().map(|cache| &mut cache.memory)
    }

    /// Runs the graph over the keys and values of `rows.1` rows from `rows.0` on.
    pub(super) fn run<L: Number>(
        &mut self,
        rows: (usize, usize),
        inputs: &mut [Bound<'_, i64>],
        logits: Bound<'_, L>,
    ) -> ort::Result<()> {
        if !self.sessions[self.chosen].bindings.contains_key(&rows) {
            let binding = self.bind(rows)?;
            self.sessions[self.chosen].bindings.insert(rows, binding);
        }
        let BoundSession { bindings, session } = &mut self.sessions[self.chosen];
        let binding = bindings.get_mut(&rows).expect("bound above");
        for input in inputs {
            // SAFETY: borrowed until the run is over; every run binds it anew.
            let value = unsafe { input.memory.view(0, &input.shape)? };
            binding.bind_input(input.name, &value)?;
        }
        // SAFETY: as above.
        let value = unsafe { logits.memory.view(0, &logits.shape)? };
        binding.bind_output(logits.name, value)?;
        session.run_binding(binding).map(drop)
    }

    fn bind(&mut self, (first, count): (usize, usize)) -> ort::Result<IoBinding> {
        let mut binding = self.sessions[self.chosen].session.create_binding()?;
        let [_, heads, columns, head_size] = self.shape;
        let shape = [count, heads, columns, head_size].map(|size| size as i64);
        for cache in &mut self.caches {
            // SAFETY: the caches are dropped after the bindings, and never replaced.
            let value = unsafe { cache.memory.view(first * heads * columns * head_size, &shape)? };
            binding.bind_input(&cache.past, &value)?;
            binding.bind_output(&cache.present, value)?;
        }
        Ok(binding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_until_written_and_again_when_discarded() {
        let mut memory = Lent::<i64>::new(5 * PAGE / 8).expect("memory");
        assert!(memory.as_slice().iter().all(|&number| number == 0));
        memory.as_mut_slice().fill(7);
        memory.discard(100..5 * PAGE / 8 - 100);
        assert_eq!(memory.as_slice()[..PAGE / 8], [7; PAGE / 8]);
        assert_eq!(memory.as_slice()[4 * PAGE / 8..], [7; PAGE / 8]);
        if cfg!(target_os = "linux") {
            assert_eq!(memory.as_slice()[PAGE / 8..4 * PAGE / 8], [0; 3 * PAGE / 8]);
        }
    }

    #[test]
    fn memory_beyond_all_bounds_is_refused() {
        assert!(Lent::<i64>::new(usize::MAX / 2).is_err());
    }
}
