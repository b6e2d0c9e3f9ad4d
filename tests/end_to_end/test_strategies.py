"""DDP, FSDP2 and mixed precision: more processes or fewer bits, the same learning."""

from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import FrozenModels, Pretrained, ScalarModel, frozen_copy
from rlhf_lightning.models.frozen import checksum
from rlhf_lightning.rollout import LoopEngine, Sampling
from rlhf_lightning.scoring import RewardModelScorer
from rlhf_lightning.types import PromptBatch
from tests.support import jobs, offline, pair, phases, strategies_worker, tiny, worlds_worker

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data files, an experience of one process, and the results of all cases of the worker."""
    folder = jobs.write(tmp_path_factory.mktemp("strategies"))
    rows = [{"prompt": p, "completion": c, "label": y} for p, c, y in offline.FEEDBACK[:3]]
    offline.write(folder / "three_answers.jsonl", rows)
    rows = [{"prompt": p, "completions": c, "ranks": r} for p, c, r in offline.RANKINGS[:3]]
    offline.write(folder / "three_rankings.jsonl", rows)
    module, _ = phases.ppo(folder, phases.ppo_module(num_minibatches=1, ppo_epochs=1), rollouts=3)
    torch.save(module.last_experience, folder / "experience.pt")
    tiny.policy(layers=3).save_pretrained(folder / "policy", max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(folder / "policy")
    phases.reward_model().model.save_pretrained(folder / "reward_model")
    tiny.tokenizer().save_pretrained(folder / "reward_model")
    worlds_worker.work(folder, "sft:single:")
    pair.launch("tests.support.strategies_worker", str(folder), log=folder, seconds=SECONDS)
    return folder


@pytest.fixture
def ranks(folder):
    return partial(results, folder)


def results(folder, name, world=2):
    found = []
    for rank in range(world):
        file = folder / f"{name}.{rank}.pt"
        log = (folder / f"rank{rank}.log").read_text()
        assert file.is_file(), f"rank {rank} has not finished {name}:\n{log[-3000:]}"
        result = torch.load(file, weights_only=True)
        assert "error" not in result, f"rank {rank}:\n{result['error']}"
        found.append(result)
    return found


def assert_same_step(after, expected, start):
    """Equal weights at 1e-6, and an equal way there at 1e-4 (the way is much shorter than the weights)."""
    way = (expected - start).norm()
    assert way > 1e-3
    assert (after - expected).norm() <= 1e-6 * expected.norm()
    assert (after - expected).norm() <= 1e-4 * way


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp"])
@pytest.mark.parametrize("phase", ["sft", "reward"])
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(folder, ranks, phase, strategy):
    first, second = ranks(f"{phase}_{strategy}")
    alone, run = getattr(phases, phase)(folder)
    start = phases.flat(tiny.policy()) if phase == "sft" else None
    expected = phases.flat(alone.trained)
    assert torch.equal(first["weights"], second["weights"])
    assert_same_step(first["weights"], expected, start if start is not None else torch.zeros_like(expected))
    assert first["held"] == pytest.approx(0.5 if strategy == "fsdp2" else 1.0, abs=0.02)  # the first has rows more
    for name, value in run.callback_metrics.items():
        rounding = 5e-5 if name.endswith(("_max", "_min")) else 1e-6  # one score, not a mean of many
        assert first["logged"][name] == pytest.approx(float(value), rel=1e-4, abs=rounding), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("phase", ["dpo", "simpo", "kto", "dpo_cached", "kto_cached"])
def test_two_processes_learn_from_given_answers_what_one_learns(folder, ranks, phase, strategy):
    first, second = ranks(f"{phase}_{strategy}")
    alone, run = strategies_worker.OFFLINE[phase.removesuffix("_cached")](folder)
    assert torch.equal(first["weights"], second["weights"])
    assert_same_step(first["weights"], phases.flat(alone.policy), phases.flat(tiny.policy()))
    for name, value in run.callback_metrics.items():
        assert first["logged"][name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
        assert first["logged"][name] == second["logged"][name]
    assert ("reference" in first) is (phase in ("dpo", "kto"))
    if "reference" in first:
        assert torch.equal(first["reference"], phases.flat(tiny.policy(1, scale=2.0)))
    else:
        assert sum(1 for _ in (folder / f"{phase}_{strategy}_run").glob("reference_logprobs/*")) == ("cached" in phase)
    plain = AutoModelForCausalLM.from_pretrained(folder / f"{phase}_{strategy}")
    assert torch.equal(phases.flat(plain), first["weights"])


def test_two_ranks_of_ppo_answer_their_own_prompts_and_end_with_the_same_weights(folder, ranks):
    first, second = ranks("ppo_ddp")
    assert torch.equal(first["weights"], second["weights"]) and torch.equal(first["critic"], second["critic"])
    assert first["kl"] == second["kl"]
    assert sorted(first["prompts"] + second["prompts"]) == sorted(phases.PROMPTS)
    assert first["counts"] == (2, 2 * 2 * 2, 16)
    shared = {name for name in first["logged"] if name != "sampling/sampling_logp_difference/max"}
    assert {n: first["logged"][n] for n in shared} == {n: second["logged"][n] for n in shared}


@pytest.mark.parametrize(("how", "updates"), [("ddp", 3), ("fsdp2", 3), ("ahead", 2)])
def test_ranks_that_ask_one_server_give_it_whole_weights_and_get_answers_of_their_own(ranks, how, updates):
    first, second = ranks(f"served_{how}")
    assert first["updates"] == updates and first["gap"] == second["gap"] < 1e-5
    assert torch.equal(first["served"], first["policy"]) and torch.equal(first["policy"], second["policy"])
    assert len(set(first["seeds"])) == 2 * 8 and first["answers"] != second["answers"]


def test_a_reward_model_in_shards_scores_as_a_whole_one_whatever_the_layout(folder, ranks):
    whole = RewardModelScorer(Pretrained(str(folder / "reward_model")))
    expected = whole.score(torch.load(folder / "experience.pt", weights_only=False).rollout, tiny.tokenizer())
    assert_same_scores(ranks("scored_fsdp2"), ranks("scored_hsdp"), expected)
    for rank, found in enumerate(ranks("scored_fsdp2")):
        assert torch.equal(found["again"], found["scores"]) and found["raised"] is (rank == 1)
        assert found["state"] == whole.state_dict()
        assert found["share"] < 0.6


def assert_same_scores(fsdp2, hsdp, expected):
    """The scores of a whole reward model, and the same rollout and losses where each layer is gathered for a token."""
    assert len({str(rank["ids"].tolist()) for rank in fsdp2}) == len(fsdp2)
    for one, other in zip(fsdp2, hsdp, strict=True):
        for found in (one, other):
            torch.testing.assert_close(found["scores"], expected[found["rows"]], rtol=0, atol=1e-6)
        assert torch.equal(one["ids"], other["ids"]) and one["state"] == other["state"]
        torch.testing.assert_close(one["of_ppo"], other["of_ppo"], rtol=0, atol=1e-6)
        torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=1e-6)
        assert one["logged"] == pytest.approx(other["logged"], rel=1e-4, abs=1e-6)


def test_ranks_that_gather_a_layer_at_a_time_answer_as_one_that_holds_the_policy(ranks):
    both = ranks("lockstep")
    for rank, found in enumerate(both):
        engine = LoopEngine(micro_batch_size=2)
        engine.seed(rank)
        engine.sync(tiny.policy(layers=3), [1, 2, 3], 0, version=1)
        batch = PromptBatch(found["prompt_ids"], found["prompt_mask"], ({"prompt": ""},) * len(found["prompt_ids"]))
        alone = engine.generate(batch, Sampling(max_new_tokens=40))
        assert torch.equal(found["ids"], alone.response_ids)
        torch.testing.assert_close(found["logprobs"], alone.rollout_logprobs, rtol=0, atol=1e-5)
        assert found["sharded_meanwhile"]
    assert both[0]["calls"] == both[1]["calls"]
    assert both[0]["ids"].shape[1] != both[1]["ids"].shape[1] < 40


def test_ranks_draw_distinct_samples_for_the_same_prompt(ranks):
    first, second = ranks("same_prompts")
    assert first["answers"] != second["answers"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp"])
def test_the_gradient_of_one_experience_is_the_same_on_one_and_on_two_ranks(folder, ranks, strategy):
    first, second = ranks(f"replay_{strategy}")
    alone, _ = phases.replay(folder)
    start = phases.ppo_module()
    start.configure_model()
    lengths = torch.load(folder / "experience.pt", weights_only=False).mask.sum(1)
    assert lengths[:4].sum() != lengths[4:].sum()  # a mean per rank would be another one
    assert torch.equal(first["weights"], second["weights"])
    assert_same_step(first["weights"], phases.flat(alone.policy), phases.flat(start.policy))
    assert_same_step(first["critic"], phases.flat(alone.critic), phases.flat(start.critic))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_adapters_get_the_same_gradient_on_one_and_on_two_ranks(folder, ranks, strategy):
    pytest.importorskip("peft")
    first, second = ranks(f"ppo_lora_{strategy}")
    alone, _ = phases.replay(folder, lora=True)
    start = phases.ppo_module(phases.Replay, lora=True)
    start.configure_model()
    assert torch.equal(first["weights"], second["weights"])
    assert_same_step(first["weights"], phases.flat(alone.policy), phases.flat(start.policy))
    assert_same_step(first["critic"], phases.flat(alone.critic), phases.flat(start.critic))


@pytest.mark.parametrize("phase", ["sft", "reward", "dpo", "kto"])
def test_adapters_beside_sharded_weights_learn_what_they_learn_in_one_process(folder, ranks, phase):
    pytest.importorskip("peft")
    first, second = ranks(f"{phase}_lora_fsdp2")
    fit = getattr(phases, phase, None) or strategies_worker.OFFLINE[phase]
    alone, run = fit(folder, lora=True)
    start = phases.reward_model().model if phase == "reward" else tiny.policy()
    assert torch.equal(first["weights"], second["weights"])
    assert_same_step(first["weights"], phases.flat(alone.trained), phases.flat(tiny.adapted(start)))
    for name, value in run.callback_metrics.items():
        rounding = 5e-5 if name.endswith(("_max", "_min")) else 1e-6  # one score, not a mean of many
        assert first["logged"][name] == pytest.approx(float(value), rel=1e-4, abs=rounding), name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own model
def test_models_beside_sharded_adapters_hold_no_second_copy_of_the_weights(folder, ranks):
    peft = pytest.importorskip("peft")
    first, second = ranks("exported_lora")
    assert first["kept"] == second["kept"] == {"critic": True, "reference": True}
    weights = [phases.flat(AutoModelForCausalLM.from_pretrained(folder / "exported_lora"))]
    base = AutoModelForCausalLM.from_pretrained(folder / "policy")
    read = peft.PeftModel.from_pretrained(base, folder / "exported_lora" / "adapter")
    weights.append(phases.flat(read.merge_and_unload()))
    assert torch.allclose(*weights, atol=1e-6) and not torch.allclose(weights[0], phases.flat(tiny.policy(layers=3)))
    alone = Pretrained(str(folder / "exported_lora")).causal_lm()(torch.arange(10)[None]).logits
    assert torch.allclose(alone, first["logits"], atol=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_value_head_on_the_policy_gets_the_same_gradient_on_one_and_on_two_ranks(folder, ranks, strategy):
    first, second = ranks(f"shared_{strategy}")
    alone, _ = phases.replay(folder, critic="shared_trunk")  # the ranks compute their activations again
    start = phases.ppo_module()
    start.configure_model()
    assert torch.equal(first["weights"], second["weights"]) and torch.equal(first["critic"], second["critic"])
    assert_same_step(first["weights"], phases.flat(alone.policy), phases.flat(start.policy))
    assert_same_step(first["critic"], phases.flat(alone.critic), torch.zeros_like(first["critic"]))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_groups_without_a_critic_give_the_same_gradient_on_one_and_on_two_ranks(folder, ranks, strategy):
    first, second = ranks(f"grouped_{strategy}")
    alone, _ = phases.replay(folder, grouped=True)
    start = phases.ppo_module()
    start.configure_model()
    assert torch.equal(first["weights"], second["weights"])
    assert_same_step(first["weights"], phases.flat(alone.policy), phases.flat(start.policy))


@pytest.mark.parametrize("how", ["ddp", "fsdp2", "hsdp", "lora_fsdp2", "ahead"])
def test_two_ranks_resume_ppo_bit_for_bit(folder, ranks, how):
    first, second = ranks(f"resume_{how}")
    assert all(torch.equal(a, b) for a, b in zip(first["whole"][:2], second["whole"][:2], strict=True))
    for rank in (first, second):
        assert len(rank["resumed"]) == 2
        for resumed in rank["resumed"]:
            assert all(torch.equal(a, b) for a, b in zip(rank["whole"], resumed, strict=True))
    checkpoint = DurableCheckpointIO().load_checkpoint(checkpoints(folder / f"resume_{how}")[0])
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"policy", "critic"}
    assert len(checkpoint["rlhf"]["ranks"]) == 2


def assert_the_same_run(folder, phase, whole="single-1"):
    """All that `worlds_worker` left of a phase ended where one process ended that nobody stopped."""
    whole = torch.load(folder / f"{phase}-{whole}.pt")
    found = {path.stem: torch.load(path) for path in folder.glob(f"{phase}-*.pt")}
    for name, end in found.items():
        assert end["steps"] == 2 * worlds_worker.STEPS
        for part in ("weights", "moments"):
            assert torch.allclose(end[part], whole[part], rtol=0, atol=1e-6), (name, part)
    return set(found)


def test_case_15_another_number_of_processes_goes_on_with_the_same_rows_to_the_same_end(folder, ranks):
    ranks("worlds")
    worlds_worker.work(folder, "sft:single:fsdp2-2", "sft:single:ddp-2")
    found = assert_the_same_run(folder, "sft")
    resumed = {f"sft-{layout}-2-from-single-1" for layout in ("ddp", "fsdp2")}
    assert found >= resumed | {f"sft-single-1-from-{layout}-2" for layout in ("ddp", "fsdp2")}


@pytest.mark.soak
@pytest.mark.parametrize("phase", ["sft", "dpo", "reward", "lora"])
def test_case_15_one_two_and_four_processes_go_on_from_each_other(tmp_path, phase):
    jobs.write(tmp_path)

    def launch(size, *names):
        words = [f"{phase}:{name}" for name in names]
        codes = pair.launch("tests.support.worlds_worker", str(tmp_path), *words, log=tmp_path, size=size)
        assert codes == [0] * size, (tmp_path / "rank0.log").read_text()

    launch(1, "single:")
    launch(2, "fsdp2:", "ddp:", "fsdp2:single-1", "ddp:single-1", "fsdp2:ddp-2", "ddp:fsdp2-2")
    launch(4, "fsdp2:", "fsdp2:single-1", "fsdp2:fsdp2-2")
    launch(2, "fsdp2:fsdp2-4")
    launch(1, "single:fsdp2-2", "single:fsdp2-4", "single:ddp-2")
    assert len(assert_the_same_run(tmp_path, phase)) == 14


def test_sharded_ppo_is_ddp_and_exports_a_plain_folder(folder, ranks):
    sharded, _ = ranks("ppo_fsdp2")
    whole, _ = ranks("ppo_ddp")
    assert sharded["answers"] == whole["answers"]
    assert_same_step(sharded["weights"], whole["weights"], phases.flat(tiny.policy(scale=0.3)))
    assert_same_step(sharded["critic"], whole["critic"], torch.zeros_like(whole["critic"]))
    for name in ("ppo_fsdp2", "ppo_ddp"):
        assert verify_folder(folder / name)["stage"] == "ppo"
        ids = AutoTokenizer.from_pretrained(folder / name)("the food was", return_tensors="pt").input_ids
        plain = AutoModelForCausalLM.from_pretrained(folder / name)
        assert plain(ids).logits.isfinite().all()
        assert torch.equal(phases.flat(plain), (sharded if name == "ppo_fsdp2" else whole)["weights"])


def test_sharded_weights_gathered_in_bfloat16_leave_no_copy_of_every_layer(ranks):
    for left in ranks("weights_left"):
        assert left["bf16"] < 0.2 < 1.5 < left["kept"]


def test_a_head_on_sharded_weights_is_computed_in_float32(ranks):
    for rank in ranks("sharded_head"):
        assert torch.allclose(rank["found"], rank["expected"], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(rank["found"], rank["rounded"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("phase", ["sft", "reward"])
def test_shards_in_float32_learn_from_bfloat16_what_they_learn_from_float32(folder, ranks, phase):
    first, second = ranks(f"{phase}_mixed")
    alone, _ = getattr(phases, phase)(folder)
    start = phases.flat(tiny.policy()) if phase == "sft" else phases.flat(phases.reward_model())
    assert torch.equal(first["weights"], second["weights"]) and first["weights"].dtype == torch.float32
    moved, way = first["weights"] - start, phases.flat(alone.trained) - start
    assert torch.cosine_similarity(moved, way, dim=0) > 0.99
    assert (moved != moved.bfloat16()).float().mean() > 0.9  # small steps are not rounded away


def test_a_policy_in_shards_starts_at_its_reference_in_bfloat16_too(folder, ranks):
    first, second = ranks("ppo_mixed")
    assert first["same_as_reference"] and second["same_as_reference"]
    assert first["weights"].dtype == first["critic"].dtype == torch.float32
    assert first["weights"].isfinite().all() and torch.equal(first["weights"], second["weights"])
    assert first["logged"]["sampling/sampling_logp_difference/mean"] < 1e-5  # decoded in bfloat16 too; float32: 1e-3
    assert verify_folder(folder / "ppo_mixed")["stage"] == "ppo"
    plain = AutoModelForCausalLM.from_pretrained(folder / "ppo_mixed")
    assert torch.equal(phases.flat(plain), first["weights"])


@pytest.mark.parametrize(("case", "lora"), [("unread", None), ("unread_lora", {"r": 4}), ("unread_hsdp", None)])
def test_models_that_are_sharded_before_they_are_read_are_those_that_are_loaded(folder, ranks, case, lora):
    source = Pretrained(str(folder / "policy"), lora=lora)
    torch.manual_seed(3)
    policy = source.adapted(source.causal_lm())
    models = {"policy": policy, "critic": ScalarModel.from_policy(policy), "reference": frozen_copy(policy)}
    torch.manual_seed(3)
    models["reward"] = ScalarModel(source.adapted(source.reward_model(init_head=True)))
    frozen, ids = FrozenModels(), torch.arange(10)[None]
    frozen.add("reference", models["reference"])
    for rank in ranks(case):
        assert rank["fingerprints"] == frozen.fingerprints
        for name, model in models.items():
            drawn = torch.cat([torch.full((w.numel(),), "lora_A" in n) for n, w in model.named_parameters()])
            same = rank[name]["weights"] == phases.flat(model)
            assert (same | drawn if name == "critic" else same).all(), name  # a loaded critic draws more before
            with torch.no_grad():
                out = model(ids, torch.ones_like(ids).bool())
            assert torch.equal(rank[name]["out"], getattr(out, "logits", out)), name
            assert name == "critic" or rank[name]["checksum"] == checksum(model.state_dict()), name


@pytest.mark.slow  # four processes; two of them, in the tests above, make two copies or one in two shards
def test_two_copies_in_shards_on_four_processes_learn_what_two_processes_learn(folder, ranks):
    cases = [f"{phase}_hsdp" for phase in ("sft", "reward", "replay", "resume", "resume_lora", "unread", "scored")]
    cases += ["scored_fsdp2"]
    (four := folder / "four").mkdir()
    for file in [*folder.glob("*.jsonl"), *folder.glob("experience.pt"), folder / "policy", folder / "reward_model"]:
        (four / file.name).symlink_to(file)
    pair.launch("tests.support.strategies_worker", str(four), *cases, log=four, seconds=SECONDS, size=4)
    found = {case: results(four, case, world=4) for case in cases}
    for phase, start in {
        "sft": tiny.policy(),
        "reward": phases.reward_model(),
        "replay": tiny.policy(scale=0.3),
    }.items():
        expected = ranks(f"{phase}_ddp")[0]["weights"]
        for rank in found[f"{phase}_hsdp"]:
            assert_same_step(rank["weights"], expected, phases.flat(start))
            assert phase == "replay" or rank["held"] == pytest.approx(0.5, abs=0.02)
    for rank in found["resume_hsdp"] + found["resume_lora_hsdp"]:
        for resumed in rank["resumed"]:
            assert all(torch.equal(a, b) for a, b in zip(rank["whole"], resumed, strict=True))
    [expected, _] = ranks("unread")
    for rank in found["unread_hsdp"]:
        for name in ("policy", "critic", "reference", "reward"):
            assert torch.equal(rank[name]["weights"], expected[name]["weights"]), name
            assert rank[name]["checksum"] == expected[name]["checksum"], name
    experience, source = torch.load(folder / "experience.pt", weights_only=False), str(folder / "reward_model")
    scores = RewardModelScorer(Pretrained(source)).score(experience.rollout, tiny.tokenizer())
    assert_same_scores(found["scored_fsdp2"], found["scored_hsdp"], scores)


def test_a_run_looks_at_its_start_whether_it_can_be_saved_without_gathering_anything(ranks):
    assert [rank["states"] for rank in ranks("checked_at_start")] == [0, 0]  # gathering fills an optimizer


def test_the_best_policy_in_shards_is_kept_by_a_run_that_is_resumed(ranks):
    first, second = ranks("best")
    for rank in (first, second):
        for run in ("whole", "resumed"):
            assert rank[run]["rollout"] == 1 and torch.equal(rank[run]["weights"], first["whole"]["weights"])


@pytest.mark.parametrize("phase", ["sft", "reward", "ppo"])
def test_bfloat16_autocast_stays_finite_and_keeps_float32_weights(tmp_path, phase):
    module, run = getattr(phases, phase)(phases.write(tmp_path), precision="bf16-mixed")
    weights = phases.flat(module.trained)
    assert weights.dtype == torch.float32 and weights.isfinite().all()
    assert all(value.isfinite() for value in run.callback_metrics.values())


def test_the_first_ratio_under_bfloat16_autocast_is_one(tmp_path):
    module = phases.ppo_module(ppo_epochs=1, num_minibatches=1, micro_batch_size=2)
    _, run = phases.ppo(phases.write(tmp_path), module, precision="bf16-mixed")
    assert float(run.callback_metrics["val/ratio"]) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("make", ["sft", "ppo"])
def test_fsdp1_is_refused_with_what_to_use_instead(make):
    module = phases.ppo_module() if make == "ppo" else phases.SFTModule(tiny.policy(), tiny.tokenizer(), phases.sgd(1))
    run = phases.trainer()
    run._accelerator_connector.strategy = FSDPStrategy()  # Lightning itself refuses it on a CPU
    module.trainer = run
    with pytest.raises(ConfigError, match=r"FSDP1.* use trainer=fsdp2"):
        module.configure_model()
