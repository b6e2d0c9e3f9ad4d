"""The stages `dpo`, `kto` and `best_of_n` as users run them, on the miniature task."""

import json

import pytest

from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.stages.pipeline import run
from tests.end_to_end.test_cli import assets, of_stage  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
]
QUIET = ["logger=none", "trainer=cpu"]
LOSSES = ["sigmoid", "cdpo", "hinge", "ipo", "robust", "simpo", "orpo"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, assets):  # noqa: F811
    """A pipeline without a reward model: sft, rank, dpo, evaluate."""
    folder = tmp_path_factory.mktemp("offline") / "run"
    words = [
        "stages=[sft,rank,dpo,evaluate]", "dpo.max_epochs=1", "dpo.data.batch_size=8",
        *of_stage("sft", "rank", "evaluate"), *QUIET, *assets, f"run_dir={folder}",
    ]  # fmt: skip
    return folder, run(compose(words))


def alone(whole, assets, folder, *words):  # noqa: F811
    """One stage, from the SFT folder of the pipeline."""
    return run(compose([*words, f"model.path={whole[0] / 'sft'}", *QUIET, *assets, f"run_dir={folder}"]))


def rankings(whole):
    return f"data.comparisons={whole[0] / 'rankings' / 'rankings.jsonl'}"


def test_dpo_takes_the_place_of_reward_model_and_ppo_in_the_pipeline(whole):
    folder, metrics = whole
    record = verify_folder(folder / "dpo", expect_stage="dpo")
    assert record["parents"]["policy"]["files"] == verify_folder(folder / "sft")["files"]
    assert record["parents"]["data"]["sha256"] and "reference" not in record["parents"]
    assert set(json.loads((folder / "evaluation.json").read_text())["policies"]) == {"base", "sft", "dpo"}
    assert (folder / "history" / "dpo.csv").read_text().count("\n") > 1
    assert "val/rewards/accuracies" in metrics


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_the_group_trains(whole, assets, tmp_path, loss):  # noqa: F811
    words = ["stage=dpo", f"loss={loss}", "dpo.max_epochs=1", "dpo.data.batch_size=4", "dpo.data.micro_batch_size=2"]
    metrics = alone(whole, assets, tmp_path, *words, rankings(whole))
    assert 0 < metrics["train/num_prompts"] <= 4 and metrics["train/grad_norm"] > 0
    assert ("train/drift/chosen" in metrics) is (loss not in ("simpo", "orpo"))
    assert verify_folder(tmp_path / "dpo")["files"] != verify_folder(whole[0] / "sft")["files"]


def test_dpo_goes_on_from_its_own_result_with_another_loss_and_reference(whole, assets, tmp_path):  # noqa: F811
    folder, _ = whole
    words = [
        "stage=dpo", "loss=ipo", "dpo.loss.beta=0.5", "dpo.data.batch_size=8", *QUIET, *assets, rankings(whole),
        f"model.path={folder / 'dpo'}", f"dpo.reference={folder / 'sft'}", f"run_dir={tmp_path / 'run'}",
        "dpo.cache_reference=true",
    ]  # fmt: skip
    run(compose(words))
    record = verify_folder(tmp_path / "run" / "dpo", expect_stage="dpo")
    assert record["parents"]["reference"]["stage"] == "sft" and record["parents"]["policy"]["stage"] == "dpo"
    assert verify_folder(tmp_path / "run" / "reference_logprobs" / "dpo")["answers"] > 8


def test_kto_learns_from_labels_and_from_rankings(whole, assets, tmp_path):  # noqa: F811
    rows = [json.loads(line) for line in (whole[0] / "rankings" / "rankings.jsonl").read_text().splitlines()]
    labelled = [
        {"prompt": row["prompt"], "completion": completion, "label": rank <= 2}
        for row in rows
        for completion, rank in zip(row["completions"], row["ranks"], strict=True)
    ]
    file = tmp_path / "feedback.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    words = [
        "stage=kto", "kto.max_epochs=1", "kto.data.batch_size=16", "kto.data.micro_batch_size=4",
        "kto.cache_reference=true",
    ]  # fmt: skip
    found = [
        alone(whole, assets, tmp_path / "labels", *words, f"data.feedback={file}"),
        alone(whole, assets, tmp_path / "rankings", *words, rankings(whole)),
    ]
    for metrics in found:
        assert 0 < metrics["train/num_answers"] <= 16 and metrics["train/grad_norm"] > 0 and metrics["val/kl"] >= 0
    assert verify_folder(tmp_path / "labels" / "kto", expect_stage="kto")["parents"]["data"]["path"] == str(file)


