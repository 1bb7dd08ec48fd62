"""train.py from flags to a finished run: in the real launcher, in plain processes, and for errors in this one."""

import json
import math
import re
import shutil
import signal
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from learning_rate import warmup_cosine_lr
from safetensors.torch import load_file

from common.console import Console
from corpus.shards import Corpus
from evaluation.held_out_prompts import GREEDY, SAMPLED, generate_continuations, make_generator, select_prompts
from evaluation.repetition import measure_repetition
from model import load_model
from sample_stories import generate_stories
from training.data_sampler import tensors
from training.processes.process_group import World
from training.run import main

slow = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CPU_FP16 = ROOT / "tests" / "workers" / "cpu_fp16.py"
CONTINUES = "the same command continues the run"
LAUNCHER_LINE = re.compile(r"\[\d{4}-[\d:, -]+\] \[(INFO|WARNING)\] \[(real_accelerator|runner|launch)\.py:\d+:")
REPETITION_LINE = re.compile(
    r"  repetition \d\.\d\d \(true \d\.\d\d\)  copying \d\.\d\d \(\d\.\d\d\)  "
    r"distinct-2 \d\.\d\d \(\d\.\d\d\)  greedy loops \d+ of \d+"
)
OUR_LINE = re.compile(
    r"(不复读|configuration|run|preflight|preparing|reading|training the tokenizer|packing|corpus|"
    r"model|training|loss to beat|disk|starting DeepSpeed|step|finished|best validation loss)\b|  \S"
)


def records(file):
    return [json.loads(line, parse_constant=pytest.fail) for line in file.read_text(encoding="utf-8").splitlines()]


def metrics(run, split):
    return [row for row in records(run / "metrics.jsonl") if row["split"] == split]


def column(rows, name):
    return [row[name] for row in rows]


def summary(run):
    return json.loads((run / "summary.json").read_text())


def steps_of_checkpoints(run):
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="session")
def corpus(finished_run):
    record = json.loads((finished_run / "run.json").read_text())
    return Corpus.open(finished_run.parents[1] / record["corpus"])


# --- a whole run ------------------------------------------------------------------------------------------------------


@slow
def test_a_run_leaves_its_files(finished_run):
    files = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    for name in (
        "metrics.jsonl",
        "summary.json",
        "run.json",
        "ds_config.json",
        "samples.jsonl",
        "logs/rank0.log",
        "logs/rank1.log",
        "checkpoints/latest",
        "checkpoints/step-00000012/run_state.json",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/chat_template.jinja",
        "model/generation_config.json",
        "model/README.md",
    ):
        assert name in files
    assert steps_of_checkpoints(finished_run) == [6, 12]
    assert not [name for name in files if name.endswith((".new", ".partial"))]


@slow
def test_metrics_of_training(finished_run, corpus):
    rows = metrics(finished_run, "train")
    assert column(rows, "step") == list(range(1, 13))
    assert column(rows, "tokens") == [step * 8 * 64 for step in range(1, 13)]
    train = corpus.manifest.splits["train"]
    for row in rows:
        assert set(row) == {
            "step",
            "split",
            "tokens",
            "seconds",
            "loss",
            "bits_per_byte",
            "balance_loss",
            "lr",
            "grad_norm",
            "skipped_steps",
            "tokens_per_second",
            "dropped_tokens",
            "expert_load",
            "router_entropy",
            "update_ratio",
            "unchanged",
        }
        assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2) * train.tokens / train.bytes)
        assert row["balance_loss"] == pytest.approx(1, abs=0.1)
        assert (row["skipped_steps"], row["dropped_tokens"]) == (0, 0)
        assert row["grad_norm"] > 0
        assert row["tokens_per_second"] > 0
        assert [len(layer) for layer in row["expert_load"]] == [4, 4]
        assert [sum(layer) for layer in row["expert_load"]] == pytest.approx([1, 1], abs=1e-4)
        assert all(0.8 < entropy <= 1 for entropy in row["router_entropy"])  # it has hardly learned to choose yet
    assert (rows[0]["update_ratio"], rows[0]["unchanged"]) == (0, 1)  # the schedule starts from a rate of 0
    assert all(1e-5 < row["update_ratio"] < 0.2 and row["unchanged"] < 0.2 for row in rows[2:])


