"""Makes the demo chat model anew with 4-bit weights and in float16, for tests.

    variants.py model-worker/demo/chat tests/models

Writes `demo-int4/model.onnx` (blocks of 32, products computed in int8, float32 beside them) and `demo-fp16/model.onnx`
(weights, caches and logits). The other files of both folders are links to those of the demo model. Besides
`without-past.onnx`, the smallest decoder that takes no keys and values.
"""

import os
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

FILES = ["chat_template.jinja", "genai_config.json", "tokenizer.json", "tokenizer_config.json"]


def main(source: pathlib.Path, target: pathlib.Path) -> None:
    for name, convert in {"demo-int4": int4, "demo-fp16": float16}.items():
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        model = convert(onnx.load(source / "model.onnx"))
        onnx.save_model(model, folder / "model.onnx")
        for file in FILES:
            link = folder / file
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(source / file, folder))
    onnx.save_model(without_past(), target / "without-past.onnx")


def without_past() -> onnx.ModelProto:
    names = ["batch_size", "sequence_length"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, names) for name in ("input_ids", "attention_mask")]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*names, 4])
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weights")
    node = helper.make_node("Gather", ["weights", "input_ids"], ["logits"])
    graph = helper.make_graph([node], "decoder", inputs, [logits], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def int4(model: onnx.ModelProto) -> onnx.ModelProto:
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    return quantizer.model.model


def float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph casts to whole numbers only, so the type of what it is given decides the type of all it computes."""
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            numbers = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
