"""Numbers that scorers, engines and the guard cannot work with are refused by name, in Python as in a config."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation.hacking import Limits
from rlhf_lightning.rollout.engine import Sampling
from rlhf_lightning.rules.ranges import require
from rlhf_lightning.scoring import FunctionScorer
from rlhf_lightning.scoring.remote import RemoteScorer

OURS = partial(FunctionScorer, lambda completions: [0.0] * len(completions), isolate=False)
FAR = partial(RemoteScorer, "http://127.0.0.1:1")
SAMPLING = partial(Sampling, max_new_tokens=4)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (OURS, "retries"), (FAR, "retries"), (FAR, "batch_size"), (FAR, "concurrency"), (Sampling, "max_new_tokens"),
        (SAMPLING, "top_k"), (SAMPLING, "min_new_tokens"), (Limits, "window"),
    ],
)  # fmt: skip
def test_a_count_that_is_not_whole_is_refused(make, name):
    with pytest.raises(ConfigError, match=rf"{name}=2\.5: must be a whole number, at least [01]$"):
        make(**{name: 2.5})
    with pytest.raises(ConfigError, match=f"{name}=True: must be a whole number"):
        make(**{name: True})
    make(**{name: 2})
    make(**{name: np.int32(2)})


def test_a_count_without_bounds_is_refused_in_plain_words():
    with pytest.raises(ConfigError, match=r"rows=0\.5: must be a whole number$"):
        require("rows", 0.5, whole=True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("2", "'2'"), ([2], r"\[2\]"), (np.ones(2), r"array\(\[1., 1.\]\)"), (torch.ones(1), r"tensor\(\[1.\]\)"),
     ("x" * 99, "'x{59}"), (np.array("a"), "'a'"), (2j, "2j")],
)  # fmt: skip
def test_text_and_arrays_are_no_numbers(value, shown):
    with pytest.raises(ConfigError, match=rf"^gamma={shown}: must be a number, at least 0 and below 9: it is a share$"):
        require("gamma", value, at_least=0, below=9, why="it is a share")
    with pytest.raises(ConfigError, match=rf"^window={shown}: must be a whole number, at least 1$"):
        require("window", value, at_least=1, whole=True)


@pytest.mark.parametrize("value", [np.float32(2), np.array(2), torch.tensor(2), np.int8(2)])
def test_a_number_of_numpy_or_torch_is_one(value):
    require("gamma", value, above=1, at_most=2)
    with pytest.raises(ConfigError, match=r"^gamma=2(\.0)?: must be above 2$"):
        require("gamma", value, above=2)
    if not isinstance(value, np.floating):
        require("window", value, at_least=1, whole=True)
    with pytest.raises(ConfigError, match=r"^window=2\.5: must be a whole number, at least 1$"):
        require("window", torch.tensor(2.5), at_least=1, whole=True)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300])
@pytest.mark.parametrize(("make", "name"), [(OURS, "abstain_value"), (FAR, "abstain_value"), (SAMPLING, "temperature")])
def test_a_number_that_is_none_is_refused(make, name, value):
    with pytest.raises(ConfigError, match=f"{name}=.*: must be"):
        make(**{name: value})
