"""SFT and reward phases against plain PyTorch, and gradients that no split changes."""

import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.errors import ConfigError, NumericalError
from rlhf_lightning.functional.diagnostics import calibration, cross_calibration, fit_temperature
from rlhf_lightning.metrics.preference_baselines import baselines
from rlhf_lightning.metrics.reward_model import ENOUGH_PROMPTS, MOST_WRONG, RewardModelEvaluation
from rlhf_lightning.models import Pretrained, ScalarModel
from rlhf_lightning.modules import RewardModule, SFTModule
from rlhf_lightning.scoring import RewardModelScorer
from rlhf_lightning.stages.pipeline import run as run_pipeline
from rlhf_lightning.training.ranks import Ranks
from tests.support import tiny

DEMONSTRATIONS = [
    ("the food was", "very good ."),
    ("we left", "happy"),
    ("the service was", "slow and bad and bad ."),
    ("good food", "and kind service ."),
    ("we", "left ."),
    ("very", "good food and very good service ."),
    ("bad", "."),
    ("the", "food was good ."),
]
RANKINGS = [
    ("the food was", ["very good .", "bad", "slow ."], [1, 3, 2]),
    ("we left", ["happy", "slow", "."], [1, 2, 2]),
    ("the service was", ["kind .", "bad .", "slow and bad ."], [1, 2, 3]),
    ("good food", ["and", "."], [2, 1]),
]


def write(path, rows):
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trainer(accumulate=1, epochs=1, **options):
    return lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate, num_sanity_val_steps=0, **options,
    )  # fmt: skip


@pytest.fixture
def demonstrations(tmp_path):
    return write(tmp_path / "sft.jsonl", [{"prompt": p, "completion": f" {c}"} for p, c in DEMONSTRATIONS])


@pytest.fixture
def rankings(tmp_path):
    rows = [{"prompt": p, "completions": [f" {c}" for c in cs], "ranks": r} for p, cs, r in RANKINGS]
    return write(tmp_path / "rank.jsonl", rows)


def sft_after(demonstrations, micro):
    data = DemonstrationData(
        demonstrations, None, tiny.tokenizer(), batch_size=8, micro_batch_size=micro, validation_fraction=0.0
    )
    module = SFTModule(tiny.policy(), tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0), max_grad_norm=0.0)
    run = trainer(accumulate=data.accumulate_for(1))
    run.fit(module, datamodule=data)
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()]), run.callback_metrics


def plain_loss(model):
    """Mean over all completion tokens (EOS included), one sequence at a time."""
    tok, total, count = tiny.tokenizer(), 0.0, 0
    for prompt, completion in DEMONSTRATIONS:
        p, c = tok(prompt).input_ids, [*tok(completion).input_ids, tok.eos_token_id]
        logprobs = model(torch.tensor([p + c])).logits[0].log_softmax(-1)
        for i, token in enumerate(c):
            total, count = total - logprobs[len(p) + i - 1, token], count + 1
    return total / count, count


