#!/usr/bin/env python3
"""A duel of engines on one model, without HTTP: prompts read and tokens added a second.

In every round each contender has its turn, in a process of its own; compare contenders within a round. A contender is
KIND:FORM[,OPTION...]:

    muster:FORM   `muster bench engine`             FORM is int4, int4-pruned, int8, fp32 (layout of ONNX Runtime GenAI),
    ort:FORM      ONNX Runtime and nothing else     optimum (4 bits) or optimum-fp32 (layout of Optimum)
    genai:FORM    onnxruntime-genai, with 1 thread and with all, the better for each figure
    llama:FORM    llama.cpp's llama-batched-bench and llama-bench; FORM is Q4_0, or Q8_0, the peer of int8

Options: spin (threads that wait spin; genai's and llama.cpp's always do), threads=N, and build=NAME for llama.cpp's
programs in WORK/lbuild-NAME (setup.sh makes `noamx`). Rates of llama.cpp come from the time of all steps, the others'
from the median step.
"""

import argparse

import harness

CONTENDERS = [
    "muster:int4", "muster:int4,spin", "ort:int4", "ort:int4,spin", "ort:int4-pruned", "ort:int4-pruned,spin",
    "genai:int4", "genai:int4-pruned", "llama:Q4_0",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser, CONTENDERS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8, 16], help="sequences continued together")
    parser.add_argument("--prompt", type=int, default=64, help="tokens before them")
    parser.add_argument("--new", type=int, default=32, help="tokens added to each")
    parser.add_argument("--prefill", type=int, nargs="+", default=[128, 512], help="tokens of prompts that are read")
    arguments = parser.parse_args()
    contenders = {name: contender(name, arguments) for name in arguments.contenders}
    results = harness.begin(arguments, "engine")
    for number in range(1, arguments.rounds + 1):
        for name, measure in contenders.items():
            results.turn(number, name, measure)
    figures = [f"decode {rows}" for rows in arguments.batch] + [f"prefill {tokens}" for tokens in arguments.prefill]
    results.summary()
    results.medians(f"Tokens a second, {arguments.model}, {arguments.threads} threads", figures)
    results.medians("Processor time of a token, ms", [f"{figure} cpu ms" for figure in figures])
    results.ratios("Tokens a second", figures)
    results.check()


def contender(name, arguments):
    kind, form, words = harness.options(name)
    kinds = {"muster": muster, "ort": ort, "genai": genai, "llama": llama}
    if kind not in kinds:
        raise SystemExit(f"contender {name}: unknown kind `{kind}`; known: {', '.join(kinds)}")
    return lambda: kinds[kind](arguments, form, words)


def muster(arguments, form, words):
    comma = lambda numbers: ",".join(map(str, numbers))
    printed = harness.lines([
        arguments.muster, "bench", "engine", "--json", "--log", "warn",
        "--model", harness.folder(arguments.work, arguments.model, form),
        "--threads", harness.threads(words, arguments.threads), *(["--spin"] if "spin" in words else []),
        "--batch", comma(arguments.batch), "--prompt", arguments.prompt, "--new", arguments.new,
        "--prefill", comma(arguments.prefill),
    ], arguments.limit)
    figures = {}
    for line in printed:
        if line["kind"] in ("prefill", "decode"):
            figure = f"{line['kind']} {line.get('batch', line.get('tokens'))}"
            figures[figure] = line["tokens_per_second"]["median"]
            figures[f"{figure} cpu ms"] = line["cpu_ms_per_token"]
    return figures


def loop(arguments, script, subject, threads, *more):
    """Runs one of the loops in Python."""
    printed = harness.lines([
        arguments.work / "venv/bin/python", harness.HERE / script, subject, "--threads", threads,
        "--prompt", arguments.prompt, "--new", arguments.new, "--batch", *arguments.batch,
        "--prefill", *arguments.prefill, *more,
    ], arguments.limit)
    figures = {line["figure"]: line["tok_s"] for line in printed}
    return figures | {f"{line['figure']} cpu ms": line["cpu_ms_per_token"] for line in printed}


def ort(arguments, form, words):
    graph = harness.graph(arguments.work, arguments.model, form)
    spin = ["--spin"] if "spin" in words else []
    return loop(arguments, "ort_loop.py", graph, harness.threads(words, arguments.threads), *spin)


def genai(arguments, form, words):
    folder = harness.folder(arguments.work, arguments.model, form)
    tried = {1, arguments.threads} if not words else {harness.threads(words, arguments.threads)}
    best = {}
    for threads in sorted(tried):
        figures = loop(arguments, "genai_loop.py", folder, threads)
        for figure in (name for name in figures if not name.endswith(" cpu ms")):
            if figures[figure] > best.get(figure, 0):
                best |= {name: figures[name] for name in (figure, f"{figure} cpu ms")} | {f"{figure} threads": threads}
    return best


def llama(arguments, form, words):
    model = arguments.work / "gguf" / f"{arguments.model}-{form}.gguf"
    tools, threads = harness.llama_tools(arguments.work, words), harness.threads(words, arguments.threads)
    # Twice what is needed: room that lies unused costs it nothing, and too little ends it.
    room = max(4096, 2 * max(arguments.batch) * (arguments.prompt + arguments.new))
    decoded = harness.lines([
        tools / "llama-batched-bench", "-m", model, "-t", threads, "-c", room, "-npp", arguments.prompt,
        "-ntg", arguments.new, "-npl", ",".join(map(str, arguments.batch)), "--output-format", "jsonl",
    ], arguments.limit)
    read = harness.lines([
        tools / "llama-bench", "-m", model, "-t", threads, "-n", 0, "-p", ",".join(map(str, arguments.prefill)),
        "-r", 1, "-o", "jsonl",
    ], arguments.limit)
    figures = {f"decode {line['pl']}": round(line["speed_tg"], 1) for line in decoded}
    return figures | {f"prefill {line['n_prompt']}": round(line["avg_ts"], 1) for line in read}


main()
