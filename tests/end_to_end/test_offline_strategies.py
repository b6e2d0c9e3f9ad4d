"""Learning from given answers in two processes: the same steps as in one."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.end_to_end.test_strategies import SECONDS, assert_same_step
from tests.support import offline, offline_worker, pair, phases, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data files and the results of both ranks."""
    folder = tmp_path_factory.mktemp("offline")
    offline.rankings(folder)
    offline.feedback(folder)
    rows = [{"prompt": p, "completion": c, "label": y} for p, c, y in offline.FEEDBACK[:3]]
    offline.write(folder / "three_answers.jsonl", rows)
    rows = [{"prompt": p, "completions": c, "ranks": r} for p, c, r in offline.RANKINGS[:3]]
    offline.write(folder / "three_rankings.jsonl", rows)
    pair.launch("tests.support.offline_worker", str(folder), log=folder, seconds=SECONDS)
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("phase", ["dpo", "simpo", "kto"])
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(folder, phase, strategy):
    both = []
    for rank in range(2):
        file = folder / f"{phase}_{strategy}.{rank}.pt"
        assert file.is_file(), (folder / f"rank{rank}.log").read_text()[-3000:]
        both.append(torch.load(file, weights_only=True))
        assert "error" not in both[-1], f"rank {rank}:\n{both[-1]['error']}"
    first, second = both
    alone, run = offline_worker.PHASES[phase](folder)
    assert torch.equal(first["weights"], second["weights"])
    assert_same_step(first["weights"], phases.flat(alone.policy), phases.flat(tiny.policy()))
    for name, value in run.callback_metrics.items():
        assert first["logged"][name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
        assert first["logged"][name] == second["logged"][name]
    if phase != "simpo":
        assert torch.equal(first["reference"], phases.flat(tiny.policy(1, scale=2.0)))
    plain = AutoModelForCausalLM.from_pretrained(folder / f"{phase}_{strategy}")
    assert torch.equal(phases.flat(plain), first["weights"])
