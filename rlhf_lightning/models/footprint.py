"""How much memory a run takes, by formula: of each rank, in each phase of an iteration, on the device and on the host.

Counts what grows with the model: weights, gradients, the state of Adam, gathered weights, activations, logits, keys and
values. The allocator's rest, kernels' workspaces and the libraries themselves (about 0.5 GB of the host) come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from transformers import PretrainedConfig

from rlhf_lightning.models.kinds import causal_class
from rlhf_lightning.models.unread import PROBED
from rlhf_lightning.private_api.transformers import from_config

FULL = 4  # bytes of a float32 number
ADAM = 2 * FULL  # both moments of a weight
FOUR_BITS = 4.5 / 8  # of a weight and its part of a block's scale
Phase = Literal["load", "generate", "score", "learn", "save"]


class Shape(NamedTuple):
    """What of a decoder decides how much memory it takes."""

    parameters: int  # tied ones once
    tables: int  # of them in the embedding and the output layer
    layers: int
    hidden: int
    inner: int  # of the feed-forward network
    heads: int
    states: int  # numbers in the keys of a token in a layer, and as many in its values
    vocabulary: int

    @property
    def layer(self) -> float:
        """Parameters of one layer."""
        return (self.parameters - self.tables) / self.layers


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape of a causal language model, counted on one without weights.

    Raises:
        ValueError: it is none, or one without attention, whose states are not counted here.
    """
    with torch.device("meta"):
        model: Any = from_config(causal_class(config), config, torch.float32, "eager")
    text = config.get_text_config()
    tables = {id(w): w.numel() for part in (model.get_input_embeddings(), model.get_output_embeddings()) for w in
              part.parameters()}  # fmt: skip
    if (heads := getattr(text, "num_attention_heads", None)) is None:
        raise ValueError(f"a model of type {config.model_type} has no attention heads")
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        sum(weight.numel() for weight in model.parameters()), sum(tables.values()), text.num_hidden_layers,
        text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size, heads,
        (getattr(text, "num_key_value_heads", None) or heads) * size, text.vocab_size,
    )  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """How a run lies on its ranks.

    Args:
        ranks: processes, a device each.
        sharded: ``trainer.strategy`` is FSDP2; else each rank holds all.
        mixed: computes in bfloat16 beside float32 weights (``bf16-mixed``).
        critic: of PPO; ``own`` is a second model of the same shape.
        reference: whether there is one; adapters need none.
        reward_bytes: of each weight of a reward model of the same shape; 0: none.
        offload: reference and reward model are on the host while nobody asks them.
        adapters: rank of LoRA in all linear layers; 0 trains the model itself.
        checkpointed: share of the layers with activation checkpointing.
        tokens: in a micro-batch, padding included.
        sampled: rows that a rank decodes at once.
        context: tokens of prompt and answer.
        head_chunk: tokens whose logits are there at once.
        weight_bytes: of each weight of policy and reference, ``model.dtype``.
        four_bits: linear layers keep 4 bits of each weight, those of the reward model too.
        gather: what of a sharded policy a rank holds while it answers, as ``rollout.gather``.
        replicas: copies of what is sharded, ``trainer.strategy.replicate_size``.
        asynchronous: a save copies what learns into host memory, which is kept for the next one, and is written from
            there (``checkpoint.asynchronous``); else one tensor at a time passes through it.
    """

    ranks: int = 1
    sharded: bool = False
    mixed: bool = True
    critic: Literal["none", "shared_trunk", "own"] = "shared_trunk"
    reference: bool = True
    reward_bytes: int = 2
    offload: bool = False
    adapters: int = 0
    checkpointed: float = 0.0
    tokens: int = 4096
    sampled: int = 32
    context: int = 1024
    head_chunk: int = 512
    gather: Literal["model", "layer"] = "model"
    weight_bytes: int = FULL
    four_bits: bool = False
    replicas: int = 1
    asynchronous: bool = False

    @property
    def parts(self) -> int:
        """Ranks that share what is sharded."""
        return self.ranks // self.replicas if self.sharded else 1

    @property
    def computed(self) -> int:
        """Bytes of a number in the linear layers."""
        return 2 if self.mixed else FULL


