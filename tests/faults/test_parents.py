"""Case 68: provenance names what a stage has learned from, whatever becomes of the files meanwhile."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import lightning
import pytest

from rlhf_lightning.checkpoint import write_folder
from rlhf_lightning.checkpoint.provenance import sha256
from rlhf_lightning.config.compose import compose
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.stages.parents import Parents, changed_parents
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.stages.places import outputs
from rlhf_lightning.stages.run import Run
from tests.support import small_run


class Rewrites(lightning.Callback):
    """Another version of the data, and of the model's config, is saved while the stage trains."""

    def __init__(self, files):
        self.files = files

    def on_train_end(self, trainer, module):
        for file in map(Path, self.files):
            file.write_text(file.read_text().replace("good", "bad") + "\n")


def told(folder):
    return json.loads((folder / "run" / "sft" / "provenance.json").read_text())["parents"]


def test_case_68_files_that_change_while_a_stage_runs_are_named_as_they_were_read(tmp_path, caplog):
    words = [*small_run.prepare(tmp_path), "stages=[sft]", "sft.max_epochs=1", f"run_dir={tmp_path / 'run'}"]
    data, config = tmp_path / "demonstrations.jsonl", tmp_path / "model" / "config.json"
    before = {file: sha256(file) for file in (data, config)}
    node = f"{{_target_: tests.faults.test_parents.Rewrites, files: [{data}, {config}]}}"
    with caplog.at_level(logging.WARNING):
        run(compose([*words, f"+callbacks.rewrites={node}"]))
    assert sha256(data) != before[data] and sha256(config) != before[config]
    assert told(tmp_path)["data"]["sha256"] == before[data]
    assert told(tmp_path)["policy"]["files"]["config.json"]["sha256"] == before[config]
    warned = [r.getMessage() for r in caplog.records if "changed while the stage was running" in r.getMessage()]
    assert len(warned) == 1 and str(data) in warned[0] and str(config) in warned[0]


def test_case_68_a_model_folder_of_another_tool_is_named_by_weights_config_and_tokenizer(tmp_path):
    small_run.prepare(tmp_path)
    folder = tmp_path / "model"
    (folder / "merges.txt").write_text("a b")
    (folder / "README.md").write_text("about")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    files = Parents({"policy": str(folder)}).record()["policy"]["files"]
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(files) == names | {"merges.txt", "chat_template.jinja"}
    for name, entry in files.items():
        assert entry == {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}


@pytest.mark.parametrize("change", ["replaced", "removed", "same_size", "touched_back"])
def test_case_68_every_way_to_change_a_file_is_seen(tmp_path, caplog, change):
    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    stat, digest, parents = file.stat(), sha256(file), Parents({"data": [str(file)]})
    if change == "replaced":
        (tmp_path / "new").write_text("one")
        (tmp_path / "new").replace(file)
    elif change == "removed":
        file.unlink()
    else:
        file.write_text("two")
        if change == "touched_back":
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with caplog.at_level(logging.WARNING):
        assert parents.record() == {"data": [{"path": str(file), "sha256": digest}]}
    assert "rows.jsonl" in caplog.text


