"""Sampling from vLLM servers over plain HTTP: they are given the weights, and asked for each row by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.network.in_threads import in_threads
from rlhf_lightning.rollout.engine import Agreement, CallSeeds, Sampling, check_context
from rlhf_lightning.rollout.server.answers import Answer, request
from rlhf_lightning.rollout.server.group import ServerGroup
from rlhf_lightning.rollout.server.routes import VLLMServer, Weights
from rlhf_lightning.rollout.server.weights import ADAPTER
from rlhf_lightning.rollout.stop import StopStrings
from rlhf_lightning.rules import combinations
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.types import PromptBatch, Rollout


class ServerEngine(CallSeeds):
    """Sample with vLLM servers, in processes and an environment of their own (docs/server.md).

    Each row is a request with a seed of its own, which depends on the seed of the engine, the number of the call and
    the row, and on nothing else: a request that is repeated asks for the same answer, and rows are put back by their
    place. Where a server's numbers do not depend on which rows run together, a resumed run samples the same tokens.

    Args:
        urls: of servers that run already, for example ``[http://127.0.0.1:8000]``; rows are dealt out in turn.
        start: start a server on this machine instead, one for the processes of each node, and end it with the run.
        program: vLLM's command, and words to add to what it is given, as a list.
        folder: for the log of a server that was started, and for weights.
        ram_disk: weights lie in the machine's RAM disk until the server has read them, if there is one with room and
            the server is on this machine.
        weights: how a server gets new ones: ``files`` by the plugin of `server_plugin/`, ``reload`` by vLLM's own
            loader, ``lora`` the adapters alone.
        concurrency: requests at the same time, of each process.
        timeout: seconds that one try of a request may take.
        retries: of a request that failed or brought no valid answer; each waits longer, see
            `rlhf_lightning.scoring.remote.RemoteScorer`.
        deadline: seconds for all answers of a rollout, for an update of the weights, and for a server to start.
        verify_every_n: rollouts between two looks whether the servers have the weights they were given, and whether
            their log-probabilities are those of training.
        warn_at: mean gap of the log-probabilities, nats per token, above which a warning says so.
        stop_at: above which the run ends.

    Raises:
        ConfigError: neither or both of ``urls`` and ``start``, or an argument out of range.
    """

    holds_policy = False
    is_exact = False
    samples_ahead = True

    def __init__(
        self,
        urls: Sequence[str] = (),
        start: bool = False,
        program: str | Sequence[str] = "vllm",
        folder: str | Path = "server",
        ram_disk: bool = True,
        weights: Weights = "files",
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 4,
        deadline: float = 1800.0,
        verify_every_n: int = 1,
        warn_at: float = 0.005,
        stop_at: float = 0.01,
    ) -> None:
        require("rollout.concurrency", concurrency, at_least=1, whole=True)
        require("rollout.deadline", deadline, above=0, at_most=1e9, why="seconds")
        require("rollout.verify_every_n", verify_every_n, at_least=1, whole=True)
        require("rollout.warn_at", warn_at, above=0)
        require("rollout.stop_at", stop_at, above=0)
        if weights not in get_args(Weights):
            raise ConfigError(f"rollout.weights={weights}: choose {', '.join(get_args(Weights))}")
        combinations.check_servers(urls, start)
        self.agreement = Agreement(verify_every_n, warn_at, stop_at)
        self.weights, self.concurrency, self.deadline = weights, concurrency, deadline
        self.servers = ServerGroup(
            urls,
            partial(VLLMServer, timeout=timeout, retries=retries, deadline=deadline),
            [program] if isinstance(program, str) else list(program),
            Path(folder),
            ram_disk,
            weights,
            deadline,
        )
        self._policy: PreTrainedModel | None = None  # whose weights all servers have
        self._eos: tuple[int, ...] = ()
        self._pad = self._version = 0

    def sync(self, policy: PreTrainedModel, eos_token_ids: Sequence[int], pad_token_id: int, version: int) -> None:
        """Give these weights to the servers, unless they have them. Collective over all ranks.

        Raises:
            ConfigError: ``weights=lora`` and the policy has no adapters, or a server cannot be started as it is told.
            DiskError: the weights cannot be written.
            RolloutError: a server did not take them, or did not start; on every rank.
        """
        self._eos, self._pad = tuple(eos_token_ids), pad_token_id
        if policy is not self._policy or version != self._version:
            self._policy = None
            self.servers.give(policy, version)
            self._policy, self._version = policy, version

    def close(self) -> None:
        """Remove the weights, and end the server if it was started here."""
        self._policy = None
        self.servers.close()

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Rollout:
        """One answer per prompt row.

        Raises:
            ConfigError: prompt and answer do not fit the model's positions, or stop strings come without a tokenizer.
            RuntimeError: `sync` was not called.
            RolloutError: a row got no valid answer in time, or a server has other weights than it was given.
        """
        if self._policy is None or self.servers.rank is None:
            raise RuntimeError("ServerEngine.generate before sync(policy)")
        check_context(self._policy, prompts.input_ids.shape[1], sampling)
        StopStrings(sampling.stop, tokenizer)
        asked = [
            request(ids[real].tolist(), sampling, self._eos, self.call_seed(row) >> 1)
            for row, (ids, real) in enumerate(zip(prompts.input_ids, prompts.attention_mask, strict=True))
        ]
        answers = self.servers.watched(partial(self._ask, asked, self.servers.rank * len(asked)))
        self._calls += 1
        return self._rollout(prompts, answers)

    def _ask(self, asked: Sequence[Mapping[str, Any]], first: int) -> list[Answer]:
        """The answers in the order of the rows, of which the ``first`` has this number in the run."""
        until, over = time.monotonic() + self.deadline, Event()
        adapter = {"model": ADAPTER} if self.weights == "lora" else {}
        servers = self.servers.servers

        def answer(row: int) -> Answer:
            return servers[(first + row) % len(servers)].complete({**asked[row], **adapter}, until, over)

        answers = in_threads(answer, range(len(asked)), self.concurrency, over)
        if self._calls % self.agreement.every_n == 0:
            self.servers.require(until)
        return answers

    def _rollout(self, prompts: PromptBatch, answers: Sequence[Answer]) -> Rollout:
        ids, mask = right_pad([answer.ids for answer in answers], self._pad)
        logprobs = torch.zeros(ids.shape)
        logprobs[mask] = torch.tensor([p for answer in answers for p in answer.logprobs])
        return Rollout(
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.attention_mask,
            response_ids=ids,
            mask=mask,
            finished=torch.tensor([answer.finished for answer in answers]),
            rollout_logprobs=logprobs,
            weight_version=torch.full_like(ids[:, 0], self._version),
            rows=prompts.rows,
        ).to(prompts.input_ids.device)
