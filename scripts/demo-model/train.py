"""Trains the demo chat model from scratch: a small Llama on data.py's conversations.

    python train.py --out DIR --size small --minutes 75   # 1.4 million parameters, on a CPU with two cores
    python train.py --out DIR --size base --minutes 7     # 7 million parameters, on one data-centre GPU

Writes a Hugging Face checkpoint (fp16 safetensors, tokenizer, chat template) and accuracy.json.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import data
from data import Curriculum

HERE = Path(__file__).resolve().parent
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKUP = ["<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
CONTEXT = 2048  # of the model; it trains on shorter pieces


@dataclass(frozen=True)
class Size:
    curriculum: Curriculum
    conversations: int
    vocabulary: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    batch: int
    peak_rate: float


SIZES = {
    "base": Size(data.BASE, 1_200_000, 4096, 256, 768, 8, 4, 2, context=1024, batch=256, peak_rate=2e-3),
    "small": Size(data.SMALL, 250_000, 2048, 128, 384, 6, 4, 2, context=320, batch=24, peak_rate=4e-3),
}


@dataclass(frozen=True)
class Plan:
    """How long to train, on how many tokens at once, and how fast."""

    minutes: float
    context: int
    batch: int
    peak_rate: float


def main() -> None:
    args = arguments()
    size = SIZES[args.size]
    conversations = args.conversations or size.conversations
    # Going on with a trained model wants small steps.
    plan = Plan(args.minutes, size.context, size.batch, size.peak_rate / (10 if args.resume else 1))
    if args.smoke:
        conversations, plan = 20_000, Plan(0.3, context=256, batch=4, peak_rate=plan.peak_rate)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.time()

    tokenizer = saved_tokenizer(args.resume) if args.resume else train_tokenizer(size.curriculum, size.vocabulary)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.time() - begin:.0f} s", flush=True)
    ids, targets = corpus(tokenizer, size.curriculum, conversations)
    share = targets.mean()
    print(f"corpus: {len(ids) / 1e6:.0f}M tokens, {share:.2f} targets, {time.time() - begin:.0f} s", flush=True)
    wrapped = wrap(tokenizer)
    check_template(wrapped, tokenizer, size.curriculum)

    model = saved_model(args.resume) if args.resume else new_model(size, tokenizer)
    model = model.to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f}M parameters on {device}", flush=True)
    steps = train(model, ids, targets, plan, device)

    model.eval()
    score = accuracy(model, wrapped, size.curriculum, device, per_skill=8 if args.smoke else 48)
    save(model, wrapped, args.out)
    seen = steps * plan.batch * plan.context
    report = {"tokens_seen": seen, "steps": steps, "parameters": parameters, "exact_match": score}
    (args.out / "accuracy.json").write_text(json.dumps(report, indent=1))
    print(f"mean exact match {sum(score.values()) / len(score):.3f}; {time.time() - begin:.0f} s in all", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--conversations", type=int)
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint, at a tenth of the peak learning rate")
    parser.add_argument("--smoke", action="store_true", help="a minute on a CPU: tries the code, trains nothing useful")
    return parser.parse_args()


# Text.


def segments(conversation: dict) -> list[tuple[str, bool]]:
    """What chat_template.jinja renders, in pieces; those the assistant writes are marked as targets."""
    messages, tools = conversation["messages"], conversation["tools"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    pieces = []
    if tools:
        lead = f"{system}\n\n" if system else ""
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        system = f"{lead}You may call these functions:\n<tools>\n{listed}\n</tools>"
    if system:
        pieces.append((f"{START}system\n{system}{END}\n", False))
    for message in messages:
        text = message["content"]
        match message["role"]:
            case "user":
                pieces.append((f"{START}user\n{text}{END}\n", False))
            case "tool":
                pieces.append((f"{START}user\n<tool_response>\n{text}\n</tool_response>{END}\n", False))
            case "assistant":
                parts = [text] if text else []
                parts += [tool_call(call["function"]) for call in message.get("tool_calls", [])]
                pieces += [(f"{START}assistant\n", False), ("\n".join(parts) + END, True), ("\n", False)]
    return pieces


def tool_call(function: dict) -> str:
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'


def joined(pieces: list[tuple[str, bool]]) -> str:
    return "".join(text for text, _ in pieces)


def train_tokenizer(curriculum: Curriculum, vocabulary: int, conversations: int = 60_000) -> Tokenizer:
    """Byte-level BPE; each digit is a token of its own, so that numbers are read digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(MARKUP),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = Random(1)
    texts = [joined(segments(data.conversation(rng, curriculum))) for _ in range(conversations)]
    for mark in special + MARKUP:
        texts = [text.replace(mark, " ") for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(MARKUP)
    return tokenizer


def saved_tokenizer(checkpoint: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = (HERE / "chat_template.jinja").read_text().rstrip("\n")
    return wrapped


def check_template(wrapped: PreTrainedTokenizerFast, tokenizer: Tokenizer, curriculum: Curriculum) -> None:
    """The template and segments() must agree, as text and as tokens: servers use the one, training the other."""
    rng = Random(5)
    for _ in range(200):
        conversation = data.conversation(rng, curriculum)
        pieces = segments(conversation)
        text = wrapped.apply_chat_template(conversation["messages"], tools=conversation["tools"], tokenize=False)
        assert text == joined(pieces), (text, pieces)
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        piecewise = [i for piece, _ in pieces for i in tokenizer.encode(piece, add_special_tokens=False).ids]
        assert whole == piecewise, text


def corpus(tokenizer: Tokenizer, curriculum: Curriculum, conversations: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all conversations in a row, and which of them the assistant writes."""
    chunk = 5_000
    jobs = [(1000 + i, chunk, curriculum, tokenizer.to_str()) for i in range(math.ceil(conversations / chunk))]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        parts = pool.map(encode, jobs, chunksize=1)
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([targets for _, targets in parts])


def encode(job: tuple[int, int, Curriculum, str]) -> tuple[np.ndarray, np.ndarray]:
    seed, count, curriculum, tokenizer_json = job
    tokenizer, rng = Tokenizer.from_str(tokenizer_json), Random(seed)
    pieces = []
    for _ in range(count):
        pieces += [*segments(data.conversation(rng, curriculum)), (PAD, False)]
    encoded = tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False)
    ids, targets = [], []
    for encoding, (_, target) in zip(encoded, pieces):
        ids += encoding.ids
        targets += [target] * len(encoding.ids)
    return np.array(ids, np.uint16), np.array(targets, np.uint8)


# The model.


def new_model(size: Size, tokenizer: Tokenizer) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        initializer_range=0.02,
    )
    return LlamaForCausalLM(config)


def saved_model(checkpoint: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def train(model: LlamaForCausalLM, ids: np.ndarray, targets: np.ndarray, plan: Plan, device: str) -> int:
    """Trains until the time is over; the number of steps."""
    all_ids = torch.from_numpy(ids.astype(np.int32)).to(device)
    all_targets = torch.from_numpy(targets).to(device)
    optimizer = new_optimizer(model, plan.peak_rate, device)
    forward = torch.compile(model) if device == "cuda" else model
    generator = torch.Generator(device=device).manual_seed(0)
    window = torch.arange(plan.context + 1, device=device)
    begin, step = None, 0
    while True:
        # The clock starts after the first step, which compiles.
        progress = 0.0 if begin is None else (time.time() - begin) / (plan.minutes * 60)
        if progress >= 1:
            return step
        rate = learning_rate(plan.peak_rate, step, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        last = len(all_ids) - plan.context - 1
        index = torch.randint(0, last, (plan.batch, 1), device=device, generator=generator) + window
        loss = loss_of(forward, all_ids[index].long(), all_targets[index], device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        begin = begin or time.time()
        if step % 100 == 0:
            seen = step * plan.batch * plan.context / 1e6
            seconds = time.time() - begin
            print(f"step {step} loss {loss.item():.4f} rate {rate:.1e} {seen:.0f}M tokens {seconds:.0f} s", flush=True)


def new_optimizer(model: LlamaForCausalLM, rate: float, device: str) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=device == "cuda")


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Rises over 200 steps, then falls along a cosine to a twentieth."""
    return peak * min(1, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1, progress))))