def test_a_file_that_stays_as_it_is_is_not_warned_of_and_read_once(tmp_path, caplog, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    with caplog.at_level(logging.WARNING):
        first = Parents({"data": str(file)}).record()
        monkeypatch.setattr("rlhf_lightning.stages.parents.sha256", lambda _: pytest.fail("read again"))
        assert Parents({"data": str(file), "more": str(file)}).record()["more"] == first["data"]
    assert not caplog.records


def more_rows(folder):
    (folder / "rows.jsonl").write_text("one\ntwo")


def another_file(folder):
    (folder / "more.jsonl").write_text("two")


def another_config(folder):
    (folder / "config.json").write_text('{"vocab_size": 2}')


@pytest.mark.parametrize(
    ("stage", "key", "path", "change"),
    [
        ("score", "score.rows", "rows.jsonl", more_rows),
        ("score", "score.rows=a.jsonl score.reward", "", another_config),
        ("rank", "rank.human_ranks", "*.jsonl", another_file),
        ("best_of_n", "data.prompts", "", another_file),  # which its last folder does not name
        ("sft", "data.demonstrations", "[rows.jsonl]", more_rows),
    ],
)
def test_what_a_stage_has_finished_is_not_done_if_its_parents_have_changed(tmp_path, stage, key, path, change):
    read = tmp_path / "read"
    read.mkdir()
    (read / "rows.jsonl").write_text("one")
    (read / "config.json").write_text("{}")
    path = f"[{read / path.strip('[]')}]" if path.startswith("[") else str(read / path).rstrip("/")
    run = Run(compose([f"stage={stage}", *f"{key}={path}".split(), f"run_dir={tmp_path / 'run'}", "resume=auto"]))
    rows = (
        run.section(stage).get("rows") or run.section(stage).get("human_ranks") or run.section(stage)["data"]["train"]
    )
    parents = run.parents({"rows": rows, "model": run.section(stage).get("reward")})
    folders = outputs(run.section(stage))
    for folder, of in zip(folders, (parents, run.parents({})), strict=False):
        write_folder(Path(folder), lambda _: None, run.provenance(stage, {"done": 1.0}, of))
    assert run.files.finished(stage, folders[-1]) == {"done": 1.0}
    change(read)
    with pytest.raises(ConfigError, match=rf"{folders[0]} is finished, but \S*{re.escape(path.strip('[]'))} changed"):
        run.files.finished(stage, folders[-1])
    shutil.rmtree(read)
    assert run.files.finished(stage, folders[-1]) == {"done": 1.0}  # nobody knows


def seen(path, *, before, now):
    """Whether a change of files, by name and content, is seen in what a path stands for."""
    for name, text in before.items():
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_text(text)
    recorded = json.loads(json.dumps(Parents({"data": str(path)}).record()))
    assert changed_parents(recorded, [str(path)]) == []
    for name, text in now.items():
        (path.parent / name).unlink(missing_ok=True)
        (path.parent / name).mkdir() if text is None else (path.parent / name).write_text(text)
    return changed_parents(recorded, [str(path)]) == [str(path)]


def test_rows_of_a_sub_folder_are_parents_where_the_folder_has_none_itself(tmp_path):
    below = {"hub/README.md": "about", "hub/data/train.parquet": "one"}
    assert seen(tmp_path / "hub", before=below, now={"hub/data/train.parquet": "two"})
    top = {
        "rows/a.jsonl": "one",
        "rows/more/b.jsonl": "one",
        "hidden/.cache/a.jsonl": "one",
        "hidden/data/a.jsonl": "one",
    }
    assert not seen(tmp_path / "rows", before=top, now={"rows/more/b.jsonl": "two"})  # which nobody reads
    assert not seen(tmp_path / "hidden", before={}, now={"hidden/.cache/a.jsonl": "two"})


def test_what_a_stage_did_not_read_and_what_nobody_can_tell_is_no_change(tmp_path, monkeypatch):
    saved = {"saved/state.json": "{}", "saved/data-0.arrow": "one"}
    assert not seen(tmp_path / "saved", before=saved, now={"saved/cache-1f.arrow": "what datasets keeps there"})
    assert not seen(tmp_path / "*.csv", before={"a.csv": "one"}, now={"a.csv": None})  # a folder is in its place
    old = {"data": {"path": str(tmp_path), "stage": None, "files": {}}, "gone": None, "list": ["text"]}
    assert changed_parents(old, [str(tmp_path)]) == []

    def refused(file):
        raise PermissionError(13, "Permission denied", str(file))

    assert seen(tmp_path / "b.jsonl", before={"b.jsonl": "one"}, now={"b.jsonl": "more"})
    recorded = Parents({"data": str(tmp_path / "b.jsonl")}).record()
    (tmp_path / "b.jsonl").write_text("the third")
    monkeypatch.setattr("rlhf_lightning.stages.parents.sha256", refused)
    assert changed_parents(recorded, [str(tmp_path / "b.jsonl")]) == []