def stored(shape: Shape, size: float, setup: Setup) -> float:
    """Bytes of the weights of a model with so many for each number; none where that is 0."""
    if not (size and setup.four_bits):
        return size * shape.parameters
    return size * shape.tables + FOUR_BITS * (shape.parameters - shape.tables)


def activations(shape: Shape, setup: Setup) -> float:
    """Bytes that a forward of the layers keeps for the backward, as in Llama: in each layer the inputs of both norms in
    float32, six vectors of the hidden size, keys, values and query as the attention sees them, and four of the inner
    size. A checkpointed layer keeps its input, and one at a time is computed again.
    """
    h, i = shape.hidden, shape.inner
    whole = setup.computed * (6 * h + 2 * shape.states + 4 * i) + FULL * (2 * h + shape.heads + 2)
    kept = shape.layers * ((1 - setup.checkpointed) * whole + setup.checkpointed * setup.computed * h)
    return setup.tokens * (kept + (whole if setup.checkpointed else 0))


def trained(shape: Shape, setup: Setup) -> float:
    """Parameters that learn."""
    models = 2 if setup.critic == "own" else 1
    if not setup.adapters:
        return float(models * shape.parameters)
    h, i = shape.hidden, shape.inner
    return models * shape.layers * setup.adapters * (9 * h + 2 * shape.states + 3 * i)


def on_device(shape: Shape, setup: Setup) -> dict[Phase, float]:
    """Bytes on the device of a rank in each phase, from the second iteration on: Adam has its state then."""
    n, part, computed = shape.parameters, setup.parts, setup.computed
    learns = trained(shape, setup)
    kept = stored(shape, setup.weight_bytes, setup)
    models = 2 if setup.critic == "own" and not setup.adapters else 1  # adapters of both are on one model
    weights = (models * kept + (FULL * learns if setup.adapters else 0)) / part
    reference = kept / part if setup.reference and not setup.adapters else 0.0
    reward = stored(shape, setup.reward_bytes, setup) / part
    resting = 0.0 if setup.offload else reference + reward
    always = weights + ADAM * learns / part + resting
    # A forward or backward of sharded weights holds the tables and two layers whole.
    whole = computed * (shape.tables + 2 * shape.layer) if setup.sharded else 0.0
    if setup.four_bits:
        whole = computed * shape.layer
    logits = 3 * FULL * setup.head_chunk * shape.vocabulary
    cache = setup.sampled * setup.context * 2 * shape.layers * shape.states * computed
    copies = setup.sharded or (setup.mixed and setup.weight_bytes > computed)  # decoding gathers, or has a copy
    copied = computed * n if copies else 0.0
    if setup.four_bits or (setup.sharded and setup.gather == "layer"):
        copied = whole
    asked = (reward if setup.offload else 0.0) + whole + setup.tokens * computed * (4 * shape.hidden + 2 * shape.inner)
    gradients = FULL * learns / part + (FULL * shape.layer if setup.sharded else 0.0)
    inputs = activations(shape, setup) * (2 if setup.critic == "own" else 1)
    return {
        "load": weights + resting,
        "generate": always + copied + cache + 2 * FULL * setup.sampled * shape.vocabulary,
        "score": always + asked,
        "learn": always + gradients + whole + inputs + logits,
        "save": always,
    }


def on_host(shape: Shape, setup: Setup) -> dict[Phase, float]:
    """Bytes on the host that the first rank takes in each phase; the others take at most as many, each for itself."""
    whole = setup.weight_bytes * shape.parameters
    models = (2 if setup.critic == "own" and not setup.adapters else 1) + (setup.reference and not setup.adapters)
    probe = FULL * (shape.tables + PROBED * shape.layer)
    resting = stored(shape, setup.reward_bytes, setup) if setup.offload else 0.0
    resting += whole if setup.offload and setup.reference and not setup.adapters else 0.0
    built = models * whole if not setup.sharded else probe
    table = max(shape.vocabulary, shape.inner) * shape.hidden if not setup.adapters else setup.adapters * shape.inner
    copied = (FULL + ADAM) * trained(shape, setup) / setup.parts if setup.asynchronous else 0.0
    always = resting + copied  # from the first save on
    return {
        "load": built + max(0.0 if setup.sharded else float(setup.reward_bytes * shape.parameters), resting),
        "generate": always, "score": always, "learn": always,
        "save": always if copied else always + FULL * table / setup.parts,
    }  # fmt: skip