@slow
def test_metrics_of_evaluation_have_repetition_beside_the_true_texts(finished_run, corpus):
    rows = metrics(finished_run, "val")
    held_out = select_prompts(
        corpus.split("val"),
        bos_id=corpus.manifest.bos_id,
        eos_id=corpus.manifest.eos_id,
        prompt_tokens=16,
        new_tokens=40,
    )
    truth = measure_repetition(held_out.prompts, held_out.continuations)
    assert truth.outputs > 4
    for row in rows:
        assert set(row) == {
            "step",
            "split",
            "tokens",
            "seconds",
            "loss",
            "perplexity",
            "bits_per_byte",
            "repetition",
            "copying",
            "distinct_2",
            "greedy_repetition",
            "loops",
            "true_repetition",
            "true_copying",
            "true_distinct_2",
            "true_loops",
            "probe_seconds",
        }
        assert (row["true_repetition"], row["true_copying"], row["true_distinct_2"], row["true_loops"]) == (
            truth.repetition,
            truth.copying,
            truth.distinct_2,
            truth.loops,
        )
    # the weights kept are those of the last evaluation, so what they write now is what was measured then
    model = load_model(finished_run / "model")
    eos_id = corpus.manifest.eos_id
    sampled, greedy = (
        measure_repetition(
            held_out.prompts,
            generate_continuations(make_generator(model, settings), held_out, eos_id=eos_id, seed=42),
        )
        for settings in (SAMPLED, GREEDY)
    )
    assert (rows[-1]["repetition"], rows[-1]["copying"], rows[-1]["distinct_2"]) == pytest.approx(
        (sampled.repetition, sampled.copying, sampled.distinct_2), abs=0.02
    )
    assert (rows[-1]["greedy_repetition"], rows[-1]["loops"]) == pytest.approx(
        (greedy.repetition, greedy.loops), abs=0.1
    )


@slow
def test_a_healthy_run_has_no_alarms(finished_run, launched):
    assert summary(finished_run)["alarms"] == []
    assert not (finished_run / "alarms.jsonl").exists()
    assert "ALARM" not in launched.output


@slow
def test_metrics_have_the_rate_of_the_schedule(finished_run):
    rates = [warmup_cosine_lr(step, peak=2e-3, total=12, warmup=1, floor_ratio=0.1) for step in range(12)]
    assert column(metrics(finished_run, "train"), "lr") == pytest.approx(rates)


@slow
def test_the_run_learns(finished_run):
    losses = column(metrics(finished_run, "val"), "loss")
    assert column(metrics(finished_run, "val"), "step") == [0, 3, 6, 9, 12]
    assert losses[0] == pytest.approx(math.log(512), abs=0.15)
    assert losses[-1] < losses[0] - 0.3
    assert losses == sorted(losses, reverse=True)


@slow
def test_the_summary_agrees_with_the_metrics(finished_run, corpus):
    found, last = summary(finished_run), metrics(finished_run, "val")[-1]
    assert (found["reason"], found["steps"], found["total_steps"], found["tokens"]) == ("finished", 12, 12, 12 * 8 * 64)
    assert (found["val_loss"], found["val_bits_per_byte"]) == (last["loss"], last["bits_per_byte"])
    assert (found["best_val_loss"], found["best_step"]) == (last["loss"], 12)
    assert found["token_entropy"] == corpus.manifest.entropy_nats
    assert found["unigram_loss"] == corpus.manifest.ngram_baselines.unigram
    assert found["skipped_steps"] == 0


