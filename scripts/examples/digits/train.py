#!/usr/bin/env python3
"""Trains a classifier of handwritten digits and lays it out as a model repository.

    train.py FOLDER

writes FOLDER/models/digits/{config.pbtxt,labels.txt,1/model.onnx}, which muster serves with
`--model-repository FOLDER/models`, and pictures that it was not trained on, FOLDER/pictures/NUMBER-DIGIT.png.

The pictures are scikit-learn's own copy of the UCI digits: 1,797 of 8 x 8 pixels, 0 (paper) to 16 (ink).
"""

import pathlib
import sys

import numpy as np
from PIL import Image
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

CONFIG = """\
name: "digits"
platform: "onnxruntime_onnx"
max_batch_size: 64
input [ { name: "pixels" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [ { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" } ]
dynamic_batching { }
"""
LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main(folder):
    pixels, digits = load_digits(return_X_y=True)
    learn, test, learned, wanted = train_test_split(pixels, digits, test_size=0.25, random_state=1, stratify=digits)
    # The scaling is a part of the graph: whoever asks sends pixels as they are.
    model = make_pipeline(
        MinMaxScaler(),
        MLPClassifier(hidden_layer_sizes=(64,), max_iter=400, random_state=1),
    )
    model.fit(learn, learned)
    print(f"{model.score(test, wanted):.1%} of {len(test)} pictures that it was not trained on are told right")

    home = folder / "models" / "digits"
    (home / "1").mkdir(parents=True, exist_ok=True)
    (home / "config.pbtxt").write_text(CONFIG)
    (home / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (home / "1" / "model.onnx").write_bytes(export(model))

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number, (picture, digit) in enumerate(zip(test, wanted)):
        image = Image.fromarray((255 - picture.reshape(8, 8) * 255 / 16).astype(np.uint8))
        image.resize((64, 64), Image.Resampling.NEAREST).save(pictures / f"{number:03}-{digit}.png")
    print(f"the model is in {home.parent}, pictures to try it on are in {pictures}")


def export(model):
    """The pipeline as an ONNX graph: `pixels` [n, 64] to `probabilities` [n, 10]."""
    graph = to_onnx(
        model,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={id(model): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    return select_model_inputs_outputs(graph, ["probabilities"]).SerializeToString()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
