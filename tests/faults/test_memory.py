"""Memory that runs out: the same work in smaller pieces, with the same gradient (case 29)."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_lightning.errors import OutOfMemory
from rlhf_lightning.models import ScalarModel
from rlhf_lightning.models.memory import halved
from rlhf_lightning.rollout import HFGenerateEngine, LoopEngine, Sampling
from rlhf_lightning.scoring.reward_model import RewardModelScorer
from rlhf_lightning.training.smaller_batches import parts
from tests.support import tiny
from tests.support.memory_faults import CPU, CUDA, Gradients, Small, SmallWithoutGradient, validated
from tests.support.numeric_faults import STAGES, data_of, fit, module_of, write

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*out of memory.*:UserWarning"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("when", "error", "micro"), [("forward", CPU, 4), ("backward", CUDA, 4), ("backward", CPU, 2)])
def test_case_29_the_step_is_done_again_in_parts_with_the_same_gradient(stage, when, error, micro, files, tmp_path):
    settings = {"micro_batch_size": micro} if stage == "ppo" else {}
    whole, again = Gradients(), Gradients()
    memory = Small({"reward": 3, "dpo": 3}.get(stage, 1), when, error)
    plain, before = fit(stage, tmp_path / "a", 2, module_of(stage, **settings), [whole], micro, data=files)
    module, trainer = fit(stage, tmp_path / "b", 2, module_of(stage, **settings), [memory, again], micro, data=files)
    assert memory.refused == {4: 2, 2: 1}[micro] or stage in ("reward", "dpo")  # remembered for the second step
    assert 1 <= memory.refused <= 2 and memory.passed
    assert (
        len(memory.failed) == memory.refused and not memory.alive
    )  # the graph of a failed try is gone before the next
    torch.testing.assert_close(again.seen[0], whole.seen[0], atol=1e-6, rtol=1e-6)
    assert len(again.seen) == len(whole.seen)
    for (name, mine), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    for metric in ("train/loss", "train/num_tokens", "train/num_pairs", "train/num_answers"):
        if metric in before.callback_metrics:  # of the second step
            torch.testing.assert_close(
                trainer.callback_metrics[metric], before.callback_metrics[metric], atol=1e-3, rtol=1e-3
            )
    tag = "perf/micro_batch_size" if stage == "ppo" else "perf/micro_batch_tokens"
    assert float(trainer.callback_metrics[tag]) >= 1


@pytest.mark.parametrize("stage", STAGES)
def test_case_29_where_a_single_row_does_not_fit_the_error_says_what_to_lower(stage, files, tmp_path):
    key = rf"{stage}\.settings\.micro_batch_size" if stage == "ppo" else rf"{stage}\.data\.max_length"
    with pytest.raises(OutOfMemory, match=f"{stage}: out of memory with 1 row.*lower.*{key}") as error:
        fit(stage, tmp_path, 2, callbacks=[Small(0, "backward")], data=files)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_case_29_another_error_is_not_taken_for_it(stage, files, tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        fit(
            stage,
            tmp_path,
            2,
            callbacks=[Small(0, "backward", RuntimeError("shapes cannot be multiplied"))],
            data=files,
        )


def test_case_29_random_numbers_start_where_the_step_started(files, tmp_path):
    drawn = []

    class Dropping(Small):
        def setup(self, trainer, module, stage):
            original = module.training_loss

            def noisy(batch):
                drawn.append((len(batch.input_ids), float(torch.rand(()))))
                return original(batch)

            module.training_loss = noisy
            super().setup(trainer, module, stage)

    _, trainer = fit("sft", tmp_path, 1, callbacks=[Dropping(2, "backward")], micro=4, data=files)
    data = data_of("sft", files, micro=4)
    data.setup()
    counted = next(iter(data.train_dataloader())).mask.sum()
    assert trainer.callback_metrics["train/num_tokens"] == counted  # the failed try left nothing in the sums
    assert [rows for rows, _ in drawn] == [4, 2, 2] and drawn[0][1] == drawn[1][1]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto"])
@pytest.mark.parametrize("limit", [1, 20, 10**6])
def test_parts_hold_every_row_once(stage, limit, files):
    data = data_of(stage, files, micro=4)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    if stage == "kto":  # fewer of these than rows
        batch = replace(batch, mismatched=batch.mismatched.select(torch.arange(1)))
    cut = list(parts(batch, limit))
    rows = torch.cat([part.input_ids for part in cut])
    assert torch.equal(rows, batch.input_ids)
    assert len(cut) == min(4, math.ceil(batch.input_ids.numel() / limit)) or len(cut) == 2
    strange = [getattr(some, "mismatched", None) is not None for some in (batch, *cut)]
    assert sum(strange) == 2 * strange[0] and strange[0] is (stage == "kto")
    if hasattr(batch, "prompt_index"):
        assert sum(part.num_prompts for part in cut) == batch.num_prompts
        assert all(int(part.prompt_index.min()) == 0 for part in cut)


def refusing(model, most, error=CUDA):
    """The model refuses more than ``most`` rows."""

    def look(module, args, kwargs):
        if len(kwargs["input_ids"]) > most:
            raise error

    return model.register_forward_pre_hook(look, with_kwargs=True)


def test_case_29_sampling_goes_on_with_fewer_rows_and_draws_the_same():
    prompts = tiny.prompts(
        "the food was", "we", "good food and", "bad", "kind service", "very slow food and bad .", "the"
    )
    engines = [LoopEngine(), LoopEngine()]
    policy = tiny.policy()
    rollouts = []
    for engine, most in zip(engines, (99, 2), strict=True):
        engine.sync(policy, (1,), 0, 0)
        engine.seed(3)
        hook = refusing(policy, most)
        rollouts.append(engine.generate(prompts, Sampling(6)))
        hook.remove()
    assert torch.equal(rollouts[0].response_ids, rollouts[1].response_ids)
    torch.testing.assert_close(rollouts[0].rollout_logprobs, rollouts[1].rollout_logprobs)
    assert engines[1]._most_rows in (1, 2)


@pytest.mark.parametrize(("engine", "advice"), [(LoopEngine(), "max_new_tokens"), (HFGenerateEngine(), "rollout=loop")])
def test_case_29_sampling_that_does_not_fit_says_what_to_do(engine, advice):
    policy = tiny.policy()
    engine.sync(policy, (1,), 0, 0)
    refusing(policy, 0)
    with pytest.raises(OutOfMemory, match=f"sampling: out of memory.*{advice}"):
        engine.generate(tiny.prompts("the food was", "we"), Sampling(6))


class Scorer(RewardModelScorer):
    """A reward model without a folder."""

    def __init__(self):
        torch.manual_seed(0)
        self.name, self.tokenizer, self.mean, self.std = "reward_model", tiny.tokenizer(), 0.0, 1.0
        self.model = ScalarModel.from_policy(tiny.policy()).eval()
        torch.nn.init.normal_(self.model.model.score.weight)
        self.micro_batch_size, self.on_error, self._same_ids = 16, "raise", True


def test_case_29_scoring_goes_on_with_fewer_answers():
    engine = LoopEngine()
    engine.sync(tiny.policy(), (1,), 0, 0)
    engine.seed(0)
    rollout = engine.generate(tiny.prompts("the food was", "we", "good", "bad and slow", "kind"), Sampling(4))
    scorer = Scorer()
    expected = scorer.score(rollout, tiny.tokenizer())
    inner, asked = scorer.model.score, []

    def small(ids, mask):
        asked.append(len(ids))
        if len(ids) > 2:
            raise CPU
        return inner(ids, mask)

    scorer.model.score = small
    torch.testing.assert_close(scorer.score(rollout, tiny.tokenizer()), expected)
    assert scorer.micro_batch_size == 2 and asked[0] == 5
    torch.testing.assert_close(scorer.score(rollout, tiny.tokenizer()), expected)
    assert max(asked[-3:]) <= 2


def test_halving_warns_each_time_and_gives_up_at_the_smallest():
    def attempt(rows):
        if rows > 3:
            raise CUDA
        return rows

    with pytest.warns(UserWarning, match="at most"):
        assert halved(attempt, 13, "work", "advice") == (3, 3)
    with pytest.raises(OutOfMemory, match="work: out of memory with 8 rows at once; advice"):
        halved(attempt, 8, "work", "advice", smallest=8)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "ppo"])
def test_case_29_validation_is_done_in_parts_with_the_same_result(stage, files, tmp_path):
    memory = SmallWithoutGradient({"reward": 3, "dpo": 3}.get(stage, 1), "forward")
    whole, _ = validated(stage, files, tmp_path / "a")
    found, module = validated(stage, files, tmp_path / "b", [memory])
    assert memory.refused >= 1 and memory.passed and module.splitting.val_limit is not None
    assert found == pytest.approx(whole, rel=1e-5, abs=1e-6) and len(found) > 1


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "ppo"])
def test_case_29_validation_of_a_single_row_that_does_not_fit_says_what_to_lower(stage, files, tmp_path):
    with pytest.raises(OutOfMemory, match=rf"{stage}: out of memory with 1 row.*lower.*{stage}\.data\.max_length"):
        validated(stage, files, tmp_path, [SmallWithoutGradient(0, "forward")])
