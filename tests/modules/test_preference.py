"""Learning from comparisons against plain PyTorch, splits that change nothing, and what is refused."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.feedback import FeedbackData
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kto import kto_loss
from rlhf_lightning.functional.preference import dpo_loss, hinge_loss, ipo_loss, ipo_per_token_loss, robust_dpo_loss
from rlhf_lightning.functional.reference_free import orpo_odds_ratio_loss, simpo_loss
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules.dpo import DPOModule
from rlhf_lightning.modules.formulas import check_pair_loss
from rlhf_lightning.modules.offline import answer_mask
from tests.support import offline, tiny

WITH_REFERENCE = [
    dpo_loss,
    partial(dpo_loss, beta=0.5, label_smoothing=0.2),
    partial(robust_dpo_loss, label_smoothing=0.3),
    partial(hinge_loss, beta=0.02),
    ipo_loss,
    ipo_per_token_loss,
]
WITHOUT = [simpo_loss, orpo_odds_ratio_loss]


@pytest.fixture
def file(tmp_path):
    return offline.rankings(tmp_path)


def plain_loss(model, reference, loss, loss_coef=1.0, nll_coef=0.0):
    """Mean over prompts of (mean over its pairs of the loss + the NLL per token of its best answers)."""
    per_prompt = []
    for prompt, completions, ranks in offline.RANKINGS:
        now = [offline.plain_logprob(model, prompt, c) for c in completions]
        ref = [offline.plain_logprob(reference, prompt, c)[0].detach() for c in completions]
        k = range(len(ranks))
        found = [
            loss(now[i][0][None], now[j][0][None], ref[i][None], ref[j][None],
                 torch.tensor([now[i][1]]), torch.tensor([now[j][1]])).loss
            for i in k for j in k if ranks[i] < ranks[j]
        ]  # fmt: skip
        best = [-now[i][0] / now[i][1] for i in k if ranks[i] == 1]
        per_prompt.append(loss_coef * sum(found) / len(found) + nll_coef * sum(best) / len(best))
    return sum(per_prompt) / len(per_prompt)


@pytest.mark.parametrize("loss", WITH_REFERENCE + WITHOUT)
def test_the_step_is_that_of_plain_pytorch(file, loss):
    model, other = tiny.policy(), tiny.policy(1)
    expected = plain_loss(model, other, loss)
    expected.backward()
    start, end = offline.step(model)
    module = offline.preference(loss=loss, reference=other if check_pair_loss(loss) else None)
    logged = offline.fit(module, offline.pairs(file, micro=4))
    assert logged["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert (end - start).norm() > 1e-2
    assert (offline.flat(module.policy) - end).norm() <= 1e-5 * (end - start).norm()


def test_the_nll_of_the_best_answers_is_added_per_token(file):
    model, other = tiny.policy(), tiny.policy(1)
    expected = plain_loss(model, other, orpo_odds_ratio_loss, loss_coef=0.1, nll_coef=1.0)
    expected.backward()
    start, end = offline.step(model)
    module = offline.preference(loss=orpo_odds_ratio_loss, loss_coef=0.1, nll_coef=1.0)
    logged = offline.fit(module, offline.pairs(file, micro=2))
    assert logged["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert logged["train/nll"] == pytest.approx(
        plain_loss(tiny.policy(), other, orpo_odds_ratio_loss, 0.0, 1.0).item(), rel=1e-5
    )
    assert (offline.flat(module.policy) - end).norm() <= 1e-5 * (end - start).norm()


@pytest.mark.parametrize(("loss", "nll"), [(dpo_loss, 0.5), (simpo_loss, 0.0)])
def test_gradients_do_not_depend_on_the_micro_batch_split(file, loss, nll):
    ends = {}
    for micro in (8, 4, 2, 1):
        reference = tiny.policy(1) if check_pair_loss(loss) else None
        module = offline.preference(loss=loss, nll_coef=nll, reference=reference)
        offline.fit(module, offline.pairs(file, micro=micro))
        ends[micro] = offline.flat(module.policy)
    start = offline.flat(tiny.policy())
    for micro in (4, 2, 1):
        assert (ends[micro] - ends[8]).norm() <= 1e-6 * ends[8].norm()
        assert (ends[micro] - ends[8]).norm() <= 1e-5 * (ends[8] - start).norm()


def test_the_first_loss_is_log_2_where_policy_and_reference_agree(file):
    logged = offline.fit(offline.preference(), offline.pairs(file, micro=2))
    assert logged["train/loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert logged["train/tie_rate"] == 1.0 and logged["train/rewards/accuracies"] == 0.0
    assert logged["train/drift/chosen"] == logged["train/drift/rejected"] == logged["train/rewards/margins"] == 0.0
    assert logged["train/num_prompts"] == 8 and logged["train/num_pairs"] == 3 + 2 + 3 + 1 + 5 + 1 + 1 + 1


def test_metrics_are_means_over_pairs(file):
    model, other = tiny.policy(), tiny.policy(1)
    columns = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for prompt, completions, ranks in offline.RANKINGS:
            now = [float(offline.plain_logprob(model, prompt, c)[0]) for c in completions]
            ref = [float(offline.plain_logprob(other, prompt, c)[0]) for c in completions]
            for i in range(len(ranks)):
                for j in range(len(ranks)):
                    if ranks[i] < ranks[j]:
                        columns["chosen"].append((now[i], now[i] - ref[i]))
                        columns["rejected"].append((now[j], now[j] - ref[j]))
    logged = offline.fit(
        offline.preference(reference=other, loss=partial(dpo_loss, beta=0.3), lr=0.0),
        offline.pairs(file, micro=2, validation=file),
    )
    for split in ("train", "val"):
        for side, values in columns.items():
            logps, drift = (sum(column) / len(values) for column in zip(*values, strict=True))
            assert logged[f"{split}/logps/{side}"] == pytest.approx(logps, rel=1e-5)
            assert logged[f"{split}/drift/{side}"] == pytest.approx(drift, rel=1e-5)
            assert logged[f"{split}/rewards/{side}"] == pytest.approx(0.3 * drift, rel=1e-5)
        gaps = [c[1] - r[1] for c, r in zip(columns["chosen"], columns["rejected"], strict=True)]
        assert logged[f"{split}/rewards/margins"] == pytest.approx(0.3 * sum(gaps) / len(gaps), rel=1e-5)
        assert logged[f"{split}/rewards/accuracies"] == pytest.approx(sum(g > 0 for g in gaps) / len(gaps))
    assert logged["train/learning_rate"] == 0.0 and logged["train/grad_norm"] > 0


def built(**options):
    module = offline.preference(**options)
    module.configure_model()
    return module


def test_user_turns_inside_of_an_answer_count_in_no_stage(tmp_path):
    def turns(*texts):
        return [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(texts)]

    tokenizer, options = tiny.tokenizer(), {"batch_size": 2, "validation_fraction": 0.0}
    tokenizer.chat_template = "{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}"
    asked = [{"role": "user", "content": "the food was"}]
    good, bad = turns("very good", "we left", "happy"), turns("bad", "and the service", "slow")
    files = [
        offline.write(tmp_path / f"{number}.jsonl", [row, row])
        for number, row in enumerate(
            [{"prompt": asked, "chosen": good, "rejected": bad}, {"prompt": asked, "completion": good}]
        )
    ]
    batches = []
    for kind, file in ((ComparisonData, files[0]), (FeedbackData, files[0]), (DemonstrationData, files[1])):
        data = kind(file, None, tokenizer, **(options | {"batch_size": 4 if kind is FeedbackData else 2}))
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    pairs, answers, shown = batches
    places = {tokenizer.convert_tokens_to_ids("very"): [3, 4, 7, 8], tokenizer.convert_tokens_to_ids("bad"): [3, 7, 8]}
    assert pairs.counted.tolist() == [4, 3] * 2 and shown.mask.nonzero()[:4, 1].tolist() == [3, 4, 7, 8]
    for module, batch in ((built(), pairs), (offline.unpaired(), answers), (offline.unpaired(), answers.mismatched)):
        module.configure_model()
        with torch.no_grad():
            logprobs = module.policy(batch.input_ids).logits.log_softmax(-1)
            found = module.logprobs(batch).policy
        for row, ids in enumerate(batch.input_ids):
            expected = sum(logprobs[row, place - 1, ids[place]] for place in places[int(ids[3])])
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def moved(batch, pad, left, width=3):
    """The same rows with more pads, of another id, perhaps on the left."""
    ids, mask = torch.full((len(batch.lengths), batch.input_ids.shape[1] + width), pad), None
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (given, real) in enumerate(zip(batch.input_ids, batch.attention_mask, strict=True)):
        tokens = given[real]
        span = slice(-len(tokens), None) if left else slice(0, len(tokens))
        ids[row, span], mask[row, span] = tokens, True
    return replace(batch, input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 7])
def test_neither_the_side_nor_the_id_of_pads_matters(file, pad, left):
    data = offline.pairs(file)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module = built(reference=tiny.policy(1))
    expected, got = module.logprobs(batch), module.logprobs(moved(batch, pad, left))
    torch.testing.assert_close(got.policy, expected.policy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.reference, expected.reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.terms(moved(batch, pad, left))[0], module.terms(batch)[0])


def test_the_answer_is_the_end_of_the_row_and_never_its_first_token():
    attention = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]).bool()
    mask = answer_mask(attention, torch.tensor([2, 1, 2, 0]))
    assert mask.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_the_reference_stands_still_and_is_not_in_the_state(file):
    module = offline.preference(lr=0.5)
    offline.fit(module, offline.pairs(file, micro=4), epochs=3)
    frozen = module.frozen["reference"]
    for a, b in zip(tiny.policy().parameters(), frozen.parameters(), strict=True):
        assert torch.equal(a, b) and not b.requires_grad
    assert not frozen.training and module.sharded_modules() == [module.policy, frozen]
    assert (offline.flat(module.policy) - offline.flat(frozen)).norm() > 1e-2
    assert {name.split(".")[0] for name in module.state_dict()} == {"policy"}


def test_a_loss_without_reference_loads_none(file):
    module = offline.preference(loss=partial(simpo_loss, gamma=0.5))
    logged = offline.fit(module, offline.pairs(file))
    assert "reference" not in module.frozen and module.sharded_modules() == [module.policy]
    assert not [name for name in logged if "drift" in name]


def test_a_filler_counts_for_nothing(file):
    data = offline.pairs(file)
    data.setup("fit")
    batch = data.collate([data.train_items[0].padding_row()], 1.0)
    total, sums = built(nll_coef=1.0).terms(batch)
    assert total == 0 and all(value == 0 for value in sums.values())


def test_the_sum_over_prompts_is_divided_by_what_the_loader_says(file):
    data = offline.pairs(file)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module = built(nll_coef=1.0)
    whole, sums = module.terms(batch)
    half, same = module.terms(replace(batch, denominator=2 * batch.denominator))
    torch.testing.assert_close(half, whole / 2)
    torch.testing.assert_close(same["loss"], sums["loss"])


def test_frozen_lower_layers_give_the_same_loss_and_are_run_once(file, tmp_path):
    folder = tmp_path / "policy"
    tiny.policy().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    data = offline.pairs(file)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    totals, ran = [], []
    for depth in (0, 1):
        module = DPOModule(
            Pretrained(str(folder), freeze_below=depth),
            tiny.tokenizer(),
            partial(torch.optim.SGD, lr=1.0),
            nll_coef=1.0,
        )
        module.configure_model()
        with torch.no_grad():
            module.policy.lm_head.weight.add_(
                0.3 * torch.randn(3 + len(tiny.WORDS), 32, generator=torch.Generator().manual_seed(0))
            )
        module.policy.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
        total, _ = module.terms(batch)
        assert len(ran) == 2  # for the prompts, and for the answers
        ran.clear()
        total.backward()
        totals.append(total)
        lower = [p.grad for p in module.policy.model.layers[0].parameters()]
        assert all(g is None for g in lower) is bool(depth)
    torch.testing.assert_close(totals[0], totals[1])
    frozen = Pretrained(str(folder), freeze_below=1)
    apart = DPOModule(frozen, tiny.tokenizer(), torch.optim.SGD, reference=tiny.policy(1))
    alone = DPOModule(tiny.policy(1), tiny.tokenizer(), torch.optim.SGD)
    for module in (apart, alone):
        module.configure_model()
    torch.testing.assert_close(apart.logprobs(batch).reference, alone.logprobs(batch).policy.detach())


def sentiment(folder, name, prompts):
    good, bad = [" very good .", " good and kind .", " happy"], [" bad .", " slow and bad .", " very slow"]
    rows = [{"prompt": p, "chosen": good[i % 3], "rejected": bad[(i + i // 3) % 3]} for p in prompts for i in range(6)]
    return offline.write(folder / f"{name}.jsonl", rows)


@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss, simpo_loss])
def test_held_out_preferences_are_learned(tmp_path, loss):
    train = sentiment(tmp_path, "train", ["the food was", "we left", "the service was", "food"])
    held_out = sentiment(tmp_path, "held_out", ["the very service", "we"])
    before = offline.fit(offline.preference(loss=loss, lr=0.0), offline.pairs(train, validation=held_out))
    module = offline.preference(loss=loss, lr=5e-4, adam=True)
    after = offline.fit(module, offline.pairs(train, validation=held_out), epochs=10)
    assert after["val/loss"] < before["val/loss"]
    assert after["val/rewards/accuracies"] >= 0.9 > before["val/rewards/accuracies"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": partial(robust_dpo_loss, label_smoothing=0.5)}, "label_smoothing=0.5"),
        ({"loss": partial(dpo_loss, beta=0.0)}, "beta=0.0"),
        ({"loss": kto_loss}, r"^dpo\.loss: kto_loss cannot be called as f\(chosen"),
        ({"loss": simpo_loss, "reference": "given"}, "simpo_loss compares answers without a reference"),
        ({"loss": partial(orpo_odds_ratio_loss), "reference": "given"}, "orpo_odds_ratio_loss compares"),
        ({"nll_coef": -1.0}, "nll_coef=-1.0"),
        ({"loss_coef": 0.0}, "one of them above 0"),
    ],
)
def test_invalid_combinations_are_refused_before_a_model_is_loaded(options, message):
    if "reference" in options:
        options = options | {"reference": Pretrained("nowhere")}
    with pytest.raises(ConfigError, match=message):
        DPOModule(Pretrained("nowhere"), tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0), **options)


def test_an_exported_policy_is_read_by_plain_transformers(file, tmp_path):
    from transformers import AutoModelForCausalLM

    module = offline.preference()
    offline.fit(module, offline.pairs(file))
    folder = module.export(tmp_path / "dpo", {"stage": "dpo"})
    assert torch.equal(offline.flat(AutoModelForCausalLM.from_pretrained(folder)), offline.flat(module.policy))
    assert json.loads((folder / "provenance.json").read_text())["stage"] == "dpo"


def test_bfloat16_autocast_keeps_the_loss_in_float32(file):
    plain, mixed = ({}, {})
    for logged, precision in ((plain, "32-true"), (mixed, "bf16-mixed")):
        module = offline.preference(reference=tiny.policy(1), nll_coef=0.1)
        logged |= offline.fit(module, offline.pairs(file, micro=4), precision=precision)
        assert offline.flat(module.policy).dtype == torch.float32
    assert mixed["train/loss"] == pytest.approx(plain["train/loss"], rel=2e-2)
    assert mixed["train/grad_norm"] == pytest.approx(plain["train/grad_norm"], rel=5e-2)
