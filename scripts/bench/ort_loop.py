"""The shortest way through ONNX Runtime: a graph, IO binding and nothing else. What an engine on it can reach at best.

Prints one JSON object a figure: tokens a second from the median step, processor time of a token. Knows both layouts:
one that writes keys and values in place, and one that gives new ones each step.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np
import onnxruntime as ort


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", type=pathlib.Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--spin", action="store_true")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 512])
    arguments = parser.parse_args()

    model = Model(arguments)
    model.decode(1, 16, 2)
    for tokens in arguments.prefill:
        times, used = model.decode(1, tokens, 0)
        say(f"prefill {tokens}", tokens, times, used)
    for rows in arguments.batch:
        times, used = model.decode(rows, arguments.prompt, arguments.new)
        say(f"decode {rows}", rows, times, used)


def say(figure, tokens, times, used):
    """`tokens` are those of one step."""
    rate = tokens / statistics.median(times)
    print(json.dumps({"figure": figure, "tok_s": round(rate, 1),
                      "cpu_ms_per_token": round(used / tokens / len(times) * 1000, 3)}), flush=True)


class Model:
    def __init__(self, arguments):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = arguments.threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(arguments.spin)))
        self.session = ort.InferenceSession(arguments.graph, options, providers=["CPUExecutionProvider"])
        self.inputs = {it.name: it for it in self.session.get_inputs()}
        self.pasts = [name for name in self.inputs if name.startswith("past_key_values.")]
        _, self.heads, _, self.size = self.inputs[self.pasts[0]].shape
        config = arguments.graph.parent / "genai_config.json"
        # The builder writes this file beside its graphs, which keep keys and values in place.
        self.in_place = config.exists()
        if self.in_place:
            self.size = json.loads(config.read_text())["model"]["decoder"]["head_size"]
        self.random = np.random.default_rng(0)

    def decode(self, rows, prompt, steps):
        """Reads prompts, then takes steps: the time of each, and the processor time of all. Without steps: the
        reading's."""
        cache = (InPlace if self.in_place else Fresh)(self, rows, prompt + steps)
        ids = self.random.integers(400, 4000, (rows, prompt))
        times, used = [], time.process_time()
        begin = time.perf_counter()
        token = self.step(cache, ids, 0)
        if not steps:
            return [time.perf_counter() - begin], time.process_time() - used
        used = time.process_time()
        for past in range(prompt, prompt + steps):
            begin = time.perf_counter()
            token = self.step(cache, token, past)
            times.append(time.perf_counter() - begin)
        return times, time.process_time() - used

    def step(self, cache, ids, past):
        rows, new = ids.shape
        binding = self.session.io_binding()
        fields = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, past + new)),
            "position_ids": np.tile(np.arange(past, past + new), (rows, 1)),
        }
        fields = {name: np.ascontiguousarray(field, np.int64) for name, field in fields.items() if name in self.inputs}
        for name, field in fields.items():
            bind(binding.bind_input, name, field)
        binding.bind_output("logits", "cpu")
        cache.bind(binding)
        self.session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        cache.take(outputs[1:])
        return outputs[0].numpy()[:, -1].argmax(-1)[:, None]


def bind(how, name, array):
    how(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def present(past):
    return past.replace("past_key_values", "present")


class InPlace:
    """One buffer for past and present of each layer, as long as the sequence will be."""

    def __init__(self, model, rows, length):
        shape = (rows, model.heads, length + 1, model.size)
        self.buffers = {past: np.zeros(shape, np.float32) for past in model.pasts}

    def bind(self, binding):
        for past, buffer in self.buffers.items():
            bind(binding.bind_input, past, buffer)
            bind(binding.bind_output, present(past), buffer)

    def take(self, _):
        pass


class Fresh:
    """The present of one step is the past of the next, and stays where it is."""

    def __init__(self, model, rows, _):
        nothing = np.zeros((rows, model.heads, 0, model.size), np.float32)
        self.pasts = {past: ort.OrtValue.ortvalue_from_numpy(nothing) for past in model.pasts}

    def bind(self, binding):
        for past, value in self.pasts.items():
            binding.bind_ortvalue_input(past, value)
            binding.bind_output(present(past), "cpu")

    def take(self, presents):
        self.pasts = dict(zip(self.pasts, presents))


main()