def test_the_sft_loss_is_the_mean_over_completion_tokens(demonstrations):
    _, logged = sft_after(demonstrations, None)
    with torch.no_grad():
        loss, count = plain_loss(tiny.policy())
    assert float(logged["train/loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(logged["train/num_tokens"]) == count
    assert float(logged["train/perplexity"]) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_the_sft_step_is_that_of_plain_pytorch_for_every_micro_batch_split(demonstrations):
    model = tiny.policy()
    plain_loss(model)[0].backward()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = torch.cat([(p - p.grad).detach().flatten() for p in model.parameters()])
    for micro in (8, 4, 2, 1):
        after, _ = sft_after(demonstrations, micro)
        assert (after - expected).norm() <= 1e-5 * (expected - start).norm()


def test_padding_is_that_of_the_step_alone(demonstrations):
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            padding = float((~batch.attention_mask).float().mean())
            seen.append((padding, float(trainer.callback_metrics["train/padding"])))

    data = DemonstrationData(demonstrations, None, tiny.tokenizer(), batch_size=2, validation_fraction=0.0)
    module = SFTModule(tiny.policy(), tiny.tokenizer(), torch.optim.SGD)
    trainer(callbacks=[Watch()]).fit(module, datamodule=data)
    assert [logged for _, logged in seen] == pytest.approx([padding for padding, _ in seen])
    assert len({padding for padding, _ in seen}) > 1


def reward_module():
    torch.manual_seed(1)
    model = ScalarModel.from_policy(tiny.policy()).model
    torch.nn.init.normal_(model.score.weight)
    return RewardModule(model, tiny.tokenizer(), partial(torch.optim.SGD, lr=0.1), max_grad_norm=0.0)


def plain_ranking_loss(scorer):
    """Mean over prompts of the mean over untied pairs of -log sigmoid(better - worse)."""
    tok, per_prompt = tiny.tokenizer(), []
    for prompt, completions, ranks in RANKINGS:
        scores = []
        for completion in completions:
            ids = torch.tensor([[*tok(f"{prompt} {completion}").input_ids, tok.eos_token_id]])
            scores.append(scorer(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1])
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        per_prompt.append(sum(-torch.nn.functional.logsigmoid(scores[i] - scores[j]) for i, j in pairs) / len(pairs))
    return sum(per_prompt) / len(per_prompt)


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_the_reward_step_is_that_of_plain_pytorch_for_every_micro_batch_split(rankings, micro):
    reference = reward_module()
    reference.configure_model()
    loss = plain_ranking_loss(reference.model)
    loss.backward()
    start = torch.cat([p.detach().flatten() for p in reference.model.parameters()])
    expected = torch.cat(
        [(p - 0.1 * p.grad).detach().flatten() for p in reference.model.parameters() if p.grad is not None]
    )
    data = ComparisonData(
        rankings, None, tiny.tokenizer(), batch_size=4, micro_batch_size=micro, validation_fraction=0.0
    )
    module, run = reward_module(), trainer(accumulate=data.accumulate_for(1))
    run.fit(module, datamodule=data)
    after = torch.cat([p.detach().flatten() for p in module.model.parameters() if p.requires_grad])
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert (after - expected).norm() <= 1e-5 * (expected - start).norm()


def test_equal_scores_are_ties_and_neither_right_nor_wrong(rankings):
    module, run = reward_module(), trainer()
    torch.nn.init.zeros_(module._source[0].score.weight)
    run.fit(module, datamodule=ComparisonData(rankings, None, tiny.tokenizer(), batch_size=4, validation_fraction=0.0))
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert (logged["train/tie_rate"], logged["train/accuracy"], logged["train/margin"]) == (1.0, 0.0, 0.0)
    assert (logged["train/num_pairs"], logged["train/num_prompts"]) == (3 + 2 + 3 + 1, 4)
    module, run = reward_module(), trainer()
    module._source[0].score.weight.data.mul_(1e-3)  # far less than 1 apart
    run.fit(module, datamodule=ComparisonData(rankings, None, tiny.tokenizer(), batch_size=4, validation_fraction=0.0))
    assert run.callback_metrics["train/tie_rate"] == 0 < run.callback_metrics["train/accuracy"]


def test_a_reward_model_learns_the_order_and_keeps_its_held_out_statistics(rankings, tmp_path):
    data = ComparisonData(rankings, rankings, tiny.tokenizer(), batch_size=4)
    module = reward_module()
    run = trainer(epochs=40)
    run.fit(module, datamodule=data)
    logged = run.callback_metrics
    assert float(logged["val/accuracy"]) == 1.0 and float(logged["val/loss"]) < 0.4
    assert module.held_out["score_mean"] == pytest.approx(float(logged["val/score_mean"]))
    assert sum(module.held_out["reliability"]["count"]) == 3 + 2 + 3 + 1
    assert 0 <= float(logged["val/ece"]) <= 1
    assert module.most_wrong == []


ALONE = Ranks()


def rankings_of(prompts, seed=0, answers=3):
    """Encoded rankings with a distinct prompt and random answers each, and a score for every answer."""
    generator = torch.Generator().manual_seed(seed)
    words = list(itertools.product(tiny.WORDS, repeat=2))
    rows = []
    for number in range(prompts):
        lengths = torch.randint(1, 6, (answers,), generator=generator).tolist()
        texts = [" " + " ".join(tiny.WORDS[k : k + n + 1]) for k, n in enumerate(lengths)]
        rows.append({"prompt": " ".join(words[number]), "completions": texts, "ranks": list(range(1, answers + 1))})
    scores = torch.randn(prompts, answers, generator=generator) + torch.linspace(1, 0, answers)
    return rows, scores


@pytest.fixture
def batches_of(tmp_path):
    """Batches of rows in any order and size, as the loader makes them."""

    def make(rows, order, size):
        data = ComparisonData(write(tmp_path / "rows.jsonl", rows), None, tiny.tokenizer(), batch_size=1,
                              validation_fraction=0.0)  # fmt: skip
        data.setup("fit")
        return [data.collate([data.train_items[i] for i in part], 1.0) for part in torch.tensor(order).split(size)]

    return make


def seen(batches_of, rows, scores, order=None, size=1000):
    order = list(range(len(rows))) if order is None else order
    held_out = RewardModelEvaluation()
    for batch, part in zip(batches_of(rows, order, size), torch.tensor(order).split(size), strict=True):
        held_out.add(scores[part].flatten(), batch)
    return held_out


def test_held_out_answers_are_judged_as_a_loop_over_pairs_judges_them(batches_of):
    rows, scores = rankings_of(12)
    logged = seen(batches_of, rows, scores).findings(ALONE).logged
    lengths = [[len(text.split()) + 1 for text in row["completions"]] for row in rows]
    pairs = [(i, a, b) for i in range(12) for a in range(3) for b in range(a + 1, 3)]
    gaps = torch.tensor([scores[i, a] - scores[i, b] for i, a, b in pairs])
    chosen, rejected = (torch.stack([scores[p[0], p[side]] for p in pairs]) for side in (1, 2))
    misled = torch.tensor([lengths[i][b] > lengths[i][a] for i, a, b in pairs])
    spared = torch.tensor([lengths[i][a] > lengths[i][b] for i, a, b in pairs])
    assert 0 < misled.sum() < len(pairs)

    def spearman(values):
        ranks = [[rankdata(row) - 2 for row in table] for table in (values.tolist(), lengths)]  # 2 is the mean rank
        return np.corrcoef(*(np.concatenate(table) for table in ranks))[0, 1]

    x, y = torch.tensor(lengths).flatten().float(), scores.flatten()
    expected = {
        "nll": -gaps.sigmoid().log().mean(),
        "auroc": ((chosen[:, None] > rejected).float() + (chosen[:, None] == rejected) / 2).mean(),
        "rewards/chosen": chosen.mean(), "rewards/chosen_min": chosen.min(), "rewards/chosen_max": chosen.max(),
        "rewards/rejected": rejected.mean(), "rewards/rejected_min": rejected.min(),
        "rewards/rejected_max": rejected.max(),
        "accuracy_longer_is_worse": (gaps[misled] > 0).float().mean(),
        "num_pairs_longer_is_worse": misled.sum(),
        "accuracy_longer_is_better": (gaps[spared] > 0).float().mean(),
        "num_pairs_longer_is_better": spared.sum(),
        "length_spearman_in_prompt": spearman(scores),
        "length_spearman_of_labels": spearman(torch.tensor([[3.0, 2.0, 1.0]] * 12)),
        "length_slope": torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution[0, 0],
        "score_drift": y.mean() / y.std(correction=0),
        "temperature": fit_temperature(chosen, rejected),
    }  # fmt: skip
    for name, value in expected.items():
        assert logged[name] == pytest.approx(float(value), rel=1e-4), name


def test_the_held_out_pairs_that_are_most_wrong_are_kept_whatever_the_batches(batches_of):
    rows, scores = rankings_of(40, seed=4)
    pairs = [
        (float(scores[i, a] - scores[i, b]), i, a, b) for i in range(40) for a in range(3) for b in range(a + 1, 3)
    ]
    wrong = sorted(pair for pair in pairs if pair[0] < 0)
    assert len(wrong) > MOST_WRONG
    decode = partial(tiny.tokenizer().decode, skip_special_tokens=True)
    for order, size in ((range(40), 1000), (reversed(range(40)), 7)):
        found = seen(batches_of, rows, scores, list(order), size).findings(ALONE).most_wrong
        assert len(found) == MOST_WRONG
        for pair, (gap, i, a, b) in zip(found, wrong, strict=False):
            assert pair.margin == pytest.approx(gap) and pair.scores == pytest.approx(scores[i, [a, b]].tolist())
            texts = [rows[i]["prompt"], rows[i]["completions"][a], rows[i]["completions"][b]]
            assert [decode(ids).strip() for ids in (pair.prompt, pair.better, pair.worse)] == [t.strip() for t in texts]


def test_accuracy_of_each_subset_is_that_of_its_pairs_alone(batches_of):
    rows, scores = rankings_of(12, seed=3)
    names = [("easy", "hard", None)[i % 3] for i in range(12)]
    rows = [row | ({"subset": name} if name else {}) for row, name in zip(rows, names, strict=True)]
    logged = seen(batches_of, rows, scores, size=5).findings(ALONE).logged
    found = []
    for name in ("easy", "hard"):
        mine = scores[[given == name for given in names]]
        gaps = torch.cat([mine[:, a] - mine[:, b] for a, b in ((0, 1), (0, 2), (1, 2))])
        found.append(float((gaps > 0).float().mean()))
        assert logged[f"accuracy/{name}"] == pytest.approx(found[-1])
    assert logged["accuracy_mean_of_subsets"] == pytest.approx(sum(found) / 2) and found[0] != found[1]
    assert sum(tag.startswith("accuracy/") for tag in logged) == 2


def test_accuracy_by_margin_adds_up_to_the_accuracy_and_ties_share_a_bin(batches_of):
    rows, scores = rankings_of(30, seed=1)
    found = seen(batches_of, rows, scores).findings(ALONE)
    bins = found.stored["accuracy_by_margin"]
    hits = sum(a * n for a, n in zip(bins["accuracy"], bins["count"], strict=True))
    gaps = torch.cat([scores[:, a] - scores[:, b] for a, b in ((0, 1), (0, 2), (1, 2))])
    assert hits == pytest.approx(int((gaps > 0).sum()))
    assert sum(bins["count"]) == 90 and max(bins["count"]) - min(bins["count"]) <= 1
    assert bins["margin"] == sorted(bins["margin"]) and len(bins["margin"]) == 4
    for number, (low, high) in enumerate(itertools.pairwise([0, 22, 45, 67, 90]), 1):
        quarter = gaps[gaps.abs().argsort()][low:high]
        assert found.logged[f"accuracy_margin_{number}"] == pytest.approx(float((quarter > 0).float().mean()), abs=0.03)
    tied = seen(batches_of, rows, torch.zeros_like(scores)).findings(ALONE)
    assert tied.stored["accuracy_by_margin"]["count"] == [90.0] and tied.stored["temperature"] == 1.0


def test_findings_do_not_depend_on_batches_or_their_order(batches_of):
    rows, scores = rankings_of(2 * ENOUGH_PROMPTS)
    whole = seen(batches_of, rows, scores).findings(ALONE)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3)).tolist()
    other = seen(batches_of, rows, scores, order, size=7).findings(ALONE)
    assert "ece_after_temperature" in whole.logged
    assert other.logged == pytest.approx(whole.logged, rel=1e-4, abs=1e-6)
    assert other.stored["temperature"] == pytest.approx(whole.stored["temperature"], rel=1e-4)


