"""Makes tiny text encoders with random weights, and notes what PyTorch itself gives for some texts.

    pip install -r scripts/test-models/requirements.txt
    python scripts/test-models/make.py tests/models [NAME ...]

Each folder gets a graph, a tokenizer, the configuration that transformers or sentence-transformers writes, and
`reference.json`: texts with the answers of transformers or sentence-transformers. The tests of the model worker compare
theirs with them. Weights are drawn with a fixed seed and are large, so that texts differ clearly.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from sentence_transformers.sparse_encoder.models import MLMTransformer, SpladePooling
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    pipeline,
)

TEXTS = [
    "hello",
    "A cat sits on the mat.",
    "Ada Lovelace wrote to Charles Babbage in London.",
    "The queue of waiting texts is sorted by length, and a worker takes the oldest first.",
    "naïve café — über straße",
    "SELECT * FROM workers WHERE heartbeat < now();",
    "  Spaces   around, and between  ",
    "机器学习 🦀 Zürich",
    "Where is the mat?",
]
PAIRS = [
    ("Where is the cat?", "A cat sits on the mat."),
    ("Where is the cat?", "Ada Lovelace lived in London."),
    ("who wrote to Babbage", "Ada Lovelace wrote to Charles Babbage in London, and he answered from Paris."),
    ("straße", "naïve café — über straße 🦀"),
    ("long", "The queue of waiting texts is sorted by length. " * 8),
]
CORPUS = [
    *TEXTS,
    *(text for pair in PAIRS for text in pair),
    "Marie Curie worked in Paris. Alan Turing lived in Manchester; Emmy Noether taught in Göttingen.",
    "A gateway asks the controller for a worker, and the worker continues the prompt token by token.",
    "query: document: passage: the quick brown fox jumps over the lazy dog while it rains in Amsterdam",
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def main(root: Path, names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    for make in MAKERS:
        name = "text-" + make.__name__.replace("_", "-")
        if names and name not in names:
            continue
        torch.manual_seed(7)
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        clean(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{name}: {size // 1024} KiB")


# Tokenizers


def word_pieces(folder: Path, **settings: object) -> PreTrainedTokenizerFast:
    """As BERT has: lower case, `##` inside words, types of 0 and 1."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # A small alphabet leaves some characters unknown.
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=special, limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return save_tokenizer(
        folder,
        tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        **settings,
    )


def byte_pieces(folder: Path, template: processors.PostProcessor, **settings: object) -> PreTrainedTokenizerFast:
    """As RoBERTa has: pieces of bytes, `Ġ` for a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = template
    return save_tokenizer(
        folder,
        tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def roberta_pieces(folder: Path, **settings: object) -> PreTrainedTokenizerFast:
    template = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    return byte_pieces(
        folder, template, cls_token="<s>", sep_token="</s>", mask_token="<mask>", **settings
    )


def save_tokenizer(folder: Path, tokenizer: Tokenizer, **settings: object) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


# Models


def cross_encoder(folder: Path) -> None:
    tokenizer = word_pieces(folder, model_max_length=64)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, num_labels=1, **SIZES, **NO_DROPOUT)
    model = drawn(BertForSequenceClassification(config), folder)
    export(model, tokenizer, folder / "model.onnx", ["logits"])
    cross_reference(folder)


def cross_encoder_roberta(folder: Path) -> None:
    """No segments, positions that begin after the padding's, and numbers that are given as they are."""
    tokenizer = roberta_pieces(folder, model_max_length=512)
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=98, type_vocab_size=1, num_labels=1, **SIZES, **NO_DROPOUT
    )
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.2"}
    model = drawn(RobertaForSequenceClassification(config), folder)
    export(model, tokenizer, folder / "onnx" / "model.onnx", ["logits"])
    cross_reference(folder, max_length=96)


