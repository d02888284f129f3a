//! How the elements of a tensor lie in its bytes.

use bytes::Bytes;

use super::Datatype;

/// Bytes in front of each element of [`Datatype::Bytes`]: its length.
const LENGTH: usize = 4;

/// How many elements a shape has; 1 for a scalar, 0 where a dimension is 0. `None` where the product of the others is
/// more than a memory can hold, so that no zero hides a shape with which nobody can count.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().try_fold(1usize, |product, size| product.checked_mul((*size).max(1)))?;
    isize::try_from(product).ok()?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// How many bytes the elements of a shape take; `None` as in [`element_count`], and for [`Datatype::Bytes`].
pub fn byte_size(datatype: Datatype, shape: &[usize]) -> Option<usize> {
    let size = element_count(shape)?.checked_mul(datatype.size()?)?;
    isize::try_from(size).is_ok().then_some(size)
}

/// Why the bytes of a tensor are not what its datatype and its shape say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// [`element_count`] has no answer.
    #[error("shape {0:?} has more elements than can be counted")]
    TooMany(Vec<usize>),
    /// Other bytes than the elements take.
    #[error("shape {shape:?} of {datatype} is {expected} bytes, and {given} were given")]
    Size {
        /// What it should be.
        datatype: Datatype,
        /// What it should be.
        shape: Vec<usize>,
        /// What that makes.
        expected: usize,
        /// What was there.
        given: usize,
    },
    /// Other elements of [`Datatype::Bytes`] than the shape says.
    #[error("shape {shape:?} has {expected} elements, and the bytes hold {given}")]
    Count {
        /// What it should be.
        shape: Vec<usize>,
        /// What that makes.
        expected: usize,
        /// What was there.
        given: usize,
    },
    /// Broken lengths of [`Datatype::Bytes`].
    #[error(transparent)]
    Strings(#[from] BrokenStrings),
    /// A [`Datatype::Bool`] that is neither.
    #[error("byte {at} is {value}, and an element of BOOL is 0 or 1")]
    Bool {
        /// Which element, from 0.
        at: usize,
        /// What it is.
        value: u8,
    },
}

/// Checks that a tensor's bytes are what its datatype and its shape say.
///
/// # Errors
/// See [`LayoutError`].
pub fn check(datatype: Datatype, shape: &[usize], data: &[u8]) -> Result<(), LayoutError> {
    let too_many = || LayoutError::TooMany(shape.to_vec());
    if datatype == Datatype::Bytes {
        let expected = element_count(shape).ok_or_else(too_many)?;
        let given = strings(data).try_fold(0, |count, element| element.map(|_| count + 1))?;
        if given != expected {
            return Err(LayoutError::Count { shape: shape.to_vec(), expected, given });
        }
        return Ok(());
    }
    let expected = byte_size(datatype, shape).ok_or_else(too_many)?;
    if data.len() != expected {
        return Err(LayoutError::Size { datatype, shape: shape.to_vec(), expected, given: data.len() });
    }
    let neither = |value: &u8| datatype == Datatype::Bool && *value > 1;
    match data.iter().position(neither) {
        Some(at) => Err(LayoutError::Bool { at, value: data[at] }),
        None => Ok(()),
    }
}

/// The elements of a tensor of [`Datatype::Bytes`], up to the first whose length is broken.
pub fn strings(data: &[u8]) -> Strings<'_> {
    Strings { rest: data, index: 0 }
}

/// See [`strings`].
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    rest: &'a [u8],
    index: usize,
}

/// Bytes of [`Datatype::Bytes`] that end within an element.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("element {index} of BYTES needs {needed} bytes, its length in 4 bytes and what follows, and {left} are left")]
pub struct BrokenStrings {
    /// Which element, from 0.
    pub index: usize,
    /// What it takes, as far as is known.
    pub needed: usize,
    /// What is there.
    pub left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = Result<&'a [u8], BrokenStrings>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let length = self.rest.first_chunk::<LENGTH>().map(|length| u32::from_le_bytes(*length) as usize);
        let needed = LENGTH.saturating_add(length.unwrap_or(0));
        let Some((element, rest)) = length.and_then(|_| self.rest.split_at_checked(needed)) else {
            let broken = BrokenStrings { index: self.index, needed, left: self.rest.len() };
            self.rest = &[]; // nobody knows where the next one would begin
            return Some(Err(broken));
        };
        self.rest = rest;
        self.index += 1;
        Some(Ok(&element[LENGTH..]))
    }
}

/// Appends an element of [`Datatype::Bytes`]. False where it is longer than its length can say, 4 GiB.
#[must_use]
pub fn push_string(data: &mut Vec<u8>, element: &[u8]) -> bool {
    let Ok(length) = u32::try_from(element.len()) else { return false };
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(element);
    true
}

/// The bytes of a tensor of [`Datatype::Bytes`]; `None` as in [`push_string`].
pub fn join_strings<'a>(elements: impl Iterator<Item = &'a [u8]> + Clone) -> Option<Bytes> {
    let mut data = Vec::with_capacity(elements.clone().map(|element| LENGTH + element.len()).sum());
    let mut elements = elements;
    elements.all(|element| push_string(&mut data, element)).then(|| data.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_that_are_joined_are_told_apart_again(elements: Vec<Vec<u8>>) {
            let data = join_strings(elements.iter().map(Vec::as_slice)).expect("they are short");
            let again: Vec<&[u8]> = strings(&data).collect::<Result<_, _>>().expect("whole elements");
            prop_assert_eq!(again, elements);
        }

        #[test]
        fn no_bytes_break_it_and_whole_strings_come_back(data: Vec<u8>) {
            if let Ok(elements) = strings(&data).collect::<Result<Vec<_>, _>>() {
                prop_assert_eq!(join_strings(elements.into_iter()).expect("they are short"), data);
            }
        }
    }

    #[test]
    fn a_zero_in_a_shape_does_not_hide_that_the_rest_cannot_be_counted() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[2, 0, 3]), Some(0));
        assert_eq!(element_count(&[0, usize::MAX, 2]), None);
        assert_eq!(byte_size(Datatype::Fp64, &[usize::MAX / 8]), None);
    }

    #[test]
    fn an_error_says_what_the_shape_needs_and_what_was_there() {
        let error = check(Datatype::Fp32, &[2, 3], &[0; 20]).expect_err("four bytes are missing");
        assert_eq!(error.to_string(), "shape [2, 3] of FP32 is 24 bytes, and 20 were given");
        let error = check(Datatype::Bool, &[2], &[1, 7]).expect_err("no yes and no no");
        assert_eq!(error.to_string(), "byte 1 is 7, and an element of BOOL is 0 or 1");
    }

    #[test]
    fn strings_end_at_the_first_broken_length() {
        let mut data = Vec::new();
        assert!(push_string(&mut data, b"ab") && push_string(&mut data, b""));
        assert_eq!(check(Datatype::Bytes, &[2], &data), Ok(()));
        let error = check(Datatype::Bytes, &[3], &data).expect_err("one is missing");
        assert_eq!(error.to_string(), "shape [3] has 3 elements, and the bytes hold 2");
        data.extend([9, 0, 0, 0, b'x']);
        let error = check(Datatype::Bytes, &[3], &data).expect_err("eight bytes are missing");
        assert!(error.to_string().contains("element 2 of BYTES needs 13 bytes"), "{error}");
        data.truncate(data.len() - 2);
        assert!(check(Datatype::Bytes, &[3], &data).is_err(), "even the length is cut");
    }
}
