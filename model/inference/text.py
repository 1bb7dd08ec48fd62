"""Token ids around the decoding loop: prompts into a batch, new tokens out of it, and text while they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts of different lengths as `input_ids` and `attention_mask`, both (B, P)."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def until_eos(new_ids: list[int], eos_id: int) -> tuple[list[int], bool]:
    """Return the new tokens of one row before its EOS, and whether there was one."""
    if eos_id in new_ids:
        return new_ids[: new_ids.index(eos_id)], True
    return new_ids, False


class TextStream:
    """Token ids in, one at a time; text out as soon as it is certain.

    A token of a byte-level BPE may end inside a character, which decodes to U+FFFD until the rest has come: that
    one is held back. All pieces joined are what decoding all ids at once gives.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.context = 0
        self.shown = 0

    def push(self, token: int) -> str:
        """Return the text that this token has made certain; often none, at times more than its own."""
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        whole = not text.endswith("\ufffd")
        piece = text[self.shown :] if whole else text[self.shown : -1]
        self.shown += len(piece)
        if whole and text:
            # Nothing later changes a whole character, so decoding restarts here, and stays cheap. The tokens since the
            # last restart remain, because some tokenizers drop the space in front of a text's first word.
            self.ids, self.context = self.ids[self.context :], len(self.ids) - self.context
            self.shown = len(self.tokenizer.decode(self.ids))
        return piece

    def flush(self) -> str:
        """Return what was held back, at the end."""
        piece = self.tokenizer.decode(self.ids)[self.shown :]
        self.ids, self.context, self.shown = [], 0, 0
        return piece
