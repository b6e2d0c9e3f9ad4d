"""SFT and reward phases against plain PyTorch, and gradients that no split changes."""

from functools import partial

import lightning
import pytest
import torch

from rlhf_lightning.data.comparisons import ComparisonData
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.modules import RewardModule, SFTModule
from tests import tiny

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