def test_the_error_after_temperature_is_measured_on_prompts_it_was_not_fitted_on(batches_of):
    rows, scores = rankings_of(4 * ENOUGH_PROMPTS, seed=2)
    boast = seen(batches_of, rows, 10 * scores).findings(ALONE).logged
    honest = seen(batches_of, rows, scores / fit_temperature(*_sides(scores))).findings(ALONE).logged
    assert boast["ece_after_temperature"] == pytest.approx(honest["ece_after_temperature"], rel=1e-3)
    assert boast["ece_after_temperature"] < boast["ece"] / 2
    in_sample = calibration(*(side / fit_temperature(*_sides(scores)) for side in _sides(scores)))
    assert honest["ece"] == pytest.approx(float(in_sample.ece), rel=1e-3)
    assert honest["ece_after_temperature"] != honest["ece"]
    few = seen(batches_of, rows[: ENOUGH_PROMPTS - 1], scores[: ENOUGH_PROMPTS - 1]).findings(ALONE).logged
    assert "ece_after_temperature" not in few and "temperature" in few


def test_each_half_is_divided_by_the_temperature_of_the_other():
    chosen, rejected = _sides(rankings_of(60, seed=4)[1])
    half = torch.arange(len(chosen)) < 70
    chosen = torch.where(half, 8 * chosen, chosen)
    rejected = torch.where(half, 8 * rejected, rejected)
    first, second = fit_temperature(chosen[half], rejected[half]), fit_temperature(chosen[~half], rejected[~half])
    assert first > 3 * second
    gaps = torch.cat([(chosen - rejected)[half] / second, (chosen - rejected)[~half] / first])
    found, expected = cross_calibration(chosen, rejected, half), calibration(gaps, torch.zeros_like(gaps))
    torch.testing.assert_close(torch.stack(found[:4]), torch.stack(expected[:4]))


