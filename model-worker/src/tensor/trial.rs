//! Whether the rows of a graph are independent: seeded rows run alone and together, and what they give is compared.
//!
//! A symbolic first dimension proves nothing: a softmax over it, a mean over it or a scale taken over a whole activation
//! make rows depend on each other. Neither do independent rows prove that their numbers are the same to the last bit:
//! where a kernel cuts its work into pieces, their ends move with the number of rows. What was measured with ONNX
//! Runtime 1.32 on x86-64: products of matrices and convolutions give the same bits for any number of rows, a mean over
//! a middle axis gives others for one row than for several, and so do some activations beyond 4096 numbers.

use std::time::{Duration, Instant};

use half::{bf16, f16};
use muster_shared::tensor::{Datatype, layout};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::batch::{self, Inputs};
use crate::model::ModelError;
use crate::model::tensor::{Array, Dimension, Port, Ports, TensorModel};

/// The same at each start, so that a model is judged alike every time.
const SEED: u64 = 0x006d_7573_7465_7221;
/// Elements of one row beyond which no trial is made: it would take memory that nobody expects.
const LARGEST_ROW: usize = 16 << 20;

/// What a trial has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Up to so many rows give together what they give alone, bit for bit.
    Alike(usize),
    /// That many rows do not.
    Differ(usize),
    /// It cannot be tried, in words.
    Unknown(String),
}

/// Whether the first dimension of everything may count rows: it is open, and has no two names.
pub fn may_have_rows(ports: &Ports) -> bool {
    let required = ports.inputs.iter().filter(|port| port.required);
    let mut inputs = required.map(first_dimension);
    let Some(Some(first)) = inputs.next() else { return false };
    let is_rows = |dimension: Option<&Dimension>| {
        dimension.is_some_and(|dimension| dimension.size.is_none() && dimension.symbol == first.symbol)
    };
    let mut outputs = ports.outputs.iter().map(first_dimension);
    first.size.is_none()
        && inputs.all(is_rows)
        && outputs.all(|dimension| {
            // Exporters name outputs as they like, or not at all; the trial looks at what comes out.
            dimension.is_some_and(|dimension| dimension.size.is_none())
        })
}

fn first_dimension(port: &Port) -> Option<&Dimension> {
    port.dimensions.as_ref()?.first()
}

/// Runs one row, two rows and so on up to `largest` as long as `budget` lasts; the first run also warms the model up.
///
/// # Errors
/// When the first run fails.
pub fn try_rows(
    model: &mut dyn TensorModel,
    ports: &Ports,
    largest: usize,
    budget: Duration,
) -> Result<Verdict, ModelError> {
    let begun = Instant::now();
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut rows, mut alone) = (Vec::new(), Vec::new());
    for count in 1..=largest {
        let Some(row) = inputs(ports, Some(1), &mut rng) else {
            let reason = "its inputs have open dimensions beyond the first, so that not every shape can be tried";
            return Ok(Verdict::Unknown(reason.to_owned()));
        };
        alone.push(run(model, ports, &row)?);
        rows.push(row);
        if count == 1 {
            continue;
        }
        if begun.elapsed() > budget {
            return Ok(enough(count - 1));
        }
        // Backwards, so that a row does not always come at the same place.
        let joined = batch::join(&rows.iter().rev().collect::<Vec<_>>());
        let Ok(outputs) = run(model, ports, &joined) else { return Ok(Verdict::Differ(count)) };
        let answers = batch::split(&outputs, &vec![1; count]);
        if answers.is_none_or(|answers| !answers.iter().eq(alone.iter().rev())) {
            return Ok(Verdict::Differ(count));
        }
    }
    Ok(enough(largest))
}

fn enough(tried: usize) -> Verdict {
    match tried {
        0 | 1 => Verdict::Unknown("one run takes so long that there is no time to try two rows".to_owned()),
        tried => Verdict::Alike(tried),
    }
}

/// Runs a model once, where its shapes are known: what is wrong with it shows before anybody asks.
///
/// # Errors
/// When the run fails.
pub fn warm_up(model: &mut dyn TensorModel, ports: &Ports, rows: bool) -> Result<(), ModelError> {
    let mut rng = StdRng::seed_from_u64(SEED);
    match inputs(ports, rows.then_some(1), &mut rng) {
        Some(inputs) => run(model, ports, &inputs).map(drop),
        None => Ok(()),
    }
}

fn run(model: &mut dyn TensorModel, ports: &Ports, inputs: &Inputs) -> Result<Vec<Array>, ModelError> {
    let borrowed: Vec<(usize, &Array)> = inputs.iter().map(|(place, array)| (*place, array)).collect();
    model.run(&borrowed, &(0..ports.outputs.len()).collect::<Vec<_>>())
}

/// Seeded inputs with so many rows; `None` where a dimension beyond those is open.
fn inputs(ports: &Ports, rows: Option<usize>, rng: &mut StdRng) -> Option<Inputs> {
    let required = ports.inputs.iter().enumerate().filter(|(_, port)| port.required);
    required.map(|(place, port)| Some((place, array(port, rows, rng)?))).collect()
}

fn array(port: &Port, rows: Option<usize>, rng: &mut StdRng) -> Option<Array> {
    let dimensions = port.dimensions.as_ref()?;
    let size = |(at, dimension): (usize, &Dimension)| match rows {
        Some(rows) if at == 0 => Some(rows),
        _ => dimension.size,
    };
    let shape: Vec<usize> = dimensions.iter().enumerate().map(size).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
    if count > LARGEST_ROW {
        return None;
    }
    let data = match port.datatype {
        Datatype::Bytes => {
            let texts: Vec<&[u8]> = (0..count).map(|_| if rng.random() { &b"a"[..] } else { b"bc" }).collect();
            layout::join_strings(texts.into_iter())?
        }
        other => (0..count).flat_map(|_| element(other, rng)).collect::<Vec<u8>>().into(),
    };
    Some(Array { datatype: port.datatype, shape, data })
}

/// One number. Whole ones are 0 or 1: a larger one may be no index of the model's tables.
fn element(datatype: Datatype, rng: &mut StdRng) -> Vec<u8> {
    let real = rng.random_range(-1.0f64..1.0);
    let bit = u8::from(rng.random::<bool>());
    match datatype {
        Datatype::Fp16 => f16::from_f64(real).to_le_bytes().to_vec(),
        Datatype::Bf16 => bf16::from_f64(real).to_le_bytes().to_vec(),
        Datatype::Fp32 => (real as f32).to_le_bytes().to_vec(),
        Datatype::Fp64 => real.to_le_bytes().to_vec(),
        Datatype::Uint8 => vec![rng.random()], // pixels, most of the time
        other => {
            let mut number = vec![0; other.size().unwrap_or(1)];
            number[0] = bit;
            number
        }
    }
}
