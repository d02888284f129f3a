#!/usr/bin/env python3
"""Makes the small graphs of tests/models/tensors: a repository in Triton's layout, a few KB in all.

    pip install -r scripts/test-models/requirements-tensors.txt
    python scripts/test-models/tensors.py tests/models/tensors
"""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model

OPSET = 21
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING

# Names of the protocol's datatypes and their numbers in onnx.proto.
DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def value(name, element, shape):
    return helper.make_tensor_value_info(name, element, shape)


def weight(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def write(folder, nodes, inputs, outputs, weights=(), config=None, version="1", **files):
    graph = helper.make_graph(nodes, folder.name, inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    (folder / version).mkdir(parents=True, exist_ok=True)
    save_model(model, folder / version / "model.onnx")
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)


def identity(root):
    """Every datatype as it comes; each with a symbol of its own, so that nothing can be batched."""
    names = DATATYPES.items()
    write(
        root / "identity",
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name, _ in names],
        [value(f"in_{name}", element, [f"n_{name}"]) for name, element in names],
        [value(f"out_{name}", element, [f"n_{name}"]) for name, element in names],
    )


def add(root):
    """Rows of three numbers, with a symbolic batch and no configuration."""
    write(
        root / "add",
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [value("a", FLOAT, ["batch", 3]), value("b", FLOAT, ["batch", 3])],
        [value("sum", FLOAT, ["batch", 3]), value("difference", FLOAT, ["batch", 3])],
    )


MLP = """\
# A classifier that says how it wants to be batched.
name: "mlp"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [
  { name: "scores" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 500 }
instance_group [ { kind: KIND_CPU count: 1 } ]
version_policy: { all { } }
parameters { key: "origin" value: { string_value: "scripts/test-models" } }
"""


def mlp(root):
    """Two versions with weights of their own, three classes with labels."""
    for version, seed in ("1", 1), ("2", 2):
        rng = np.random.default_rng(seed)
        write(
            root / "mlp",
            [
                helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"]),
                helper.make_node("Relu", ["hidden"], ["active"]),
                helper.make_node("Gemm", ["active", "w2", "b2"], ["scores"]),
            ],
            [value("x", FLOAT, ["batch", 4])],
            [value("scores", FLOAT, ["batch", 3])],
            [
                weight("w1", rng.standard_normal((4, 16), dtype=np.float32)),
                weight("b1", rng.standard_normal(16, dtype=np.float32)),
                weight("w2", rng.standard_normal((16, 3), dtype=np.float32)),
                weight("b2", rng.standard_normal(3, dtype=np.float32)),
            ],
            config=MLP,
            version=version,
            labels="cat\ndog\nbird\n",
        )


def softmax(root):
    """A symbolic first dimension that is no batch: each row depends on all others."""
    write(
        root / "softmax",
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [value("x", FLOAT, ["batch", 3])],
        [value("y", FLOAT, ["batch", 3])],
    )


def strings(root):
    write(
        root / "strings",
        [helper.make_node("StringConcat", ["left", "right"], ["both"])],
        [value("left", STRING, ["n"]), value("right", STRING, ["n"])],
        [value("both", STRING, ["n"])],
    )


def gather(root):
    """Fails at run time for an index beyond the table."""
    write(
        root / "gather",
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [value("index", INT64, ["n"])],
        [value("y", FLOAT, ["n"])],
        [weight("table", np.arange(5, dtype=np.float32) * 10)],
    )


def scalar(root):
    """Two scalars; the second is a weight that a request may replace."""
    write(
        root / "scalar",
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [value("x", FLOAT, []), value("factor", FLOAT, [])],
        [value("y", FLOAT, [])],
        [weight("factor", np.float32(2).reshape(()))],
    )


def fixed(root):
    write(
        root / "fixed",
        [helper.make_node("Neg", ["x"], ["y"])],
        [value("x", FLOAT, [2, 3])],
        [value("y", FLOAT, [2, 3])],
    )


def large(root):
    """25 MB of weights in a file that a test writes: `weights.bin` with [2048, 3072] numbers."""
    weights = TensorProto(name="w", data_type=FLOAT, dims=[2048, 3072], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="weights.bin")
    write(
        root / "large",
        [
            helper.make_node("Expand", ["x", "wide"], ["row"]),
            helper.make_node("MatMul", ["row", "w"], ["product"]),
            helper.make_node("ReduceMax", ["product", "last"], ["y"]),
        ],
        [value("x", FLOAT, ["batch", 1])],
        [value("y", FLOAT, ["batch", 1])],
        [weight("wide", np.array([1, 2048])), weight("last", np.array([1])), weights],
    )


def main():
    root = Path(sys.argv[1])
    for make in identity, add, mlp, softmax, strings, gather, scalar, fixed, large:
        make(root)


if __name__ == "__main__":
    main()
