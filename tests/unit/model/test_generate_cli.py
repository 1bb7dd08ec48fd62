"""`generate.py` as a user runs it: what it prints, and what it says about bad input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import generate
from common.console import spell_out
from common.files import LFS_MARK
from model import load_model

ROOT = Path(__file__).parents[3]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def cli(model_folder, capsys):
    """Run with the folder of a run; gives the exit status, what was printed, and the error."""

    def run(*arguments: str, checkpoint: Path = model_folder.parent) -> tuple[int, str, str]:
        status = generate.main(["--checkpoint", str(checkpoint), *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def stdin(monkeypatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def records(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_prompt_is_continued_as_the_model_does_it(cli, model_folder, tokenizer):
    model = load_model(model_folder)
    ids = torch.tensor([[1, *tokenizer.encode("从前有").ids]])
    new = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :].tolist()
    [record] = records(cli("--prompt", "从前有", "--greedy", "--max_new_tokens", "12", "--json")[1])
    assert record == {"prompt": "从前有", "text": tokenizer.decode(new), "tokens": 12, "finish": "length"}


def test_a_run_folder_and_its_model_folder_are_the_same(cli, model_folder):
    arguments = ("--prompt", "山", "--seed", "1")
    assert cli(*arguments)[1] == cli(*arguments, checkpoint=model_folder)[1]


def test_a_folder_that_transformers_saved_again_with_more_tokens_and_in_several_files(cli, model_folder):
    arguments = ("--prompt", "山", "--greedy", "--json")
    before = cli(*arguments)
    weights = load_file(model_folder / "model.safetensors")
    embedding = weights.pop("model.embed_tokens.weight")
    more = {"model.embed_tokens.weight": torch.cat((embedding, torch.zeros(2, embedding.shape[1])))}
    files = {"model-00001-of-00002.safetensors": weights, "model-00002-of-00002.safetensors": more}
    index = {"metadata": {}, "weight_map": {tensor: name for name, part in files.items() for tensor in part}}
    for name, part in files.items():
        save_file(part, model_folder / name)
    (model_folder / "model.safetensors").unlink()
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(embedding) + 2}))
    assert cli(*arguments) == before

    for wrong in ({"weight_map": {"x": "../model.safetensors"}}, {"weight_map": {}}, [], {"weight_map": {"x": 3}}):
        (model_folder / "model.safetensors.index.json").write_text(json.dumps(wrong))
        refused(cli(*arguments), "model.safetensors.index.json does not hold the weights", "lists no safetensors files")


def test_a_streamed_text_is_the_text(cli):
    arguments = ("--prompt", "山里", "--seed", "3")
    status, out, err = cli(*arguments)
    [record] = records(cli(*arguments, "--json")[1])
    assert (status, out, err) == (0, f"> 山里\n{spell_out(record['text'])}\n", "")
    assert "\\u00" in out  # no terminal obeys what an untrained model writes


def test_eos_ends_and_is_not_printed(cli, model_folder, tokenizer):
    [before] = records(cli("--prompt", "山", "--greedy", "--json")[1])
    first = load_model(model_folder).generate(torch.tensor([[1, *tokenizer.encode("山").ids]]), do_sample=False)
    config = json.loads((model_folder / "config.json").read_text())
    config["bufudu"]["eos_token_id"] = int(first[0, -46])  # the fifth new token
    (model_folder / "config.json").write_text(json.dumps(config))
    [after] = records(cli("--prompt", "山", "--greedy", "--json")[1])
    assert (after["finish"], before["finish"]) == ("end_mark", "length")
    assert after["tokens"] <= 5
    assert before["text"].startswith(after["text"].rstrip("\ufffd"))
    assert cli("--prompt", "山", "--greedy")[1] == f"> 山\n{after['text']}\n"


def test_a_seed_repeats_and_none_does_not(cli):
    texts = [cli("--prompt", "山", *seed)[1] for seed in (("--seed", "1"), ("--seed", "1"), ("--seed", "2"), (), ())]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_the_size_of_batches_changes_no_text(cli, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("从前有座山\n山\n\n庙里有个老和尚\nabc\n", encoding="utf-8")
    arguments = ("--prompts", str(file), "--seed", "5", "--num_samples", "3", "--json")
    one, five, all_at_once = (cli(*arguments, "--batch_size", size)[1] for size in ("1", "5", "16"))
    assert one == five == all_at_once
    assert [record["prompt"] for record in records(one)] == [
        prompt for prompt in ("从前有座山", "山", "庙里有个老和尚", "abc") for _ in range(3)
    ]
    assert len({record["text"] for record in records(one)}) == 12


def test_prompts_are_blocks_with_numbered_samples(cli, stdin):
    stdin("山里\r\n从前\n".encode())
    _, out, _ = cli("--seed", "1", "--num_samples", "2", "--json")
    texts = [spell_out(record["text"]) for record in records(out)]
    stdin("山里\r\n从前\n".encode())
    _, out, _ = cli("--seed", "1", "--num_samples", "2")
    assert out == f"> 山里\n[1] {texts[0]}\n[2] {texts[1]}\n\n> 从前\n[1] {texts[2]}\n[2] {texts[3]}\n\n"


def test_prompts_from_json_lines(cli, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('\ufeff{"prompt": "从前\\n有", "text": "no"}\n\n{"text": "山"}\n{"prompt": ""}\n', encoding="utf-8")
    _, out, _ = cli("--prompts", str(file), "--max_new_tokens", "2", "--json")
    assert [record["prompt"] for record in records(out)] == ["从前\n有", "山", ""]
    _, out, _ = cli("--prompts", str(file), "--max_new_tokens", "2")
    assert out.startswith("> 从前\n> 有\n")


def test_bos_in_the_prompt_is_not_doubled(cli):
    plain, marked = (
        records(cli("--prompt", text, "--seed", "1", "--json")[1])[0]["text"] for text in ("山", "<|im_start|>山")
    )
    assert plain == marked


def test_interactive(cli, monkeypatch, capsys):
    answers = iter(["从前", "山" * 200, "从前", ""])
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda _prompt: next(answers))
    status, out, err = cli("--seed", "1")
    first, second = (
        spell_out(record["text"])
        for record in records(cli("--prompt", "从前", "--seed", "1", "--num_samples", "2", "--json")[1])
    )
    assert status == 0
    assert out == f"{first}\n{second}\n"  # asked twice, answered differently, and a prompt too long in between
    assert "tokens" in err
    assert len(err.splitlines()) == 1


def test_ctrl_d_ends_and_ctrl_c_interrupts(cli, monkeypatch):
    def press(error: type[BaseException]):
        def asked(_prompt):
            raise error

        return asked

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", press(EOFError))
    assert cli() == (0, "\n", "")
    monkeypatch.setattr("builtins.input", press(KeyboardInterrupt))
    assert cli()[0] == 130


def test_a_terminal_without_chinese_gets_the_rest_and_json_loses_nothing(cli, monkeypatch):
    arguments = ("--prompt", "山里", "--seed", "3")
    text = records(cli(*arguments, "--json")[1])[0]["text"]
    for encoding in ("ascii", "gbk"):
        shown = printed_in(encoding, monkeypatch, lambda: cli(*arguments))
        assert shown == f"> 山里\n{spell_out(text)}\n".encode(encoding, "replace")
    record = json.loads(printed_in("ascii", monkeypatch, lambda: cli(*arguments, "--json")).decode("ascii"))
    assert record["text"] == text


def printed_in(encoding, monkeypatch, call) -> bytes:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        assert call()[0] == 0
    return stream.buffer.getvalue()


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit status 2, nothing printed, and one line that has these words."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "0"], ["--temperature is 0", "--greedy"]),
        (["--temperature", "-1"], ["--temperature", "-1 must be at least 0"]),
        (["--temperature", "nan"], ["--temperature", "nan must be at least 0"]),
        (["--top_p", "0"], ["--top_p", "0 must be above 0"]),
        (["--top_p", "1.5"], ["--top_p is 1.5"]),
        (["--top_k", "-3"], ["--top_k", "'-3' is not a whole number of at least 0"]),
        (["--num_samples", "0"], ["--num_samples", "0 is too small"]),
        (["--batch_size", "0"], ["--batch_size", "0 is too small"]),
        (["--max_new_tokens", "0"], ["--max_new_tokens", "0 is too small"]),
        (["--repetition_penalty", "0"], ["--repetition_penalty", "0 must be above 0"]),
        (["--no_repeat_ngram", "-1"], ["--no_repeat_ngram", "'-1' is not a whole number of at least 0"]),
        (["--greedy", "--num_samples", "2"], ["--greedy", "--num_samples"]),
        (["--top_k", "many"], ["--top_k", "many"]),
        (["--prompts", "x"], ["--prompts", "--prompt"]),
        (["--tempo", "1"], ["--tempo"]),
        (["--device", "abacus"], ["--device abacus"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--device", "meta"], ["--device meta"]),
        (["--max_new_tokens", "127"], ["--prompt has 3 tokens", "--max_new_tokens 127", "128 positions"]),
    ],
)
def test_bad_arguments_are_named(cli, arguments, words):
    refused(cli("--prompt", "ab", *arguments), *words)


def test_a_greedy_temperature_may_be_anything(cli):
    assert cli("--prompt", "ab", "--greedy", "--temperature", "0")[0] == 0


def test_bad_prompts_name_their_line(cli, tmp_path):
    file = tmp_path / "prompts.jsonl"
    for line, words in (
        (b'{"text": ', "broken JSON"),
        (b'{"texts": ""}', "no text"),
        (b"[]", "no text"),
        (b'{"text": 3}', "no text"),
        (b"\xff", "not UTF-8"),
        (b'{"text": "\\ud800"}', "no character"),
        (json.dumps({"text": "山" * 99}).encode(), "tokens"),
    ):
        file.write_bytes(b'{"text": "ok"}\n\n' + line + b"\n")
        refused(cli("--prompts", str(file)), f"{file}:3", words)


def test_bad_prompt_sources_are_named(cli, stdin, tmp_path):
    stdin(b"\n \n")
    refused(cli(), "standard input holds no prompt")
    stdin(b"ok\n\xb4\xd3\n")
    refused(cli(), "standard input:2", "UTF-8")
    empty = tmp_path / "empty.txt"
    empty.touch()
    refused(cli("--prompts", str(empty)), f"{empty} holds no prompt")
    refused(cli("--prompts", str(tmp_path / "none.txt")), "none.txt", "No such file")
    refused(cli("--prompts", str(tmp_path)), "directory")
    refused(cli("--prompt", "\udcff"), "--prompt", "UTF-8")


def test_bad_checkpoints_are_named(cli, tmp_path):
    refused(cli("--prompt", "a", checkpoint=tmp_path / "none"), "none does not exist")
    (tmp_path / "young").mkdir()
    refused(cli("--prompt", "a", checkpoint=tmp_path / "young"), "young has no model/ yet")
    (tmp_path / "young" / "manifest.json").touch()
    refused(
        cli("--prompt", "a", checkpoint=tmp_path / "young"), "young is a corpus", "no model: give --checkpoint a run"
    )
    (tmp_path / "file").touch()
    refused(cli("--prompt", "a", checkpoint=tmp_path / "file"), "file is a file")
    begun = tmp_path / "begun"
    inside = begun / "checkpoints" / "step-00000010"
    inside.mkdir(parents=True)
    (begun / "model").mkdir()
    (begun / "model" / "config.json").touch()
    (begun / "run.json").touch()
    for path in (inside, inside.parent):
        refused(cli("--prompt", "a", checkpoint=path), f"{path} holds no model: give --checkpoint {begun},")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"nonsense", ["model.safetensors does not hold"]),
        ("config.json", b"{}", ["config.json was not written by this project", "give the folder of a run"]),
        ("config.json", b'{"bufudu": {"vocab_size": "a"}}', ["was not written by this project", "or give another run"]),
        ("config.json", None, ["config.json is missing"]),
        ("model.safetensors", None, ["model.safetensors is missing"]),
        ("tokenizer.json", None, ["tokenizer.json is missing"]),
        ("tokenizer.json", b"{}", ["tokenizer.json"]),
        (
            "model.safetensors",
            LFS_MARK + b"v1\noid sha256:ab\n",
            ["safetensors: is a Git LFS pointer", "lfs pull"],
        ),
        ("tokenizer.json", LFS_MARK + b"v1\noid sha256:ab\n", ["tokenizer.json: is a Git LFS pointer", "git lfs pull"]),
    ],
)
def test_broken_model_folders_are_named(cli, model_folder, name, content, words):
    (model_folder / name).unlink()
    if content is not None:
        (model_folder / name).write_bytes(content)
    refused(cli("--prompt", "a"), *words)


def test_a_tokenizer_of_another_model_is_named(cli, model_folder, tokenizer):
    data = json.loads(tokenizer.to_str())
    data["model"]["vocab"]["zzz"] = 300
    (model_folder / "tokenizer.json").write_text(json.dumps(data))
    refused(cli("--prompt", "a"), "tokenizer.json has 301 entries and the model 300")


def test_a_diverged_model_is_an_error_and_no_text(cli, model_folder, make_model):
    from model import save_model

    model = make_model()
    model.model.norm.weight.data.fill_(float("nan"))
    save_model(model_folder, model.config, model.state_dict())
    refused(cli("--prompt", "a", "--json"), "diverged")


def test_half_precision_is_read_on_a_cpu(cli, model_folder, make_model):
    from model import save_model

    model = make_model()
    save_model(model_folder, model.config, {name: w.half() for name, w in model.state_dict().items()})
    assert cli("--prompt", "a", "--device", "cpu")[0] == 0


@pytest.mark.slow
def test_help_and_errors_come_before_torch_and_training_stays_out(model_folder):
    code = (
        "import sys, generate\n"
        "assert generate.main(['--checkpoint', 'nowhere', '--prompt', 'a']) == 2\n"
        "assert 'torch' not in sys.modules\n"
        f"assert generate.main(['--checkpoint', {str(model_folder)!r}, '--prompt', 'a']) == 0\n"
        "assert not {'training', 'deepspeed'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