def cross_reference(folder: Path, **settings: object) -> None:
    model = CrossEncoder(str(folder), device="cpu", **settings)
    activation = model.activation_fn  # `predict` keeps the one that it is given
    kept = [pair for pair in PAIRS if len(model.tokenizer(*pair)["input_ids"]) <= model.max_length]
    items = [
        {
            "query": query,
            "document": document,
            "tokens": model.tokenizer(query, document)["input_ids"],
            "score": float(model.predict([(query, document)], activation_fn=activation)[0]),
            "raw": float(model.predict([(query, document)], activation_fn=torch.nn.Identity())[0]),
        }
        for query, document in kept
    ]
    # The document is cut, and the query is not.
    query, document = PAIRS[-1]
    cut = model.tokenizer(
        query, document, truncation="only_second", max_length=model.max_length, return_tensors="pt"
    )
    with torch.no_grad():
        raw = model.model(**cut).logits[0, 0]
    items.append(
        {
            "query": query,
            "document": document,
            "tokens": cut["input_ids"][0].tolist(),
            "score": float(activation(raw)),
            "raw": float(raw),
            "cut": True,
        }
    )
    write(folder, {"items": items})


def classifier(folder: Path) -> None:
    tokenizer = word_pieces(folder, model_max_length=64)
    labels = ["negative", "neutral", "positive"]
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **named(labels), **SIZES, **NO_DROPOUT)
    model = drawn(BertForSequenceClassification(config), folder)
    export(model, tokenizer, folder / "model.onnx", ["logits"])
    class_reference(folder, model, tokenizer)


def moderator(folder: Path) -> None:
    """A text may be of several classes; DistilBERT takes no segments."""
    tokenizer = word_pieces(folder, model_max_length=64, model_input_names=["input_ids", "attention_mask"])
    labels = ["insult", "threat", "violence/graphic", "spam"]
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        dropout=0.0,
        attention_dropout=0.0,
        problem_type="multi_label_classification",
        **named(labels),
    )
    model = drawn(DistilBertForSequenceClassification(config), folder)
    export(model, tokenizer, folder / "model.onnx", ["logits"])
    class_reference(folder, model, tokenizer)


def class_reference(folder: Path, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ask = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]

    def scores(given: object, **settings: object) -> list[float]:
        answer = ask([given], top_k=None, **settings)[0]
        found = {item["label"]: item["score"] for item in answer}
        return [found[label] for label in labels]

    items = [
        {"text": text, "scores": scores(text), "raw": scores(text, function_to_apply="none")} for text in TEXTS
    ]
    pairs = [
        {"pair": pair, "scores": scores({"text": pair[0], "text_pair": pair[1]})} for pair in PAIRS[:4]
    ]
    write(folder, {"labels": labels, "items": items, "pairs": pairs})


def entities(folder: Path) -> None:
    tokenizer = word_pieces(folder, model_max_length=64)
    entity_reference(folder, tokenizer, BertConfig, BertForTokenClassification)


def entities_roberta(folder: Path) -> None:
    """A vocabulary that does not mark the pieces inside of words."""
    tokenizer = roberta_pieces(folder, model_max_length=62)
    entity_reference(folder, tokenizer, RobertaConfig, RobertaForTokenClassification)


def entity_reference(folder: Path, tokenizer: PreTrainedTokenizerFast, config, kind) -> None:
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
    settings = config(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        type_vocab_size=2 if config is BertConfig else 1,
        **named(labels),
        **SIZES,
        **NO_DROPOUT,
    )
    model = drawn(kind(settings), folder, spread=0.35)
    export(model, tokenizer, folder / "model.onnx", ["logits"])
    items = []
    for text in TEXTS:
        answers = {}
        for aggregation in ["none", "simple", "first", "average", "max"]:
            ask = pipeline("ner", model=model, tokenizer=tokenizer, aggregation_strategy=aggregation, device="cpu")
            answers[aggregation] = [
                {
                    "label": found["entity"] if aggregation == "none" else found["entity_group"],
                    "score": float(found["score"]),
                    "start": int(found["start"]),
                    "end": int(found["end"]),
                    "text": text[found["start"] : found["end"]],
                }
                for found in ask(text)
            ]
        items.append({"text": text, **answers})
    write(folder, {"items": items})


def sparse(folder: Path) -> None:
    tokenizer = word_pieces(folder, model_max_length=64)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES, **NO_DROPOUT)
    model = drawn(BertForMaskedLM(config), folder)
    export(model, tokenizer, folder / "onnx" / "model.onnx", ["logits"])
    encoder = SparseEncoder(
        modules=[MLMTransformer(str(folder)), SpladePooling(pooling_strategy="max")], device="cpu"
    )
    save_modules(encoder, folder)
    items = []
    for text in TEXTS:
        vector = encoder.encode(text, convert_to_sparse_tensor=False)
        indices = torch.nonzero(vector > 0).flatten()
        items.append({"text": text, "indices": indices.tolist(), "values": vector[indices].tolist()})
    write(folder, {"items": items})


