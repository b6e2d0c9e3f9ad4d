"""The answers of a rollout while they are sampled: what is written for each token never waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.rollout.stop import StopStrings


class Answers:
    """Responses that grow by a token at a time. Only `unfinished` waits for the device.

    Args:
        rows: answers, B.
        steps: the longest answer, T.
        pad: the id after the end of an answer.
        eos: ids that end one.
        stop: texts that end one.
        device: where it all lies.

    Attributes:
        ids: long [B, T]. logprobs: float [B, T], 0 after the end. mask: bool [B, T], the tokens of the answer.
        finished: bool [B], which have ended.
    """

    def __init__(
        self, rows: int, steps: int, pad: int, eos: Sequence[int], stop: StopStrings, device: torch.device
    ) -> None:
        self.ids = torch.full((rows, steps), pad, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, steps, device=device)
        self.mask = torch.zeros(rows, steps, dtype=torch.bool, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self._eos = torch.tensor(list(eos), dtype=torch.long, device=device)
        self._pad, self._stop, self._looked = pad, stop, 0

    def add(self, step: int, rows: Tensor, token: Tensor, logprob: Tensor) -> None:
        """Write the token of a step for ``rows``, long [n]; those that have ended stay as they are."""
        ended = self.finished[rows]
        self.ids[rows, step] = token.masked_fill(ended, self._pad)
        self.logprobs[rows, step] = logprob.masked_fill(ended, 0.0)
        self.mask[rows, step] = ~ended
        self.finished[rows] = ended | (token[:, None] == self._eos).any(1)

    def unfinished(self, rows: Tensor, steps: int) -> Tensor:
        """Which of ``rows`` have not ended, bool [n], now that so many steps were taken.

        Stop strings are looked for here: an answer is cut where it completed one since the last look.
        """
        for step in range(self._looked, steps) if self._stop else ():
            here = self.mask[:, step].nonzero().squeeze(1)
            over = here[self._stop(self.ids[here, : step + 1])]
            self.finished[over] = True
            self.ids[over, step + 1 :], self.logprobs[over, step + 1 :] = self._pad, 0.0
            self.mask[over, step + 1 :] = False
        self._looked = steps
        return ~self.finished[rows]
