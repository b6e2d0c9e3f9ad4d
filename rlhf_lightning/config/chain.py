"""What the stages of a chain take from each other: the interpolations of ``conf/stage/pipeline.yaml``.

``${made:policy,FOLDER}`` is what the last stage before this one made of a kind (`rlhf_lightning.rules.stages.Stage`);
where none did, what FOLDER holds, if the user has named it or a run has made it before; otherwise null, and so it is if
a later stage of the run writes FOLDER, or has written it since this one began.
``${first:A,B}`` is the first of several that is not null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf

from rlhf_lightning.checkpoint.provenance import read_sealed
from rlhf_lightning.config.allowlist import check_names, check_objects
from rlhf_lightning.config.locations import in_file
from rlhf_lightning.config.rounds import RECORD, check_round
from rlhf_lightning.config.tree import walk
from rlhf_lightning.errors import CheckpointError, ConfigError, nearest
from rlhf_lightning.private_api.omegaconf import place_of, root_of
from rlhf_lightning.rules import combinations
from rlhf_lightning.rules.stages import KEPT, MAKES, RANKINGS, STAGES, before, file_of, names, product, stage_of


def made(kind: str, folder: str | None = None, *, _node_: Any) -> str | None:
    """See the module."""
    root = root_of(_node_)
    stages = OmegaConf.select(root, "stages")
    entries = [str(entry) for entry in stages] if isinstance(stages, ListConfig) else []
    reader = next(iter(place_of(_node_)), "")
    earlier = before(reader, entries)
    for entry in reversed(earlier):
        if found := product(entry, kind, root):
            return found
    if not folder or not _is_given(str(folder), str(root.run_dir)):
        return None
    file, later = file_of(kind, folder), [entry for entry in entries if entry not in earlier]
    return None if file in {product(entry, kind, root) for entry in (*later, *_since(reader, entries, root))} else file


def first(*values: Any) -> Any:
    """See the module."""
    return next((value for value in values if value is not None), None)


def complete(config: dict[str, Any]) -> None:
    """Fill in what depends on all stages of a resolved config: the policies to compare, and the judge as the scorer.

    ``evaluate.policies`` gets what the other stages of the config make or have made, oldest first; a policy that is
    null there is left out. KL is measured to the last reference that a stage of the chain names, which is among the
    policies then; else to ``sft``, else to the first. A scorer whose reward model nobody makes or names is the judge.
    """
    stages = config.get("stages")
    entries = [str(entry) for entry in stages] if isinstance(stages, list) else []
    if "evaluate" in entries and isinstance(config.get("evaluate"), dict):
        chain = before("evaluate", entries)
        made_before = [
            name
            for name in STAGES
            if name not in names(entries) and _is_given(product(name, "policy", config) or "", str(config["run_dir"]))
        ]
        found = {stage_of(e).name: product(e, "policy", config) for e in (*made_before, *chain)}
        section = config["evaluate"]
        given = section.get("policies") or {}
        named = [(config.get(name) or {}).get("reference") for name in names(chain)]
        reference = None if section.get("baseline") else next(filter(None, reversed(named)), None)
        if reference not in {None, *given.values(), *found.values()}:
            found = {"reference": reference, **found}
        policies = {name: folder for name, folder in ({**given, **found} | given).items() if folder}
        section["policies"] = policies
        if section.get("baseline") is None:
            other = "sft" if "sft" in policies else next(iter(policies), None)
            section["baseline"] = next((name for name, folder in policies.items() if folder == reference), other)
    scorer = config.get("scorer")
    if isinstance(scorer, dict) and isinstance(scorer.get("model"), dict) and scorer["model"].get("path") is None:
        config["scorer"] = {"_target_": "rlhf_lightning.scoring.scorer.as_scorer", "judge": config.get("judge")}


def _since(reader: str, entries: Sequence[str], root: Any) -> list[str]:
    """The stages that have begun in the folder of a run that is resumed after the first that reads a section had begun.

    None where another that reads it is still to begin, which would get less than is there for it. `evaluate`, which is
    done anew, reads what is there now.
    """
    record: Mapping[str, Any] = {}
    if OmegaConf.select(root, "resume") == "auto":
        with suppress(CheckpointError):
            record = read_sealed(Path(str(root.run_dir)) / RECORD)
    begun = [stage for stage in record.get("stages", ()) if stage != "evaluate"]
    stages = [stage for stage in map(stage_of, entries) if stage.name != "evaluate"]
    readers = {stage.name for stage in stages if reader in (stage.name, *stage.asks)}
    if not readers.issubset(begun):
        return []
    return begun[min((begun.index(stage) + 1 for stage in readers), default=len(begun)) :]


def _check_votes(config: Mapping[str, Any]) -> None:
    """Refuse people's votes where answers are to be scored."""
    stages = names(config["stages"])
    others = [name for name in stages if name != "evaluate"]
    if others and combinations.votes_judge(config["judge"]):
        ranked = combinations.PEOPLE_RANK if others[0] == "rank" else combinations.ANOTHER_JUDGE.format(others[0])
        raise ConfigError(combinations.VOTES_ALONE.format("judge=people", ranked))
    groups = {"callbacks", *stages, *(group for entry in config["stages"] for group in stage_of(entry).asks)} - {
        "judge"
    }
    for entry in walk({name: config.get(name) for name in sorted(groups)}):
        if isinstance(entry.value, Mapping) and combinations.votes_judge(entry.value):
            raise ConfigError(combinations.VOTES_ALONE.format(f"{entry.key}=people", "a scorer of answers there"))


