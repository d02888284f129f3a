#!/usr/bin/env python3
"""Makes an int8 model of a float32 one: weights of 8 bits with a scale for each column, activations of 8 bits.

    pip install onnx onnxruntime
    scripts/quantize-int8.py FROM TO

FROM is a folder that ONNX Runtime GenAI's model builder wrote with `-p fp32`; TO gets the int8 graph, and copies of the
configuration and the tokenizer. The builder's memory is needed again: two to three times the float32 weights.

Check the answers of the new model before you rely on it. Weights lose little, but activations are rounded while running,
with one scale for each tensor: a few large numbers make it coarse for all others, and answers may depend on what else
runs at the same moment. Models of less than a billion parameters, and those known for outliers, suffer most.

It pays on processors that multiply 8-bit numbers quickly (AMX, VNNI). Older ones of x86 saturate sums of such products:
--reduce-range keeps weights to 7 bits, so that they do not.
"""

import argparse
import logging
import pathlib
import shutil
import sys

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

GRAPH = "model.onnx"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FROM", type=pathlib.Path, help="the float32 model's folder")
    parser.add_argument("target", metavar="TO", type=pathlib.Path, help="the new folder")
    parser.add_argument("--reduce-range", action="store_true", help="weights of 7 bits, for processors without VNNI")
    arguments = parser.parse_args()
    check(arguments.source, arguments.target)
    arguments.target.mkdir(parents=True, exist_ok=True)
    quantize(arguments)
    for file in arguments.source.iterdir():
        if file.is_file() and not file.name.startswith(GRAPH):
            shutil.copy(file, arguments.target)


def check(source, target):
    """Ends the program where the result would be of no use, or overwrite something."""
    for name in ("genai_config.json", GRAPH):
        if not (source / name).is_file():
            sys.exit(f"{source} holds no {name}; give the folder that ONNX Runtime GenAI's model builder wrote")
    if (target / GRAPH).exists():
        sys.exit(f"{target / GRAPH} is there already; remove it, or choose another folder")
    nodes = onnx.load(source / GRAPH, load_external_data=False).graph.node
    quantised = {node.op_type for node in nodes} & {"MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul"}
    if quantised or not any(node.op_type == "MatMul" for node in nodes):
        found = ", ".join(sorted(quantised)) or "no MatMul"
        sys.exit(f"{source / GRAPH} is no float32 export (it has {found}); export the model with `-p fp32`")


def quantize(arguments):
    # It advises to prepare graphs as other exporters write them; the builder's have nothing to prepare.
    logging.disable(logging.WARNING)
    # Only products: embeddings of 8 bits would save memory and no time. Weights stay in the graph's file where they fit.
    size = sum(file.stat().st_size for file in arguments.source.glob(f"{GRAPH}*"))
    quantize_dynamic(
        arguments.source / GRAPH, arguments.target / GRAPH, op_types_to_quantize=["MatMul"], per_channel=True,
        reduce_range=arguments.reduce_range, weight_type=QuantType.QInt8, use_external_data_format=size > 1 << 27,
    )
    # Weights come from a temporary file, which only its owner may read.
    for file in arguments.target.glob(f"{GRAPH}*"):
        file.chmod((arguments.source / GRAPH).stat().st_mode & 0o777)


main()
