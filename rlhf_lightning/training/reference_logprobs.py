"""What a reference says about the answers of the data: asked once and kept, so that its model can go."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_lightning.checkpoint import verify_folder, write_folder
from rlhf_lightning.errors import CheckpointError, DataError
from rlhf_lightning.training.ranks import Ranks

log = logging.getLogger(__name__)
_FILE, _BYTES = "logprobs.safetensors", 16  # of a key: among 10^9 answers two are mixed up once in 10^20


class ReferenceLogprobs:
    """Log-probabilities of answers under a reference, found by the tokens of prompt and answer.

    The tokens speak for rows, tokenizer, chat template and lengths. What else decides the numbers is written beside
    them, and where that has changed they are not used.

    Args:
        folder: where they are kept for a resumed run.
        settings: what decides the numbers besides the tokens, as plain texts.
        ranks: that train together.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], ranks: Ranks) -> None:
        self.folder, self.settings, self.ranks = folder, dict(settings), ranks
        self.known: dict[bytes, float] = {}
        self._new: dict[bytes, float] = {}  # of this rank, not yet shared

    def read(self) -> None:
        """Take what an earlier run has kept, if its numbers are those this run would compute; if not, say why."""
        if not self.folder.is_dir():
            return
        try:
            record = verify_folder(self.folder)
            tensors = load_file(self.folder / _FILE)
        except CheckpointError as error:
            log.warning(f"{error}; the reference is asked again")
            return
        before: Any = record.get("settings") or {}
        changed = [name for name, value in self.settings.items() if before.get(name) != value]
        if changed:
            log.warning(f"{self.folder}: {', '.join(changed)} changed since; the reference is asked again")
            return
        keys = tensors["keys"].numpy()
        self.known = {key.tobytes(): value for key, value in zip(keys, tensors["logprobs"].tolist(), strict=True)}

    def lacks(self, keys: Sequence[bytes]) -> bool:
        """Whether some rank does not know all of its ``keys``; every rank calls it."""
        return self.ranks.sum(float(not all(key in self.known or key in self._new for key in keys)))[0] > 0

    def add(self, keys: Sequence[bytes], logprobs: Tensor) -> None:
        """Keep the ``logprobs`` [N] of answers that were not known."""
        for key, value in zip(keys, logprobs.tolist(), strict=True):
            if key not in self.known:
                self._new.setdefault(key, value)

    def share(self) -> None:
        """Let every rank know what each has added, and write it; every rank calls it."""
        found = self.ranks.gather_objects(self._new)
        self._new = {}
        if not any(found):
            return
        for part in reversed(found):  # the first rank has the last word, everywhere
            self.known |= part
        if self.ranks.index == 0:
            rows = hashlib.sha256(b"".join(sorted(self.known))).hexdigest()
            record = {"stage": self.folder.name, "settings": self.settings, "answers": len(self.known), "rows": rows}
            write_folder(self.folder, self._save, record)
        self.ranks.wait()

    def of(self, keys: Sequence[bytes], device: torch.device) -> Tensor:
        """The log-probability of each answer, float32 [N].

        Raises:
            DataError: the reference was not asked about one of them.
        """
        if not all(key in self.known for key in keys):
            raise DataError(
                f"an answer of this batch is none of the {len(self.known)} that the reference was asked about before "
                "training; with cache_reference=true each epoch has the same answers: set it to false"
            )
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float32, device=device)

    def _save(self, folder: Path) -> None:
        order = sorted(self.known)
        keys = torch.frombuffer(bytearray(b"".join(order)), dtype=torch.uint8).view(-1, _BYTES)
        save_file({"keys": keys, "logprobs": torch.tensor([self.known[key] for key in order])}, folder / _FILE)


def answer_keys(input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> list[bytes]:
    """What tells sequences from others, however they are padded: a hash of tokens and of which of them are counted.

    Args:
        input_ids: long [N, S].
        attention_mask: bool [N, S], True at real tokens.
        mask: bool [N, S], True at tokens whose log-probabilities are summed.

    >>> ids, real = torch.tensor([[0, 5, 6], [5, 6, 0]]), torch.tensor([[False, True, True], [True, True, False]])
    >>> left, right = answer_keys(ids, real, real)
    >>> left == right, left == answer_keys(ids, real, real & (ids > 5))[0]
    (True, False)
    """
    rows = zip(*(tensor.cpu().numpy() for tensor in (input_ids, attention_mask, mask)), strict=True)
    texts = (ids[real].tobytes() + counted[real].tobytes() for ids, real, counted in rows)
    return [hashlib.sha256(text).digest()[:_BYTES] for text in texts]
