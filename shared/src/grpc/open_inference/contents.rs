//! Elements of a tensor one by one.

use bytes::Bytes;

use super::proto::InferTensorContents;
use crate::problem::Problem;
use crate::tensor::head::{Head, Place};
use crate::tensor::layout::{push_string, strings};
use crate::tensor::{Datatype, Tensor};

/// The bytes of the elements in the field that the datatype names; no other may have any.
pub(super) fn read(head: &Head, contents: &InferTensorContents) -> Result<Bytes, Problem> {
    let expected = field(head.datatype).ok_or_else(|| head.problem("contents", no_contents(head.datatype)))?;
    if let Some((other, _)) = counts(contents).into_iter().find(|(name, count)| *count > 0 && *name != expected) {
        let reason = format!("`contents` has `{other}`, and elements of {} are `{expected}`", head.datatype);
        return Err(head.problem("contents", reason));
    }
    let given = counts(contents).into_iter().find(|(name, _)| *name == expected).map_or(0, |(_, count)| count);
    if given != head.count {
        let reason = format!("shape {:?} has {} elements, and `{expected}` has {given}", head.shape, head.count);
        return Err(head.problem("contents", reason));
    }
    bytes(head, contents)
}

fn bytes(head: &Head, contents: &InferTensorContents) -> Result<Bytes, Problem> {
    let InferTensorContents { int_contents: signed, uint_contents: unsigned, .. } = contents;
    Ok(match head.datatype {
        Datatype::Bool => flat(&contents.bool_contents, |yes| [u8::from(yes)]),
        Datatype::Int8 => narrow(head, signed, |number| i8::try_from(number).ok().map(i8::to_le_bytes))?,
        Datatype::Int16 => narrow(head, signed, |number| i16::try_from(number).ok().map(i16::to_le_bytes))?,
        Datatype::Int32 => flat(signed, i32::to_le_bytes),
        Datatype::Int64 => flat(&contents.int64_contents, i64::to_le_bytes),
        Datatype::Uint8 => narrow(head, unsigned, |number| u8::try_from(number).ok().map(u8::to_le_bytes))?,
        Datatype::Uint16 => narrow(head, unsigned, |number| u16::try_from(number).ok().map(u16::to_le_bytes))?,
        Datatype::Uint32 => flat(unsigned, u32::to_le_bytes),
        Datatype::Uint64 => flat(&contents.uint64_contents, u64::to_le_bytes),
        Datatype::Fp32 => flat(&contents.fp32_contents, f32::to_le_bytes),
        Datatype::Fp64 => flat(&contents.fp64_contents, f64::to_le_bytes),
        Datatype::Bytes => texts(head, &contents.bytes_contents)?,
        other @ (Datatype::Fp16 | Datatype::Bf16) => return Err(head.problem("contents", no_contents(other))),
    })
}

fn no_contents(datatype: Datatype) -> String {
    format!("{datatype} has no field in `contents`; send it as raw contents")
}

fn field(datatype: Datatype) -> Option<&'static str> {
    Some(match datatype {
        Datatype::Bool => "bool_contents",
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp32 => "fp32_contents",
        Datatype::Fp64 => "fp64_contents",
        Datatype::Bytes => "bytes_contents",
        Datatype::Fp16 | Datatype::Bf16 => return None,
    })
}

fn counts(contents: &InferTensorContents) -> [(&'static str, usize); 8] {
    [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ]
}

fn flat<T: Copy, const N: usize>(elements: &[T], bytes: impl Fn(T) -> [u8; N]) -> Bytes {
    elements.iter().flat_map(|element| bytes(*element)).collect()
}

fn narrow<T: Copy + std::fmt::Display, const N: usize>(
    head: &Head,
    elements: &[T],
    bytes: impl Fn(T) -> Option<[u8; N]>,
) -> Result<Bytes, Problem> {
    let mut data = Vec::with_capacity(elements.len() * N);
    for (index, element) in elements.iter().enumerate() {
        let bytes = bytes(*element).ok_or_else(|| {
            head.problem("contents", format!("element {index} is {element}, which {} cannot hold", head.datatype))
        })?;
        data.extend_from_slice(&bytes);
    }
    Ok(data.into())
}

fn texts(head: &Head, elements: &[Bytes]) -> Result<Bytes, Problem> {
    let mut data = Vec::with_capacity(elements.iter().map(|element| element.len() + 4).sum());
    for (index, element) in elements.iter().enumerate() {
        if !push_string(&mut data, element) {
            return Err(head.problem("contents", format!("element {index} is longer than 4 GiB")));
        }
    }
    Ok(data.into())
}

/// The elements of a tensor whose bytes are sound.
///
/// # Errors
/// A [`Problem`] for FP16 and BF16, which have no field.
pub(super) fn write(tensor: &Tensor, place: Place) -> Result<InferTensorContents, Problem> {
    let mut contents = InferTensorContents::default();
    let data = &tensor.data;
    match tensor.datatype {
        Datatype::Bool => contents.bool_contents = elements(data, |[byte]: [u8; 1]| byte != 0),
        Datatype::Int8 => contents.int_contents = elements(data, |bytes| i8::from_le_bytes(bytes).into()),
        Datatype::Int16 => contents.int_contents = elements(data, |bytes| i16::from_le_bytes(bytes).into()),
        Datatype::Int32 => contents.int_contents = elements(data, i32::from_le_bytes),
        Datatype::Int64 => contents.int64_contents = elements(data, i64::from_le_bytes),
        Datatype::Uint8 => contents.uint_contents = elements(data, |bytes| u8::from_le_bytes(bytes).into()),
        Datatype::Uint16 => contents.uint_contents = elements(data, |bytes| u16::from_le_bytes(bytes).into()),
        Datatype::Uint32 => contents.uint_contents = elements(data, u32::from_le_bytes),
        Datatype::Uint64 => contents.uint64_contents = elements(data, u64::from_le_bytes),
        Datatype::Fp32 => contents.fp32_contents = elements(data, f32::from_le_bytes),
        Datatype::Fp64 => contents.fp64_contents = elements(data, f64::from_le_bytes),
        Datatype::Bytes => {
            contents.bytes_contents =
                strings(data).map_while(Result::ok).map(|element| data.slice_ref(element)).collect();
        }
        other @ (Datatype::Fp16 | Datatype::Bf16) => {
            let message = format!("{} `{}`: {}", place.noun(), tensor.name, no_contents(other));
            return Err(Problem::invalid(place.field("contents"), message));
        }
    }
    Ok(contents)
}

fn elements<T, const N: usize>(data: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (elements, _) = data.as_chunks::<N>();
    elements.iter().map(|bytes| element(*bytes)).collect()
}
