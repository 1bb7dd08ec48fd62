"""Score weights on held-out rows: python score.py KIND ROWS.npz RESULT.json THREADS WEIGHTS...

One program for every trainer. It stands alone, in a process of its own, because the packages of a peer and ours may
have the same name: PYTHONPATH says whose `model` is meant. ROWS.npz holds `ids` (N, T+1), filled up with zeros, and
`lengths` (N,). RESULT.json gets a list of {"nats", "tokens", "parameters"}: sums over all predicted tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BATCH_TOKENS = 4096
_IGNORED = -100

Logits = Callable[[Tensor], Tensor]  # (B, T) ids -> (B, T, V)


def load_ours(path: Path) -> tuple[nn.Module, Logits]:
    """A folder that train.py exported."""
    from model import load_model

    model = load_model(path, dtype=torch.float32)
    return model, model.logits


def load_minimind(path: Path) -> tuple[nn.Module, Logits]:
    """A .pth file of MiniMind's pre-training script; the shape that its flags do not give is its default."""
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM  # pyright: ignore[reportMissingImports]

    weights = torch.load(path, map_location="cpu", weights_only=True)
    layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
    config = MiniMindConfig(
        hidden_size=weights["model.embed_tokens.weight"].shape[1],
        num_hidden_layers=len(layers),
        use_moe=any(".mlp.experts." in name for name in weights),
    )
    model = MiniMindForCausalLM(config).float().eval()
    model.load_state_dict(weights)
    return model, lambda ids_BT: model(ids_BT).logits


def load_nanogpt(path: Path) -> tuple[nn.Module, Logits]:
    """A checkpoint of nanoGPT's train.py; given targets, its model returns the logits of every position."""
    from model import GPT, GPTConfig  # pyright: ignore[reportAttributeAccessIssue]

    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    return model, lambda ids_BT: model(ids_BT, ids_BT)[0]


def load_transformers(path: Path) -> tuple[nn.Module, Logits]:
    """A folder in the Hugging Face layout."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, lambda ids_BT: model(input_ids=ids_BT).logits


LOADERS = {"ours": load_ours, "minimind": load_minimind, "nanogpt": load_nanogpt, "transformers": load_transformers}


@torch.no_grad()
def nats(logits: Logits, ids: np.ndarray, lengths: np.ndarray) -> float:
    """Summed cross-entropy of every token but the first of each row."""
    total, order = 0.0, np.argsort(lengths, kind="stable")
    rows = max(1, _BATCH_TOKENS // (ids.shape[1] - 1))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        longest = int(lengths[chosen].max())
        batch = torch.from_numpy(ids[chosen, :longest].astype(np.int64))
        targets = batch[:, 1:].clone()
        ends_B1 = torch.from_numpy(lengths[chosen].astype(np.int64))[:, None]
        targets[torch.arange(1, longest)[None] >= ends_B1] = _IGNORED
        scores = logits(batch[:, :-1].contiguous()).float()
        total += F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum").item()
    return total


def main(kind: str, rows: str, result: str, threads: str, *weights: str) -> None:
    """Score each file of weights, as the module's docstring says."""
    torch.set_num_threads(int(threads))
    held_out = np.load(rows)
    ids, lengths = held_out["ids"], held_out["lengths"]
    scores = []
    for path in weights:
        model, logits = LOADERS[kind](Path(path))
        scores.append(
            {
                "nats": nats(logits, ids, lengths),
                "tokens": int((lengths - 1).sum()),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
            }
        )
    Path(result).write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