def sentence(folder: Path) -> None:
    """Two poolings, two dense layers, unit vectors, and prompts."""
    tokenizer = word_pieces(folder, model_max_length=64)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES, **NO_DROPOUT)
    model = drawn(BertModel(config), folder)
    export(model, tokenizer, folder / "onnx" / "model.onnx", ["last_hidden_state"])
    pooling = Pooling(32, pooling_mode="weightedmean")
    pooling.pooling_mode_mean_tokens = True
    pooling.pooling_output_dimension = 64
    first = Dense(64, 48, activation_function=torch.nn.Tanh())
    second = Dense(48, 24, bias=False, activation_function=torch.nn.Identity())
    encoder = SentenceTransformer(
        modules=[transformer(folder, 48), pooling, first, second, Normalize()],
        prompts={"query": "query: ", "document": "passage: "},
        default_prompt_name="document",
        device="cpu",
    )
    save_modules(encoder, folder)
    sentence_reference(folder, prompts=["query"])


def embedding_roberta(folder: Path) -> None:
    """No segments, positions that begin after the padding's, CLS and the largest numbers, no unit vectors."""
    tokenizer = roberta_pieces(folder, model_max_length=512)
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=98, type_vocab_size=1, **SIZES, **NO_DROPOUT
    )
    model = drawn(RobertaModel(config, add_pooling_layer=False), folder)
    export(model, tokenizer, folder / "onnx" / "model.onnx", ["last_hidden_state"])
    narrow(folder / "onnx" / "model.onnx", folder / "onnx" / "model_fp16.onnx")
    pooling = Pooling(32, pooling_mode="cls")
    pooling.pooling_mode_max_tokens = True
    pooling.pooling_output_dimension = 64
    save_modules(SentenceTransformer(modules=[transformer(folder, 96), pooling], device="cpu"), folder)
    sentence_reference(folder, prompts=[])
    # Some folders state all positions as the longest text, two more than there is room for.
    settings = {"max_seq_length": 98, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings) + "\n")


def embedding_modernbert(folder: Path) -> None:
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = byte_pieces(folder, template, cls_token="<s>", sep_token="</s>", model_max_length=256)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
        local_attention=16,
        global_attn_every_n_layers=2,
        attn_implementation="eager",
        reference_compile=False,
        **SIZES,
    )
    model = drawn(ModernBertModel(config), folder)
    export(model, tokenizer, folder / "onnx" / "model.onnx", ["last_hidden_state"])
    pooling = Pooling(32, pooling_mode="mean")
    encoder = SentenceTransformer(modules=[transformer(folder, 256), pooling, Normalize()], device="cpu")
    save_modules(encoder, folder)
    sentence_reference(folder, prompts=[])


def embedding_qwen(folder: Path) -> None:
    """A decoder that keeps nothing: the last token, which the tokenizer adds, says it all."""
    template = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer = byte_pieces(folder, template, model_max_length=256, padding_side="left")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        use_cache=False,
        attn_implementation="eager",
        **SIZES,
    )
    model = drawn(Qwen3Model(config), folder)
    export(model, tokenizer, folder / "onnx" / "model.onnx", ["last_hidden_state"])
    pooling = Pooling(32, pooling_mode="lasttoken", include_prompt=True)
    encoder = SentenceTransformer(
        modules=[transformer(folder, 256), pooling, Normalize()],
        prompts={"query": "Find what answers this.\nQuery:"},
        device="cpu",
    )
    save_modules(encoder, folder)
    sentence_reference(folder, prompts=["query"])


MAKERS = [
    cross_encoder,
    cross_encoder_roberta,
    classifier,
    moderator,
    entities,
    entities_roberta,
    sparse,
    sentence,
    embedding_roberta,
    embedding_modernbert,
    embedding_qwen,
]


# Parts


