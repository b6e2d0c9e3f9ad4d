"""What the stages of a run share."""

import hashlib

import pytest

from rlhf_lightning.config import compose
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.pipeline import run
from rlhf_lightning.stages import Run


def test_provenance_names_every_file_of_a_list_by_its_checksum(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    files = [str(tmp_path / name) for name in ("a", "b")]
    parents = Run(compose(["stage=sft"])).provenance("sft", {}, data=files, policy=None)["parents"]
    expected = [{"path": file, "sha256": hashlib.sha256(file[-1].encode()).hexdigest()} for file in files]
    assert parents == {"data": expected}


def test_provenance_names_the_rows_in_a_folder_by_their_checksums(tmp_path):
    (tmp_path / "rows").mkdir()
    for name in ("a.jsonl", "b.csv", "notes.txt"):
        (tmp_path / "rows" / name).write_text(name)
    parents = Run(compose(["stage=sft"])).provenance("sft", {}, data=str(tmp_path / "rows"))["parents"]
    expected = {n: {"sha256": hashlib.sha256(n.encode()).hexdigest(), "bytes": len(n)} for n in ("a.jsonl", "b.csv")}
    assert parents["data"]["files"] == expected


def test_a_stage_without_data_is_refused_before_anything_runs():
    config = compose(["stage=sft", "task=custom", "model.path=m"])
    with pytest.raises(ConfigError, match=r"sft\.data\.train is not set; add data\.demonstrations=FILE"):
        run(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [("+trainer.gradient_clip_val=1.0", "max_grad_norm"), ("trainer.strategy=fsdp", "use trainer=fsdp2")],
)
def test_trainer_arguments_that_would_mislead_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        compose(["stage=ppo", override])