@slow
def test_the_run_says_what_it_was_started_with(finished_run):
    record = json.loads((finished_run / "run.json").read_text())
    assert record["flags"]["max_steps"] == 12
    assert record["model"]["hidden_size"] == 64
    assert record["flags"]["data"] == ["stories.jsonl"]
    config = (finished_run / "ds_config.json").read_text()
    assert '"auto"' not in config
    assert json.loads(config)["scheduler"]["params"]["total_num_steps"] == 12
    assert json.loads(config)["train_batch_size"] == 8


@slow
def test_the_saved_model_has_the_best_validation_loss(finished_run, corpus):
    model, stream = load_model(finished_run / "model"), corpus.split("val")
    rows = list(range(stream.num_rows(64)))
    with torch.no_grad():
        loss = model.loss_sum(*tensors(stream, rows, 64, torch.device("cpu"))) / (64 * len(rows))
    assert loss.item() == pytest.approx(summary(finished_run)["best_val_loss"], rel=1e-5)


@slow
def test_transformers_loads_the_trained_model_with_our_logits(finished_run):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finished_run / "model").float().eval()
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    ids = torch.randint(3, 512, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_model(finished_run / "model").logits(ids)
        assert (theirs(ids).logits - ours).abs().max().item() < 1e-4
    assert ours.std().item() > 0.1


@slow
def test_transformers_loads_the_tokenizer(finished_run, corpus):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished_run / "model")
    assert tokenizer.decode(tokenizer("小红在河边。")["input_ids"], skip_special_tokens=True) == "小红在河边。"
    manifest = corpus.manifest
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        manifest.bos_id,
        manifest.eos_id,
        manifest.pad_id,
    )


@slow
def test_tensorboard_shows_the_same(finished_run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(finished_run / "tensorboard"))
    board.Reload()
    for split in ("train", "val"):
        rows = metrics(finished_run, split)
        scalars = board.Scalars(f"{split}/loss")
        assert [event.step for event in scalars] == column(rows, "step")
        assert [event.value for event in scalars] == pytest.approx(column(rows, "loss"), rel=1e-6)
    assert len(board.Scalars("train/lr")) == 12
    assert "expert_load" in board.Tags()["images"]
    assert any("samples" in tag for tag in board.Tags()["tensors"])


@slow
def test_samples_continue_validation_documents(finished_run, corpus):
    rows = records(finished_run / "samples.jsonl")
    stories = [json.loads(line)["text"] for line in (finished_run.parents[1] / "stories.jsonl").open(encoding="utf-8")]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert {row["step"] for row in rows} == {0, 6, 12}
    assert 3 <= len(rows) <= 9
    for row in rows:
        prompt = row["prompt"].rstrip("\ufffd")
        assert len(prompt) >= 3
        assert any(story.startswith(prompt) for story in stories)
    assert len({row["text"] for row in rows}) > 1


@slow
def test_the_terminal_shows_our_lines_and_the_launchers(launched):
    lines = [line for line in re.split(r"[\r\n]+", launched.output) if line.strip()]
    ours = [line for line in lines if not LAUNCHER_LINE.match(line)]
    assert [line for line in ours if not OUR_LINE.match(line) and not line.startswith("data/")] == []
    assert sum(line.startswith("step ") for line in ours) == 12
    assert len([line for line in ours if line.startswith("  validation at step ")]) == 5
    assert re.search(
        r"loss 6\.\d+ nats a token \(uniform 6\.24: no better than guessing\)|"
        r"loss 6\.\d+ nats a token \(uniform 6\.24, unigram \d\.\d\d: ",
        launched.output,
    )
    assert sum(bool(REPETITION_LINE.fullmatch(line)) for line in ours) == 5
    assert any(line.startswith("finished: 12 of 12 steps") for line in ours)
    assert "nan" not in "".join(ours)


# --- stopping and starting again --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(processes, flags, train_py, finished_run):
    """A copy of the run whose last checkpoint is lost, and its metrics cut off in the middle of a line."""
    run = finished_run.with_name("resumed")
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    shutil.rmtree(run / "model")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "spl')
    done = processes.ranks(2, [train_py, *flags("runs/resumed")])
    assert done.status == 0, done.output
    assert re.search(r"continuing from .*step-00000006 \(step 6\)", done.output)
    return run