def test_best_of_n_keeps_the_best_answers_and_learns_them(whole, assets, tmp_path):  # noqa: F811
    words = [
        "stage=best_of_n", "best_of_n.n=3", "best_of_n.max_prompts=20", "best_of_n.data.batch_size=16",
        "best_of_n.sft.data.batch_size=4", "best_of_n.sampling.max_new_tokens=60", "best_of_n.sft.data.max_length=128",
    ]  # fmt: skip
    metrics = alone(whole, assets, tmp_path, *words)
    record = verify_folder(tmp_path / "demonstrations", expect_stage="best_of_n")
    rows = [
        json.loads(line) for line in (tmp_path / "demonstrations" / "demonstrations.jsonl").read_text().splitlines()
    ]
    assert len(rows) == metrics["best_of_n/kept"] <= metrics["best_of_n/prompts"] == 20
    assert all(row["n"] == 3 and row["scorer"] == "gold" and row["completion"].strip() for row in rows)
    assert metrics["best_of_n/score_kept"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
    curve = [metrics[f"best_of_n/expected_best_of_{k}"] for k in (1, 2, 3)]
    assert curve == sorted(curve) and curve[2] == pytest.approx(metrics["best_of_n/score_kept"])
    assert record["metrics"] == {name: value for name, value in metrics.items() if name.startswith("best_of_n")}
    policy = verify_folder(tmp_path / "best_of_n", expect_stage="best_of_n")
    assert policy["parents"]["data"]["path"].endswith("demonstrations/demonstrations.jsonl")
    assert policy["files"] != verify_folder(whole[0] / "sft")["files"]
    assert (tmp_path / "history" / "best_of_n.csv").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=dpo"], r"dpo\.data\.train is not set; add data\.comparisons=FILE"),
        (["stage=dpo", "loss=simpo", "dpo.reference=there", "data.comparisons=x.jsonl"], "simpo_loss compares answers"),
        (
            ["stage=dpo", "loss=robust", "dpo.loss.label_smoothing=0.5", "data.comparisons=x.jsonl"],
            "label_smoothing=0.5",
        ),
        (["stage=dpo", "dpo.loss.beta=0", "data.comparisons=x.jsonl"], "beta=0"),
        (["stage=kto"], r"kto\.data\.train is not set; add data\.feedback=FILE"),
        (["stage=kto", "data.feedback=x.jsonl", "kto.data.batch_size=1"], r"kto\.data\.batch_size=1"),
        (["stage=kto", "data.feedback=x.jsonl", "kto.loss.desirable_weight=-1"], "desirable_weight=-1"),
        (["stage=best_of_n", "data.prompts=null"], r"best_of_n\.data\.train is not set"),
        (["stage=best_of_n", "data.prompts=x.jsonl", "best_of_n.n=1"], "must be at least 2"),
        (["stage=best_of_n", "data.prompts=x.jsonl"], "no scorer is configured"),
        (["stages=[sft,rank,dpo]", "dpo.loss.beta=-1", "data.demonstrations=x", "data.prompts=x"], "beta=-1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        run(compose([*words, "task=custom", "model.path=nowhere", f"run_dir={tmp_path}"]))


def test_a_bad_row_of_feedback_is_named_before_training(whole, assets, tmp_path):  # noqa: F811
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "completion": "c", "label": "nice"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: label: is 'nice'"):
        alone(whole, assets, tmp_path / "run", "stage=kto", f"data.feedback={tmp_path / 'bad.jsonl'}")


def test_rankings_that_were_changed_afterwards_are_refused(whole, assets, tmp_path):  # noqa: F811
    from rlhf_lightning.checkpoint import write_folder
    from rlhf_lightning.errors import CheckpointError

    folder = write_folder(tmp_path / "made", lambda p: (p / "r.jsonl").write_text("{}\n"), {"stage": "rank"})
    (folder / "r.jsonl").write_text("[]\n")
    with pytest.raises(CheckpointError, match="checksum differs"):
        alone(whole, assets, tmp_path / "run", "stage=dpo", f"data.comparisons={folder / 'r.jsonl'}")
