"""Hand-over folders: whole or not at all, and verified before use."""

import json

import pytest

from rlhf_lightning.checkpoint import read_provenance, verify_folder, write_folder
from rlhf_lightning.errors import CheckpointError


def fill(folder):
    (folder / "weights.bin").write_bytes(bytes(range(200)))
    (folder / "sub").mkdir()
    (folder / "sub" / "more.txt").write_text("hello")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "out", fill, {"stage": "sft", "metrics": {"loss": 1.5}})


def test_a_written_folder_verifies_and_tells_where_it_comes_from(folder):
    record = verify_folder(folder, expect_stage="sft")
    assert record["metrics"] == {"loss": 1.5}
    assert set(record["files"]) == {"weights.bin", "sub/more.txt"}
    assert (
        record["files"]["sub/more.txt"]["sha256"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    )


@pytest.mark.parametrize("bit", [0, 777, 1599])
def test_one_flipped_bit_is_found(folder, bit):
    data = bytearray((folder / "weights.bin").read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (folder / "weights.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights\.bin: checksum"):
        verify_folder(folder)


def test_truncated_missing_and_foreign_folders_are_told_apart(folder, tmp_path):
    (folder / "weights.bin").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="5 bytes, expected 200"):
        verify_folder(folder)
    (folder / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        verify_folder(folder)
    (tmp_path / "foreign").mkdir()
    assert read_provenance(tmp_path / "foreign") is None
    with pytest.raises(CheckpointError, match=r"no provenance\.json"):
        verify_folder(tmp_path / "foreign")


def test_the_wrong_stage_is_refused(folder):
    with pytest.raises(CheckpointError, match="written by stage 'sft', expected 'reward'"):
        verify_folder(folder, expect_stage="reward")


def test_a_crash_while_writing_leaves_the_old_folder_and_no_litter(folder):
    def crash(tmp):
        (tmp / "weights.bin").write_bytes(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_folder(folder, crash, {"stage": "sft"})
    verify_folder(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_a_crash_between_the_two_renames_is_repaired_by_the_next_write(folder):
    folder.rename(folder.with_name(".tmp-out-old"))
    write_folder(folder, fill, {"stage": "sft"})
    verify_folder(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_a_damaged_provenance_is_a_checkpoint_error(folder):
    (folder / "provenance.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        read_provenance(folder)
    (folder / "provenance.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(CheckpointError, match="schema 99, expected 2; another program"):
        read_provenance(folder)