def check_complete(config: Mapping[str, Any]) -> None:
    """Judge whether a config that is to run has what its stages need: sections, policies, data, and a scorer.

    Args:
        config: resolved.

    Raises:
        ConfigError: says what to add to the command.
    """
    if "stages" in config:
        check_round(config)
        check_present("", config, ("model", "task", "trainer", *in_file("base")))
        _check_votes(config)
    for entry in config.get("stages", ()):
        stage = stage_of(entry)
        name, section = stage.name, config.get(stage.name)
        if not isinstance(section, Mapping):
            raise _no_section(entry, name, config.get("trusted_targets") or ())
        if name not in STAGES and (makes := section.get("makes", "policy")) not in MAKES:
            hint = nearest(str(makes), MAKES)
            raise ConfigError(f"{name}.makes={makes}: must be one of {', '.join(MAKES)}.{hint}")
        keys = in_file(f"stage/{name}").get(name, {}) | (in_file("algorithm/ppo") if name == "ppo" else {})
        check_present(f"{name}.", section, keys)
        if (section.get("data") or {}).get("train", "") is None and not section.get("human_ranks"):
            raise ConfigError(f"{name}.data.train is not set; {stage.needs}")
        if section.get("policy", "") is None and not section.get("human_ranks"):
            raise ConfigError(
                f"{name}.policy is not set: no stage before {name} in stages=[{','.join(config['stages'])}] makes one; "
                f"add sft.output=FOLDER (of an earlier run) or {name}.policy=FOLDER, or begin with sft"
            )
        if "scorer" in stage.asks and "judge" in (scorer := config.get("scorer") or {}) and not scorer["judge"]:
            raise ConfigError(combinations.NO_SCORER)
        if name == "evaluate":
            _check_evaluate(config, section)
        if name == "score":
            _check_score(section)
        for part in (name, f"{name}.sft"):
            _check_rows(config, part, section if part == name else section.get("sft") or {}, stage.rows or "")
        rankings = f"{section.get('output')}/{RANKINGS}"
        if name == "rank" and not (config["judge"] or section["human_ranks"]) and (reader := _reader(config, rankings)):
            raise ConfigError(combinations.NO_RANKING.format(reader, rankings))


def check_present(prefix: str, section: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ConfigError at the first name that a section lacks."""
    if missing := next((name for name in names if name not in section), None):
        raise ConfigError(f"{prefix}{missing}: is missing; a config has every key, and null where there is nothing")


def _no_section(entry: str, name: str, trusted: Sequence[str]) -> ConfigError:
    if entry in STAGES:
        return ConfigError(f"stages: {name} has no section in this config; add stage=pipeline to the command")
    check_names({"stages": [entry]}, trusted)
    check_objects({"stages": [entry]}, trusted)
    return ConfigError(
        f"stages: {name} has no section in this config; write one, such as my_conf/experiment/{name}.yaml, and add "
        f"--config-dir my_conf experiment={name} (docs/extending.md, section 4):\n"
        "# @package _global_\n"
        f"{name}: {{policy: '${{made:policy,${{sft.output}}}}', output: '${{run_dir}}/{name}'}}"
    )


def _check_rows(config: Mapping[str, Any], key: str, section: Mapping[str, Any], rows: str) -> None:
    """Refuse a batch that is larger than all that an earlier stage of the run can write for it."""
    data = section.get("data") or {}
    size = data.get("batch_size")
    if not isinstance(size, int) or not str(data.get("_target_")).startswith("rlhf_lightning."):
        return
    for maker, samples in (("rank", "samples_per_prompt"), ("best_of_n", "n")):
        made_by = config.get(maker) or {}
        prompts, files = made_by.get("max_prompts"), [f"{made_by.get('output')}/{name}" for name in (RANKINGS, KEPT)]
        if maker not in names(config["stages"]) or not prompts or made_by.get("human_ranks"):
            continue
        answers = made_by[samples] if rows == "feedback" else 1
        held_out = bool(data.get("validation_fraction")) and not data.get("validation")
        if data.get("train") in files and prompts * answers - held_out < size:
            times = f" x {maker}.{samples}={answers}" if rows == "feedback" else ""
            raise ConfigError(
                f"{key}.data.batch_size={size}: {maker} makes at most {prompts * answers} rows for it "
                f"({maker}.max_prompts={prompts}{times}{', some are held out' if held_out else ''}), so that training "
                f"would take 0 steps; lower {key}.data.batch_size or raise {maker}.max_prompts"
            )


def _check_evaluate(config: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    if not (config["judge"] or section["proxy"] or section["judges"]):
        raise ConfigError(combinations.NO_JUDGE)
    if section["baseline"] not in section["policies"]:
        raise ConfigError(
            f"evaluate.baseline={section['baseline']}: is none of evaluate.policies, which are "
            f"{', '.join(section['policies']) or 'none'}."
            f"{nearest(str(section['baseline']), list(section['policies']))}"
        )


def _check_score(section: Mapping[str, Any]) -> None:
    if not section["reward"]:
        raise ConfigError("score.reward is not set; add score.reward=FOLDER of a reward model")
    if not section["rows"]:
        raise ConfigError(f"score.rows is not set; {STAGES['score'].needs}")


def _reader(config: Mapping[str, Any], file: str) -> str | None:
    """The first stage of the run that learns from a file."""

    def train(name: str) -> list[Any]:
        files = ((config.get(name) or {}).get("data") or {}).get("train")
        return files if isinstance(files, list) else [files]

    return next((name for name in names(config["stages"]) if file in train(name)), None)


def _is_given(folder: str, run_dir: str) -> bool:
    """Whether a folder is there or was named: what lies in the run's folder would have to be made by the run."""
    try:
        inside = Path(folder).absolute().is_relative_to(Path(run_dir).absolute())
        return bool(folder) and (not inside or Path(folder).exists())
    except (OSError, ValueError):  # too long, or with NUL: no path
        return False
