"""The model card of an exported folder: what it was made from, how, and how good it is. Written again at any time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.checkpoint.places import write_file
from rlhf_lightning.checkpoint.provenance import (
    CARD,
    FIGURE,
    PROVENANCE,
    marked_card,
    own_card,
    read_json,
    read_provenance,
    sha256,
)
from rlhf_lightning.console.display import fence, markdown, plain
from rlhf_lightning.errors import CheckpointError
from rlhf_lightning.evaluation.conclusion import conclusion
from rlhf_lightning.evaluation.report import CAPTIONS, read_evaluation
from rlhf_lightning.evaluation.runs import flattened
from rlhf_lightning.evaluation.table import before_and_after
from rlhf_lightning.evaluation.trust import accuracy_text
from rlhf_lightning.models.kinds import LABEL

UNKNOWN = "unknown"  # what a hub calls a licence that nobody has named
_LICENCE = re.compile(r"^license: (.*)$", re.MULTILINE)
_FIGURES = {"ppo": "reward_kl_frontier", "reward": "reward_model_accuracy", "sft": "sft_loss"}
_POLICY = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
prompt = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt)[0]))  # sampled as generation_config.json says"""
_REWARD = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSequenceClassification.from_pretrained("{folder}", pad_token_id=None)
exchange = tokenizer("prompt and answer" + tokenizer.eos_token, return_tensors="pt")
print((model(exchange.input_ids).logits.item() - {mean}) / {std})  # as PPO sees it"""


def write_card(folder: Path, licence: str | None = None, overwrite: bool = False) -> Path:
    """Write ``README.md`` into an exported folder, and ``figure.png`` where the run has drawn it.

    Args:
        folder: of a stage that trains.
        licence: its name on a hub, for example ``apache-2.0``; None keeps what the card says now.
        overwrite: also a card that a person has changed.

    Returns:
        the card.

    Raises:
        CheckpointError: no stage of this library made the folder, or the card is not as this library wrote it.
        DataError: the ``evaluation.json`` beside the folder is damaged.
        DiskError: the folder cannot be written to.
    """
    record = read_provenance(folder) if folder.is_dir() else None
    if record is None:
        raise CheckpointError(f"{folder}: has no {PROVENANCE}; a card is written for what a stage of this library made")
    file = folder / CARD
    there = {name for name in (CARD, FIGURE) if (folder / name).exists()}
    if (changed := sorted(there - own_card(folder))) and not overwrite:
        raise CheckpointError(f"{folder / changed[0]}: was not written like this by rlhf-lightning; add --overwrite")
    if licence is None and file.is_file():
        found = _LICENCE.search(file.read_text(encoding="utf-8", errors="replace"))
        licence = found[1] if found else None
    figure = folder.absolute().parent / "figures" / f"{_FIGURES.get(str(record['stage']))}.png"
    image = figure.read_bytes() if figure.is_file() else b""
    if image:
        write_file(folder / FIGURE, image)
    else:
        (folder / FIGURE).unlink(missing_ok=True)
    return write_file(file, marked_card(card(folder, record, licence or UNKNOWN, figure.stem if image else ""), image))


