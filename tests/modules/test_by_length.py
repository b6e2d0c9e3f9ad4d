"""Micro-batches cut by length: other shapes, the same gradients and totals."""

from dataclasses import replace
from functools import partial
from math import prod

import pytest
import torch

from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.functional.advantage import dr_grpo
from rlhf_lightning.functional.lengths import cut
from rlhf_lightning.models import Pretrained, ScalarModel, packing
from rlhf_lightning.models.packing import balanced, cheapest_plan
from rlhf_lightning.modules import PPOModule, RewardModule, SFTModule
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.rollout import Sampling
from rlhf_lightning.training.micro_batches import evaluated, micro_batches, take
from tests.functional.test_lengths import heavy_tailed, padded
from tests.support import offline, phases, tiny

PROMPTS = ("the food was", "we left", "very slow service and bad food . very slow service and bad food .", "good")


def words(count, seed):
    picked = torch.randint(len(tiny.WORDS), (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(tiny.WORDS[i] for i in picked.tolist())


@pytest.fixture
def files(tmp_path):
    """24 rows of each kind, some of them long."""
    lengths = [max(n // 12, 1) for n in heavy_tailed(24, 60, 0)]
    demonstrations = [{"prompt": words(2, i), "completion": " " + words(n, i)} for i, n in enumerate(lengths)]
    rankings = [
        {"prompt": words(2, i), "completions": [" " + words(n, 100 + i), " good"], "ranks": [1 + i % 2, 2 - i % 2]}
        for i, n in enumerate(lengths)
    ]
    feedback = [row | {"label": i % 3 > 0} for i, row in enumerate(demonstrations)]
    rows = {"demonstrations": demonstrations, "rankings": rankings, "feedback": feedback}
    return {name: offline.write(tmp_path / f"{name}.jsonl", content) for name, content in rows.items()}


def sft(files, batch=24, **options):
    file = files["demonstrations"]
    data = DemonstrationData(file, file, tiny.tokenizer(), batch_size=batch, **options)
    return SFTModule(tiny.policy(), tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0), max_grad_norm=0.0), data


def reward(files, batch=24, **options):
    data = ComparisonData(files["rankings"], files["rankings"], tiny.tokenizer(), batch_size=batch, **options)
    torch.manual_seed(1)
    model = ScalarModel.from_policy(tiny.policy()).model
    torch.nn.init.normal_(model.score.weight)
    return RewardModule(model, tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0), max_grad_norm=0.0), data


def dpo(files, batch=24, **options):
    data = offline.pairs(files["rankings"], batch=batch, validation=files["rankings"], **options)
    return offline.preference(reference=tiny.policy(1, scale=2.0)), data


def kto(files, batch=24, **options):
    data = offline.answers(files["feedback"], batch=batch, validation=files["feedback"], **options)
    return offline.unpaired(reference=tiny.policy(1, scale=2.0)), data


def step(make, files, micro, limit=None, **options):
    """Weights after an epoch of plain gradient descent at rate 1, one step by default, and what was logged."""
    module, data = make(files, **options, **{"micro_batch_size" if make in (sft, reward) else "micro": micro})
    logged = offline.fit(module, data, limit_train_batches=limit)
    return phases.flat(module.trained), logged


RANKED = {
    "val/auroc": 2e-3,
    "val/length_spearman_in_prompt": 1e-2,
}  # the same answer twice: equal, or above by rounding


@pytest.mark.parametrize("micro", [24, 5, 2, 1])
@pytest.mark.parametrize("make", [sft, reward, dpo, kto])
def test_a_step_and_the_totals_of_validation_are_those_of_the_uncut_batch(files, make, micro):
    expected, whole = step(make, files, None, length_window=0)
    after, logged = step(make, files, micro)
    start = make(files)[0]
    start.configure_model()
    start = phases.flat(start.trained)
    assert (expected - start).norm() > 1e-3
    assert (after - expected).norm() <= 1e-6 * expected.norm()
    assert (after - expected).norm() <= 1e-5 * (expected - start).norm()
    for name in whole.keys() - {"train/padding"}:
        assert logged[name] == pytest.approx(whole[name], rel=1e-4, abs=RANKED.get(name, 1e-5)), name
    assert logged["train/padding"] <= whole["train/padding"]


@pytest.mark.parametrize("left", [1, 3])
@pytest.mark.parametrize("make", [sft, reward, dpo, kto])
def test_the_rows_left_at_the_end_of_an_epoch_are_learned_from_in_any_number_of_micro_batches(files, make, left):
    expected, whole = step(make, files, None, length_window=0, batch=24 - left)
    after, logged = step(make, files, 1, batch=24 - left)  # most micro-batches of the last step are a padding row
    first = step(make, files, None, length_window=0, batch=24 - left, limit=1)[0]
    assert (expected - first).norm() > 1e-3
    assert (after - expected).norm() <= 1e-4 * (expected - first).norm()
    for name in whole.keys() - {"train/padding", *RANKED}:
        assert logged[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-4), name


def test_the_padding_share_counts_every_position_of_the_step(files):
    _, logged = step(sft, files, 6)
    data = sft(files)[1]
    data.setup("fit")
    lengths = [len(item.input_ids) for item in data.train_items]
    assert logged["train/padding"] == pytest.approx(1 - sum(lengths) / sum(padded(cut(lengths, 4), lengths)))
    assert step(sft, files, None, length_window=0)[1]["train/padding"] == pytest.approx(
        1 - sum(lengths) / (24 * max(lengths))
    )


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward", "ppo"])
def test_the_sizes_of_each_stage_leave_almost_no_padding_in_heavy_tailed_lengths(stage):
    section = compose([f"stage={stage}", "task=custom", "model.path=somewhere"])[stage]
    rows = section["data"]["batch_size"]
    micro = (section["settings"] if stage == "ppo" else section["data"])["micro_batch_size"]
    for seed in range(20):
        lengths = heavy_tailed(rows, 64, seed)
        if stage == "ppo":
            places = torch.tensor(balanced(lengths, rows // micro).rows)
            parts = [torch.tensor(lengths)[places == part].tolist() for part in range(rows // micro)]
            computed = [prod(cheapest_plan(part, 2048, 576).shape) for part in parts]
        else:
            computed = padded(cut(lengths, -(-rows // micro)), lengths)
        assert 1 - sum(lengths) / sum(computed) < 0.05


def ppo(by_length, micro, **parts):
    settings = {"max_approx_kl": None, "ppo_epochs": 2, "num_minibatches": 2, **parts.pop("settings", {})}
    module = PPOModule(
        parts.pop("policy", None) or tiny.policy(scale=0.3),
        phases.FunctionScorer(phases.praise),
        tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        sampling=Sampling(max_new_tokens=12),
        settings=PPOSettings(by_length=by_length, micro_batch_size=micro, **settings),
        **parts,
    )
    run = phases.trainer()
    run.fit(module, tiny.Prompts(tiny.prompts(*PROMPTS, repeats=4 // module.settings.group_size), 1))
    return module, {name: float(value) for name, value in run.callback_metrics.items()}


GROUPS = {
    "advantage": partial(dr_grpo, group_size=4),
    "settings": {"group_size": 4, "baseline": "none", "kl_placement": "loss", "kl_estimator": "k3",
                 "correction": "sequence_truncate", "mask_truncated": True},
}  # fmt: skip


@pytest.fixture(
    scope="module", params=[{}, {"critic": "shared_trunk"}, GROUPS], ids=["critic", "shared trunk", "groups"]
)
def uncut(request):
    """Parts of a module, the module that has learned from one batch in one piece, and what it logged."""
    return request.param, *ppo(False, 8, **request.param)


@pytest.mark.parametrize("micro", [8, 3, 2, 1])
def test_ppo_learns_the_same_from_micro_batches_cut_by_length(uncut, micro):
    parts, whole, expected = uncut
    cut_up, logged = ppo(True, micro, **parts)
    start = phases.flat(tiny.policy(scale=0.3))
    way = (phases.flat(whole.policy) - start).norm()
    assert way > 1e-3
    assert (phases.flat(cut_up.policy) - phases.flat(whole.policy)).norm() <= 1e-5 * way
    mask = whole.last_experience.mask
    for name in ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"):
        a, b = getattr(cut_up.last_experience, name), getattr(whole.last_experience, name)
        torch.testing.assert_close(a[mask], b[mask], rtol=1e-4, atol=1e-5)
    for name in expected:
        if not name.startswith("perf"):
            assert logged[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
    assert logged["perf/padding"] < expected["perf/padding"]


@pytest.mark.parametrize("micro", [16, 4])
def test_ppo_learns_the_same_from_packed_micro_batches(uncut, monkeypatch, micro):
    parts, whole, expected = uncut
    widths = []
    pack = packing.pack
    monkeypatch.setattr(
        packing, "pack", lambda ids, *rest: widths.append((len(ids), pack(ids, *rest))) or widths[-1][1]
    )
    policy = tiny.policy(scale=0.3)
    policy.pack_rows = packing.can_pack(policy)
    widths.clear()
    packed, logged = ppo(True, micro, policy=policy, **parts)
    assert any(sequences > 2 * len(rows.input_ids) for sequences, rows in widths)
    way = (phases.flat(whole.policy) - phases.flat(tiny.policy(scale=0.3))).norm()
    assert (phases.flat(packed.policy) - phases.flat(whole.policy)).norm() <= 1e-5 * way
    if whole.has_critic:
        torch.testing.assert_close(phases.flat(packed.critic), phases.flat(whole.critic), rtol=1e-4, atol=1e-6)
    for name in expected:
        if not name.startswith("perf"):
            assert logged[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name


def test_packed_micro_batches_hold_about_the_same_tokens_and_keep_neighbours_together(experience):
    rollout = experience.rollout
    schedule = replace(PPOSettings(micro_batch_size=4).schedule(len(rollout), 1), packed=True)
    uneven = [0] * 5 + [4] * 3 + [8] * 7 + [12]
    other = replace(rollout, prompt_ids=rollout.prompt_ids[uneven], prompt_mask=rollout.prompt_mask[uneven])
    for given, owners in ((rollout, [i // 4 for i in range(16)]), (other, uneven)):
        groups = micro_batches(given, schedule)
        assert len(groups) == 4 and torch.equal(torch.cat(groups).sort().values, torch.arange(16))
        homes = {(owners[row], number) for number, rows in enumerate(groups) for row in rows.tolist()}
        assert len(homes) == len(set(owners))
    apart = rollout.select(torch.arange(16).view(4, 4).T.flatten())
    tokens = [int(apart.attention_mask[rows].sum()) for rows in micro_batches(apart, schedule)]
    assert tokens == sorted(tokens, reverse=True) and tokens[0] - tokens[-1] <= int(rollout.attention_mask.sum(1).max())


@pytest.mark.parametrize("freeze_below", [0, 1])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_first_pass_meets_the_very_numbers_of_evaluation(tmp_path, minibatches, freeze_below):
    policy = None
    if freeze_below:
        tiny.policy(scale=0.3).save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        policy = Pretrained(str(tmp_path), freeze_below=freeze_below)
    settings = {"ppo_epochs": 1, "num_minibatches": minibatches}
    module = PPOModule(
        policy or tiny.policy(scale=0.3), phases.FunctionScorer(phases.praise), tiny.tokenizer(),
        optimizer=partial(torch.optim.SGD, lr=0.0), sampling=Sampling(max_new_tokens=12),
        settings=PPOSettings(micro_batch_size=3, max_approx_kl=None, **settings),
    )  # fmt: skip
    run = phases.trainer()
    run.fit(module, tiny.Prompts(tiny.prompts(*PROMPTS, repeats=4), 1))
    for name, value in (("val/ratio_max", 1.0), ("val/ratio_min", 1.0), ("policy/approxkl_avg", 0.0)):
        assert float(run.callback_metrics[name]) == value


@pytest.fixture(scope="module")
def experience():
    return ppo(True, 4, settings={"correction": "token_truncate"})[0].last_experience


def test_a_trimmed_experience_keeps_every_token_and_no_column_of_padding(experience):
    rollout = experience.rollout
    width = rollout.input_ids.shape[1]
    hidden = torch.arange(len(rollout) * width).view(len(rollout), width, 1).float()
    schedule = PPOSettings(micro_batch_size=2).schedule(len(rollout), 1)
    groups = micro_batches(rollout, schedule)
    assert len(groups) == 8 and torch.equal(torch.cat(groups).sort().values, torch.arange(16))
    for rows in groups:
        whole = replace(experience, hidden=hidden).select(rows)
        part = take(replace(experience, hidden=hidden), rows, schedule)
        short = part.rollout
        assert short.prompt_mask.any(0).all() and short.mask.any(0).all()
        assert torch.equal(short.input_ids[short.attention_mask], whole.rollout.input_ids[whole.rollout.attention_mask])
        assert torch.equal(part.hidden[short.attention_mask], whole.hidden[whole.rollout.attention_mask])
        for name in ("logprobs", "advantages", "returns", "weights"):
            assert torch.equal(getattr(part, name)[part.mask], getattr(whole, name)[whole.mask])
        assert torch.equal(short.rollout_logprobs[short.mask], whole.rollout.rollout_logprobs[whole.rollout.mask])


def test_what_is_evaluated_in_trimmed_parts_comes_back_where_it_belongs(experience):
    rollout = experience.rollout

    def ids(part):
        return part.response_ids.float(), None, part.input_ids[..., None]

    schedule = PPOSettings(micro_batch_size=3, num_minibatches=2).schedule(len(rollout), 1)
    on_response, nothing, on_both = evaluated(ids, rollout, schedule)
    assert nothing is None and on_response.shape == rollout.mask.shape
    assert torch.equal(on_response[rollout.mask].long(), rollout.response_ids[rollout.mask])
    assert torch.equal(on_both[rollout.attention_mask][:, 0], rollout.input_ids[rollout.attention_mask])
