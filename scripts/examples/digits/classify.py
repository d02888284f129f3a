#!/usr/bin/env python3
"""Asks muster which digits stand on pictures.

    classify.py [--url http://127.0.0.1:8000] [--model digits] PICTURE...

From a picture to a class, in three steps: the picture becomes the numbers that the model was trained on, the numbers go
to `POST /v2/models/digits/infer` (Open Inference Protocol), and the likeliest class comes back with its name, since the
output is asked for with `classification`. Pictures named NUMBER-DIGIT.png are checked; one that is told wrong is shown.
"""

import argparse
import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

import numpy as np
from PIL import Image, ImageOps


def pixels(path):
    """64 numbers from 0 (paper) to 16 (ink), as in the pictures that the model has learned."""
    picture = ImageOps.invert(Image.open(path).convert("L")).resize((8, 8), Image.Resampling.BOX)
    return (np.asarray(picture, dtype=np.float32) * 16 / 255).ravel()


def ask(url, model, pictures):
    """The likeliest class of each picture: (probability, index, name)."""
    request = {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "FP32",
                "shape": [len(pictures), 64],
                "data": np.stack(pictures).tolist(),
            }
        ],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}],
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps(request).encode()
    asked = urllib.request.Request(f"{url}/v2/models/{model}/infer", body, headers)
    try:
        with urllib.request.urlopen(asked) as answer:
            (output,) = json.load(answer)["outputs"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{url} refused: {error.read().decode()}")
    except urllib.error.URLError as error:
        sys.exit(f"nobody answers at {url} ({error.reason}); start muster, or name another address with --url")
    classes = (value.split(":") for value in output["data"])
    return [(float(probability), int(index), name) for probability, index, name in classes]


def show(path):
    """The picture in letters."""
    return "\n".join("".join(" .:oO#"[min(int(ink) // 3, 5)] * 2 for ink in row) for row in pixels(path).reshape(8, 8))


def main():
    parser = argparse.ArgumentParser(description="Asks muster which digits stand on pictures.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the gateway, or of a worker")
    parser.add_argument("--model", default="digits")
    parser.add_argument("pictures", nargs="+", type=pathlib.Path)
    args = parser.parse_args()

    right = checked = 0
    for begin in range(0, len(args.pictures), 32):
        paths = args.pictures[begin : begin + 32]
        for path, (probability, index, name) in zip(paths, ask(args.url, args.model, [pixels(path) for path in paths])):
            print(f"{path.name}: {name} ({probability:.0%})")
            wanted = path.stem.rpartition("-")[2]
            if wanted.isdigit():
                checked += 1
                right += index == int(wanted)
                if index != int(wanted):
                    print(show(path))
    if checked:
        print(f"{right} of {checked} are right")


if __name__ == "__main__":
    main()
