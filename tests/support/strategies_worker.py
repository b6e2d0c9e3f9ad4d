"""One rank of several: ``python -m tests.support.strategies_worker FOLDER [CASE ...]`` saves what came out of cases."""

import os
import sys
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig

import tests.conftest  # noqa: F401  (threads and no network)
from benchmarks.sharded_memory import SIZES, bytes_per_parameter
from rlhf_lightning.callbacks import BestPolicy, DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.checkpoint.sharded import DurableModelParallelStrategy
from rlhf_lightning.errors import NumericalError
from rlhf_lightning.functional.kto import kto_loss
from rlhf_lightning.functional.preference import dpo_loss
from rlhf_lightning.functional.reference_free import simpo_loss
from rlhf_lightning.functional.sequences import left_pad
from rlhf_lightning.models import FrozenModels, Pretrained, ScalarModel, frozen_copy
from rlhf_lightning.models.frozen import checksum
from rlhf_lightning.models.sharding import kept_shared, shard
from rlhf_lightning.models.trunk import layers
from rlhf_lightning.models.unread import fill, weights_later
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.scoring import EnsembleScorer, RewardModelScorer
from rlhf_lightning.types import PromptBatch
from tests.support import offline, phases, tiny, worlds_worker
from tests.support.served_ranks import served

AHEAD = {"sample_ahead": True, "correction": "token_truncate"}
WORLD = int(os.environ.get("WORLD_SIZE", "2"))


def ddp():
    return {"strategy": DDPStrategy(timeout=timedelta(seconds=100)), "devices": WORLD}


def fsdp2():
    return {"strategy": DurableModelParallelStrategy(timeout=timedelta(seconds=100)), "devices": WORLD}


def hsdp():
    """Two copies of the weights, each in shards on half of the processes."""
    strategy = DurableModelParallelStrategy(replicate_size=2, timeout=timedelta(seconds=100))
    return {"strategy": strategy, "devices": WORLD}


def mixed():
    return {**fsdp2(), "precision": "bf16-mixed"}


def supervised(phase, where, **given):
    def run(folder):
        module, trainer = phase(folder, world_size=WORLD, **given, **where())
        return {"weights": phases.flat(module.trained), "logged": logged(trainer), "held": held(module.trained)}

    return run


def held(model):
    """How much of a model's weights this rank holds."""
    weights = list(model.parameters())
    here = sum((w.to_local() if hasattr(w, "to_local") else w).numel() for w in weights)
    return here / sum(w.numel() for w in weights)


def replay(where, grouped=False, lora=False, critic="policy", checkpoint_every=0):
    def run(folder):
        module, _ = phases.replay(folder, grouped, lora, critic, checkpoint_every, **where())
        return {"weights": phases.flat(module.policy)} | ({} if grouped else {"critic": phases.flat(module.critic)})

    return run


def ppo(where, name, rollouts=2):
    def run(folder):
        module, trainer = phases.ppo(folder, rollouts=rollouts, **where())
        module.export(folder / name, {"stage": "ppo"})
        module.export(folder / name, {"stage": "ppo"})  # replaces the folder, on all ranks
        rollout = module.last_experience.rollout
        return {
            "weights": phases.flat(module.policy),
            "critic": phases.flat(module.critic),
            "kl": module.kl_controller.state_dict(),
            "prompts": [row["prompt"] for row in rollout.rows],
            "answers": [row[m].tolist() for row, m in zip(rollout.response_ids, rollout.mask, strict=True)],
            "logged": logged(trainer),
            "counts": (module.rollouts, module.optimizer_steps, module.episodes),
            "same_as_reference": torch.equal(module.last_experience.logprobs, module.last_experience.ref_logprobs),
        }

    return run


def resume(where, name, batch=4, **given):
    """Three rollouts at once, and the same from the checkpoint after each of the first two."""

    def state(module):
        return [phases.flat(module.policy), phases.flat(module.critic), module.last_experience.rollout.response_ids]

    def run(folder):
        def fit(**options):
            io = DurableCheckpointIO()
            learner = phases.ppo_module(**given)
            module, _ = phases.ppo(folder, learner, rollouts=3, batch=batch, plugins=[io], **options, **where())
            return state(module)

        saver = DurableCheckpoint(folder / name, every_n_steps=1, keep=2)
        whole = fit(callbacks=[saver], checkpointing=True)
        return {"whole": whole, "resumed": [fit(resume=stop) for stop in checkpoints(folder / name)]}

    return run


