"""Writes a checkpoint of train.py as ONNX in the two layouts that users have.

    python export.py CHECKPOINT OUT

OUT/gqa is ONNX Runtime GenAI's layout, OUT/concat that of Optimum and transformers.js. Both are fp32 and hold the same
weights, so their answers must agree.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.cache_utils import DynamicCache


def main() -> None:
    checkpoint, out = map(Path, sys.argv[1:3])
    export_gqa(checkpoint, out / "gqa")
    export_concat(checkpoint, out / "concat")


def export_gqa(checkpoint: Path, out: Path) -> None:
    """Keys and values are written in place; logits are those of the last position only."""
    cache = out.with_name(out.name + ".cache")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    files = ["-i", checkpoint, "-o", out, "-c", cache]
    subprocess.run([*builder, *files, "-p", "fp32", "-e", "cpu", "--extra_options", "prune_lm_head=true"], check=True)
    shutil.rmtree(cache, ignore_errors=True)
    clean(out / "model.onnx")


def export_concat(checkpoint: Path, out: Path) -> None:
    """Each run appends to the past keys and values, and returns them anew."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    path = out / "onnx" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs, outputs = names(model)
    torch.onnx.export(
        Step(model).eval(),
        example(model),
        str(path),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes=inputs | outputs,
        opset_version=17,
        dynamo=False,
    )
    clean(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(checkpoint / name, out)
    (out / "config.json").write_text(json.dumps(model.config.to_diff_dict(), indent=1, default=str))


class Step(torch.nn.Module):
    """One run of the model with the past as plain tensors: key and value of each layer in turn."""

    def __init__(self, model: LlamaForCausalLM):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(list(zip(past[::2], past[1::2]))),
            use_cache=True,
        )
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return result.logits, *present


def names(model: LlamaForCausalLM) -> tuple[dict, dict]:
    """Inputs and outputs in order, each with its axes of varying length."""
    caches = [f"{layer}.{part}" for layer in range(model.config.num_hidden_layers) for part in ("key", "value")]
    tokens = {0: "batch_size", 1: "sequence_length"}
    inputs = {
        "input_ids": tokens,
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "position_ids": tokens,
    }
    inputs |= {f"past_key_values.{name}": {0: "batch_size", 2: "past_sequence_length"} for name in caches}
    outputs = {"logits": tokens}
    outputs |= {f"present.{name}": {0: "batch_size", 2: "total_sequence_length"} for name in caches}
    return inputs, outputs


def example(model: LlamaForCausalLM) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with: two sequences, three new tokens each after four past ones."""
    config, batch, new, past = model.config, 2, 3, 4
    shape = (batch, config.num_key_value_heads, past, config.head_dim)
    return (
        torch.ones(batch, new, dtype=torch.long),
        torch.ones(batch, past + new, dtype=torch.long),
        torch.arange(past, past + new).repeat(batch, 1),
        *(torch.randn(shape) for _ in range(2 * config.num_hidden_layers)),
    )


def clean(path: Path) -> None:
    """Drops the exporter's notes, which name source files, and puts everything into one file."""
    model = onnx.load(path)
    model.doc_string = ""
    del model.metadata_props[:]
    for part in [*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info]:
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    for old in (path, path.with_name("model.onnx.data"), path.with_name("model.onnx_data")):
        old.unlink(missing_ok=True)
    # Small enough for one file, which can be loaded from memory.
    onnx.save(model, path)


if __name__ == "__main__":
    main()