def _sides(scores):
    pairs = ((0, 1), (0, 2), (1, 2))
    return torch.cat([scores[:, a] for a, _ in pairs]), torch.cat([scores[:, b] for _, b in pairs])


def test_rows_of_one_prompt_fall_into_the_same_half(batches_of):
    """Else the temperature would be measured on the prompt it was fitted on."""
    rows, scores = rankings_of(ENOUGH_PROMPTS)
    once = seen(batches_of, rows, scores).findings(ALONE).logged
    twice = seen(batches_of, rows * 2, scores.repeat(2, 1)).findings(ALONE).logged
    assert twice["ece_after_temperature"] == pytest.approx(once["ece_after_temperature"], rel=1e-4)
    (few, scores), (others, more) = rankings_of(ENOUGH_PROMPTS - 1), rankings_of(ENOUGH_PROMPTS - 1, seed=5)
    assert [row["prompt"] for row in few] == [row["prompt"] for row in others] and few != others
    both = seen(batches_of, few + others, torch.cat([scores, more])).findings(ALONE).logged
    assert "ece_after_temperature" not in both  # other answers do not make other prompts


def test_a_rank_without_rows_joins_the_others_and_fillers_do_not_count(batches_of, monkeypatch):
    rows, scores = rankings_of(4)
    elsewhere = seen(batches_of, rows, scores)
    empty, called = RewardModelEvaluation(), []

    def gather(mine):
        called.append(mine)
        return [(elsewhere._parts, elsewhere._wrong), mine]

    monkeypatch.setattr("rlhf_lightning.training.ranks.everyone", lambda: SimpleNamespace(gather=gather))
    filler = batches_of(rows, [0], 1)[0]
    empty.add(torch.full((3,), 1e6), type(filler)(**{**vars(filler), "num_prompts": 0}))
    assert empty.findings(Ranks(SimpleNamespace(world_size=2))) == elsewhere.findings(ALONE)
    assert called == [([], [])]
    assert RewardModelEvaluation().findings(ALONE) is None


