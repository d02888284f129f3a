"""onnxruntime-genai's Generator, which continues a batch of sequences in step.

Prints one JSON object a figure: tokens a second from the median step, processor time of a token.
"""

import argparse
import json
import statistics
import time

import numpy as np
import onnxruntime_genai as genai


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 512])
    arguments = parser.parse_args()

    config = genai.Config(arguments.folder)
    config.clear_providers()
    session = {"intra_op_num_threads": arguments.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = genai.Model(config)
    generate(model, 1, 16, 2)
    for tokens in arguments.prefill:
        say(f"prefill {tokens}", tokens, *generate(model, 1, tokens, 0))
    for rows in arguments.batch:
        say(f"decode {rows}", rows, *generate(model, rows, arguments.prompt, arguments.new))


def say(figure, tokens, times, used):
    """`tokens` are those of one step."""
    print(json.dumps({"figure": figure, "tok_s": round(tokens / statistics.median(times), 1),
                      "cpu_ms_per_token": round(used / tokens / len(times) * 1000, 3)}), flush=True)


def generate(model, rows, prompt, steps):
    """Reads prompts, then takes steps: the time of each, and the processor time of all. Without steps: the reading's.

    Reading includes the first token, which is chosen from its logits.
    """
    parameters = genai.GeneratorParams(model)
    # As short as possible, since keys and values are laid out for the whole length; no end before it.
    length = prompt + steps + 1
    parameters.set_search_options(
        batch_size=rows, max_length=length, min_length=length, do_sample=False, repetition_penalty=1.0
    )
    generator = genai.Generator(model, parameters)
    ids = np.random.default_rng(0).integers(400, 4000, (rows, prompt)).astype(np.int32)
    times, used, begin = [], time.process_time(), time.perf_counter()
    generator.append_tokens(ids)
    generator.generate_next_token()
    if not steps:
        return [time.perf_counter() - begin], time.process_time() - used
    used = time.process_time()
    for _ in range(steps):
        begin = time.perf_counter()
        generator.generate_next_token()
        times.append(time.perf_counter() - begin)
    return times, time.process_time() - used


main()
