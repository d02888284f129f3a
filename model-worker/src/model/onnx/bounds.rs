//! Refuses graphs whose sizes cannot be true before anything believes them.
//!
//! A few bytes of an ONNX file can ask for terabytes: weights of a shape that nothing fills, a constant that is to be
//! made with that shape when the graph is loaded. ONNX Runtime would reserve the memory, and the system kill the worker.
//!
//! Numbers of fields are those of `onnx.proto` (onnx/onnx.proto, IR version 10).

use std::collections::HashMap;
use std::path::Path;

use super::wire::{Field, Malformed, Value, fields};

/// Largest file that ONNX Runtime reads: a message of Protocol Buffers has less than 2 GiB. Weights lie beside it then.
const LARGEST_FILE: u64 = (1 << 31) - 1;
/// Most elements of one declared or constant tensor: 64 GiB of float32, several times the largest matrix there is.
const ELEMENTS: u128 = 1 << 34;
/// Dimensions of a shape; ONNX Runtime's own operators take 8.
const RANK: usize = 64;
/// Subgraphs within subgraphs; exporters make a handful.
const DEPTH: usize = 64;

/// Refuses a file that is too long, before it is read.
///
/// # Errors
/// With both lengths.
pub fn check_length(bytes: u64) -> Result<(), String> {
    if bytes <= LARGEST_FILE {
        return Ok(());
    }
    Err(format!("it has {bytes} bytes, and ONNX Runtime reads {LARGEST_FILE} at most; export it with external data"))
}

/// What a graph's sizes are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// The folder of the graph's file, in which files of weights are; `None`: there are none.
    pub folder: Option<&'a Path>,
}