def loss_of(forward, ids: torch.Tensor, targets: torch.Tensor, device: str) -> torch.Tensor:
    """Cross entropy of the next token; what the assistant does not write counts a tenth."""
    # Only on a GPU: most CPUs emulate bfloat16, slowly.
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = targets[:, 1:].flatten().float() * 0.9 + 0.1
    return (loss * weight).sum() / weight.sum()


def save(model: LlamaForCausalLM, wrapped: PreTrainedTokenizerFast, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    # accuracy() has padded on the left.
    wrapped.padding_side = "right"
    wrapped.backend_tokenizer.no_padding()
    model.half().save_pretrained(out)
    wrapped.save_pretrained(out)


# How good it is.


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, wrapped: PreTrainedTokenizerFast, curriculum: Curriculum, device: str, per_skill: int
) -> dict[str, float]:
    """Share of greedy answers that are right to the letter, on unseen conversations, by skill."""
    wrapped.padding_side = "left"
    score = {}
    for name, conversations in data.examination(curriculum, per_skill).items():
        prompts, answers = [], []
        for conversation in conversations:
            pieces = segments(conversation)
            last = max(i for i, (_, target) in enumerate(pieces) if target)
            prompts.append(joined(pieces[:last]))
            answers.append(pieces[last][0].removesuffix(END))
        given = greedy(model, wrapped, prompts, device)
        score[name] = sum(map(str.__eq__, given, answers)) / len(answers)
        wrong = next(((p[-120:], g, a) for p, g, a in zip(prompts, given, answers) if g != a), None)
        print(f"{name:14s} {score[name]:.2f}", f"e.g. {wrong}" if wrong else "", flush=True)
    return score


def greedy(model: LlamaForCausalLM, wrapped: PreTrainedTokenizerFast, prompts: list[str], device: str) -> list[str]:
    encoded = wrapped(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
    encoded.pop("token_type_ids", None)
    generated = model.generate(
        **encoded,
        max_new_tokens=120,
        do_sample=False,
        eos_token_id=wrapped.convert_tokens_to_ids(END),
        pad_token_id=wrapped.pad_token_id,
    )
    length = encoded["input_ids"].shape[1]
    return [wrapped.decode(row[length:], skip_special_tokens=False).split(END)[0] for row in generated]


if __name__ == "__main__":
    main()