@slow
def test_a_continued_run_ends_with_the_same_weights_bit_for_bit(resumed, finished_run):
    assert (resumed / "model/model.safetensors").read_bytes() == (finished_run / "model/model.safetensors").read_bytes()
    assert steps_of_checkpoints(resumed) == [6, 12]


@slow
def test_a_continued_run_has_the_same_metrics_without_gap_or_double(resumed, finished_run):
    def lasting(rows):  # all but the time it took
        return [
            {
                name: value
                for name, value in row.items()
                if name not in ("tokens_per_second", "probe_seconds", "seconds")
            }
            for row in rows
        ]

    assert lasting(records(resumed / "metrics.jsonl")) == lasting(records(finished_run / "metrics.jsonl"))
    assert {**summary(resumed), "seconds": 0, "tokens_per_second": 0} == {
        **summary(finished_run),
        "seconds": 0,
        "tokens_per_second": 0,
    }
    assert records(resumed / "samples.jsonl") == records(finished_run / "samples.jsonl")


@slow
def test_a_continued_run_has_the_same_tensorboard_without_gap_or_double(resumed, finished_run):
    from tensorboard.compat.proto.event_pb2 import Event

    from training.monitoring.tensorboard_events import read_events

    def figures(run):
        return Counter(
            (value.tag, event.step)
            for file in (run / "tensorboard").iterdir()
            for event in map(Event.FromString, read_events(file))
            for value in event.summary.value
        )

    assert figures(resumed) == figures(finished_run)
    assert set(figures(resumed).values()) == {1}
    assert {("Train/Samples/lr", 12 * 8), ("train/loss", 12), ("val/loss", 0)} <= set(figures(resumed))
    assert len(list((resumed / "tensorboard").iterdir())) == 2  # one a session


@pytest.fixture(scope="module")
def interrupted(processes, flags, workplace):
    """The T4s' fp16 recipe, begun at too high a loss scale, and stopped as a scheduler would stop it."""
    arguments = flags(
        "runs/interrupted",
        "--max_steps",
        "36",
        "--eval_interval",
        "18",
        "--sample_interval",
        "36",
        "--save_interval",
        "50",
        "--set",
        "fp16.enabled=true",
        "fp16.initial_scale_power=24",
        "fp16.hysteresis=1",
    )
    run = workplace / "runs" / "interrupted"
    ranks = processes.start_ranks(2, [CPU_FP16, *arguments], PYTHONPATH=ROOT)
    try:
        ranks[0].wait_until(lambda: (run / "metrics.jsonl").is_file() and metrics(run, "train"), "the first step")
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        done = processes.finish(*ranks)
    finally:
        for rank in ranks:
            rank.stop_group()
    assert done.status == 0, done.output
    shutil.copytree(run, run.with_name("interrupted-at-first"))
    return run, arguments, done.output


@pytest.fixture(scope="module")
def out_of_time(interrupted, processes):
    """Its second session, with too little time for a step."""
    run, arguments, _ = interrupted
    done = processes.ranks(
        2, [CPU_FP16, *arguments, "--time_limit", "1s", "--resume", run / "checkpoints"], PYTHONPATH=ROOT
    )
    shutil.copytree(run, run.with_name("interrupted-again"))
    return run.with_name("interrupted-again"), done


@pytest.fixture(scope="module")
def finished_at_last(interrupted, out_of_time, processes):
    """Its third session."""
    run, arguments, _ = interrupted
    done = processes.ranks(2, [CPU_FP16, *arguments], PYTHONPATH=ROOT)
    assert done.status == 0, done.output
    return run


