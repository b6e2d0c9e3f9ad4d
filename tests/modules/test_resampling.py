"""Dynamic sampling: other prompts instead of groups that agree, nothing judged twice, and a resume that is exact."""

from functools import partial

import pytest
import torch

from rlhf_lightning.callbacks import DurableCheckpoint
from rlhf_lightning.checkpoint.io import DurableCheckpointIO, checkpoints
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.ppo_settings import PPOSettings
from rlhf_lightning.modules.resampling import Judged, check_draws, with_other_prompts
from rlhf_lightning.scoring import FunctionScorer
from rlhf_lightning.training.ranks import Ranks
from rlhf_lightning.types import PromptBatch, Rollout
from tests.support import phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")

ALL_ALIKE = {"p1", "p2", "p4"}  # prompts whose two answers score the same


def batch(*names):
    ids = torch.tensor([[int(name[1:])] for name in names])
    return PromptBatch(ids, torch.ones_like(ids).bool(), tuple({"prompt": name} for name in names))


class Bench:
    """Counts what is drawn and judged; the second answer to each prompt is one token longer and scores more."""

    def __init__(self):
        self.draws, self.judged = 0, []

    def draw(self):
        self.draws += 1
        return batch("p4", "p5", "p6", "p7")

    def answered(self, prompts):
        self.judged.append([row["prompt"] for row in prompts.rows][::2])
        number = torch.arange(len(prompts)) % 2
        mask = torch.arange(2) <= number[:, None]
        scores = torch.tensor(
            [float(n) * (r["prompt"] not in ALL_ALIKE) for n, r in zip(number, prompts.rows, strict=True)]
        )
        ids = prompts.input_ids.expand(-1, 2)
        rollout = Rollout(
            prompts.input_ids,
            prompts.attention_mask,
            ids,
            mask,
            number.bool(),
            None,
            number,
            prompts.rows,
            asked=prompts,
        )
        return Judged(rollout, scores, {"id": prompts.input_ids[:, 0].float(), "now and then": scores})

    def run(self, *names, attempts=9, ranks=None):
        first = self.answered(batch(*names).repeat_interleave(2))
        first.details.pop("now and then")
        settings = PPOSettings(group_size=2, max_resamples=attempts)
        return with_other_prompts(first, self.answered, self.draw, ranks or Ranks(), settings, 0)


def test_other_prompts_take_the_places_and_only_their_answers_are_judged():
    bench = Bench()
    out = bench.run("p0", "p1", "p2", "p3")
    assert bench.judged == [["p0", "p1", "p2", "p3"], ["p4", "p5"], ["p6"]]
    assert bench.draws == 1  # p6 had waited
    want = [0, 0, 6, 6, 5, 5, 3, 3]
    assert out.details.keys() == {"id"} and out.details["id"].tolist() == want
    assert [row["prompt"] for row in out.rollout.rows] == [f"p{i}" for i in want]
    for ids in (out.rollout.prompt_ids, out.rollout.asked.input_ids, out.rollout.response_ids[:, :1]):
        assert ids.flatten().tolist() == want
    assert out.scores.tolist() == [0, 1] * 4


def test_after_the_last_attempt_groups_that_agree_stay():
    bench = Bench()
    out = bench.run("p0", "p1", "p2", "p3", attempts=1)
    assert out.details["id"].tolist()[::2] == [0, 4, 5, 3] and len(bench.judged) == 2


def test_a_rank_without_such_groups_draws_and_samples_along_and_keeps_its_own():
    asked = [2.0, 0.0]

    class Other(Ranks):
        """Another rank has two rows to replace, once."""

        def sum(self, *values):
            return [float(values[0]) + asked.pop(0)]

        def first_fault(self, faults):
            return "too few"

    bench = Bench()
    out = bench.run("p0", "p3", ranks=Other())
    assert bench.judged == [["p0", "p3"], ["p4"]] and bench.draws == 1
    assert out.details["id"].tolist() == [0, 0, 3, 3]


def test_a_loader_that_has_no_other_prompts_is_refused():
    check_draws([], 0)
    with pytest.raises(ConfigError, match=r"max_resamples=2 draws other prompts, and list has no draw\(\)"):
        check_draws([], 2)


class Seen(FunctionScorer):
    """1 for an answer with "good"; keeps what it was shown."""

    def __init__(self):
        super().__init__(lambda prompts, completions, **columns: [float("good" in c.split()) for c in completions])
        self.shown = []

    def score(self, rollout, tokenizer):
        self.shown.append(rollout)
        return super().score(rollout, tokenizer)

    def details_of(self, rollout):
        return {"first": rollout.response_ids[:, 0].float()} if any(rollout is one for one in self.shown) else {}


def train(folder, resume=None, **options):
    module = phases.ppo_module(
        optimizer=partial(torch.optim.AdamW, lr=1e-2), num_minibatches=1, group_size=2, max_resamples=2,
        whiten_advantages=False,
    )  # fmt: skip
    module.scorer = Seen()
    data = PromptData(
        folder / "prompts.jsonl", None, tiny.tokenizer(), batch_size=4, group_size=2, rollouts=3,
        validation_fraction=0.0,
    )  # fmt: skip
    run = phases.trainer(plugins=[DurableCheckpointIO()], **options)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, data


def test_a_run_resumed_between_rollouts_draws_what_an_uninterrupted_one_draws(tmp_path):
    folder = phases.write(tmp_path)
    saver = DurableCheckpoint(folder / "checkpoints", every_n_steps=1, keep=100)
    whole, data = train(folder, callbacks=[saver], checkpointing=True)
    position = data.state_dict()["position"]
    shown = [rollout.response_ids.tolist() for rollout in whole.scorer.shown]
    assert len(shown) > 3 and len({id(rollout) for rollout in whole.scorer.shown}) == len(shown)  # each of them once
    assert position > 3 and min(map(len, shown)) < 4
    learned = whole.last_experience.rollout
    assert not any(learned is one for one in whole.scorer.shown)  # but made of several of them
    assert torch.equal(whole.details_of(learned)["first"], learned.response_ids[:, 0].float())
    resumed, other = train(folder, resume=checkpoints(folder / "checkpoints")[::-1][0])
    assert other.state_dict()["position"] == position
    again = [rollout.response_ids.tolist() for rollout in resumed.scorer.shown]
    assert again == shown[-len(again) :]
    assert resumed.last_experience.rollout.rows == whole.last_experience.rollout.rows
    for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)
