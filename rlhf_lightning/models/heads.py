"""Models that answer with one number per position: the reward model and the critic."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rlhf_lightning.functional.sequences import last_index
from rlhf_lightning.models.adapters import lora_of
from rlhf_lightning.models.frozen import frozen_copy
from rlhf_lightning.models.kinds import body_of, scalar_class
from rlhf_lightning.models.output import replaced
from rlhf_lightning.models.packing import can_pack, inputs_of, worthwhile_rows
from rlhf_lightning.models.trunk import checkpoint_activations, decoder, layers, run_upper
from rlhf_lightning.models.unread import Unread, trunk_unread, unread_of, without_weights
from rlhf_lightning.private_api.transformers import from_config


class ScalarModel(nn.Module):
    """A sequence-classification model read at every position, in float32 whatever the backbone's dtype.

    transformers' own pooling looks for pad ids and misses EOS where pad == eos; here the mask decides.
    It is one module, so that a sharding strategy can wrap backbone and head together.
    """

    def __init__(self, model: PreTrainedModel, freeze_below: int = 0) -> None:
        super().__init__()
        self.model = model
        self.freeze_below = freeze_below

    @classmethod
    def from_policy(cls, policy: PreTrainedModel, freeze_below: int = 0) -> ScalarModel:
        """A critic that starts from a copy of the policy's trunk and a zero head.

        Where the policy has adapters, the critic has adapters of its own on the same weights, not copied.
        """
        config = copy.deepcopy(policy.config)
        config.num_labels = 1
        if unread_of(policy) is not None:
            return cls(_unread_copy(policy, config))
        model = from_config(scalar_class(config), config, policy.dtype)
        if (lora := lora_of(policy)) is None:
            body_of(model)[1].load_state_dict(body_of(policy)[1].state_dict())
        else:
            setattr(model, body_of(model)[0], body_of(frozen_copy(policy))[1])
            lora.put_into(model, freeze_below)
        model.pack_rows = getattr(policy, "pack_rows", False) and can_pack(model)
        if every := getattr(policy, "checkpoint_every", 0):
            checkpoint_activations(model, every)
        nn.init.zeros_(model.score.weight)
        critic = cls(model.to(policy.device).train(), freeze_below)
        if freeze_below:
            critic.share_lower(policy)
        return critic

    def share_lower(self, policy: PreTrainedModel) -> None:
        """Use the policy's frozen lower layers if they are the same; otherwise train on its own stack."""
        mine, theirs = decoder(self.model), decoder(policy)
        pairs = [(mine.get_input_embeddings(), theirs.get_input_embeddings())]
        pairs += list(zip(layers(self.model), layers(policy), strict=False))[: self.freeze_below]
        if not all(_same(a, b) for a, b in pairs):
            self.freeze_below = 0
            return
        mine.set_input_embeddings(theirs.get_input_embeddings())
        for number in range(self.freeze_below):
            layers(self.model)[number] = layers(policy)[number]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        hidden: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """One number per position.

        Args:
            input_ids: long [B, S].
            attention_mask: bool [B, S].
            hidden: output of the frozen lower layers [B, S, D], if it was computed before.
            groups: neighbours of one group begin alike, long [B], see `rlhf_lightning.models.packing`; what they begin
                with is computed once where that pays.

        Returns:
            float32 [B, S].
        """
        head: Any = self.model.score
        packed = worthwhile_rows(self.model, input_ids, attention_mask, groups)
        inputs = inputs_of(self.model, input_ids, attention_mask, packed)
        if hidden is None or not self.freeze_below:
            states = decoder(self.model)(**inputs).last_hidden_state
        else:
            hidden = hidden if packed is None else packed.put(hidden, attention_mask)
            states = run_upper(self.model, self.freeze_below, hidden, inputs)
        numbers = linear_fp32(head, states)
        return numbers if packed is None else packed.take(numbers)

    def score(self, input_ids: Tensor, attention_mask: Tensor, groups: Tensor | None = None) -> Tensor:
        """The number at the last real token of each row, float32 [B]; ``groups`` as in `forward`."""
        last = last_index(attention_mask)
        return self(input_ids, attention_mask, groups=groups).gather(1, last[:, None]).squeeze(1)


def _unread_copy(policy: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """The model of a critic as `ScalarModel.from_policy` makes it, where the policy has not been read."""
    with without_weights():
        model = from_config(scalar_class(config), config, policy.dtype)
    head = {"score.weight": torch.zeros(model.score.weight.shape)}
    if (lora := lora_of(policy)) is None:
        model.unread = trunk_unread(model, policy, head)
    else:
        setattr(model, body_of(model)[0], body_of(frozen_copy(policy))[1])
        model.unread = Unread({}, head)  # the policy reads the rest
        lora.put_into(model)
    model.pack_rows = getattr(policy, "pack_rows", False)
    if every := getattr(policy, "checkpoint_every", 0):
        checkpoint_activations(model, every)
    return model.train()


class ValueHead(nn.Module):
    """A critic that shares the policy's trunk: one linear layer, zero at the start (Ziegler et al. 2019,
    arXiv:1909.08593)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values, float32 [B, T], from the policy's final hidden states [B, T, D]."""
        return linear_fp32(self.value, states)


def _same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(x.shape == y.shape and torch.equal(x.to(y), y) for x, y in pairs)


def linear_fp32(head: nn.Module, states: Tensor) -> Tensor:
    """A one-output linear head applied in float32 (ties in bfloat16 are common), [..., D] -> [...]."""

    def product(states: Tensor) -> Tensor:
        weight: Any = head.weight
        bias: Any = getattr(head, "bias", None)
        out = states.float() @ weight.float().squeeze(0)
        return out if bias is None else out + bias.float()

    with torch.autocast(states.device.type, enabled=False), replaced(head, product):
        return head(states)
