"""Makes the 4-bit graph that hub repositories keep as onnx/model_q4.onnx.

    quantize.py FROM.onnx TO.onnx

Blocks of 32, symmetric, products computed in int8 (accuracy level 4), as ONNX Runtime GenAI's builder has it.
"""

import pathlib
import sys

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

source, target = map(pathlib.Path, sys.argv[1:])
target.parent.mkdir(parents=True, exist_ok=True)
quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True, accuracy_level=4)
quantizer.process()
weights = target.name + "_data"
# Weights are added to a file that is there already.
(target.parent / weights).unlink(missing_ok=True)
onnx.save_model(quantizer.model.model, target, save_as_external_data=True, location=weights)