def card(folder: Path, record: Mapping[str, Any], licence: str, figure: str = "") -> str:
    """The text of a card.

    Args:
        folder: what it speaks of.
        record: its provenance.
        licence: see `write_card`.
        figure: the name of the figure among those of a report; none if empty.
    """
    evaluation = _evaluation(folder)
    scalar = read_json(folder / "config.json").get("id2label") == {"0": LABEL}
    name, made = folder.absolute().name, {parent: entry for parent, entry in record["parents"].items() if entry}
    start = list(_chain(made.get("policy")))
    kind = "reward model" if scalar else "policy"
    sections = [
        _front(record, licence, start, scalar),
        f"# {markdown(name)}",
        f"A {kind}, trained by the stage `{record['stage']}` of rlhf_lightning"
        + (f", starting from {' ← '.join(f'`{plain(path)}`' for path in start)}." if start else "."),
        f"**{markdown(conclusion(evaluation))}**" if evaluation else "",
        "## Use\n\n" + _block("python", _use(folder, record, scalar)),
        "## Results\n\n" + _results(record, evaluation),
        f"![{figure}]({FIGURE})\n\n{CAPTIONS[figure]}" if figure else "",
        "## Data\n\n" + _data(made),
        "## Method and settings\n\n" + _settings(record),
        "## Versions\n\n" + ", ".join(f"{part} {version}" for part, version in record.get("versions", {}).items()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def identity(folder: str | Path) -> str | None:
    """What tells a folder from others wherever it lies: the checksum of its record. None for one of another tool."""
    file = Path(folder) / PROVENANCE
    return sha256(file) if file.is_file() else None


def _evaluation(folder: Path) -> dict[str, Any] | None:
    """The comparison beside the folder, if the folder is one of the policies in it."""
    if not (folder.absolute().parent / "evaluation.json").is_file():
        return None
    evaluation = read_evaluation(folder.absolute().parent)
    return evaluation if identity(folder) in evaluation.get("folders", {}).values() else None


def _chain(parent: Any) -> Iterator[str]:
    """The model that it was trained from, the one that was trained from, and so on, as far as they are still there."""
    while isinstance(parent, Mapping) and parent.get("path"):
        yield str(parent["path"])
        found = read_provenance(parent["path"]) if Path(parent["path"]).is_dir() else None
        parent = ((found or {}).get("parents") or {}).get("policy")


def _front(record: Mapping[str, Any], licence: str, start: list[str], scalar: bool) -> str:
    lines = [f"license: {licence}", "library_name: transformers"]
    lines += [f"pipeline_tag: text-{'classification' if scalar else 'generation'}"]
    lines += [f"tags: [rlhf_lightning, {record['stage']}{', reward-model' * scalar}]"]
    lines += [f"base_model: {start[-1]}"] if start and re.fullmatch(r"[\w.-]+/[\w.-]+", start[-1]) else []
    return "\n".join(["---", *lines, "---"])


def _use(folder: Path, record: Mapping[str, Any], scalar: bool) -> str:
    metrics = record["metrics"]
    numbers = {"mean": metrics.get("score_mean", 0.0), "std": max(metrics.get("score_std", 1.0), 1e-6)}
    return (_REWARD if scalar else _POLICY).format(folder=folder.absolute().name, **numbers)


def _results(record: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    metrics = record["metrics"]
    parts = [before_and_after(evaluation)] if evaluation else []
    if {f"val/{name}" for name in ("accuracy", "accuracy_low", "accuracy_high", "num_pairs")} <= set(metrics):
        parts.append(f"Reward model: {accuracy_text(metrics)}.")
    parts += [f"**{markdown(str(doubt))}**" for doubt in metrics.get("doubts", ())]
    shown = {
        name: value for name, value in metrics.items() if isinstance(value, float) and not name.startswith("perf/")
    }
    rows = [f"| {markdown(name)} | {value:.4g} |" for name, value in sorted(shown.items())]
    table = "\n".join(["| metric | value |", "| --- | ---: |", *rows])
    parts.append(f"<details><summary>At the end of training</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(parts)


def _data(made: Mapping[str, Any]) -> str:
    """What it was made from: each file with its checksum."""
    rows = ["| part | what | SHA-256 |", "| --- | --- | --- |"]
    for part, entry in made.items():
        for one in entry if isinstance(entry, list) else [entry]:
            rows += [f"| {part} | {' | '.join(cells)} |" for cells in _files(one)]
    return "\n".join(rows)


def _files(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "sha256" in entry:
        yield markdown(str(entry["path"])), entry["sha256"]
    for name, file in entry.get("files", {}).items():
        if not name.startswith("tokenizer") and name.endswith((".safetensors", ".jsonl", ".csv", ".parquet")):
            yield markdown(f"{entry['path']}/{name}"), file["sha256"]


def _settings(record: Mapping[str, Any]) -> str:
    lines = (f"{key}: {'null' if value is None else value}" for key, value in flattened(record["config"]).items())
    text = plain("\n".join(lines))
    return f"<details><summary>{record['stage']}</summary>\n\n{_block('yaml', text)}\n\n</details>"


def _block(language: str, text: str) -> str:
    ends = fence(text)
    return f"{ends}{language}\n{text}\n{ends}"
