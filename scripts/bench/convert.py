"""Turns a checkpoint into a GGUF file in full precision, with llama.cpp's own converter.

    convert.py LLAMA_CPP_SOURCES CHECKPOINT TO.gguf

The converter knows tokenizers by a hash of what they do, and refuses ours, which is made up: it is told that ours cuts
text as GPT-2's does.
"""

import runpy
import sys

sources, checkpoint, target = sys.argv[1:]
sys.path[:0] = [sources, f"{sources}/gguf-py"]

from conversion import base  # noqa: E402 (found on the path above)

base.TextModel.get_vocab_base_pre = lambda model, tokenizer: "gpt-2"
sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outfile", target, "--outtype", "f32"]
runpy.run_path(f"{sources}/convert_hf_to_gguf.py", run_name="__main__")
