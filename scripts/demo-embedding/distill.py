"""Distils the demo embedding model, one vector for each token, from all-MiniLM-L6-v2 (Apache-2.0).

    python distill.py --teacher DIR --out DIR     # DIR: a local copy of sentence-transformers/all-MiniLM-L6-v2

Each token of the vocabulary goes through the teacher alone. Its pooled vector is reduced by PCA and weighted by how
rare the token is (Arora et al. 2017, smooth inverse frequency, with Zipf's law by rank for the frequency). The ONNX
graph looks tokens up in an int8 table; pooling and normalisation follow modules.json, as for any sentence-transformers
model. No training data is used.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DIMENSIONS = 128
CLS, SEP = 101, 102
# Ids below are padding, special and unused tokens, which carry no meaning; then come single characters.
FIRST_MEANINGFUL = 999
LONGEST_TEXT = 8192


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    vocabulary = json.loads((args.teacher / "config.json").read_text())["vocab_size"]
    table = reduce(token_vectors(args.teacher, vocabulary))
    write(table, args.teacher, args.out)


def token_vectors(teacher: Path, vocabulary: int) -> np.ndarray:
    """`[vocabulary, width]`: the teacher's embedding of each token as a text of its own."""
    import torch  # here, so that the rest can be used without it
    from transformers import AutoModel

    model = AutoModel.from_pretrained(teacher).eval()
    vectors = []
    with torch.no_grad():
        for start in range(0, vocabulary, 512):
            token = torch.arange(start, min(start + 512, vocabulary))
            ids = torch.stack([torch.full_like(token, CLS), token, torch.full_like(token, SEP)], 1)
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            vectors.append(torch.nn.functional.normalize(states.mean(1), dim=1))
    return torch.cat(vectors).numpy()


def reduce(vectors: np.ndarray) -> np.ndarray:
    """`[vocabulary, DIMENSIONS]`: the principal components, each token's length its weight."""
    centred = vectors - vectors.mean(0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    table = centred @ components[:DIMENSIONS].T
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    rank = np.arange(len(table)) + 1  # WordPiece lists tokens by frequency, after the special ones
    frequency = 1.0 / (rank * np.log(len(table)))
    table *= (1e-3 / (1e-3 + frequency))[:, None]
    table[:FIRST_MEANINGFUL] = 0
    return table


def graph(table: np.ndarray) -> onnx.ModelProto:
    """A lookup in the table, stored as int8 with one scale for each dimension."""
    scale = np.abs(table).max(0) / 127
    quantized = np.clip(np.round(table / scale), -127, 127).astype(np.int8)
    # The mask is an input only because every such model has one; pooling uses it, outside the graph.
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, ["batch", "sequence", DIMENSIONS])
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], axis=0),
        helper.make_node("DequantizeLinear", ["rows", "scale"], ["token_embeddings"], axis=2),
    ]
    constants = [
        numpy_helper.from_array(quantized, "table"),
        numpy_helper.from_array(scale.astype(np.float32), "scale"),
    ]
    body = helper.make_graph(nodes, "demo_embedding", inputs, outputs, constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def write(table: np.ndarray, teacher: Path, out: Path) -> None:
    (out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    onnx.save(graph(table), out / "model.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "modules.json"):
        shutil.copy(teacher / name, out)
    config = {
        "model_type": "static",
        "architectures": ["StaticEmbedding"],
        "hidden_size": DIMENSIONS,
        "max_position_embeddings": LONGEST_TEXT,
        "vocab_size": len(table),
        "pad_token_id": 0,
    }
    pooling = {
        "word_embedding_dimension": DIMENSIONS,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    write_json(out / "config.json", config)
    write_json(out / "sentence_bert_config.json", {"max_seq_length": LONGEST_TEXT, "do_lower_case": False})
    write_json(out / "1_Pooling" / "config.json", pooling)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
