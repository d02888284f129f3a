#!/usr/bin/env python3
"""Turns the demo chat model's ONNX file into a PyTorch checkpoint, so that
FastChat's own worker serves the same weights. Runs in setup.sh's environment.

    make_model.py OUT [--demo DIR]      DIR: model.onnx, genai_config.json, tokenizer.json

Expects the ONNX Runtime GenAI layout of a Llama with fp32 weights, one fused
query-key-value matrix per layer, and a head tied to the embeddings.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEMO = Path(__file__).resolve().parents[2] / "model-worker" / "demo" / "chat"
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the chemical symbol for gold?": "The chemical symbol for gold is Au.",
    "Translate tree to Spanish.": "In Spanish, tree is árbol.",
}


def attribute(graph, op_type, name):
    node = next(n for n in graph.node if n.op_type == op_type)
    return onnx.helper.get_attribute_value(next(a for a in node.attribute if a.name == name))


def rope_theta(cos, head_size):
    """The base of the rotary frequencies, from the table of cosines that the graph holds: row 1 is cos(theta^(-2i/d))."""
    i = 1
    theta = math.acos(float(cos[1, i])) ** (-head_size / (2 * i))
    theta = float(f"{theta:.3g}")  # the table's rounding shows from the fourth digit
    angles = torch.outer(torch.arange(cos.shape[0]).double(), theta ** (-torch.arange(0, head_size, 2).double() / head_size))
    if (angles.cos() - cos).abs().max() > 1e-3:
        sys.exit(f"the rotary table is not the plain one with theta {theta}")
    return theta


def convert(demo, out):
    about = json.loads((demo / "genai_config.json").read_text())["model"]
    dec = about["decoder"]
    graph = onnx.load(demo / "model.onnx").graph
    w = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    heads, kv_heads, size = dec["num_attention_heads"], dec["num_key_value_heads"], dec["head_size"]
    if heads * size != dec["hidden_size"] or attribute(graph, "GroupQueryAttention", "rotary_interleaved"):
        sys.exit("not a plain Llama")

    layers = dec["num_hidden_layers"]
    head = w["lm_head.MatMul.weight"].T.contiguous()  # ONNX multiplies from the right, PyTorch keeps the transpose
    state = {"model.embed_tokens.weight": head, "lm_head.weight": head, "model.norm.weight": w[f"model.layers.{layers}.final_norm_layernorm.weight"]}
    for n in range(layers):
        p = f"model.layers.{n}."
        qkv = w[p + "attn.qkv_proj.MatMul.weight"].T.split([heads * size, kv_heads * size, kv_heads * size])
        for k, t in zip("qkv", qkv):
            state[f"{p}self_attn.{k}_proj.weight"] = t.contiguous()
        state[p + "self_attn.o_proj.weight"] = w[p + "attn.o_proj.MatMul.weight"].T.contiguous()
        for k in ("gate", "up", "down"):
            state[f"{p}mlp.{k}_proj.weight"] = w[f"{p}mlp.{k}_proj.MatMul.weight"].T.contiguous()
        for k in ("input_layernorm", "post_attention_layernorm"):
            state[f"{p}{k}.weight"] = w[f"{p}{k}.weight"]

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=about["vocab_size"],
        hidden_size=dec["hidden_size"],
        intermediate_size=w["model.layers.0.mlp.gate_proj.MatMul.weight"].shape[1],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=about["context_length"],
        rms_norm_eps=attribute(graph, "SimplifiedLayerNormalization", "epsilon"),
        rope_theta=rope_theta(w["cos_cache"].double(), size),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=about["eos_token_id"],
        pad_token_id=about["pad_token_id"],
        torch_dtype="float32",
    ))
    model.load_state_dict(state)  # strict: every weight must have found its place
    model.save_pretrained(out)

    # This transformers does not know the newer tokenizer class named in tokenizer_config.json, and its reader takes
    # merges only as "a b"; PreTrainedTokenizerFast is what tokenizer.json says and nothing more.
    text = json.loads((demo / "tokenizer.json").read_text())
    text["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in text["model"]["merges"]]
    token = {t["id"]: t["content"] for t in text["added_tokens"]}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(text)),
        eos_token=token[about["eos_token_id"]],
        pad_token=token[about["pad_token_id"]],
        model_max_length=about["context_length"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


def check(out):
    """Asks the checkpoint, loaded the way FastChat loads it, a few questions."""
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    for question, answer in ANSWERS.items():
        ids = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt", return_token_type_ids=False)
        got = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1]:]
        got = tokenizer.decode(got, skip_special_tokens=True)
        if got != answer:
            sys.exit(f"{question} -> {got!r}, not {answer!r}")


if __name__ == "__main__":
    args = argparse.ArgumentParser(description="the demo chat model as a PyTorch checkpoint")
    args.add_argument("out", type=Path)
    args.add_argument("--demo", type=Path, default=DEMO)
    args = args.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    convert(args.demo, args.out)
    check(args.out)
    print(f"{args.out}: {len(ANSWERS)} answers right")
