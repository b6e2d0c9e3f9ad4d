"""KTO against plain PyTorch, one reference point for all splits of a batch, and what is refused."""

from functools import partial

import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.kto import kto_loss
from rlhf_lightning.functional.preference import dpo_loss
from rlhf_lightning.models import Pretrained
from rlhf_lightning.modules import KTOModule
from tests.support import offline, tiny

ROWS = offline.FEEDBACK


@pytest.fixture
def file(tmp_path):
    return offline.feedback(tmp_path)


def in_order(data):
    """The data without shuffling, so that the next prompt is known."""
    make = data._make_loader
    data._make_loader = lambda items, **options: make(items, **{**options, "shuffle": False})
    return data


def point_of(model, other):
    """max(0, mean log-ratio of each prompt with the answer of the next row)."""
    with torch.no_grad():
        strange = [(p, ROWS[(i + 1) % len(ROWS)][1]) for i, (p, _, _) in enumerate(ROWS)]
        gaps = [offline.plain_logprob(model, *s)[0] - offline.plain_logprob(other, *s)[0] for s in strange]
    return max(float(sum(gaps) / len(gaps)), 0.0)


def plain_loss(model, other, beta=0.1, good=1.0, bad=1.0):
    point, losses = point_of(model, other), []
    for prompt, completion, label in ROWS:
        now, _ = offline.plain_logprob(model, prompt, completion)
        gap = now - offline.plain_logprob(other, prompt, completion)[0].detach()
        value = beta * (gap - point) if label else beta * (point - gap)
        losses.append((good if label else bad) * (1 - value.sigmoid()))
    return sum(losses) / len(losses), point


def sure():
    """A reference that is surer than the policy, and mostly wrong: the reference point is above 0."""
    return tiny.policy(1, scale=2.0)


