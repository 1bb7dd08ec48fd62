"""The model card: README.md of a Hugging Face folder, written from what a run and its corpus recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from corpus.manifest import Manifest
from corpus.report import CorpusReport
from evaluation.run_record import Row, RunRecord, find_corpus, read_run
from model import ModelConfig, count_parameters

FILE_NAME = "README.md"
MARK = "<!-- written by bufudu from the run's records; a card without this line is never replaced -->"
CURVE_ROWS = 8
_SCRIPTS_OF_LANGUAGES = {"zh": "zh", "zh-Hans": "zh", "zh-Hant": "zh", "ja": "ja", "ko": "ko", "latin": "en"}
_REPETITION = {
    "repetition": "4-grams that repeat an earlier one of the text",
    "copying": "4-grams copied from the prompt",
    "distinct_2": "different 2-grams",
    "greedy_repetition": "4-grams that repeat an earlier one, greedy decoding",
    "loops": "texts that end in a loop, greedy decoding",
}


@dataclass(frozen=True)
class CardSources:
    """What a card is written from; all but the network may be missing, and its section is then left out."""

    name: str
    config: ModelConfig
    run: RunRecord | None = None
    manifest: Manifest | None = None
    report: CorpusReport | None = None
    diagnosis: Row = field(default_factory=dict)


def sources(name: str, config: ModelConfig, run_folder: Path | None, diagnosis: Row | None = None) -> CardSources:
    """Collect the records of a run; what is missing or cannot be read is left out."""
    try:
        run = read_run(run_folder) if run_folder else None
    except UserError:
        run = None
    corpus = find_corpus(run) if run else None
    manifest, report = (_readable(kind, corpus) for kind in (Manifest, CorpusReport))
    return CardSources(name, config, run, manifest, report, diagnosis or {})


def _readable(kind: Any, folder: Path | None) -> Any:
    try:
        return kind.read(folder) if folder else None
    except UserError:
        return None


def model_card(of: CardSources) -> str:
    """Return the text of the card."""
    parts = [_front_matter(of), f"# {of.name}", MARK, _opening(of), *_data(of), _sizes(of), *_training(of)]
    return "\n\n".join([*parts, *_curve(of), *_repetition(of), *_diagnosis(of), _use(of), _limits(of)]) + "\n"


def _front_matter(of: CardSources) -> str:
    shares = of.report.languages if of.report else {}
    found = (_SCRIPTS_OF_LANGUAGES.get(name) for name, share in shares.items() if share > 0.05)
    languages = list(dict.fromkeys(name for name in found if name)) or ["zh"]
    lines = [f"language: [{', '.join(languages)}]", "library_name: transformers", "pipeline_tag: text-generation"]
    kind = "qwen3_moe" if of.config.use_moe else "qwen3"
    return "\n".join(["---", *lines, f"tags: [{kind}, pretraining, bufudu]", "---"])


def _opening(of: CardSources) -> str:
    total, active = count_parameters(of.config)
    seen = f", trained from scratch on {_count(of.run.tokens)} tokens" if of.run and of.run.tokens else ""
    experts = f" ({_count(active)} active a token)" if of.config.use_moe else ""
    return (
        f"A language model of {_count(total)} parameters{experts}{seen} with 不复读 (bufudu). "
        "It continues text; it was not taught to answer questions unless the sections below say so."
    )


def _data(of: CardSources) -> Iterator[str]:
    if not of.manifest:
        return
    manifest, report = of.manifest, of.report
    rows = [
        (name, f"{s.documents:,}", f"{s.bytes / 1e6:,.1f} MB", f"{s.tokens:,}", f"{s.characters_per_token:.2f}")
        for name, s in manifest.splits.items()
    ]
    yield "## Data"
    yield _table(("split", "documents", "text", "tokens", "characters a token"), rows)
    dedup = manifest.settings["dedup"]
    near = f" and {report.duplicates.near:,} near" if report and dedup == "near" else ""
    lines = [
        f"Tokenizer: byte-level BPE, {manifest.vocab_size:,} entries.",
        f"Duplicates: {manifest.exact_duplicates:,} exact{near} {'kept' if dedup == 'none' else 'left out'}.",
    ]
    if report and report.repetition:
        lines.append(f"Documents that repeat themselves: {report.repetition.dropped:,} left out.")
    if skipped := ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items()):
        lines.append(f"Lines skipped: {skipped}.")
    yield "\n".join(f"- {line}" for line in lines)


def _sizes(of: CardSources) -> str:
    config = of.config
    experts = f"{config.num_experts}, {config.num_experts_per_tok} a token, each {config.moe_intermediate_size} wide"
    rows = [
        ("structure", "Qwen3-MoE" if config.use_moe else "Qwen3"),
        ("layers, hidden width", f"{config.num_hidden_layers}, {config.hidden_size}"),
        ("attention heads, of keys and values", f"{config.num_attention_heads}, {config.num_key_value_heads}"),
        ("experts", experts) if config.use_moe else ("feed-forward width", f"{config.intermediate_size}"),
        ("vocabulary", f"{config.vocab_size:,}, embedding and output tied"),
        ("positions", f"{config.max_position_embeddings:,}, rope base {config.rope_theta:g}"),
        ("marks", f"BOS {config.bos_token_id}, EOS {config.eos_token_id}, padding {config.pad_token_id}"),
    ]
    return "## Model\n\n" + _table(("", ""), rows)


def _training(of: CardSources) -> Iterator[str]:
    run = of.run
    if not run:
        return
    rows = [(label, value) for label, value in _recipe(run) if value not in (None, "")]
    if rows:
        yield "## Training"
        yield _table(("", ""), rows)


def _recipe(run: RunRecord) -> Iterator[tuple[str, Any]]:
    config, summary = run.ds_config, run.summary
    optimizer, schedule = (config.get(key) or {} for key in ("optimizer", "scheduler"))
    settings = {key: value for key, value in (optimizer.get("params") or {}).items() if value is not None}
    precision = next((kind for kind in ("fp16", "bf16") if (config.get(kind) or {}).get("enabled")), "fp32")
    batch = config.get("train_batch_size")
    yield "optimizer", _words(optimizer.get("type"), settings)
    yield "schedule", _words(schedule.get("type"), run.schedule)
    yield "batch", f"{batch:,} rows of {run.seq_len} tokens" if isinstance(batch, int) else None
    yield "gradient clipping", config.get("gradient_clipping")
    yield "precision", f"{precision}, ZeRO-{(config.get('zero_optimization') or {}).get('stage', 0)}"
    yield "steps", f"{run.steps:,} of {run.total_steps:,}" if run.total_steps else f"{run.steps:,}"
    yield "tokens", f"{run.tokens:,}" if run.tokens else None
    seconds = summary.get("seconds")
    yield "time", f"{seconds / 60:,.1f} minutes of training" if isinstance(seconds, (int, float)) else None
    yield "ended because", summary.get("reason")


def _words(kind: Any, settings: Row) -> str | None:
    given = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{kind} ({given})" if kind and given else kind


def _curve(of: CardSources) -> Iterator[str]:
    if not of.run or not (curve := of.run.curve("val", "loss")):
        return
    rows_of = {row["step"]: row for row in of.run.val}
    chosen = [curve[i * (len(curve) - 1) // max(1, CURVE_ROWS - 1)] for i in range(CURVE_ROWS)]
    best = of.run.best
    steps = sorted({step for step, _ in chosen} | ({best[0]} if best else set()))
    rows = []
    for step in steps:
        row = rows_of.get(step, {})
        mark = " (these weights)" if best and step == best[0] else ""
        tokens, bits = row.get("tokens"), row.get("bits_per_byte")
        rows.append(
            (
                f"{step:,}{mark}",
                _count(tokens) if isinstance(tokens, int) else "",
                f"{row.get('loss', float('nan')):.3f}",
                f"{bits:.3f}" if isinstance(bits, (int, float)) else "",
            )
        )
    yield "## Validation loss"
    yield _table(("step", "tokens", "nats a token", "bits a byte"), rows)
    if baselines := of.manifest and of.manifest.ngram_baselines:
        yield "Beside it, n-gram models of the same training text on the same validation text:"
        losses = baselines.losses().items()
        rows = [(name, f"{nats:.3f}", f"{baselines.bits_per_byte(nats):.3f}") for name, nats in losses]
        yield _table(("model", "nats a token", "bits a byte"), rows)


def _repetition(of: CardSources) -> Iterator[str]:
    if not of.run:
        return
    best = of.run.best
    row = next((row for row in of.run.val if best and row["step"] == best[0]), {})
    rows = []
    for key, meaning in _REPETITION.items():
        figure, true = row.get(key), row.get(f"true_{key}")
        if isinstance(figure, (int, float)):
            rows.append((meaning, f"{figure:.1%}", f"{true:.1%}" if isinstance(true, (int, float)) else ""))
    if rows:
        yield "## Repetition"
        yield "Of continuations of held-out prompts, beside the true continuations:"
        yield _table(("share of", "model", "true text"), rows)


def _diagnosis(of: CardSources) -> Iterator[str]:
    verdict, decoding = of.diagnosis.get("verdict"), of.diagnosis.get("decoding")
    parts = ((verdict, "headline"), (decoding, "sentence"))
    lines = [part.get(key) for part, key in parts if isinstance(part, dict)]
    if lines := [line for line in lines if isinstance(line, str)]:
        yield "## Diagnosis"
        yield "\n".join(f"- {line}" for line in lines)


def _use(of: CardSources) -> str:
    return f"""## Use

BOS goes in front of every text; the tokenizer and GGUF files put it there. What the chat template makes has it already
(encode it with `add_special_tokens=False`).

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = (kind.from_pretrained("{of.name}") for kind in (AutoTokenizer, AutoModelForCausalLM))
ids = model.generate(**tokenizer("从前", return_tensors="pt"), max_new_tokens=50)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

- vLLM: `vllm serve {of.name}`
- llama.cpp, LM Studio: `python export.py --checkpoint RUN --gguf {of.name}.gguf`, then `llama-server -m {of.name}.gguf`
- Ollama: `ollama create {of.name} -f {of.name}.Modelfile`, which the same command writes"""


def _limits(of: CardSources) -> str:
    seq_len = of.run.seq_len if of.run else None
    rows = (
        f" It was trained on rows of {seq_len} tokens; what lies further back was never practised." if seq_len else ""
    )
    return (
        "## Limits\n\n"
        "A small model: it states falsehoods fluently, knows little of the world, and repeats what its training text "
        f"says, with its errors and its bias.{rows} Nothing was done to make its text safe. The licence of the "
        "training text decides what the weights may be used for."
    )


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