def named(labels: list[str]) -> dict:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def drawn(model: torch.nn.Module, folder: Path, spread: float = 0.25) -> torch.nn.Module:
    """Draws weights, and writes configuration and weights."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                weight.uniform_(0.7, 1.3)
            elif any(words in name for words in ["word_embeddings", "tok_embeddings", "embed_tokens"]):
                weight.normal_(0.0, 1.0)  # or tokens would hardly differ beside what all have in common
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.05)
            else:
                weight.normal_(0.0, spread)
    model.eval()
    model.save_pretrained(folder)
    return model


def transformer(folder: Path, length: int) -> Transformer:
    return Transformer(str(folder), max_seq_length=length)


class Wrapped(torch.nn.Module):
    """Takes inputs by place and gives one output, as the exporter wants it."""

    def __init__(self, model: torch.nn.Module, names: list[str], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs))
        if self.model.config.model_type == "qwen3":
            named["attention_mask"] = causal(named["attention_mask"])
        return getattr(self.model(**named), self.output)


def causal(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What transformers makes of a decoder's mask in a way that the exporter does not follow."""
    length = mask.shape[1]
    before = torch.arange(length)[:, None] >= torch.arange(length)[None, :]
    seen = before[None, None] & (mask[:, None, None, :] == 1)
    return {"full_attention": torch.where(seen, 0.0, torch.finfo(torch.float32).min)}


def export(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, path: Path, outputs: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    takes_types = getattr(model.config, "type_vocab_size", 1) > 1
    takes_places = model.config.model_type == "qwen3"  # as exporters have it for decoders
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] * takes_types + ["position_ids"] * takes_places
    example = tokenizer(TEXTS[:2], padding=True, return_tensors="pt", return_token_type_ids=takes_types)
    example["position_ids"] = torch.arange(example["input_ids"].shape[1]).repeat(2, 1)
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    axes[outputs[0]] = {0: "batch", 1: "tokens"} if is_per_token(model) else {0: "batch"}
    torch.onnx.export(
        Wrapped(model, names, outputs[0]).eval(),
        tuple(example[name] for name in names),
        path,
        input_names=names,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    scrub(path)


def is_per_token(model: torch.nn.Module) -> bool:
    return "SequenceClassification" not in type(model).__name__


def scrub(path: Path) -> None:
    """Takes out what exporters note of the machine."""
    graph = onnx.load(path)
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    graph.doc_string = ""
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def narrow(path: Path, to: Path) -> None:
    """The same graph with ids of 32 bits and numbers of 16."""
    graph = onnx.load(path)
    casts = []
    for value in graph.graph.input:
        inner = f"{value.name}_64"
        for node in graph.graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
        value.type.tensor_type.elem_type = TensorProto.INT32
        casts.append(helper.make_node("Cast", [value.name], [inner], to=TensorProto.INT64))
    for value in graph.graph.output:
        inner = f"{value.name}_32"
        for node in graph.graph.node:
            node.output[:] = [inner if name == value.name else name for name in node.output]
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
        graph.graph.node.append(helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT16))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    onnx.checker.check_model(graph)
    onnx.save(graph, to)


def save_modules(encoder: SentenceTransformer, folder: Path) -> None:
    encoder.save_pretrained(str(folder), create_model_card=False)


def sentence_reference(folder: Path, prompts: list[str]) -> None:
    encoder = SentenceTransformer(str(folder), device="cpu")
    items = [{"text": text, "vector": encoder.encode(text).tolist()} for text in TEXTS]
    for prompt in prompts:
        items += [
            {"text": text, "prompt": prompt, "vector": encoder.encode(text, prompt_name=prompt).tolist()}
            for text in TEXTS[:4]
        ]
    long = " ".join(TEXTS * 6)
    items.append({"text": long, "cut": True, "vector": encoder.encode(long).tolist()})
    write(folder, {"max_tokens": encoder.max_seq_length, "items": items})


def write(folder: Path, reference: dict) -> None:
    (folder / "reference.json").write_text(json.dumps(reference, ensure_ascii=False, indent=1) + "\n")


def clean(folder: Path) -> None:
    """Leaves what a worker reads: PyTorch's weights of the graph itself are not among it."""
    for name in ["model.safetensors", "README.md", "vocab.txt", "vocab.json", "merges.txt"]:
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
