"""The servers of a run: found or started, given the weights of the policy, and asked whether they have them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import TypeVar
from urllib.parse import urlsplit

import torch
from transformers import PreTrainedModel

from rlhf_lightning.checkpoint.processes import everyone
from rlhf_lightning.checkpoint.serving import TRAINING_ENVIRONMENT, training_words, vllm_command
from rlhf_lightning.errors import ConfigError, RolloutError
from rlhf_lightning.models.adapters import lora_of
from rlhf_lightning.network.in_threads import in_threads
from rlhf_lightning.rollout.server.process import ENDING_SECONDS, LOG, ServerProcess, free_port
from rlhf_lightning.rollout.server.routes import VLLMServer, Weights
from rlhf_lightning.rollout.server.weights import WeightFolder, Written, size_of, write_adapter, write_weights
from rlhf_lightning.rules.placement import NO_ADAPTERS

T = TypeVar("T")
HERE = ("127.0.0.1", "localhost", "::1")


class ServerGroup:
    """All servers that a process asks. `give` is collective over the ranks of a run.

    Args:
        urls: of servers that run already; none of them: one is started for the processes of each machine.
        connect: makes a `VLLMServer` of an address.
        program: vLLM's command and words to add.
        folder: for the log and for weights.
        ram_disk: see `rlhf_lightning.rollout.server.engine.ServerEngine`, as ``weights`` and ``deadline``.
    """

    def __init__(
        self,
        urls: Sequence[str],
        connect: Callable[[str], VLLMServer],
        program: Sequence[str],
        folder: Path,
        ram_disk: bool,
        weights: Weights,
        deadline: float,
    ) -> None:
        self.urls, self.connect, self.program, self.folder = tuple(urls), connect, program, folder
        self.ram_disk, self.weights, self.deadline = ram_disk, weights, deadline
        self.servers = [connect(url) for url in urls]
        self.rank: int | None = None  # of this process; None before the first weights
        self._leads = False  # whether this process gives them the weights
        self._process: ServerProcess | None = None
        self._disk: WeightFolder | None = None
        self._written: Written | None = None

    def give(self, policy: PreTrainedModel, version: int) -> None:
        """Give all servers the weights of a policy; ``version`` is its number of optimizer steps. Collective.

        Raises:
            ConfigError, DiskError, RolloutError: see `rlhf_lightning.rollout.server.engine.ServerEngine.sync`; on all
                ranks where it comes on one.
        """
        if self.weights == "lora" and lora_of(policy) is None:
            raise ConfigError(NO_ADAPTERS.format("the policy"))
        if self.rank is None:
            self._begin(policy)
        self._written = None  # until they have all of it
        written = everyone().agree(partial(self._write, policy, version))
        everyone().agree(self._push)
        self._written = self._written or next(found for found in written if found is not None)

    def require(self, until: float) -> None:
        """Ask each server whether it has the weights that it was given last.

        Raises:
            RolloutError: it has others.
        """
        assert self._written is not None
        for server in self.servers:
            server.require(self.weights, self._written, until)

    def watched(self, work: Callable[[], T]) -> T:
        """What ``work`` returns.

        Raises:
            RolloutError: as ``work`` does; where a server that was started has ended, with its last words.
        """
        try:
            return work()
        except RolloutError:
            if self._process is not None:
                self._process.require(ENDING_SECONDS)
            raise

    def close(self) -> None:
        """Remove the weights, and end the server if it was started here."""
        if self._disk is not None:
            self._disk.remove()
        if self._process is not None:
            self._process.close()
        if not self.urls:
            self.servers = []
        self._disk = self._process = self.rank = self._written = None

    def _begin(self, policy: PreTrainedModel) -> None:
        """Find the servers, or start them. The first of the ranks that share some leads: it gives them the weights."""
        ranks = everyone()
        hosts = ranks.gather(socket.gethostname())
        first_here = hosts.index(hosts[ranks.index])
        self._leads = ranks.index == (0 if self.urls else first_here)
        home = self.folder / f"rank-{ranks.index}" if ranks.index else self.folder
        addresses = ranks.agree(partial(self._start, policy, home))
        if not self.urls:
            self.servers = [self.connect(addresses[first_here])]
        here = all(urlsplit(server.url).hostname in HERE for server in self.servers)
        ranks.agree(partial(self._make_folder, home, self.ram_disk and here, size_of(policy)))
        self.rank = ranks.index

    def _make_folder(self, home: Path, ram_disk: bool, size: int) -> None:
        self._disk = WeightFolder(home, ram_disk, size) if self._leads else None

    def _start(self, policy: PreTrainedModel, home: Path) -> str:
        """The address of a server that was started, on the rank that starts one."""
        if self.urls or not self._leads:
            return ""
        port, source = free_port(), policy.name_or_path
        if not source or not Path(source).is_dir():
            raise ConfigError(
                f"rollout.start=true: the policy comes from {source!r}, which is no folder that vLLM could load; start "
                "a server yourself and give rollout.urls"
            )
        command = [
            *vllm_command(Path(source), "policy", port=port, program=self.program[0]),
            *training_words(_dtype(policy), None if (adapters := lora_of(policy)) is None else adapters.r),
            *self.program[1:],
        ]
        self._process = ServerProcess(command, TRAINING_ENVIRONMENT, home / LOG)
        server = self.connect(f"http://127.0.0.1:{port}")
        self._process.wait(server.answers, time.monotonic() + self.deadline)
        return server.url

    def _write(self, policy: PreTrainedModel, version: int) -> Written | None:
        write = write_adapter if self.weights == "lora" else write_weights
        self._written = write(policy, self._disk.new(version) if self._disk else None, version)
        return self._written

    def _push(self) -> None:
        if not self._leads:
            return
        assert self._written is not None
        written, until = self._written, time.monotonic() + self.deadline

        def update(server: VLLMServer) -> None:
            server.update(self.weights, written, until)

        self.watched(partial(in_threads, update, self.servers, len(self.servers), Event()))


def _dtype(policy: PreTrainedModel) -> str:
    """In which training computes with the weights, as vLLM calls it."""
    device = policy.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else policy.dtype
    return str(dtype).removeprefix("torch.")