def dpo(folder, world_size=1, loss=dpo_loss, cached=False, lora=False, **options):
    """Three epochs of two steps, validated on three rows, of which one rank of two has a filler in place of one."""
    reference = None if loss is simpo_loss or lora else tiny.policy(1, scale=2.0)
    module = offline.preference(  # a larger rate: rounding grows with it
        lr=0.03, loss=loss, reference=reference, nll_coef=0.1, cache_reference=cached, lora=lora
    )
    data = offline.pairs(folder / "eight_rankings.jsonl", 1, 4, folder / "three_rankings.jsonl")
    return fit(module, data, world_size, options)


def simpo(folder, world_size=1, **options):
    return dpo(folder, world_size, simpo_loss, **options)


def kto(folder, world_size=1, cached=False, lora=False, **options):
    reference = None if lora else tiny.policy(1, scale=2.0)
    module = offline.unpaired(lr=0.1, loss=kto_loss, reference=reference, cache_reference=cached, lora=lora)
    data = offline.answers(folder / "feedback.jsonl", 1, 4, folder / "three_answers.jsonl")
    return fit(module, data, world_size, options)


def fit(module, data, world_size, options):
    run = phases.trainer(data.accumulate_for(world_size), 3, **options)
    run.fit(module, datamodule=data)
    return module, run


OFFLINE = {"dpo": dpo, "simpo": simpo, "kto": kto}
CACHED = {f"{name}_cached": partial(OFFLINE[name], cached=True) for name in ("dpo", "kto")}


def learned_offline(phase, where, name):
    def run(folder):
        options = {"default_root_dir": folder / f"{name}_run"}
        module, trainer = (OFFLINE | CACHED)[phase](folder, world_size=WORLD, **options, **where())
        module.export(folder / name, {"stage": phase})
        frozen = module.frozen
        reference = {"reference": phases.flat(frozen["reference"])} if "reference" in frozen else {}
        return {"weights": phases.flat(module.policy), "logged": logged(trainer), **reference}

    return run


def same_prompts(folder):
    """Both ranks answer the same prompt four times."""
    module = phases.ppo_module(micro_batch_size=None)
    (folder / "one").mkdir(exist_ok=True)
    (folder / "one" / "prompts.jsonl").write_text('{"prompt": "the food was"}\n' * 8)
    phases.ppo(folder / "one", module, rollouts=1, **ddp())
    rollout = module.last_experience.rollout
    return {"answers": [row[m].tolist() for row, m in zip(rollout.response_ids, rollout.mask, strict=True)]}


def weights_left(folder):
    config = LlamaConfig(
        **SIZES | {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 8}
    )
    return {
        dtype: bytes_per_parameter(config, compute) for dtype, compute in (("kept", None), ("bf16", torch.bfloat16))
    }


def sharded_head(folder):
    """Numbers of a reward model whose body computes in bfloat16, sharded and whole, and with a rounded head."""
    ids, plain, sharded = torch.arange(12)[None], phases.reward_model(), phases.reward_model()
    plain.model.model.bfloat16()
    shard(sharded, init_device_mesh("cpu", (WORLD,)), torch.bfloat16)
    with torch.no_grad():
        found, expected = (model(ids, torch.ones_like(ids).bool()) for model in (sharded, plain))
        plain.model.score.bfloat16()
        return {"found": found, "expected": expected, "rounded": plain(ids, torch.ones_like(ids).bool())}


