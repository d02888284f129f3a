"""Writes a checkpoint with random weights in the shape of a real model, for Hugging Face's transformers.

    checkpoint.py NAME FOLDER

Speed does not depend on the values of the weights, so a made-up model stands in for one that cannot be had offline.
"""

import itertools
import json
import pathlib
import string
import sys

import torch
import transformers

# What Qwen2.5-0.5B and SmolLM-135M say of themselves in config.json.
SHAPES = {
    "qwen2.5-0.5b": (
        transformers.Qwen2Config,
        dict(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6,
            rope_theta=1e6, tie_word_embeddings=True,
        ),
    ),
    "smollm-135m": (
        transformers.LlamaConfig,
        dict(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=49152, max_position_embeddings=2048, rms_norm_eps=1e-5,
            rope_theta=1e4, tie_word_embeddings=True,
        ),
    ),
}
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    f"{START}{{{{ message.role }}}}\n{{{{ message.content }}}}{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START}assistant\n{{% endif %}}"
)


def byte_symbols():
    """GPT-2's printable stand-in for each byte, in the order of bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = itertools.count(0x100)
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary(size):
    """A byte-level vocabulary of `size` tokens and its merges: bytes, then pairs of letters, then longer words.

    Every token can be reached by merging, and nearly every one is plain text, so that random tokens give text.
    """
    bytes_ = byte_symbols()
    letters = [*string.ascii_letters, bytes_[ord(" ")]]
    tokens, merges, words = list(bytes_), [], letters
    while len(tokens) < size:
        pairs = list(itertools.islice(itertools.product(words, letters), size - len(tokens)))
        merges += pairs
        words = [first + second for first, second in pairs]
        tokens += words
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(folder, size):
    """Writes the tokenizer's files; the last two of `size` tokens are special. Gives the ids of these."""
    vocab, merges = vocabulary(size - 2)
    special = {size - 2: START, size - 1: END}
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    write(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [dict(id=id_, content=text, **flags) for id_, text in special.items()],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": [" ".join(pair) for pair in merges],
        },
    })
    write(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(id_): dict(content=text, **flags) for id_, text in special.items()},
        "bos_token": START, "eos_token": END, "pad_token": END, "chat_template": TEMPLATE,
    })
    # GGUF's converter reads the pair of files that tokenizer.json has replaced.
    write(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return size - 2, size - 1


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(f"usage: checkpoint.py NAME FOLDER, where NAME is one of: {', '.join(SHAPES)}")
    kind, shape = SHAPES[sys.argv[1]]
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    start, end = write_tokenizer(folder, shape["vocab_size"])
    config = kind(bos_token_id=start, eos_token_id=end, pad_token_id=end, **shape)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    print(f"{sys.argv[1]}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters")


main()
