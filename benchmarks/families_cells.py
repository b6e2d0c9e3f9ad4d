"""What is looked at for one family: this library's numbers against those of transformers alone.

"Plain" is transformers alone, one row at a time, no padding, no mask. Rows have 9 to 40 tokens, padded on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.families_stages import STAGES, run_stage
from benchmarks.families_tiny import VOCABULARY
from benchmarks.families_world import World, Wrong, close, of_row
from rlhf_lightning.models import Pretrained, ScalarModel
from rlhf_lightning.models.adapters import Lora, adapted_layers, merged
from rlhf_lightning.models.forward import packs_rows, token_scores
from rlhf_lightning.models.packing import lower_states
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, RolloutEngine, Sampling
from rlhf_lightning.types import Rollout

ENDS = tuple(range(1, VOCABULARY, 4))  # many tokens end an answer, so that rows leave early


def plain_scores(world: World) -> str:
    """Log-probabilities of padded rows, neither packed nor sharing a prompt."""
    with torch.no_grad():
        return close(
            world.scores(replace(world.recipe, pack_rows=False).causal_lm()), world.logprobs, "log-probabilities"
        )


def packed_scores(world: World) -> str:
    """The same with the default settings, sequences packed into rows where the model can."""
    policy = world.recipe.causal_lm()
    with torch.no_grad():
        gap = close(world.scores(policy, groups=world.groups), world.logprobs, "log-probabilities")
    return f"{gap}{'' if packs_rows(policy) else ' unpacked'}"


def gradients(world: World, activation_checkpointing: bool = False) -> str:
    """The gradient of the mean log-probability."""
    policy = replace(world.recipe, activation_checkpointing=activation_checkpointing).causal_lm()
    world.scores(policy, groups=world.groups).mean().backward()
    pairs = [(w.grad, g) for w, g in zip(policy.parameters(), world.gradients, strict=True)]
    mine, theirs = (torch.cat([g.flatten() for g in side if g is not None]) for side in zip(*pairs, strict=True))
    if mine.shape != theirs.shape:
        raise Wrong(f"gradients of {len(mine)} weights, not of {len(theirs)}")
    return close(mine / theirs.norm(), theirs / theirs.norm(), "gradient")


def checkpointing(world: World) -> str:
    """The same gradient with activation checkpointing."""
    return gradients(world, activation_checkpointing=True)


def answers(world: World, engine: RolloutEngine, ends: tuple[int, ...], top_k: int = 0) -> Rollout:
    """A rollout to the prompts."""
    engine.sync(world.recipe.causal_lm(), ends, 0, 0)
    engine.seed(3)
    return engine.generate(world.prompts, Sampling(max_new_tokens=14, top_k=top_k))


def rescored(world: World, rollout: Rollout) -> Tensor:
    """Log-probabilities of a rollout under plain transformers, [N]."""
    rows = zip(world.rows, rollout.response_ids, rollout.mask, strict=True)
    with torch.no_grad():
        return torch.cat([of_row(world.plain, prompt, ids[mask].tolist()) for (prompt, _), ids, mask in rows])


def loop_engine(world: World) -> str:
    """Log-probabilities that the default engine keeps while rows end early, compacted and not."""
    gaps = []
    for share in (0.75, 0.0):
        rollout = answers(world, LoopEngine(compact_below=share), ENDS)
        if rollout.finished.sum() < 2:
            rollout = answers(world, LoopEngine(compact_below=share), tuple(range(1, VOCABULARY, 2)))
        assert rollout.rollout_logprobs is not None
        if rollout.finished.sum() < 2:
            raise Wrong("no answer ended early: the check checks nothing")
        gaps.append(
            close(rollout.rollout_logprobs[rollout.mask], rescored(world, rollout), "sampled log-probabilities")
        )
    return max(gaps)


def greedy(world: World, engine: RolloutEngine) -> str:
    """The likeliest answers: each token is the likeliest one of plain transformers, up to rounding."""
    rollout = answers(world, engine, (1,), top_k=1)
    worst = torch.zeros(())
    for (prompt, _), ids, mask in zip(world.rows, rollout.response_ids, rollout.mask, strict=True):
        answer = ids[mask].tolist()
        with torch.no_grad():
            logits = world.plain(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
        logits = logits.float()[len(prompt) - 1 : -1]
        lost = logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        worst = torch.maximum(worst, lost.max())
    return close(worst, torch.zeros(()), "logit of a chosen token below the highest")


def greedy_loop(world: World) -> str:
    """Likeliest answers of the default engine."""
    return greedy(world, LoopEngine())


def greedy_hf(world: World) -> str:
    """Likeliest answers of ``rollout=hf``."""
    return greedy(world, HFGenerateEngine())


def reward_model(world: World) -> str:
    """Scores of a reward model made from the folder, padded on either side and packed, before and after export."""
    torch.manual_seed(0)
    model = ScalarModel(world.recipe.reward_model(init_head=True, head_std=1.0))
    head: Any = model.model.score
    expected = world.states @ head.weight[0].detach()
    gaps = []
    with torch.no_grad():
        for ids, attention in world.columns:
            for groups in (None, world.groups):
                gaps.append(close(model.score(ids, attention, groups), expected, "scores"))
        model.model.save_pretrained(world.scratch / "reward")
        _tokenizer(world).save_pretrained(world.scratch / "reward")
        again = ScalarModel(Pretrained(str(world.scratch / "reward")).reward_model())
        gaps.append(close(again.score(*world.columns[0]), expected, "scores after export"))
    return max(gaps)


def critic(world: World) -> str:
    """Values of a critic made from the policy, with a head that is not zero."""
    model = ScalarModel.from_policy(world.recipe.causal_lm())
    head: Any = model.model.score
    torch.nn.init.normal_(head.weight)
    expected = world.states @ head.weight[0].detach()
    with torch.no_grad():
        return close(model.score(*world.columns[0]), expected, "values")


def frozen_layers(world: World) -> str:
    """Log-probabilities with ``model.freeze_below=1``, the lowest layer computed first."""
    policy = replace(world.recipe, freeze_below=1).causal_lm()
    with torch.no_grad():
        hidden = lower_states(policy, 1, world.ids, world.attention)
        found = token_scores(policy, world.ids, world.attention, world.mask, hidden=hidden, freeze_below=1)
        return close(found.logprobs, world.logprobs, "log-probabilities")


def adapters(world: World) -> str:
    """Log-probabilities with adapters against those of plain transformers on the merged export."""
    recipe = replace(world.recipe, lora=Lora())
    policy = recipe.adapted(recipe.causal_lm())
    torch.manual_seed(1)
    for layer in adapted_layers(policy).values():
        for weight in layer.lora_B.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    with torch.no_grad():
        found = world.scores(policy, groups=world.groups)
        if float((found - world.logprobs).abs().max()) < 1e-3:
            raise Wrong("adapters without an effect")
        policy.save_pretrained(world.scratch / "merged", state_dict=merged(policy, policy.state_dict()))
        return close(found, world.of_rows(world.load(world.scratch / "merged")), "log-probabilities after export", 1e-3)


def export(world: World) -> str:
    """Plain transformers on a folder that was exported."""
    policy = world.recipe.causal_lm()
    policy.save_pretrained(world.scratch / "export")
    _tokenizer(world).save_pretrained(world.scratch / "export")
    with torch.no_grad():
        return close(world.of_rows(world.load(world.scratch / "export")), world.logprobs, "log-probabilities", 1e-6)


def _tokenizer(world: World) -> Any:
    return world.recipe.tokenizer()


def stage(name: str) -> Callable[[World], str]:
    """A whole command, whose export plain transformers reads, and a reward model this library."""

    def run(world: World) -> str:
        exported = run_stage(name, world.folder, world.scratch)
        if name == "reward":
            Pretrained(str(exported)).reward_model()
            return ""
        with torch.no_grad():
            found = world.of_rows(world.load(exported))
        moved = float((found - world.logprobs).abs().max())
        if not 0 < moved < 20:
            raise Wrong(f"log-probabilities moved by {moved:.2g}")
        return ""

    return run


CELLS: dict[str, Callable[[World], str]] = {
    "scores": plain_scores,
    "packed": packed_scores,
    "gradient": gradients,
    "checkpointing": checkpointing,
    "loop": loop_engine,
    "greedy": greedy_loop,
    "hf": greedy_hf,
    "reward": reward_model,
    "critic": critic,
    "freeze": frozen_layers,
    "lora": adapters,
    "export": export,
    **{f"run {name}": stage(name) for name in STAGES},
}