def unread(folder, lora=None, mesh=(WORLD,)):
    """The models of a run that are sharded before they are read, with rows that two ranks do not share evenly."""
    source = Pretrained(str(folder / "policy"), lora=lora)
    with weights_later():
        torch.manual_seed(3)
        policy = source.adapted(source.causal_lm())
        models = {"policy": policy, "critic": ScalarModel.from_policy(policy), "reference": frozen_copy(policy)}
        torch.manual_seed(3)
        models["reward"] = ScalarModel(source.adapted(source.reward_model(init_head=True)))
    frozen = FrozenModels()
    frozen.add("reference", models["reference"])
    ids = torch.arange(10)[None]
    found = {}
    with kept_shared([*models.values()]):
        for model in models.values():
            shard(model, init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")[-len(mesh) :]))
            assert all(weight.is_meta for weight in model.parameters())
            fill(model)
    for name, model in models.items():
        with torch.no_grad():
            out = model(ids, torch.ones_like(ids).bool())
        found[name] = {"weights": phases.flat(model), "out": getattr(out, "logits", out)}
        found[name]["checksum"] = checksum(model.state_dict())
    return found | {"fingerprints": frozen.fingerprints}


def lockstep(folder):
    """Answers of a sharded policy that no rank holds whole, with other numbers of rows, micro-batches and steps."""
    policy = tiny.policy(layers=3)
    shard(policy, init_device_mesh("cpu", (WORLD,)))
    rank = torch.distributed.get_rank()
    rows = torch.arange(8).split([3, 5])[rank]
    prompts = [tiny.tokenizer()(text).input_ids for text in phases.PROMPTS]
    ids, mask = left_pad([prompts[row] for row in rows], 0)
    batch = PromptBatch(ids, mask, tuple({"prompt": phases.PROMPTS[row]} for row in rows))
    engine = LoopEngine(gather="layer", micro_batch_size=2)
    engine.seed(rank)
    engine.sync(policy, [1, 2, 3], 0, version=1)
    held = []
    hook = policy.model.layers[0].register_forward_pre_hook(
        lambda *given: held.append(isinstance(policy.model.layers[2].mlp.up_proj.weight, DTensor))
    )
    answers = engine.generate(batch, Sampling(max_new_tokens=40))
    hook.remove()
    found = {"ids": answers.response_ids, "logprobs": answers.rollout_logprobs, "sharded_meanwhile": all(held)}
    return found | {"prompt_ids": ids, "prompt_mask": mask, "calls": len(held)}


class BrokenOnSecond:
    """A member of an ensemble that gives no number on one rank, and then waits for nobody."""

    name = "broken"

    def score(self, rollout, tokenizer):
        if torch.distributed.get_rank() == 1:
            raise NumericalError("no number")
        return torch.zeros(len(rollout))


def scored(where):
    """Scores of a sharded reward model on ranks with other numbers of rows, alone, in an ensemble, and in PPO, where
    each layer of the policy is gathered for each token."""

    def run(folder):
        rollout = torch.load(folder / "experience.pt", weights_only=False).rollout
        with weights_later():
            scorer = RewardModelScorer(Pretrained(str(folder / "reward_model")), micro_batch_size=2)
        module = phases.ppo_module()
        module.scorer, module.engine = scorer, LoopEngine(gather="layer", micro_batch_size=3)
        learned, trainer = phases.ppo(folder, module, rollouts=1, **where())
        mine = torch.arange(8).split({2: [3, 5], 4: [1, 2, 2, 3]}[WORLD])[torch.distributed.get_rank()]
        scores, ensemble = (
            scorer.score(rollout.select(mine), tiny.tokenizer()),
            EnsembleScorer([BrokenOnSecond(), scorer]),
        )
        try:
            ensemble.score(rollout.select(mine), tiny.tokenizer())
            raised = False
        except NumericalError:
            raised = True
        again = scorer.score(rollout.select(mine), tiny.tokenizer())  # nobody was left waiting
        sampled = learned.last_experience
        return {
            "scores": scores, "again": again, "raised": raised, "rows": mine, "state": scorer.state_dict(),
            "share": held(scorer.model), "logged": logged(trainer), "ids": sampled.rollout.response_ids,
            "of_ppo": sampled.scores, "weights": phases.flat(learned.policy),
        }  # fmt: skip

    return run


def exported_lora(folder):
    """Two rollouts of a policy with adapters from its folder, with whether the models beside it keep its shards."""
    source = Pretrained(str(folder / "policy"), lora={"r": 4})
    module, _ = phases.ppo(folder, phases.ppo_module(policy=source), **fsdp2())
    module.export(folder / "exported_lora", {"stage": "ppo"})

    def places(model):
        frozen = [w for layer in layers(model) for w in layer.parameters() if not w.requires_grad]
        return {weight.to_local().data_ptr() for weight in frozen}

    kept = {
        name: places(model) == places(module.policy)
        for name, model in {"critic": module.critic.model, "reference": module.frozen["reference"]}.items()
    }
    with torch.no_grad():
        return {"kept": kept, "logits": module.policy(torch.arange(10)[None]).logits}


class StateAtStart(Callback):
    """How much the optimizer knows before the first step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.states = len(trainer.optimizers[0].state) if not hasattr(self, "states") else self.states


def checked_at_start(folder):
    """A fit whose saver looks at the start whether its state could be saved."""
    start = StateAtStart()
    saver = DurableCheckpoint(folder / "checked_at_start", at_end=False)
    phases.sft(folder, epochs=1, callbacks=[start, saver], checkpointing=True, world_size=WORLD, **fsdp2())
    return {"states": start.states}


class Downhill(Callback):
    """A judge that likes each policy less than the one before."""

    def on_train_batch_end(self, trainer, module, *given):
        module.log("monitor/gold", -float(module.rollouts))


def best(folder):
    """Three rollouts, the first of which wins, and the last of them from a checkpoint."""

    def fit(*savers, **options):
        keeper = BestPolicy(monitor="monitor/gold", window=1)
        module, _ = phases.ppo(
            folder, rollouts=3, batch=4, plugins=[DurableCheckpointIO()], callbacks=[Downhill(), keeper, *savers],
            **options, **fsdp2(),
        )  # fmt: skip
        return {"rollout": keeper.best["rollout"], "weights": phases.flat(module.policy)}

    whole = fit(DurableCheckpoint(folder / "best", every_n_steps=1, keep=2), checkpointing=True)
    return {"whole": whole, "resumed": fit(resume=checkpoints(folder / "best")[0])}


def worlds(folder):
    """What one process has left is resumed by two, and what two leave by one; see `worlds_worker`."""
    worlds_worker.work(folder, "sft:fsdp2:single-1", "sft:ddp:single-1", "sft:fsdp2:", "sft:ddp:", size=WORLD)
    return {}


def logged(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("perf")}


CASES = {
    "sft_ddp": supervised(phases.sft, ddp),
    "reward_ddp": supervised(phases.reward, ddp),
    "ppo_ddp": ppo(ddp, "ppo_ddp"),
    "same_prompts": same_prompts,
    "replay_ddp": replay(ddp),
    "ppo_lora_ddp": replay(ddp, lora=True),
    "ppo_lora_fsdp2": replay(fsdp2, lora=True),
    "sft_lora_fsdp2": supervised(phases.sft, fsdp2, lora=True),
    "reward_lora_fsdp2": supervised(phases.reward, fsdp2, lora=True),
    "dpo_lora_fsdp2": supervised(partial(dpo, lora=True), fsdp2),
    "kto_lora_fsdp2": supervised(partial(kto, lora=True), fsdp2),
    "exported_lora": exported_lora,
    "resume_lora_fsdp2": resume(fsdp2, "resume_lora_fsdp2", lora=True),
    "grouped_ddp": replay(ddp, grouped=True),
    "grouped_fsdp2": replay(fsdp2, grouped=True),
    "resume_ddp": resume(ddp, "resume_ddp"),
    "sft_fsdp2": supervised(phases.sft, fsdp2),
    "reward_fsdp2": supervised(phases.reward, fsdp2),
    "ppo_fsdp2": ppo(fsdp2, "ppo_fsdp2"),
    "replay_fsdp2": replay(fsdp2),
    "shared_ddp": replay(ddp, critic="shared_trunk", checkpoint_every=1),
    "shared_fsdp2": replay(fsdp2, critic="shared_trunk", checkpoint_every=2),
    "resume_fsdp2": resume(fsdp2, "resume_fsdp2"),
    "resume_ahead": resume(ddp, "resume_ahead", **AHEAD),
    "sft_mixed": supervised(phases.sft, mixed),
    "reward_mixed": supervised(phases.reward, mixed),
    "ppo_mixed": ppo(mixed, "ppo_mixed", rollouts=1),
    "weights_left": weights_left,
    "sharded_head": sharded_head,
    "scored_fsdp2": scored(fsdp2),
    "scored_hsdp": scored(hsdp),
    "lockstep": lockstep,
    "unread": unread,
    "unread_lora": partial(unread, lora={"r": 4}),
    "unread_hsdp": partial(unread, mesh=(WORLD // 2, 2)),
    "sft_hsdp": supervised(phases.sft, hsdp, micro=4 // WORLD),
    "reward_hsdp": supervised(phases.reward, hsdp),
    "replay_hsdp": replay(hsdp),
    "resume_hsdp": resume(hsdp, "resume_hsdp", batch=8),
    "best": best,
    "worlds": worlds,
    "checked_at_start": checked_at_start,
    "served_ddp": served(ddp, "served_ddp"),
    "served_fsdp2": served(fsdp2, "served_fsdp2"),
    "served_ahead": served(fsdp2, "served_ahead", **AHEAD),
    **{
        f"{phase}_{where.__name__}": learned_offline(phase, where, f"{phase}_{where.__name__}")
        for phase in OFFLINE | CACHED
        for where in (ddp, fsdp2)
    },
}


ON_FOUR = {"resume_lora_hsdp": resume(hsdp, "resume_lora_hsdp", lora=True, batch=8)}


def main(folder: Path, names: list[str]) -> None:
    for name in names or CASES:
        try:
            result = (CASES | ON_FOUR)[name](folder)
        except Exception:
            result = {"error": traceback.format_exc()}
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else "none"
        torch.save(result, folder / f"{name}.{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