@slow
def test_a_signal_leaves_a_checkpoint_and_a_summary(interrupted):
    run = interrupted[0].with_name("interrupted-at-first")
    step = summary(run)["steps"]
    assert 1 <= step < 36
    assert steps_of_checkpoints(run)[-1] == step
    assert column(metrics(run, "train"), "step") == list(range(1, step + 1))
    assert summary(run)["reason"] in ("stopped by SIGTERM", "another process was asked to stop")
    assert "Traceback" not in interrupted[2]
    assert CONTINUES in interrupted[2]
    assert (run / "model" / "model.safetensors").is_file()


@slow
def test_a_time_limit_ends_in_order(interrupted, out_of_time):
    run, done = out_of_time
    before = summary(interrupted[0].with_name("interrupted-at-first"))["steps"]
    assert done.status == 0, done.output
    assert summary(run)["reason"] == "time limit reached"
    assert summary(run)["steps"] == before
    assert steps_of_checkpoints(run)[-1] == before
    assert f"time limit reached: {before} of 36 steps" in done.output


@slow
def test_the_next_start_finishes(finished_at_last):
    rows = metrics(finished_at_last, "train")
    assert column(rows, "step") == list(range(1, 37))
    assert summary(finished_at_last)["reason"] == "finished"
    assert column(metrics(finished_at_last, "val"), "step") == [0, 18, 36]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2


@slow
def test_overflows_are_counted_over_all_sessions(finished_at_last):
    rows = metrics(finished_at_last, "train")
    first = rows[0]
    assert first["skipped_steps"] == 1
    assert first["grad_norm"] is None
    assert first["loss_scale"] == 2.0**23
    for before, row in pairwise(rows):
        skipped = row["skipped_steps"] - before["skipped_steps"]
        assert row["loss_scale"] == before["loss_scale"] / 2**skipped
        assert (row["grad_norm"] is None) == bool(skipped)
    assert summary(finished_at_last)["skipped_steps"] == rows[-1]["skipped_steps"] < 18


@pytest.fixture(scope="module")
def dropping(processes, flags, train_py):
    """Starts a run of four steps on one process whose experts drop tokens, at random."""

    def start(output, *more):
        pace = ("--max_steps", "4", "--save_interval", "2", "--capacity_factor", "0.5")
        done = processes.finish(processes.start([sys.executable, train_py, *flags(output, *pace, *more)]))
        assert done.status == 0, done.output

    return start


SELDOM, ALWAYS = (("--eval_interval", every, "--sample_interval", every) for every in ("100", "1"))


@pytest.fixture(scope="module")
def left_alone(dropping, workplace):
    """Evaluated before its first step and after its last."""
    dropping("runs/left-alone", *SELDOM)
    return workplace / "runs" / "left-alone"


@slow
def test_tokens_dropped_at_random_are_the_same_after_a_restart(left_alone, dropping):
    before, lines = weights(left_alone), metrics(left_alone, "train")
    assert min(column(lines, "dropped_tokens")) > 0.1
    shutil.rmtree(left_alone / "checkpoints" / "step-00000004")
    dropping("runs/left-alone", *SELDOM)
    assert largest_difference(weights(left_alone), before) == 0
    assert column(metrics(left_alone, "train"), "dropped_tokens") == column(lines, "dropped_tokens")


@slow
def test_looking_at_a_run_does_not_change_it(left_alone, dropping, workplace):
    """Evaluations, repetition and samples after every step, against none between the first and the last."""
    dropping("runs/looked-at", *ALWAYS)
    looked_at = workplace / "runs" / "looked-at"
    assert len(metrics(looked_at, "val")) == 5
    assert len(metrics(left_alone, "val")) == 2
    assert summary(looked_at)["best_step"] == summary(left_alone)["best_step"] == 4
    assert largest_difference(weights(looked_at), weights(left_alone)) == 0


# --- other ways to run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split_run(processes, flags, train_py, workplace):
    done = processes.ranks(2, [train_py, *flags("runs/split", "--ep_size", "2")])
    assert done.status == 0, done.output
    return workplace / "runs" / "split"


