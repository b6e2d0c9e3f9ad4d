"""Continuous batching of transformers, for CUDA: a row that ends makes room for the next prompt at once."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.masking import response_mask
from rlhf_lightning.functional.sequences import right_pad
from rlhf_lightning.rollout.engine import Sampling, check_context, decoding
from rlhf_lightning.rollout.hf import HFGenerateEngine, generation_config, neutral
from rlhf_lightning.types import PromptBatch, Rollout


class ContinuousEngine(HFGenerateEngine):
    """Sample with `PreTrainedModel.generate_batch`, which keeps the log-probabilities of what it draws.

    They are compared with those of the training forward in the first rollout, which is what tells here that the engine
    samples from the model that learns (the other engines decode a short row first).

    Draws depend on which rows run together, so that a seed repeats a rollout only as far as transformers schedules it
    alike. Tested with a stand-in for `generate_batch` only: no test of this library has run it on CUDA.
    """

    def __init__(self) -> None:
        super().__init__()

    def generate(
        self, prompts: PromptBatch, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Rollout:
        """One answer per prompt row.

        Raises:
            ConfigError: on the CPU, with stop strings or ``min_new_tokens``, or prompt and answer do not fit the
                model's positions.
            RuntimeError: `sync` was not called, or transformers lost answers.
        """
        if self._policy is None:
            raise RuntimeError("ContinuousEngine.generate before sync(policy)")
        if self._policy.device.type == "cpu":
            raise ConfigError(
                "rollout=continuous is made for CUDA and 14 times slower on a CPU; use rollout=loop there"
            )
        if sampling.stop or sampling.min_new_tokens:
            raise ConfigError("rollout=continuous knows neither sampling.stop nor min_new_tokens; use rollout=loop")
        device = prompts.input_ids.device
        check_context(self._policy, prompts.input_ids.shape[1], sampling)
        inputs = [ids[mask].tolist() for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
        generate_batch: Any = self._policy.generate_batch
        streams = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with decoding(self._policy), neutral(self._policy), streams:
            torch.manual_seed(self.call_seed())
            config = generation_config(sampling, self._eos, self._pad)
            kept = ContinuousBatchingConfig(return_logprobs=True)
            outputs = list(generate_batch(inputs, config, kept).values())
        self._calls += 1
        failed = [o.error for o in outputs if o.error or not 0 < len(o.generated_tokens) == len(o.logprobs)]
        if failed or len(outputs) != len(inputs):
            raise RuntimeError(
                f"generate_batch answered {len(outputs) - len(failed)} of {len(inputs)} prompts: {failed}"
            )
        ids, given = (x.to(device) for x in right_pad([output.generated_tokens for output in outputs], self._pad))
        mask = response_mask(ids, self._eos) & given
        logprobs = torch.zeros(ids.shape, device=device)
        logprobs[given] = torch.tensor([p for output in outputs for p in output.logprobs], device=device)
        last = ids.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
        return Rollout(
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.attention_mask,
            response_ids=ids,
            mask=mask,
            finished=torch.isin(last, torch.tensor(self._eos, device=device)),
            rollout_logprobs=logprobs * mask,
            weight_version=torch.full_like(prompts.input_ids[:, 0], self._version),
            rows=prompts.rows,
        )
