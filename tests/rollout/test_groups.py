"""Groups that agree are found and replaced, whatever the widths."""

from dataclasses import replace

import torch

from rlhf_lightning.rollout.groups import replaced, undecided
from rlhf_lightning.types import Rollout


def rollout(ids, finished, logprobs=True, version=0):
    ids = torch.tensor(ids)
    rows = tuple({"prompt": str(i)} for i in range(len(ids)))
    prompt = torch.zeros(len(ids), 2, dtype=torch.long)
    kept = ids.float() if logprobs else None
    versions = torch.full((len(ids),), version)
    return Rollout(prompt, prompt.bool(), ids, ids > 0, torch.tensor(finished), kept, versions, rows)


def test_groups_without_spread_are_undecided():
    assert undecided(torch.tensor([1.0, 2.0, 3.0, 3.0, 0.0, 0.0]), 2).tolist() == [2, 3, 4, 5]
    nan = torch.nan
    assert undecided(torch.tensor([nan, nan, 1.0, nan, nan, 0.0, 1.0, nan]), 4).tolist() == [0, 1, 2, 3]


def test_fresh_rows_take_their_places_and_the_narrow_side_is_padded():
    old = rollout([[1, 2], [3, 4], [5, 6]], [True, True, False])
    wide, narrow = rollout([[7, 8, 9]], [False], version=3), rollout([[7]], [False])
    out = replaced(old, torch.tensor([1]), wide, pad_token_id=-1)
    assert out.response_ids.tolist() == [[1, 2, -1], [7, 8, 9], [5, 6, -1]]
    assert out.weight_version.tolist() == [0, 3, 0]
    assert torch.equal(out.mask, out.response_ids > 0) and out.finished.tolist() == [True, False, False]
    assert torch.equal(out.rollout_logprobs, out.response_ids.clamp(min=0).float())
    out = replaced(old, torch.tensor([0]), narrow, pad_token_id=0)
    assert out.response_ids.tolist() == [[7, 0], [3, 4], [5, 6]] and out.rows == old.rows


def test_logprobs_of_an_engine_that_keeps_none_stay_none():
    old, fresh = rollout([[1]], [True], logprobs=False), rollout([[2]], [True], logprobs=False)
    assert replaced(old, torch.tensor([0]), fresh, 0).rollout_logprobs is None


def test_text_from_elsewhere_is_kept_where_only_one_side_has_any():
    plain = rollout([[1, 2], [3, 4]], [True, True])
    talked = replace(rollout([[5, 6, 7]], [True]), context=torch.tensor([[False, True, False]]))
    out = replaced(plain, torch.tensor([1]), talked, pad_token_id=0)
    assert out.context.tolist() == [[False] * 3, [False, True, False]]
    out = replaced(out, torch.tensor([1]), rollout([[8]], [True]), pad_token_id=0)
    assert out.context.tolist() == [[False] * 3] * 2