def test_a_score_that_is_not_finite_is_an_error_with_advice(batches_of):
    rows, scores = rankings_of(3)
    scores[1, 1] = float("nan")
    with pytest.raises(NumericalError, match=r"lower reward\.optimizer\.lr"):
        seen(batches_of, rows, scores).findings(ALONE)


@pytest.fixture
def reward_stage(tmp_path):
    """The metrics that the stage ends with, on a file of rankings."""

    def run(file, *words):
        tiny.policy().save_pretrained(tmp_path / "sft")
        tiny.tokenizer().save_pretrained(tmp_path / "sft")
        words = [
            "stage=reward", "task=custom", "logger=none", "trainer=cpu", f"model.path={tmp_path / 'sft'}",
            f"run_dir={tmp_path / 'run'}", f"data.comparisons={file}", "reward.data.batch_size=4", *words,
        ]  # fmt: skip
        return run_pipeline(compose(words))

    return run


def by_words(prompts, shuffled=False):
    """Answers ranked by how often they say "good", or by chance."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for number in range(prompts):
        good, other = torch.randperm(4, generator=generator)[:2].tolist(), tiny.WORDS[-1 - number % 3]
        prompt = f"{tiny.WORDS[number // 14]} {tiny.WORDS[number % 14]}"
        texts = [f" {' '.join(['good'] * n + [other] * (4 - n))}" for n in good]
        order = torch.randperm(2, generator=generator) if shuffled else torch.tensor(good).argsort(descending=True)
        rows.append({"prompt": prompt, "completions": texts, "ranks": (order.argsort() + 1).tolist()})
    return rows


def test_shuffled_labels_are_named_as_chance_and_end_the_run_where_an_accuracy_is_asked_for(
    reward_stage, tmp_path, caplog
):
    rows, least = write(tmp_path / "rows.jsonl", by_words(80, shuffled=True)), "reward.min_accuracy=0.75"
    words = ["reward.optimizer.lr=0.01", "reward.data.validation_fraction=0.5", least]
    with pytest.raises(NumericalError, match=r"min_accuracy=0.75: .* accuracy 0\.\d+ on 40 held-out pairs .*interval"):
        reward_stage(rows, *words)
    assert "THE REWARD MODEL IS AT CHANCE: accuracy" in caplog.text
    assert not (tmp_path / "run" / "reward").exists()
    with pytest.raises(ConfigError, match="no held-out rows to measure it on"):
        reward_stage(rows, least, "reward.data.validation_fraction=0", "overwrite=true")


def test_a_baseline_is_fitted_on_the_training_pairs_and_judged_on_the_others(tmp_path):
    data = ComparisonData(write(tmp_path / "rows.jsonl", by_words(40)), None, tiny.tokenizer(), batch_size=4)
    data.setup("fit")
    found = baselines(data.train_items[:20], data.train_items[20:])
    assert found["baseline_words_accuracy"] == 1.0 and found["baseline_length_accuracy"] == 0.5
    shorter = [replace(i, ranks=[1, 2], sequences=[s, [*s, 5]], lengths=[n, n + 1]) for i in data.train_items
               for s, n in [(i.sequences[0], i.lengths[0])]]  # fmt: skip
    assert baselines(shorter[:20], shorter[20:])["baseline_length_accuracy"] == 1.0
    assert baselines(data.train_items, []) == {}


def test_the_reward_stage_stores_the_temperature_beside_the_score_statistics(rankings, reward_stage, tmp_path, caplog):
    logged = reward_stage(rankings, f"data.comparisons_validation={rankings}")
    metrics = verify_folder(tmp_path / "run" / "reward", "reward")["metrics"]
    assert {"score_mean", "score_std", "temperature", "reliability", "accuracy_by_margin"} <= set(metrics)
    assert metrics["temperature"] == pytest.approx(logged["val/temperature"])
    scorer = RewardModelScorer(Pretrained(str(tmp_path / "run" / "reward")))
    assert (scorer.mean, scorer.std) == (metrics["score_mean"], metrics["score_std"])
    assert caplog.text.count(metrics["doubts"][0]) == 2  # by the stage, and by whoever uses the folder


def test_an_exported_policy_is_read_by_plain_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    sft = SFTModule(tiny.policy(), tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0))
    sft.configure_model()
    sft.policy = tiny.policy()
    folder = sft.export(tmp_path / "sft", {"stage": "sft"})
    ids = AutoTokenizer.from_pretrained(folder)("the food was good .", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = tiny.policy()(ids).logits
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected, atol=1e-6, rtol=0
        )
    reward = reward_module()
    reward.configure_model()
    folder = reward.export(tmp_path / "reward", {"stage": "reward"})
    with torch.no_grad():
        plain = AutoModelForSequenceClassification.from_pretrained(folder)(ids).logits
        ours = reward.model.score(ids, torch.ones_like(ids, dtype=torch.bool))
    assert plain.shape == (1, 1)
    torch.testing.assert_close(plain[0], ours, atol=1e-6, rtol=0)
