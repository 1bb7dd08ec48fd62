"""The DeepSpeed JSON: files like those of ds_configs/ and unlike any, changed by --set, resolved for three machines."""

from __future__ import annotations

import json
from pathlib import Path

from common.hardware import Device
from stress.fuzz.choices import JUNK, NOWHERE, TOKENS, Choices, json_text, mutated_bytes, mutated_json, put
from training.config import command_line, schema
from training.config.load import load
from training.config.resolve import check
from training.config.settings import RunFacts

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
DEVICES = (
    Device("cuda", 2, "Tesla T4", 15 * 2**30, (7, 5), False, True, True, {"fp32": 8.1e12, "fp16": 65e12}),
    Device("cuda", 2, "NVIDIA A100-SXM4-40GB", 40 * 2**30, (8, 0), True, True, True, None),
    Device("cpu", 2, "Some Processor", 8 * 2**30, None, True, False, True, None),
)


class ConfigCase:
    """Load, merge the flags, resolve, and use what comes out as train.py does."""

    def __init__(self) -> None:
        self._files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.glob("*.json"))]
        self._keys = list(schema.keys().paths()) + [f"bufudu.{flag}" for flag in command_line.run_flags()]

    def seeds(self) -> list[bytes]:
        """One untouched file each."""
        return [bytes([0, kind, index]) for kind in range(4) for index in range(len(self._files))]

    def __call__(self, choices: Choices, folder: Path, outside: Path) -> str:
        """See guard.Case."""
        path = folder / "experiment.json"
        overrides = [self._override(choices) for _ in range(choices.pick((0, 0, 0, 1, 2)))]
        put(path, self._content(choices), choices, NOWHERE)
        config = load(path, overrides)
        options = command_line.options({}, command_line.file_flags(config, path.name))
        model = command_line.model_config(options, vocab_size=6400)
        rows = choices.pick((1_413_103, 1, 500))
        run = RunFacts(
            world_size=choices.pick((2, 1, 3)),
            epochs=options.epochs,
            max_steps=options.max_steps,
            output=folder / "run",
            model=model,
        )
        draft = check(config, run, choices.pick(DEVICES), source=path.name)
        resolved = draft.resolve(rows)
        assert resolved.total_steps >= 1 and resolved.peak_lr > 0
        assert resolved.micro_batch * resolved.accumulation * run.world_size == resolved.train_batch
        json.dumps(resolved.config, allow_nan=False)
        "\n".join(resolved.notes).encode()
        return f"resolved, {resolved.precision}, ZeRO-{resolved.zero_stage}"

    def _content(self, choices: Choices) -> bytes:
        kind = choices.integer(0, 5)
        config = choices.pick(self._files)
        if kind == 4:
            return mutated_bytes(json.dumps(config, indent=2).encode(), choices)
        if kind == 5:
            return choices.rest()
        config = mutated_json(config, choices) if kind else config
        if choices.once_in(4):
            flags = {choices.pick(command_line.run_flags()): choices.pick(JUNK) for _ in range(choices.integer(1, 3))}
            config = {**config, "bufudu": flags} if isinstance(config, dict) else flags
        return json_text(config, choices)

    def _override(self, choices: Choices) -> str:
        key = choices.pick(self._keys)
        kind = choices.integer(0, 4)
        if kind == 0:
            return f"{key}={json.dumps(choices.pick(JUNK))}"
        if kind == 1:
            return f"{key}={choices.pick(TOKENS).decode('utf-8', 'surrogateescape')}"
        if kind == 2:
            return f"{key}.{choices.pick(('x', 'params.lr', '0', ''))}=1"
        if kind == 3:
            return ".".join([key] * choices.pick((2, 2000))) + "=1"
        return choices.bytes(60).decode("utf-8", "surrogateescape")