impl Bounds<'_> {
    /// Checks an ONNX file's bytes.
    ///
    /// # Errors
    /// What is too large, or does not fit together; the text names it with both sizes.
    pub fn check(&self, model: &[u8]) -> Result<(), String> {
        for field in read(model)? {
            match field.number {
                7 => self.check_graph(field.value.bytes(), 0)?,
                25 => self.check_nodes(field.value.bytes(), 7, &HashMap::new(), 0)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_graph(&self, graph: &[u8], depth: usize) -> Result<(), String> {
        if depth > DEPTH {
            return Err(format!("it holds graphs within graphs, more than {DEPTH} deep"));
        }
        let mut shapes = HashMap::new();
        for field in read(graph)? {
            match field.number {
                5 => {
                    let tensor = Tensor::read(field.value.bytes())?;
                    self.check_tensor(&tensor)?;
                    shapes.extend(tensor.small_numbers().map(|numbers| (tensor.name(), numbers)));
                }
                1 => shapes.extend(constant(field.value.bytes())?),
                15 => self.check_sparse(field.value.bytes())?,
                11..=13 => check_declared(field.value.bytes())?,
                _ => {}
            }
        }
        self.check_nodes(graph, 1, &shapes, depth)
    }

    /// Checks the nodes in one field of a message. `shapes`: weights and constants that are a few whole numbers, by name.
    fn check_nodes(
        &self,
        message: &[u8],
        number: u64,
        shapes: &HashMap<String, Vec<i64>>,
        depth: usize,
    ) -> Result<(), String> {
        for field in read(message)?.iter().filter(|field| field.number == number) {
            let node = read(field.value.bytes())?;
            check_constant(&node, shapes)?;
            for attribute in node.iter().filter(|field| field.number == 5) {
                self.check_attribute(attribute.value.bytes(), depth)?;
            }
        }
        Ok(())
    }

    fn check_attribute(&self, attribute: &[u8], depth: usize) -> Result<(), String> {
        for field in read(attribute)? {
            match field.number {
                5 | 10 => self.check_tensor(&Tensor::read(field.value.bytes())?)?,
                6 | 11 => self.check_graph(field.value.bytes(), depth + 1)?,
                22 | 23 => self.check_sparse(field.value.bytes())?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_sparse(&self, sparse: &[u8]) -> Result<(), String> {
        for field in read(sparse)?.iter().filter(|field| matches!(field.number, 1 | 2)) {
            self.check_tensor(&Tensor::read(field.value.bytes())?)?;
        }
        Ok(())
    }

    fn check_tensor(&self, tensor: &Tensor<'_>) -> Result<(), String> {
        let elements = elements(&tensor.dims, &tensor.name())?;
        match &tensor.external {
            Some(external) => self.check_external(tensor, external, elements),
            None => tensor.check_content(elements),
        }
    }

    /// Checks that a file beside the graph holds as much as the shape wants.
    fn check_external(&self, tensor: &Tensor<'_>, external: &External, elements: u128) -> Result<(), String> {
        let wanted = tensor.bits().map(|bits| (elements * bits).div_ceil(8));
        let what = || format!("weight `{}` of shape {:?}", tensor.name(), tensor.dims);
        if let (Some(wanted), Some(length)) = (wanted, external.length)
            && wanted != u128::from(length)
        {
            return Err(format!("{} takes {wanted} bytes, and its file is said to hold {length} of it", what()));
        }
        let Some(folder) = self.folder else { return Ok(()) };
        // That it is there, and lies inside, is checked by `check_external_data`.
        let Ok(metadata) = folder.join(&external.location).metadata() else { return Ok(()) };
        let end = u128::from(external.offset) + wanted.unwrap_or_else(|| u128::from(external.length.unwrap_or(0)));
        if end > u128::from(metadata.len()) {
            let (location, size) = (&external.location, metadata.len());
            return Err(format!("{} ends at byte {end} of `{location}`, which has {size}", what()));
        }
        Ok(())
    }
}

/// The fields of a weight that tell its size (`TensorProto`).
#[derive(Debug, Default)]
struct Tensor<'a> {
    dims: Vec<i64>,
    element: u64,
    name: &'a [u8],
    raw: Option<&'a [u8]>,
    /// Elements in fields of their own type.
    typed: u128,
    /// Those of 64 bits, as far as they may be a shape.
    whole: Vec<i64>,
    external: Option<External>,
}

/// Where a weight lies beside the graph.
#[derive(Debug, Default)]
struct External {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl<'a> Tensor<'a> {
    fn read(message: &'a [u8]) -> Result<Self, String> {
        let mut tensor = Self::default();
        let (mut location, mut entries) = (0, Vec::new());
        for field in read(message)? {
            match (field.number, field.value) {
                (1, value) => value.push_numbers(&mut tensor.dims).map_err(malformed)?,
                (2, Value::Number(element)) => tensor.element = element,
                (4, value) => tensor.typed += packed(value, 4),
                (10, value) => tensor.typed += packed(value, 8),
                (7, value) => {
                    tensor.typed += varints(value)?;
                    if value.bytes().len() <= RANK * 10 && tensor.whole.len() <= RANK {
                        value.push_numbers(&mut tensor.whole).map_err(malformed)?;
                    }
                }
                (5 | 11, value) => tensor.typed += varints(value)?,
                (6, _) => tensor.typed += 1,
                (8, value) => tensor.name = value.bytes(),
                (9, value) => tensor.raw = Some(value.bytes()),
                (13, value) => entries.push(value.bytes()),
                (14, Value::Number(number)) => location = number,
                _ => {}
            }
        }
        tensor.external = (location == 1).then(|| External::read(&entries)).transpose()?;
        Ok(tensor)
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(self.name).into_owned()
    }

    /// Bits of one element; `None` for strings, and for types that are newer than this.
    fn bits(&self) -> Option<u128> {
        Some(match self.element {
            21..=23 => 4,                  // UINT4, INT4, FLOAT4E2M1
            2 | 3 | 9 | 17..=20 | 24 => 8, // UINT8, INT8, BOOL, the FLOAT8s
            4 | 5 | 10 | 16 => 16,         // UINT16, INT16, FLOAT16, BFLOAT16
            1 | 6 | 12 => 32,              // FLOAT, INT32, UINT32
            7 | 11 | 13 | 14 => 64,        // INT64, DOUBLE, UINT64, COMPLEX64
            15 => 128,                     // COMPLEX128
            _ => return None,
        })
    }

    /// Checks that the graph itself holds as much as the shape wants.
    fn check_content(&self, elements: u128) -> Result<(), String> {
        let mismatch = |wanted: u128, held: u128, what: &str| {
            let (name, dims) = (self.name(), &self.dims);
            Err(format!("weight `{name}` of shape {dims:?} takes {wanted} {what}, and the file holds {held} of it"))
        };
        match (self.raw, self.bits()) {
            (Some(raw), Some(bits)) => match (elements * bits).div_ceil(8) {
                wanted if wanted != raw.len() as u128 => mismatch(wanted, raw.len() as u128, "bytes"),
                _ => Ok(()),
            },
            // Numbers of 4 bits lie two in one, complex ones take two.
            (None, Some(4)) if self.typed < elements.div_ceil(2) => mismatch(elements, self.typed, "numbers"),
            (None, Some(bits)) if bits > 4 && self.typed < elements => mismatch(elements, self.typed, "numbers"),
            (None, None) if self.typed < elements && self.element == 8 => mismatch(elements, self.typed, "texts"),
            _ => Ok(()),
        }
    }

    /// Its numbers, where they may be a shape: a few 64-bit integers.
    fn small_numbers(&self) -> Option<Vec<i64>> {
        if self.element != 7 {
            return None;
        }
        let Some(raw) = self.raw else { return Some(self.whole.clone()).filter(|numbers| !numbers.is_empty()) };
        let (numbers, _) = raw.as_chunks::<8>();
        Some(numbers).filter(|_| raw.len() <= 8 * RANK).map(|all| all.iter().copied().map(i64::from_le_bytes).collect())
    }
}

impl External {
    fn read(entries: &[&[u8]]) -> Result<Self, String> {
        let mut external = Self::default();
        for entry in entries {
            let fields = read(entry)?;
            let text = |number| {
                let field = fields.iter().find(|field| field.number == number);
                field.map(|field| String::from_utf8_lossy(field.value.bytes()).into_owned()).unwrap_or_default()
            };
            let (key, value) = (text(1), text(2));
            let size = || value.parse::<u64>().map_err(|_| format!("the {key} of external data is `{value}`, no size"));
            match key.as_str() {
                "offset" => external.offset = size()?,
                "length" => external.length = Some(size()?),
                "location" => external.location = value,
                _ => {}
            }
        }
        Ok(external)
    }
}

/// Checks an input, an output, or an intermediate value: declared sizes must be possible.
fn check_declared(value: &[u8]) -> Result<(), String> {
    let only = |message: &[u8], number: u64| -> Result<Vec<u8>, String> {
        let field = read(message)?.into_iter().find(|field| field.number == number);
        Ok(field.map(|field| field.value.bytes().to_vec()).unwrap_or_default())
    };
    let shape = only(&only(&only(value, 2)?, 1)?, 2)?;
    let mut dims = Vec::new();
    for dimension in read(&shape)?.iter().filter(|field| field.number == 1) {
        let size = read(dimension.value.bytes())?.into_iter().find(|field| field.number == 1);
        if let Some(Value::Number(size)) = size.map(|field| field.value) {
            dims.push((size as i64).max(0)); // some exporters say -1 for any
        }
    }
    elements(&dims, &String::from_utf8_lossy(&only(value, 1)?)).map(drop)
}

/// The output of a `Constant` and its numbers, where they may be a shape.
fn constant(node: &[u8]) -> Result<Option<(String, Vec<i64>)>, String> {
    let node = read(node)?;
    let first = |number| node.iter().find(|field| field.number == number).map(|field| field.value.bytes());
    let (Some(b"Constant"), Some(name), Some(attribute)) = (first(4), first(2), first(5)) else { return Ok(None) };
    let attribute = read(attribute)?;
    let numbers = match attribute.iter().find(|field| field.number == 5) {
        Some(tensor) => Tensor::read(tensor.value.bytes())?.small_numbers(),
        None => {
            // Its other form: whole numbers by themselves.
            let mut numbers = Vec::new();
            for field in attribute.iter().filter(|field| field.number == 8).take(RANK) {
                field.value.push_numbers(&mut numbers).map_err(malformed)?;
            }
            Some(numbers).filter(|numbers| !numbers.is_empty())
        }
    };
    Ok(numbers.map(|numbers| (String::from_utf8_lossy(name).into_owned(), numbers)))
}

/// Checks a node that ONNX Runtime computes while it loads the graph: a constant of a shape that is a weight.
fn check_constant(node: &[Field<'_>], shapes: &HashMap<String, Vec<i64>>) -> Result<(), String> {
    let operator = node.iter().find(|field| field.number == 4).map(|field| field.value.bytes());
    let inputs = node.iter().filter(|field| field.number == 1).map(|field| field.value.bytes());
    let shape = match operator {
        Some(b"ConstantOfShape") => inputs.into_iter().next(),
        Some(b"Expand" | b"Tile") => inputs.into_iter().nth(1),
        _ => None,
    };
    let shape = shape.and_then(|name| shapes.get(std::str::from_utf8(name).ok()?));
    let Some(shape) = shape else { return Ok(()) };
    let operator = String::from_utf8_lossy(operator.unwrap_or_default());
    // -1 keeps what is there.
    let shape: Vec<i64> = shape.iter().map(|&size| if size == -1 { 1 } else { size }).collect();
    elements(&shape, &format!("the output of a {operator}")).map(drop)
}

/// Elements of a tensor, if there can be so many.
fn elements(dims: &[i64], name: &str) -> Result<u128, String> {
    let mut elements: u128 = 1;
    for &size in dims {
        let Ok(size) = u128::try_from(size) else {
            return Err(format!("`{name}` has shape {dims:?}; no size can be below 0"));
        };
        elements =
            elements.checked_mul(size).filter(|&count| count <= ELEMENTS || dims.contains(&0)).ok_or_else(|| {
                format!(
                    "`{name}` has shape {dims:?}, more than the {ELEMENTS} elements that muster takes of one tensor"
                )
            })?;
    }
    Ok(elements)
}

/// Numbers of fixed length in a field.
fn packed(value: Value<'_>, size: usize) -> u128 {
    match value {
        Value::Bytes(bytes) => (bytes.len() / size) as u128,
        Value::Number(_) | Value::Fixed => 1,
    }
}

/// Numbers of variable length in a field.
fn varints(value: Value<'_>) -> Result<u128, String> {
    match value {
        Value::Bytes(bytes) => Ok(bytes.iter().filter(|&&byte| byte & 0x80 == 0).count() as u128),
        Value::Number(_) => Ok(1),
        Value::Fixed => Err(malformed(Malformed)),
    }
}

fn read(message: &[u8]) -> Result<Vec<Field<'_>>, String> {
    fields(message).map_err(malformed)
}

fn malformed(_: Malformed) -> String {
    "not an ONNX model (its fields are broken)".to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{message, push_bytes, push_number};
    use super::*;

    fn tensor(dims: &[i64], element: u64, content: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut tensor = Vec::new();
        dims.iter().for_each(|&size| push_number(&mut tensor, 1, size as u64));
        push_number(&mut tensor, 2, element);
        push_bytes(&mut tensor, 8, b"w");
        content(&mut tensor);
        tensor
    }

    fn raw(bytes: usize) -> impl FnOnce(&mut Vec<u8>) {
        move |tensor| push_bytes(tensor, 9, &vec![0; bytes])
    }

    fn external(entries: &[(&str, &str)]) -> impl FnOnce(&mut Vec<u8>) {
        move |tensor| {
            for (key, value) in entries {
                let mut entry = message(1, key.as_bytes());
                push_bytes(&mut entry, 2, value.as_bytes());
                push_bytes(tensor, 13, &entry);
            }
            push_number(tensor, 14, 1);
        }
    }

    /// A model with one weight.
    fn model(tensor: &[u8]) -> Vec<u8> {
        message(7, &message(5, tensor))
    }

    fn check(model: &[u8]) -> Result<(), String> {
        Bounds { folder: None }.check(model)
    }

    #[test]
    fn a_weight_must_hold_what_its_shape_says() {
        check(&model(&tensor(&[2, 3], 1, raw(24)))).expect("6 float32");
        check(&model(&tensor(&[3], 22, raw(2)))).expect("3 numbers of 4 bits");
        check(&model(&tensor(&[], 7, raw(8)))).expect("a scalar");
        check(&model(&tensor(&[0, 5], 1, raw(0)))).expect("nothing");
        check(&model(&tensor(&[2], 1, |tensor| push_bytes(tensor, 4, &[0; 8])))).expect("2 packed float32");
        check(&model(&tensor(&[2], 7, |tensor| push_bytes(tensor, 7, &[0x80, 1, 5])))).expect("2 packed int64");
        for (dims, element, bytes, expected) in [
            (&[1 << 20, 1 << 10][..], 1, 4, "takes 4294967296 bytes, and the file holds 4"),
            (&[2, 3], 1, 23, "takes 24 bytes, and the file holds 23"),
            (&[-1], 1, 4, "no size can be below 0"),
            (&[1 << 40, 1 << 40], 1, 4, "more than the"),
            (&[i64::MAX, i64::MAX, i64::MAX], 1, 4, "more than the"),
        ] {
            let error = check(&model(&tensor(dims, element, raw(bytes)))).expect_err(expected);
            assert!(error.contains(expected) && error.contains("`w`"), "{error}");
        }
        let error = check(&model(&tensor(&[1 << 30], 1, |_| ()))).expect_err("nothing fills it");
        assert!(error.contains("takes 1073741824 numbers, and the file holds 0"), "{error}");
    }

    #[test]
    fn a_weight_beside_the_graph_must_be_there_as_a_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("w.data"), [0; 64]).expect("a file");
        let check = |entries: &[(&str, &str)]| {
            let entries: Vec<_> = [&[("location", "w.data")], entries].concat();
            Bounds { folder: Some(folder.path()) }.check(&model(&tensor(&[4, 2], 1, external(&entries))))
        };
        check(&[]).expect("32 bytes of 64");
        check(&[("offset", "32"), ("length", "32")]).expect("the rest");
        for (entries, expected) in [
            (&[("offset", "33")][..], "ends at byte 65 of `w.data`, which has 64"),
            (&[("offset", "18446744073709551615")], "which has 64"),
            (&[("length", "1000000000000")], "takes 32 bytes, and its file is said to hold 1000000000000"),
            (&[("length", "-1")], "no size"),
        ] {
            let error = check(entries).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_computed_at_loading_must_be_possible() {
        let shape = |sizes: &[i64]| {
            let bytes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
            tensor(&[sizes.len() as i64], 7, move |tensor| push_bytes(tensor, 9, &bytes))
        };
        let node = |operator: &str, inputs: &[&str]| {
            let mut node = Vec::new();
            inputs.iter().for_each(|input| push_bytes(&mut node, 1, input.as_bytes()));
            push_bytes(&mut node, 4, operator.as_bytes());
            node
        };
        let model = |operator: &str, inputs: &[&str], sizes: &[i64]| {
            let mut graph = message(1, &node(operator, inputs));
            push_bytes(&mut graph, 5, &shape(sizes));
            message(7, &graph)
        };
        check(&model("ConstantOfShape", &["w"], &[1024, 1024])).expect("a usual mask");
        check(&model("Expand", &["x", "w"], &[-1, 8])).expect("as it is");
        check(&model("Reshape", &["x", "w"], &[1 << 40])).expect("takes no memory by itself");
        for (operator, inputs) in [("ConstantOfShape", &["w"][..]), ("Expand", &["x", "w"]), ("Tile", &["x", "w"])] {
            let error = check(&model(operator, inputs, &[1 << 20, 1 << 20])).expect_err(operator);
            assert!(error.contains(operator) && error.contains("1048576"), "{error}");
        }
        let mut constant = node("Constant", &[]);
        push_bytes(&mut constant, 2, b"made");
        push_bytes(&mut constant, 5, &message(5, &shape(&[1 << 40])));
        let user = message(1, &node("ConstantOfShape", &["made"]));
        check(&message(7, &[message(1, &constant), user.clone()].concat()))
            .expect_err("a shape may be a constant, too");

        let mut numbers = Vec::new();
        push_number(&mut numbers, 8, 1 << 40);
        let mut constant = node("Constant", &[]);
        push_bytes(&mut constant, 2, b"made");
        push_bytes(&mut constant, 5, &numbers);
        check(&message(7, &[message(1, &constant), user].concat())).expect_err("in either form");

        let mut graph = message(1, &node("ConstantOfShape", &["w"]));
        push_bytes(&mut graph, 5, &tensor(&[1], 7, |tensor| push_number(tensor, 7, 1 << 40)));
        check(&message(7, &graph)).expect_err("in numbers of its own type");
    }

    #[test]
    fn declared_sizes_and_depth_have_bounds() {
        let dimension = |size: i64| {
            let mut out = Vec::new();
            push_number(&mut out, 1, size as u64);
            message(1, &out)
        };
        let input = |sizes: &[i64]| {
            let shape: Vec<u8> = sizes.iter().flat_map(|&size| dimension(size)).collect();
            let mut value = message(1, b"x");
            push_bytes(&mut value, 2, &message(1, &message(2, &shape)));
            message(7, &message(11, &value))
        };
        check(&input(&[-1, 3, 224, 224])).expect("a picture");
        let error = check(&input(&[1 << 30, 1 << 30])).expect_err("too many");
        assert!(error.contains("`x`"), "{error}");

        let nested = (0..80).fold(Vec::new(), |inner: Vec<u8>, _| message(1, &message(5, &message(6, &inner))));
        let error = check(&message(7, &nested)).expect_err("too deep");
        assert!(error.contains("64 deep"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_checked_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = check(&bytes);
            let _ = check(&model(&bytes));
        }
    }
}
