"""Rollouts that are recorded and fed back."""

import json
from dataclasses import fields
from functools import partial

import pytest
import torch

from rlhf_lightning.callbacks import RecordRollouts
from rlhf_lightning.checkpoint.places import remove_folder
from rlhf_lightning.errors import CheckpointError, ConfigError, DataError
from rlhf_lightning.functional.advantage import gae, rloo
from rlhf_lightning.rollout.recorded import Call, ReplayEngine, iterations, place, read, table, write
from rlhf_lightning.scoring.recorded import RecordedScorer
from rlhf_lightning.types import Rollout
from tests.support import commands, phases, tiny

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
WAYS = {
    "critic": {},
    "greedy": {"baseline": "greedy", "ppo_epochs": 1, "advantage": partial(gae, lam=1.0)},
    "resampled": {"group_size": 2, "baseline": "none", "max_resamples": 2, "advantage": partial(rloo, group_size=2)},
}


def learned(module, folder, **options):
    phases.ppo(folder, module, batch=4, **options)
    return [phases.flat(module.policy)] + ([] if module.critic is None else [phases.flat(module.critic)])


def module_of(way):
    return phases.ppo_module(num_minibatches=1, **WAYS[way])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two rollouts of each kind, and the weights they led to."""
    folder = phases.write(tmp_path_factory.mktemp("recorded"))
    return folder, {way: learned(module_of(way), folder, callbacks=[RecordRollouts(folder / way)]) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_fed_back_leads_to_the_same_weights_bit_for_bit(recorded, way):
    folder, weights = recorded
    module = module_of(way)
    module.engine, module.scorer = ReplayEngine(folder / way), RecordedScorer()
    assert all(torch.equal(*pair) for pair in zip(learned(module, folder), weights[way], strict=True))
    calls = [len(read(folder / way, iteration, 0)) for iteration, _ in iterations(folder / way)]
    assert len(calls) == 2 and all(number == 1 for number in calls) is (way == "critic")


def rollout_of(lengths, written, width):
    ids = torch.arange(len(lengths) * width).reshape(len(lengths), width) + 3
    attended = torch.arange(width) < torch.tensor(lengths)[:, None]
    mask = attended & torch.tensor(written)[:, None]
    prompt = torch.tensor([[0, 5, 6]] * len(lengths))
    return Rollout(
        prompt_ids=prompt, prompt_mask=prompt > 0, response_ids=ids.masked_fill(~attended, 1), mask=mask,
        finished=torch.tensor([True, False]), rollout_logprobs=-ids.float().masked_fill(~attended, 0) / 7,
        weight_version=torch.tensor([3, 4]), rows=(), context=attended & ~mask if (attended & ~mask).any() else None,
    )  # fmt: skip


@pytest.mark.parametrize("written", [[True, True], [True, False]])
def test_a_rollout_comes_back_as_it_was(tmp_path, written):
    rollout, scores = rollout_of([2, 5], written, 6), torch.tensor([0.5, float("nan")])
    write(tmp_path, 7, 1, [Call(rollout, ["a", "b"], ["c", "d"], scores, [{"environment_reward": 2.0}, {}])])
    (back,) = read(tmp_path, 7, 1)
    for field in fields(Rollout):
        found, expected = getattr(back.rollout, field.name), getattr(rollout, field.name)
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected, field.name
    assert back.texts == ["c", "d"] and torch.equal(back.scores.nan_to_num(9), scores.nan_to_num(9))
    assert back.environment == [{"environment_reward": 2.0}, {}]


def test_long_answers_cost_only_their_tokens(tmp_path):
    ids = torch.randint(3, 30000, (64, 512))
    lengths = torch.linspace(8, 512, 64).long()
    mask = torch.arange(512) < lengths[:, None]
    texts = ["word " * int(n) for n in lengths]
    rollout = Rollout(ids[:, :32], mask[:, :32] | True, ids, mask, mask[:, -1], ids.float(), lengths * 0, ())
    write(tmp_path, 1, 0, [Call(rollout, ["prompt"] * 64, texts, torch.zeros(64))])
    kept = sum(file.stat().st_size for file in place(tmp_path, 1, 0).iterdir())
    assert kept / int(mask.sum()) < 50  # bytes for each token


def test_what_cannot_be_fed_back_is_said(recorded, tmp_path):
    folder, _ = recorded
    module = module_of("critic")
    module.engine, module.scorer = ReplayEngine(folder / "critic"), RecordedScorer()
    with pytest.raises(DataError, match="has 2 rollouts, and the run asks for one more"):
        phases.ppo(folder, module, rollouts=3, batch=4)
    with pytest.raises(DataError, match="rollout 1 answers other prompts"):
        ReplayEngine(folder / "critic").generate(tiny.prompts("we", "we", "we", "we"), None)
    with pytest.raises(DataError, match="no recorded rollouts of rank 0"):
        ReplayEngine(tmp_path).generate(tiny.prompts("we"), None)
    write(tmp_path, 1, 0, [Call(rollout_of([1, 1], [True, True], 2), ["we", "we"], ["a", "b"])])
    rollout = ReplayEngine(tmp_path).generate(tiny.prompts("we", "we"), None)
    with pytest.raises(ConfigError, match="have no recorded scores"):
        RecordedScorer().score(rollout, None)
    file = place(tmp_path, 1, 0) / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="checksum differs"):
        ReplayEngine(tmp_path).generate(tiny.prompts("we", "we"), None)


def test_scores_of_tokens_come_back(tmp_path):
    rollout, scores = rollout_of([2, 5], [True, True], 6), torch.rand(2, 6)
    write(tmp_path, 1, 0, [Call(rollout, ["we", "we"], ["a", "b"], scores)])
    fed = ReplayEngine(tmp_path).generate(tiny.prompts("we", "we"), None)
    assert torch.equal(RecordedScorer().score(fed, None), scores)
    expected = (scores * rollout.mask).sum(1)
    assert [row["score"] for row in table(tmp_path)] == pytest.approx(expected.tolist())


def test_a_resumed_replay_goes_on_where_it_was(recorded):
    folder, _ = recorded
    engine, again = ReplayEngine(folder / "greedy"), ReplayEngine(folder / "greedy")
    calls = [call for iteration, _ in iterations(folder / "greedy") for call in read(folder / "greedy", iteration, 0)]
    prompts = [tiny.prompts(*call.prompts) for call in calls]
    for number, asked in enumerate(prompts):
        again.load_state_dict(json.loads(json.dumps(engine.state_dict())))
        found = engine.generate(asked, None)
        assert torch.equal(found.response_ids, again.generate(asked, None).response_ids)
        assert torch.equal(found.response_ids, calls[number].rollout.response_ids)


def test_the_command_shows_and_filters(recorded, tmp_path):
    folder, _ = recorded
    rows = list(table(folder / "critic"))
    assert len(rows) == 8 and {row["rollout"] for row in rows} == {1, 2}
    scores = sorted(row["score"] for row in rows)
    out = tmp_path / "lowest.jsonl"
    words = ["rollouts", str(folder / "critic")]
    done = commands.answer([*words, "--sort", "score", "-n", "3", "--out", str(out)])
    assert done["code"] == 0 and "3 of 8 answers" in done["out"]
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == scores[:3]
    done = commands.answer([*words, "--rollout", "2", "--above", str(scores[0] - 1), "-n", "0"])
    assert "4 of 8 answers" in done["out"] and "completion" in done["out"]
    done = commands.answer([*words, "--contains", "no such word"])
    assert done["out"].strip() == "0 of 8 answers"
    assert commands.answer(["rollouts", str(tmp_path / "nothing")])["code"] == 3


def test_only_every_so_many_are_recorded_and_nothing_without_a_folder(tmp_path):
    phases.write(tmp_path)
    learned(module_of("critic"), tmp_path, rollouts=3, callbacks=[RecordRollouts(tmp_path / "some", 2)])
    assert iterations(tmp_path / "some") == [(1, 0), (3, 0)]
    module = module_of("critic")
    learned(module, tmp_path, callbacks=[RecordRollouts()])
    assert module.recorder is None
    remove_folder(place(tmp_path / "some", 1, 0))
    assert iterations(tmp_path / "some") == [(3, 0)]
