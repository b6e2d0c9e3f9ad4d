"""What a run takes from the run of the round before: interpolations of ``conf/stage/pipeline.yaml``.

People rank answers of the newest policy, and a policy learns from them, again and again. ``after=FOLDER`` names the
folder of the run of the round before; its records tell the policy to go on from (``${earlier:policy}``), the reference
of the first round (``${earlier:reference}``), and the rankings of all rounds until then (``${with_earlier:FILE}``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_lightning.checkpoint.provenance import read_provenance, read_sealed
from rlhf_lightning.errors import CheckpointError, ConfigError
from rlhf_lightning.private_api.omegaconf import root_of
from rlhf_lightning.rules.stages import RANKINGS, STAGES, names

RECORD = "run.json"


def earlier(kind: str, *, _node_: Any) -> Any:
    """``policy`` or ``reference``: the folder of a model; None where there is no round before.

    Raises:
        ConfigError: ``after`` is no folder of a run that made a policy, or the reference is not there any more.
    """
    after = OmegaConf.select(root_of(_node_), "after")
    if after is None:
        return None
    folder, record = _policy(str(after))
    if kind == "policy":
        return folder
    reference = _reference(record) or folder
    if not Path(reference).is_dir():
        raise ConfigError(f"after={after}: its reference {reference} is not there any more; set ppo.reference=FOLDER")
    return reference


def with_earlier(files: Any, *, _node_: Any) -> Any:
    """The rankings of the rounds before, and those of this one; as it is where there is no round before."""
    after = OmegaConf.select(root_of(_node_), "after")
    if after is None or files is None:
        return files
    return [*_rankings(str(after)), *([files] if isinstance(files, str) else files)]


def check_round(config: Mapping[str, Any]) -> None:
    """Refuse a later round that begins with SFT again, which would exchange the reference."""
    if config.get("after") and "sft" in names(config["stages"]):
        raise ConfigError(
            f"after={config['after']} and sft in stages: a later round goes on from the policy of the one before; "
            "leave sft out of stages, or after out of the command"
        )


def _policy(after: str) -> tuple[str, Mapping[str, Any]]:
    """The folder of the last policy that a run made, and its provenance."""
    made = _made(after)
    for stage in reversed(list(made)):
        if stage in STAGES and "policy" in STAGES[stage].makes:
            return made[stage]
    raise ConfigError(f"after={after}: no stage of that run made a policy; name the folder of a run that did")


def _reference(record: Mapping[str, Any]) -> str | None:
    """What a policy was held to while it was trained: a folder, or the policy it began as. None for SFT."""
    if not STAGES[record["stage"]].reference:
        return None
    section = record.get("config") or {}
    return section.get("reference") or section.get("policy")


def _rankings(after: str) -> list[str]:
    """The files that the last reward model of a run learned from, or the one its `rank` stage wrote."""
    made = _made(after)
    if "reward" in made:
        files = ((made["reward"][1].get("config") or {}).get("data") or {}).get("train")
        return [files] if isinstance(files, str) else [str(file) for file in files or ()]
    file = Path(made["rank"][0]) / RANKINGS if "rank" in made else None
    return [str(file)] if file is not None and file.is_file() else []


def _made(after: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Folder and provenance by stage of all that a run made, in the order of its stages."""
    try:
        record = read_sealed(Path(after) / RECORD)
        outputs = [f"{after}/{output}" for output in record.get("outputs", ())]
        found = {made["stage"]: (folder, made) for folder in outputs if (made := read_provenance(folder))}
    except (CheckpointError, OSError, ValueError) as error:
        raise ConfigError(f"after={after}: is not the folder of a run ({error})") from error
    return {stage: found[stage] for stage in record.get("stages", ()) if stage in found}
