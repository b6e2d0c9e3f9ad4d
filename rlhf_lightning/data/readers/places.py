"""Which files a path means: a file, the rows of a folder, a pattern, a saved data set, or one of the hub."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from rlhf_lightning.data.readers.arrow import HUB, is_saved_dataset
from rlhf_lightning.errors import DataError

PLAIN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKINGS = (".gz", ".zst", ".bz2", ".xz")
_RECORDS = {  # JSON files that tools put beside rows, and that hold none
    "provenance.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "package.json",
    "run.json", "evaluation.json", "model.safetensors.index.json", "adapter_config.json", "added_tokens.json",
    "vocab.json", "manifest.json", "metadata.json", "schema.json",
}  # fmt: skip
_SPLIT = re.compile(r"(train(?:ing)?|test(?:ing)?|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE)
_SHARD = re.compile(r"(.*?)[-_]\d+-of-0*(\d+)\b")  # the first is 0
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload")
_MAC = "._"  # what macOS puts beside a file on disks of other systems
log = logging.getLogger(__name__)


def sources(path: Path) -> list[Path]:
    """The files, saved data sets or names on the hub that a path stands for, in order.

    Raises:
        DataError: nothing is there, or it is not clear which of several splits or folders is meant.
    """
    text = str(path)
    if text.startswith(HUB) or is_saved_dataset(path) or path.is_file():
        return [path]
    if path.is_dir():
        return _of_folder(path)
    if is_pattern(text):
        found = _matches(path)
        files = [file for file in found if file.is_file() and not file.name.startswith(_MAC)]
        if files:
            return files
        what = f"matches {len(found)} folders and no file" if found else "matches no file"
        raise DataError(f"{path}: {what}; check the pattern (relative paths start at {Path.cwd()}).")
    raise DataError(f"{path}: no such file; check the path (relative paths start at {Path.cwd()}).")


def exists(text: str) -> bool:
    """Whether a path, a pattern or a name on the hub stands for something; the hub is not asked."""
    try:
        return text.startswith(HUB) or Path(text).exists() or (is_pattern(text) and bool(_matches(Path(text))))
    except (OSError, ValueError):  # too long, or with NUL: no path
        return False


def is_pattern(text: str) -> bool:
    """Whether a path has signs of a pattern: ``*``, ``?`` or ``[``."""
    return any(sign in text for sign in "*?[")


def _matches(pattern: Path) -> list[Path]:
    """What a pattern matches, in order; the folders in front that are there may have such signs in their names."""
    there = next((parent for parent in pattern.parents if parent.is_dir()), Path())
    rest = pattern.relative_to(there)
    return [Path(name) for name in sorted(glob.glob(f"{glob.escape(str(there))}/{rest}", recursive=True))]


def holds_rows(file: Path) -> bool:
    """Whether a file of a folder is one of rows, by its name."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKINGS
    kind = suffixes[-2:-1] if packed else suffixes[-1:]
    return bool(kind) and kind[0] in PLAIN and file.name not in _RECORDS and not file.name.startswith(".")


def _of_folder(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    files = [file for file in entries if file.is_file() and holds_rows(file)]
    below = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".") and _has_rows(entry)]
    if beside := sum(entry.name.startswith(_MAC) for entry in entries):
        _tell(f"{folder}: {beside} files of macOS (._NAME) are passed over")
    if cut := next((entry.name for entry in entries if entry.suffix in _UNFINISHED), None):
        raise DataError(f"{folder}: {cut} is a download that did not end; fetch it again, or delete it.")
    _check_shards(folder, files)
    if not files:
        return _below(folder, below)
    if below:
        names = ", ".join(entry.name for entry in below)
        _tell(f"{folder}: the rows in its sub-folders ({names}) are not read; '{folder}/**/*' would read them too")
    splits = {_split(file.name) for file in files}
    if len(splits) > 1 and splits != {"", "train"}:
        named = ", ".join(sorted(split or "others" for split in splits))
        one = next((file.name for file in files if _split(file.name) == "train"), files[0].name)
        raise DataError(f"{folder}: holds the splits {named}; name one, for example '{folder}/{_pattern(one)}'.")
    return files


def _check_shards(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a folder that holds some of the files of which each says how many there are."""
    found: dict[tuple[str, int], int] = {}
    for file in files:
        if match := _SHARD.match(file.name):
            place = match[1], int(match[2])
            found[place] = found.get(place, 0) + 1
    for (name, count), there in found.items():
        if there < count:
            raise DataError(
                f"{folder}: holds {there} of the {count} files {name}-NNNNN-of-{count:05}; fetch the others, or name"
                f" the ones you mean: '{folder}/{name}*'."
            )


def _below(folder: Path, below: Sequence[Path]) -> list[Path]:
    """The files of the only sub-folder with rows: data sets of the hub keep theirs in ``data``."""
    if len(below) == 1:
        _tell(f"{folder}: its rows are those of {below[0].name}")
        return sources(below[0])
    if below:
        names = ", ".join(entry.name for entry in below)
        raise DataError(f"{folder}: holds no rows itself, but its sub-folders do ({names}); name one of them.")
    formats = f"{', '.join(PLAIN[:-1])} or {PLAIN[-1]}"
    raise DataError(f"{folder}: the folder holds no {formats} file.")


def _has_rows(folder: Path) -> bool:
    return is_saved_dataset(folder) or any(
        holds_rows(entry) if entry.is_file() else not entry.is_symlink() and entry.is_dir() and _has_rows(entry)
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    )


def _split(name: str) -> str:
    """The split that a file is of by its name: "train", another one, or nothing.

    >>> _split("train-00000-of-00002.parquet"), _split("rows_test.jsonl"), _split("trains.csv"), _split("my_rows.csv")
    ('train', 'test', '', '')
    """
    parts = re.split(r"[-_. ]", name)
    found = next((match[1].lower() for part in parts if (match := _SPLIT.fullmatch(part))), "")
    return {"training": "train", "testing": "test", "valid": "validation", "val": "validation"}.get(found, found)


def _pattern(name: str) -> str:
    """A pattern for the files of the same split as this one."""
    stem = name.split(".", 1)[0]
    return f"{re.sub(r'-?[0-9]{3,}.*', '', stem)}*" if "-of-" in stem else name


@lru_cache(maxsize=256)  # once, although several stages look at one folder
def _tell(what: str) -> None:
    log.warning(what)
