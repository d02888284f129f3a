//! Elements of a [`Datatype::Bytes`](muster_shared::tensor::Datatype::Bytes) tensor: each after its length in 4 bytes.

use bytes::{BufMut as _, Bytes, BytesMut};

/// The elements of raw data.
///
/// # Errors
/// Where the data ends within an element, in words.
pub fn split(data: &[u8]) -> Result<impl Iterator<Item = &[u8]> + Clone, String> {
    let mut rest = data;
    while !rest.is_empty() {
        rest = take(rest).ok_or_else(|| {
            format!(
                "its data ends within the element that begins at byte {} of {}",
                data.len() - rest.len(),
                data.len()
            )
        })?;
    }
    Ok(Elements(data))
}

/// Raw data of elements. An element of 4 GiB or more cannot be; none that came in can have been so long.
pub fn join<'a>(elements: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    let mut data = BytesMut::with_capacity(elements.clone().map(|element| 4 + element.len()).sum());
    for element in elements {
        data.put_u32_le(u32::try_from(element.len()).unwrap_or(u32::MAX));
        data.put_slice(element);
    }
    data.freeze()
}

#[derive(Clone)]
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = take(self.0)?;
        let element = &self.0[4..self.0.len() - rest.len()];
        self.0 = rest;
        Some(element)
    }
}

/// What comes after the first element; `None` when there is no whole one.
fn take(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.get(usize::try_from(u32::from_le_bytes(*length)).ok()?..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_joined_is_split_alike(elements: Vec<Vec<u8>>) {
            let data = join(elements.iter().map(Vec::as_slice));
            let again: Vec<&[u8]> = split(&data).expect("whole elements").collect();
            prop_assert_eq!(again, elements);
        }

        #[test]
        fn no_bytes_break_it_and_whole_data_comes_back(data: Vec<u8>) {
            if let Ok(elements) = split(&data) {
                prop_assert_eq!(&join(elements)[..], &data[..]);
            }
        }
    }

    #[test]
    fn an_element_that_is_cut_off_is_named() {
        let Err(error) = split(&[1, 0, 0, 0, b'a', 9, 0, 0, 0, b'b']) else { panic!("it is cut off") };
        assert!(error.contains("byte 5 of 10"), "{error}");
    }
}