@pytest.fixture(scope="module")
def lone_run(processes, flags, train_py, workplace):
    """`python train.py` without a launcher, taking in turn the micro-batches that two processes take at once."""
    arguments = flags("runs/one", "--set", "gradient_accumulation_steps=2")
    done = processes.finish(processes.start([sys.executable, train_py, *arguments]))
    assert done.status == 0, done.output
    return workplace / "runs" / "one"


@slow
@pytest.mark.parametrize("name", ["split_run", "lone_run"])
def test_another_way_to_run_gives_the_same_model_and_curve(request, name, finished_run):
    run = request.getfixturevalue(name)
    assert largest_difference(weights(run), weights(finished_run)) < 1e-5
    for split, names in (
        ("train", ("step", "tokens", "loss", "grad_norm", "balance_loss", "lr")),
        ("val", ("step", "loss")),
    ):
        for figure in names:
            expected = column(metrics(finished_run, split), figure)
            assert column(metrics(run, split), figure) == pytest.approx(expected, rel=1e-5), figure


@slow
def test_the_model_of_split_experts_is_whole(split_run):
    names = set(weights(split_run))
    assert {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
        for layer in (0, 1)
        for expert in range(4)
        for part in ("gate", "up", "down")
    } <= names
    assert json.loads((split_run / "model/config.json").read_text())["num_experts"] == 4
    load_model(split_run / "model")


@slow
def test_samples_are_the_same_wherever_the_experts_are(split_run, finished_run):
    assert records(split_run / "samples.jsonl") == records(finished_run / "samples.jsonl")


