"""The global random streams go on where a checkpoint left them."""

import json
import random

import numpy as np
import torch

from rlhf_lightning.training.random_state import random_state, restore_random_state

CPU = torch.device("cpu")


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_every_stream_draws_again_what_it_drew_after_the_checkpoint():
    state = random_state(CPU)
    drawn, later = draw(), draw()
    assert all(a != b for a, b in zip(drawn, later, strict=True))
    restore_random_state(state | {"numpy": json.loads(json.dumps(state["numpy"]))}, CPU)
    assert draw() == drawn
