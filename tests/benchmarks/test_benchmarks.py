"""The benchmarks themselves: assets, rows in the same order on both sides, the clock, ratios, and one tiny run."""

import doctest
import importlib
import json
import statistics
import time
from pathlib import Path

import pytest
import torch

from benchmarks import against_trl_learning as learning
from benchmarks import cached_reference, run
from benchmarks.clock import Clock, Phase
from benchmarks.frontier import Point
from benchmarks.kit import make_kit
from benchmarks.mutant_tests import Ran, choose
from benchmarks.mutants import mutants_of
from benchmarks.ours import overrides_of
from benchmarks.report import ratios
from benchmarks.rows import choose_rows
from benchmarks.suites import SUITES, Bar, Entry, Suite, named_suites
from rlhf_lightning.config.compose import compose
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.models.loading import load_tokenizer


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    make_kit(folder, seed=0, size="tiny")
    return folder


def bench(kit, tmp_path, *words):
    options = run.arguments().parse_args(["--assets", str(kit), *words])
    return run.Bench(options, tmp_path)


def test_the_same_seed_makes_the_same_assets(kit, tmp_path):
    make_kit(tmp_path / "again", seed=0, size="tiny")
    make_kit(tmp_path / "other", seed=1, size="tiny")
    for file in ("sft.jsonl", "pref.jsonl", "rankings.jsonl", "prompts.jsonl", "model/model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (kit / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() != (kit / file).read_bytes()


def test_a_cached_reference_is_compared_on_whole_fits_with_the_same_end(kit, capsys):
    cached_reference.main([str(kit), "--epochs", "1", "--rows", "16", "--repeats", "1"])
    dpo, kto = capsys.readouterr().out.splitlines()
    assert dpo.startswith("dpo 1 epochs: ") and kto.startswith("kto 1 epochs: ")
    assert dpo.endswith("weights 0e+00 apart") and kto.endswith("weights 0e+00 apart")


def test_the_peer_gets_the_rows_in_the_order_of_our_loader(kit, tmp_path):
    rows = choose_rows(kit, "sft", 12, 4, (16, 64), tmp_path)
    tokenizer = load_tokenizer(kit / "model")
    data = DemonstrationData(rows.ours, None, tokenizer, batch_size=4, validation_fraction=0.0)
    data.setup("fit")
    peers = [json.loads(line) for line in rows.peers.read_text().splitlines()]
    expected = [tokenizer(row["prompt"] + row["completion"]).input_ids for row in peers]
    batches = list(data.train_dataloader())
    seen = [ids[mask].tolist() for b in batches for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in seen] == [tokenizer.decode(i) for i in expected]
    assert [len(ids) for ids in seen] == [sum(pair) for row in rows.sequences for pair in row]


def test_full_rows_are_nearly_as_long_as_allowed(kit, tmp_path):
    rows = choose_rows(kit, "sft", 8, 4, (16, 128), tmp_path, full=True)
    assert all(128 - 42 < prompt + answer <= 128 for row in rows.sequences for prompt, answer in row)


@pytest.mark.parametrize("name", ["sft", "rankings", "dpo", "grpo8", "rloo", "ppo"])
def test_every_measurement_of_ours_composes(kit, tmp_path, name):
    suite, preset = SUITES[name], "gpu" if name in ("sft", "ppo") else "cpu"
    measured = bench(kit, tmp_path, "--preset", preset, "--override", "model.attn_implementation=eager")
    rows = choose_rows(kit, suite.rows, 8, 4, (16, 64), tmp_path)
    for entry in suite.entries:
        if entry.side != "trl":
            config = compose(overrides_of(measured.job(suite, entry, rows)))
            assert config["model"]["attn_implementation"] == "eager"
            assert config["trainer"]["accelerator"] == ("auto" if preset == "gpu" else "cpu")


def test_a_phase_inside_another_is_charged_once():
    clock = Clock(time.time())
    with Phase(clock, "outer"):
        time.sleep(0.02)
        with Phase(clock, "inner"):
            time.sleep(0.05)
    assert 0.05 <= clock.phases["inner"][0] < 0.07 + clock.phases["outer"][0]
    assert 0.02 <= clock.phases["outer"][0] < 0.05


def test_the_clock_counts_after_the_warm_up_only():
    clock = Clock(time.time())
    for length in (3, 5):
        ids = torch.zeros(2, length, dtype=torch.long)
        clock.count_batch(ids, torch.ones_like(ids).tril() > 0, None)
        clock.count_answers(torch.ones(1, 2), torch.ones(1, length))
        clock.lap()
    result = clock.result(warm_up=1)
    assert result["counts"]["tokens"] == 1 + 2 and result["counts_of_all_steps"]["tokens"] == 6
    assert result["answers"] == [(2, 5)] and result["steps"] == 1


def test_ratios_are_taken_pair_by_pair_against_the_fastest():
    suite = Suite("s", "sft", "sft", "tokens", (Entry("ours", "ours"),))

    def runs(*speeds):
        return [
            {"tokens_per_cpu_second": s, "tokens_per_second": s, "supervised_per_cpu_second": s, "peak_megabytes": 10.0}
            for s in speeds
        ]

    found = ratios(
        suite, Bar("ours", "fastest", 2.0),
        {"ours": runs(6.0, 8.0, 20.0), "trl a": runs(1.0, 1.0, 1.0), "trl b": runs(2.0, 8.0, 4.0)},
    )  # fmt: skip
    assert found["other"] == "trl b" and tuple(found["cpu"]) == (3.0, 1.0, 5.0) and found["reached"]
    assert ratios(suite, Bar("ours", "trl", 2.0), {"ours": runs(1.0)}) is None


def test_a_missing_peer_is_answered_with_a_recipe(kit, monkeypatch):
    for variable, _ in run.PEERS.values():
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit, match=r"trl==1\.12\.0"):
        run.main(["--suite", "ppo", "--assets", str(kit), "--against", "trl"])
    with pytest.raises(SystemExit, match="choose from"):
        named_suites("sft,nothing")