def flat():
    """A reference that finds all answers more likely than the policy does: the reference point is 0."""
    return tiny.policy(1, scale=0.01)


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
@pytest.mark.parametrize("other", [sure(), flat()], ids=["sure", "flat"])
def test_the_step_is_that_of_plain_pytorch_for_every_micro_batch_split(file, micro, other):
    model = tiny.policy()
    loss, point = plain_loss(model, other, beta=0.2, good=1.5, bad=0.5)
    loss.backward()
    start, end = offline.step(model)
    slot = partial(kto_loss, beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    module = offline.unpaired(loss=slot, reference=other)
    logged = offline.fit(module, in_order(offline.answers(file, micro)))
    assert logged["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["train/kl"] == pytest.approx(point, rel=1e-5, abs=1e-6)
    assert (offline.flat(module.policy) - end).norm() <= 1e-5 * (end - start).norm()


def test_the_references_of_these_tests_are_on_both_sides_of_zero():
    assert point_of(tiny.policy(), sure()) > 1.0 and point_of(tiny.policy(), flat()) == 0.0


def test_gradients_do_not_depend_on_the_split_of_a_shuffled_batch(file):
    ends = {}
    for micro in (8, 4, 2, 1):
        module = offline.unpaired(reference=sure())
        offline.fit(module, offline.answers(file, micro))
        ends[micro] = offline.flat(module.policy)
    start = offline.flat(tiny.policy())
    for micro in (4, 2, 1):
        assert (ends[micro] - ends[8]).norm() <= 1e-6 * ends[8].norm()
        assert (ends[micro] - ends[8]).norm() <= 1e-5 * (ends[8] - start).norm()


def test_the_reference_point_is_measured_again_when_the_same_batch_comes_again(file):
    module, data = offline.unpaired(reference=sure()), offline.answers(file, micro=8)
    offline.fit(module, data)
    batch = next(iter(data.train_dataloader()))
    before, again = (float(module.training_loss(batch)[1]["kl"]) for _ in range(2))
    module.policy.load_state_dict(sure().state_dict())
    assert before == again > 1.0 and float(module.training_loss(batch)[1]["kl"]) == 0.0


def test_the_first_loss_is_one_half_where_policy_and_reference_agree(file):
    logged = offline.fit(offline.unpaired(), offline.answers(file, micro=2))
    assert logged["train/loss"] == 0.5 and logged["train/kl"] == 0.0
    assert logged["train/num_answers"] == 8 and logged["train/num_chosen"] == 4 and logged["train/num_rejected"] == 4
    assert logged["train/rewards/margins"] == logged["train/drift/chosen"] == 0.0
    assert logged["train/rewards/accuracies"] == 0.0


@pytest.mark.parametrize(("micro", "other"), [(8, sure()), (3, sure()), (2, flat()), (1, sure())])
def test_validation_has_one_reference_point_whatever_the_batches(file, micro, other):
    with torch.no_grad():
        loss, point = plain_loss(tiny.policy(), other)
        found = {True: [], False: []}
        for prompt, completion, label in ROWS:
            now = float(offline.plain_logprob(tiny.policy(), prompt, completion)[0])
            found[label].append((now, now - float(offline.plain_logprob(other, prompt, completion)[0])))
    module = offline.unpaired(lr=0.0, reference=other)
    data = offline.answers(file, micro, batch=micro if micro == 3 else 8, validation=file)
    logged = offline.fit(module, data)
    assert logged["val/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["val/kl"] == pytest.approx(point, rel=1e-5, abs=1e-6)
    for name, label in (("chosen", True), ("rejected", False)):
        logps, drift = (sum(column) / 4 for column in zip(*found[label], strict=True))
        assert logged[f"val/logps/{name}"] == pytest.approx(logps, rel=1e-5)
        assert logged[f"val/drift/{name}"] == pytest.approx(drift, rel=1e-5)
        assert logged[f"val/rewards/{name}"] == pytest.approx(0.1 * drift, rel=1e-5)
    right = [gap > point if label else gap < point for label, rows in found.items() for _, gap in rows]
    assert logged["val/rewards/accuracies"] == pytest.approx(sum(right) / len(right))
    assert logged["val/rewards/margins"] == pytest.approx(
        logged["val/rewards/chosen"] - logged["val/rewards/rejected"], rel=1e-4
    )


def test_each_validation_has_the_reference_point_of_the_policy_as_it_is(file):
    module = offline.unpaired(lr=20.0, reference=sure())
    logged = offline.fit(module, offline.answers(file, validation=file), epochs=2)
    assert logged["val/kl"] == pytest.approx(point_of(module.policy, sure()), rel=1e-5)
    assert abs(point_of(tiny.policy(), sure()) - logged["val/kl"]) > 0.1


def test_a_mean_over_no_answers_is_not_logged(file, tmp_path):
    good = [{"prompt": p, "completion": c, "label": 1} for p, c, label in ROWS if label]
    held_out = offline.write(tmp_path / "good.jsonl", good)
    logged = offline.fit(offline.unpaired(lr=0.0), offline.answers(file, validation=held_out))
    assert logged["val/num_chosen"] == 4 and logged["val/num_rejected"] == 0
    sides = {name.removeprefix("val/") for name in logged if name.startswith("val/") and "/" in name[4:]}
    assert sides == {"rewards/accuracies", "rewards/chosen", "logps/chosen", "drift/chosen"}


def test_held_out_labels_are_learned_and_the_reference_stands_still(tmp_path):
    good, bad = [" very good .", " good and kind .", " happy"], [" bad .", " slow and bad .", " very slow"]

    def rows(prompts):
        return [{"prompt": p, "completion": c, "label": int(c in good)} for p in prompts for c in good + bad]

    train = offline.write(tmp_path / "t.jsonl", rows(["the food was", "we left", "the service was", "food"]))
    held_out = offline.write(tmp_path / "v.jsonl", rows(["the very service", "we"]))
    module = offline.unpaired(lr=5e-4, adam=True)
    logged = offline.fit(module, offline.answers(train, validation=held_out), epochs=10)
    assert logged["val/loss"] < 0.4 and logged["val/rewards/accuracies"] > 0.6
    assert logged["val/rewards/margins"] > 0.3
    assert torch.equal(offline.flat(module.frozen["reference"]), offline.flat(tiny.policy()))
    assert {name.split(".")[0] for name in module.state_dict()} == {"policy"}


def test_comparisons_teach_as_well(tmp_path):
    data = offline.answers(offline.rankings(tmp_path), micro=2)
    logged = offline.fit(offline.unpaired(), data)
    assert logged["train/num_answers"] == 19 % 8  # of the last step
    assert (data.report["desirable_rows"], data.report["undesirable_rows"], data.report["undecided"]) == (9, 10, 2)


def test_bfloat16_autocast_keeps_the_gradient_of_the_policy(file):
    """The answers of the reference point run without gradient under the same autocast as those that are learned."""
    norms = []
    for precision in ("32-true", "bf16-mixed"):
        logged = offline.fit(
            offline.unpaired(reference=tiny.policy(1)), offline.answers(file, micro=4), precision=precision
        )
        norms.append(logged["train/grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=5e-2)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (partial(kto_loss, beta=-1.0), "beta=-1.0"),
        (partial(kto_loss, undesirable_weight=-1.0), "undesirable_weight=-1.0"),
        (dpo_loss, r"^kto\.loss: dpo_loss cannot be called as f\(logprobs"),
    ],
)
def test_invalid_losses_are_refused_before_a_model_is_loaded(loss, message):
    with pytest.raises(ConfigError, match=message):
        KTOModule(Pretrained("nowhere"), tiny.tokenizer(), partial(torch.optim.SGD, lr=1.0), loss=loss)
