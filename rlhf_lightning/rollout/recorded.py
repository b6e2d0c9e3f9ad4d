"""Rollouts on disk: what was sampled and how it was scored, each iteration as a verified folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.checkpoint import read_provenance, verify_folder, write_folder
from rlhf_lightning.checkpoint.codec import read_state, write_state
from rlhf_lightning.checkpoint.processes import everyone
from rlhf_lightning.errors import DataError
from rlhf_lightning.functional.kl import totals
from rlhf_lightning.rules.rows import RECORDED_SCORE
from rlhf_lightning.types import Rollout

STAGE = "rollout"
_NAME = re.compile(r"rollout-(\d+)\.rank-(\d+)")


@dataclass
class Call:
    """What one call of `generate` gave.

    Args:
        rollout: without rows.
        prompts: B prompts as text or messages.
        texts: B responses as text.
        scores: float [B] or [B, T]; None where they were not scored.
        environment: columns that an environment added, B rows; None without one.
    """

    rollout: Rollout
    prompts: Sequence[Any]
    texts: Sequence[str]
    scores: Tensor | None = None
    environment: Sequence[dict[str, Any]] | None = None


def place(folder: Path, iteration: int, rank: int) -> Path:
    """Where the rollouts of an iteration are; the first iteration is 1."""
    return folder / f"rollout-{iteration:06d}.rank-{rank}"


def iterations(folder: Path, rank: int | None = None) -> list[tuple[int, int]]:
    """Iteration and rank of what is in a folder, of one rank or of all.

    Raises:
        DataError: nothing is there.
    """
    found = [(int(m[1]), int(m[2])) for path in folder.glob("rollout-*") if (m := _NAME.fullmatch(path.name))]
    found = sorted(pair for pair in found if rank is None or pair[1] == rank)
    if not found:
        whose = "" if rank is None else f" of rank {rank}"
        raise DataError(f"{folder}: no recorded rollouts{whose}; callbacks.record.folder=FOLDER records them")
    return found


def write(folder: Path, iteration: int, rank: int, calls: Sequence[Call], *, exact: bool = False) -> None:
    """Write an iteration of a rank; one of the same number that this library wrote is replaced.

    Args:
        folder: of all of them.
        iteration: the first is 1.
        rank: that sampled.
        calls: in their order.
        exact: whether the engine decodes with the very weights that training computes with.

    Raises:
        DiskError, CheckpointError: see `rlhf_lightning.checkpoint.write_folder`.
    """
    state = {"calls": [_packed(call) for call in calls]}
    write_folder(
        place(folder, iteration, rank),
        lambda at: write_state(at, state),
        {"stage": STAGE, "iteration": iteration, "rank": rank, "exact": exact},
    )


def read(folder: Path, iteration: int, rank: int) -> list[Call]:
    """The calls of an iteration, in their order.

    Raises:
        CheckpointError: a file is missing, was changed or is damaged.
    """
    path = place(folder, iteration, rank)
    verify_folder(path, expect_stage=STAGE)
    return [_unpacked(call) for call in read_state(path)["calls"]]


def _packed(call: Call) -> dict[str, Any]:
    """Without padding, so that a long answer does not cost as much in each row; ids of four bytes."""
    rollout = call.rollout
    prompt, response = rollout.prompt_mask, rollout.attended
    return {
        "widths": [prompt.shape[1], response.shape[1]],
        "prompt_lengths": prompt.sum(1).int(),
        "prompt_ids": rollout.prompt_ids[prompt].int(),
        "lengths": response.sum(1).int(),
        "ids": rollout.response_ids[response].int(),
        "pads": [_pad(rollout.prompt_ids, prompt), _pad(rollout.response_ids, response)],
        "written": rollout.mask[response],
        "logprobs": None if rollout.rollout_logprobs is None else rollout.rollout_logprobs[response],
        "finished": rollout.finished,
        "version": rollout.weight_version,
        "scores": call.scores,
        "prompts": list(call.prompts),
        "texts": list(call.texts),
        "environment": None if call.environment is None else list(call.environment),
    }


def _unpacked(packed: dict[str, Any]) -> Call:
    (left, right), (prompt_pad, pad) = packed["widths"], packed["pads"]
    columns = torch.arange(left)
    prompt_mask = columns >= left - packed["prompt_lengths"].long()[:, None]
    attended = torch.arange(right) < packed["lengths"].long()[:, None]
    mask = _spread(packed["written"], attended, False)
    logprobs = packed["logprobs"]
    rollout = Rollout(
        prompt_ids=_spread(packed["prompt_ids"].long(), prompt_mask, prompt_pad),
        prompt_mask=prompt_mask,
        response_ids=_spread(packed["ids"].long(), attended, pad),
        mask=mask,
        finished=packed["finished"],
        rollout_logprobs=None if logprobs is None else _spread(logprobs, attended, 0.0),
        weight_version=packed["version"],
        rows=(),
        context=None if torch.equal(mask, attended) else attended & ~mask,
    )
    return Call(rollout, packed["prompts"], packed["texts"], packed["scores"], packed["environment"])


def _spread(values: Tensor, mask: Tensor, rest: float) -> Tensor:
    whole = values.new_full(mask.shape, rest)
    whole[mask] = values
    return whole


def _pad(ids: Tensor, mask: Tensor) -> int:
    """What stands beside the tokens; 0 where there is no room."""
    beside = ids[~mask]
    return int(beside[0]) if len(beside) else 0


class ReplayEngine:
    """Give back rollouts that were recorded, in their order, so that a run learns from them again.

    With the config, the data and the number of processes of the recorded run, and ``scorer=recorded`` where scores are
    not to be asked for again, every gradient is the same to the bit. The policy's weights are not looked at.

    Args:
        folder: what ``callbacks.record.folder`` was.
    """

    holds_policy = False
    samples_ahead = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._next = (0, 0)  # iteration, in the order of what is there, and call
        self._read: tuple[int, list[Call]] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the engine that was recorded decoded with the very weights that training computes with."""
        first = place(self.folder, *iterations(self.folder, everyone().index)[0])
        return bool((read_provenance(first) or {}).get("exact"))

    def sync(self, policy: Any, eos_token_ids: Sequence[int], pad_token_id: int, version: int) -> None:
        """Nothing: the answers are there."""

    def seed(self, seed: int) -> None:
        """Begin again with the first rollout."""
        self._next = (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Which rollout comes next."""
        return {"next": list(self._next)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        iteration, call = state["next"]
        self._next = (int(iteration), int(call))

    def generate(self, prompts: Any, sampling: Any, tokenizer: Any = None) -> Rollout:
        """The next recorded rollout.

        Raises:
            DataError: there is none left, or it answers other prompts.
            CheckpointError: its files are damaged.
        """
        rank = everyone().index
        found = iterations(self.folder, rank)
        at, number = self._next
        if at >= len(found):
            raise DataError(
                f"{self.folder}: has {len(found)} rollouts, and the run asks for one more; lower ppo.rollouts"
            )
        if self._read is None or self._read[0] != at:
            self._read = at, read(self.folder, *found[at])
        calls = self._read[1]
        call = calls[number]
        self._next = (at, number + 1) if number + 1 < len(calls) else (at + 1, 0)
        rows = self._rows(call, prompts, found[at][0])
        asked = None if call.environment is None else prompts
        return replace(call.rollout, rows=rows, asked=asked).to(prompts.input_ids.device)

    def _rows(self, call: Call, prompts: Any, iteration: int) -> tuple[Any, ...]:
        given = [row["prompt"] for row in prompts.rows]
        if len(given) != len(call.rollout) or (call.environment is None and list(call.prompts) != given):
            raise DataError(
                f"{self.folder}: rollout {iteration} answers other prompts than those of this run; replay with the "
                "data, seed, batch size and processes of the run that was recorded"
            )
        added = call.environment or [{}] * len(given)
        scores: list[Any] = [None] * len(given) if call.scores is None else call.scores.tolist()
        return tuple(
            {**row, **more, RECORDED_SCORE: score} for row, more, score in zip(prompts.rows, added, scores, strict=True)
        )


def table(folder: Path) -> Iterator[dict[str, Any]]:
    """Every recorded response as a row: where it stands, its score, length, end, version, prompt and text.

    Raises:
        DataError, CheckpointError: see `iterations` and `read`.
    """
    for iteration, rank in iterations(folder):
        for number, call in enumerate(read(folder, iteration, rank)):
            rollout = call.rollout
            scores: Any = [None] * len(rollout)
            if call.scores is not None:
                scores = totals(call.scores, rollout.mask).tolist()
            for row in range(len(rollout)):
                yield {
                    "rollout": iteration, "rank": rank, "call": number, "row": row, "score": scores[row],
                    "length": int(rollout.lengths[row]), "finished": bool(rollout.finished[row]),
                    "version": int(rollout.weight_version[row]), "prompt": call.prompts[row],
                    "completion": call.texts[row],
                }  # fmt: skip