@pytest.mark.parametrize("name", ["flops", "report", "rewards", "rows", "suites"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert result.attempted and not result.failed


def test_two_tiny_runs_print_and_write_what_is_promised(kit, tmp_path, capsys):
    out = tmp_path / "result.json"
    run.main(["--suite", "sft", "--assets", str(kit), "--preset", "smoke", "--repeats", "2", "--out", str(out)])
    told = json.loads(out.read_text())
    result, _ = told["suites"]["sft"]["runs"]["ours"]
    assert result["steps"] == 1 and result["counts"]["positions_learned"] >= result["counts"]["tokens"] > 0
    assert {"forward", "backward", "optimizer"} <= result["phases"].keys()
    summary = told["suites"]["sft"]["summary"]["ours"]
    for name in ("tokens_per_cpu_second", "tokens_per_second", "supervised_per_cpu_second", "mfu", "peak_megabytes"):
        low, median, high = sorted(summary[name])
        assert 0 < low <= median <= high
    assert "| ours |" in capsys.readouterr().out


def test_histories_that_differ_are_told_apart(capsys):
    from benchmarks.same_numbers import compare

    row = {"step": "1", "kind": "train", "seconds": "3", "perf/x": "1", "loss": "0.5", "empty": ""}
    assert compare("sft", [row], [row | {"seconds": "9", "perf/x": "2", "loss": "0.5000000001"}]) == 0
    assert compare("sft", [row], [row | {"loss": "0.50001"}]) == 1
    assert compare("sft", [row], [row | {"empty": "0"}]) == 1
    assert compare("sft", [row], []) == 1
    assert "sft, row 0: loss 0.5 -> 0.50001" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", sorted(learning.MATCHES))
def test_both_sides_of_the_comparison_of_learning_are_set_alike(algorithm):
    match = learning.MATCHES[algorithm]
    peer = learning.TRLS | match.arguments
    config = compose([*learning.OURS, *match.overrides, "sft.output=a/sft", "reward.output=a/reward"])
    ppo, settings = config["ppo"], config["ppo"]["settings"]
    batch = peer["per_device_train_batch_size"]
    rollout = batch * peer.get("steps_per_generation", 1)
    epochs = peer.get("num_iterations", 1)
    assert (ppo["data"]["batch_size"], rollout // settings["num_minibatches"]) == (rollout, batch)
    assert (ppo["data"]["group_size"], settings["ppo_epochs"]) == (peer["num_generations"], epochs)
    assert (ppo["optimizer"]["lr"], ppo["optimizer"]["eps"]) == (peer["learning_rate"], peer["adam_epsilon"])
    assert (config["kl"]["coef"], settings["kl_placement"] == "loss") == (peer["beta"], algorithm == "grpo")
    assert (ppo["rollouts"] * match.updates, rollout // batch * epochs) == (peer["max_steps"], match.updates)
    sampling = ppo["sampling"]
    assert (sampling["max_new_tokens"], sampling["temperature"]) == (peer["max_completion_length"], peer["temperature"])
    assert ppo["scheduler"]["final"] == 1.0  # a constant rate


def test_gold_is_compared_where_both_sides_have_been():
    curves = [learning.Curves([], [], [], [Point(0, 0), Point(kl, kl + gain)]) for kl, gain in ((4, 4), (2, 0))]
    assert learning.Outcome("rloo", 0, *curves).difference() == pytest.approx(statistics.mean((0.5, 1, 1.5, 2)))


def test_a_fault_changes_one_thing_in_a_line():
    source = "def f(x: int = 1) -> int:\n    return x + 2 if x > 3 else g(x, deep=True)\n"
    lines = [mutant.apply(source).splitlines()[1].strip() for mutant in mutants_of(Path("a.py"), source)]
    assert lines == [
        "return None",
        "return x + 2 if (not x > 3) else g(x, deep=True)",
        "return x + 2 if x <= 3 else g(x, deep=True)",
        "return x + 2 if x > 6 else g(x, deep=True)",
        "return x - 2 if x > 3 else g(x, deep=True)",
        "return x + 4 if x > 3 else g(x, deep=True)",
        "return x + 2 if x > 3 else g(x)",
        "return x + 2 if x > 3 else g(x, deep=False)",
    ]


def test_a_fault_meets_the_tests_that_run_its_line_first_those_that_are_quick_and_about_little_else():
    ran = {"slow": Ran(9.0, {("a.py", 1)}), "quick": Ran(0.1, {("a.py", 1)}), "other": Ran(0.2, {("a.py", 2)})}
    ran["of much"] = Ran(0.1, {("a.py", 1), *(("c.py", line) for line in range(200))})
    assert choose(ran, "a.py", [1], budget=20) == ["quick", "slow", "of much"]
    assert choose(ran, "a.py", [1], budget=1) == ["quick", "of much"]
    assert choose(ran, "a.py", [7], budget=20) == ["quick", "other", "slow", "of much"]
    assert choose(ran, "b.py", [1], budget=20) == []
    cases = {"tests/test_a.py::own[2]": 3.0, "tests/test_a.py::own[1]": 2.0, "quick": 0.1}
    ran = {test: Ran(seconds, {("a.py", 1)}) for test, seconds in cases.items()}
    assert choose(ran, "a.py", [1], budget=20) == ["tests/test_a.py::own[1]", "quick", "tests/test_a.py::own[2]"]