@slow
def test_an_error_of_the_first_process_is_said_once(processes, flags, train_py):
    """The second process waits for the corpus meanwhile."""
    done = processes.ranks(2, [train_py, *flags("runs/error", "--tokenizer", "missing.json")])
    assert done.status == 2
    [message] = [line for line in done.output.splitlines() if line.startswith("train.py: ")]
    assert "missing.json: cannot be read" in message
    assert "Traceback" not in done.output


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(monkeypatch, workplace, capsys):
    """train.py in this process, as rank 0 of `processes` that never meet: for what ends before an engine is built."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(Console, "redirect_libraries", lambda self, log_file: None)
    monkeypatch.setattr("training.run.form_process_group", lambda world, device_kind, prepare, **more: prepare())
    monkeypatch.setattr("training.run.broadcast_from_rank0", lambda compute: compute())
    monkeypatch.setattr("training.run.check_output_shared", lambda output, token: None)
    monkeypatch.setattr("training.run.check_agreement", lambda world, facts, hint: None)
    monkeypatch.setattr("training.run.share_cores", lambda processes: None)
    monkeypatch.setattr("training.run.keep_freed_memory", lambda: None)
    monkeypatch.setattr("training.run.dist.destroy_process_group", lambda: None)

    def run(argv, processes=2):
        monkeypatch.setattr(World, "from_environment", classmethod(lambda cls: cls(0, processes, 0, processes)))
        status = main(argv, "")
        output = "".join(capsys.readouterr())
        assert "Traceback" not in output, output
        return status, output

    return run


@pytest.fixture
def complaint(train):
    """What train.py says of a wrong start: the last thing it prints, and one sentence unless it is a list."""

    def run(argv, processes=2):
        status, output = train(argv, processes)
        assert status == 2, output
        _, marker, message = output.partition("train.py: ")
        assert marker
        assert "train.py: " not in message
        return message

    return run


def one_line(message):
    assert message.count("\n") == 1
    assert message.endswith("\n")
    return message


EARLY = [
    (["--data", "nothing.jsonl"], ["--data nothing.jsonl: there is no such file or folder"]),
    (["--data", "stories.jsonl", "made"], ["one prepared folder, or text, not both"]),
    (["--data", "made", "made"], ["one prepared folder, or text, not both"]),
    (["--data", "made", "--dedup", "near"], ["--dedup goes with text"]),
    (["--ep_size", "3"], ["the model cannot be built", "num_experts 4 is no multiple of ep_size 3"]),
    (
        ["--hidden_size", "66", "--num_key_value_heads", "3", "--num_experts_per_tok", "9"],
        ["the model cannot be built", "hidden_size 66", "num_key_value_heads 3", "num_experts_per_tok 9"],
    ),
    (["--output", "stories.jsonl"], ["--output stories.jsonl: is a file"]),
    (["--resume", "nowhere"], ["--resume nowhere: no checkpoint there"]),
    (["--deepspeed_config", "t4x2.json"], ["t4x2.json: there is no such file"]),
    (["--deepspeed_config", "stories.jsonl"], ["stories.jsonl, line 2", "not valid JSON"]),
    (["--deepspeed_config", "broken.json"], ["broken.json, line 1, column "]),
    (["--preflight"], ["--preflight checks the run and --skip_preflight leaves that out"]),
    (["--set", "nonsense"], ["--set nonsense", "optimizer.params.lr=3e-4"]),
]


@pytest.mark.parametrize(("more", "words"), EARLY, ids=lambda value: " ".join(value) if value[0][:2] == "--" else "")
def test_a_wrong_start_is_one_sentence(complaint, workplace, flags, more, words):
    (workplace / "broken.json").write_text('{"a": 1 "b": 2}')
    (workplace / "made").mkdir(exist_ok=True)
    (workplace / "made" / "manifest.json").touch()
    message = one_line(complaint(flags("runs/none", *more)))
    assert all(word in message for word in words), message
    assert not (workplace / "runs" / "none").exists()


LISTED = [
    (["optimiser.type=AdamW"], 2, ["optimiser", "Did you mean optimizer?"]),
    (["train_batch_size=7"], 2, ["train_batch_size: 7 is not 4 a process", "= 8"]),
    (["fp16.enabled=true"], 2, ["fp16.enabled", "DeepSpeed refuses fp16"]),
    (
        ["scheduler.type=Cosine", "zero_optimization.stage=3"],
        2,
        ["2 problems", "scheduler.type", "stage: train.py reads whole weights"],
    ),
]


@pytest.mark.parametrize(("settings", "processes", "words"), LISTED)
def test_what_is_wrong_with_the_file_is_listed(complaint, flags, settings, processes, words):
    message = complaint(flags("runs/none", "--set", *settings), processes)
    assert "nothing was started" in message
    assert all(word in message for word in words), message


def test_what_is_wrong_with_the_block_of_flags_is_listed(complaint, flags, workplace):
    (workplace / "block.json").write_text('{"bufudu": {"hiden_size": 64, "hidden_size": "wide"}}')
    message = complaint(flags("runs/none", "--deepspeed_config", "block.json"))
    assert message.startswith("block.json: 2 problems, nothing was started.")
    assert "bufudu.hiden_size: train.py has no such flag.\n     Did you mean hidden_size?" in message
    assert "bufudu.hidden_size: 'wide' is not a whole number" in message


def test_experts_that_the_processes_cannot_share(complaint, flags):
    message = complaint(flags("runs/none", "--ep_size", "4"), processes=2)
    assert "2 processes cannot form groups of 4" in message
    assert "1 or 2" in message
    assert "--use_moe false has no experts" in complaint(flags("runs/none", "--ep_size", "2", "--use_moe", "false"))


def test_too_little_text_for_one_row(complaint, flags, workplace):
    (workplace / "short.jsonl").write_text('{"text": "小红在河边。"}\n{"text": "小明在山上。"}\n', encoding="utf-8")
    message = one_line(complaint(flags("runs/none", "--data", "short.jsonl")))
    assert re.search(r"data/short-\w+: \d+ training tokens are less than one row of 64", message)
    assert "--max_seq_len" in message


def test_a_tokenizer_that_is_not_there(complaint, flags):
    assert one_line(complaint(flags("runs/none", "--tokenizer", "no.json"))).startswith("no.json: cannot be read")


def test_a_folder_that_is_no_corpus(complaint, flags, workplace):
    (workplace / "empty").mkdir(exist_ok=True)
    assert "empty: neither a prepared folder nor one with text" in one_line(
        complaint(flags("runs/none", "--data", "empty"))
    )


def test_a_vocabulary_too_small_for_bytes(complaint, flags):
    assert "--vocab_size 100: must be from" in one_line(complaint(flags("runs/none", "--vocab_size", "100")))


@slow
def test_a_finished_run_says_so(train, flags, finished_run):
    before = sorted(path.stat().st_mtime_ns for path in finished_run.rglob("*"))
    status, output = train(flags("runs/two"))
    assert status == 0
    assert "runs/two has finished its 12 steps already" in output
    assert sorted(path.stat().st_mtime_ns for path in finished_run.rglob("*")) == before


@slow
def test_resume_never_does_not_overwrite_a_run(complaint, flags, finished_run):
    message = one_line(complaint(flags("runs/two", "--resume", "never")))
    assert "runs/two already holds a run and --resume never would overwrite it" in message


@slow
def test_another_model_or_batch_is_refused_with_all_that_differs(complaint, flags, finished_run):
    message = one_line(
        complaint(
            flags(
                "runs/two",
                "--hidden_size",
                "128",
                "--seed",
                "7",
                "--num_experts",
                "8",
                "--set",
                "train_micro_batch_size_per_gpu=8",
                "optimizer.type=Adam",
            )
        )
    )
    for part in (
        "step-00000012 belongs to another run",
        "model.hidden_size: 64 then, 128 now",
        "seed: 42 then, 7 now",
        "model.num_experts: 4 then, 8 now",
        "train_batch_size: 8 then, 16 now",
    ):
        assert part in message
    assert "corpus" not in message


@slow
def test_another_corpus_is_refused(complaint, flags, finished_run, workplace):
    lines = (json.dumps({"text": story}, ensure_ascii=False) + "\n" for story in generate_stories(100, seed=8))
    (workplace / "other.jsonl").write_text("".join(lines), encoding="utf-8")
    message = one_line(complaint(flags("runs/two", "--data", "other.jsonl")))
    assert "corpus: " in message
    assert "tokenizer: " in message


@slow
def test_an_edited_configuration_is_refused_with_what_differs(complaint, flags, finished_run):
    message = one_line(
        complaint(
            flags("runs/two", "--set", "optimizer.params.lr=1e-3", "gradient_clipping=0.5", "zero_optimization.stage=1")
        )
    )
    assert "gradient_clipping: 1.0 then, 0.5 now; optimizer.params.lr: 0.002 then, 0.001 now" in message
    assert "--accept_changes" in message
    assert "stage" not in message


@slow
def test_a_batch_that_other_processes_cannot_keep_is_refused_with_what_would(complaint, flags, finished_run):
    message = complaint(flags("runs/two", "--set", "train_batch_size=8", "gradient_accumulation_steps=1"), processes=1)
    assert "--set gradient_accumulation_steps=2 keeps the batch of 8" in message


@slow
def test_a_checkpoint_given_by_path_is_judged_too(complaint, flags, finished_run):
    path = "runs/two/checkpoints/step-00000006"
    message = one_line(complaint(flags("runs/fresh", "--resume", path, "--num_hidden_layers", "3")))
    assert message.startswith(f"{path} belongs to another run (model.num_hidden_layers: 2 then, 3 now)")


@slow
def test_going_back_to_an_older_checkpoint_does_not_undo_what_came_after(complaint, flags, finished_run):
    message = one_line(complaint(flags("runs/two", "--resume", "runs/two/checkpoints/step-00000006")))
    assert "runs/two has gone on to step-00000012 already" in message
    assert "--resume auto" in message
    assert "another --output" in message


def test_a_run_may_not_be_written_into_the_corpus(complaint, tmp_path):
    (tmp_path / "manifest.json").touch()
    message = complaint(["--data", str(tmp_path), "--output", str(tmp_path)])
    assert "is the folder of the corpus" in message
    one_line(message)
