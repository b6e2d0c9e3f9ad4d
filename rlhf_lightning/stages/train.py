"""The way of every stage that trains: model, data, module, Trainer, and a folder with its provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from rlhf_lightning.console.streams import say
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.evaluation.card import write_card
from rlhf_lightning.stages.run import Run, scalars, verify_sources

Metrics = dict[str, float]


def train(
    run: Run,
    stage: str,
    parts: Mapping[str, Any] | None = None,
    *,
    section: Mapping[str, Any] | None = None,
    model: str = "policy",
    callbacks: Sequence[Callback] = (),
    rows: Mapping[str, Any] | None = None,
    found: Callable[[Any], Mapping[str, Any]] = lambda module: {},
) -> Metrics:
    """Fit the module of a stage to its data and export it; returns the last metrics.

    Args:
        run: the run.
        stage: names checkpoints, history and provenance.
        parts: arguments of the module besides model, tokenizer, optimizer, scheduler and, where the section has one,
            the reference. They win over keys of the module's node.
        section: of the config, with ``policy``, ``data``, ``module``, ``optimizer``, ``scheduler``, ``output`` and
            ``max_epochs``; by default that of the stage. Without ``max_epochs`` the data says when the only epoch ends,
            and the module steps its optimizer itself.
        model: how the module calls the model it trains.
        callbacks: besides those of the run.
        rows: data files that the callbacks read, by the part they play.
        found: more metrics to keep, of the trained module.
    """
    section = run.section(stage) if section is None else section
    files, reference = section["data"]["train"], section.get("reference")
    read = {"data": files, **(rows or {})}
    for some in read.values():
        verify_sources(some)
    parents = run.parents({"policy": section["policy"], "reference": reference, **read})
    source = run.model(section["policy"], section.get("freeze_below"))
    tokenizer = source.tokenizer()
    given: dict[str, Any] = {model: source, "tokenizer": tokenizer}
    given |= {name: run.build(section.get(name)) for name in ("optimizer", "scheduler")}
    if "reference" in section:
        given["reference"] = run.model(reference) if reference else None
    parts = parts or {}
    node = {name: value for name, value in section["module"].items() if name not in parts}
    module = run.build(node, run.key_of(section["module"]), **given, **parts)
    if model == "policy" and getattr(module, "sampling", None) is None:
        module.sampling = run.build(section.get("sampling") or run.config["sampling"])
    data, key = run.build(section["data"], tokenizer=tokenizer), run.key_of(section["data"])
    if not hasattr(data, "accumulate_for"):
        raise ConfigError(
            f"{key}: {type(data).__name__} has no accumulate_for(world_size), the micro-batches of an optimizer step; "
            "docs/extending.md, section 10, shows one"
        )
    data.key = f"{key}."
    if "max_epochs" in section:
        trainer = run.trainer(stage, callbacks, max_epochs=section["max_epochs"])
        trainer.accumulate_grad_batches = data.accumulate_for(trainer.world_size)
    else:
        trainer = run.trainer(stage, callbacks, max_epochs=1, limit_val_batches=0)
    run.fit(stage, trainer, module, data)
    metrics = scalars(trainer) | dict(found(module))
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        if run.is_first:
            say(f"{stage}: fast_dev_run only tried a step; no model is exported")
        return metrics
    module.export(section["output"], run.provenance(stage, metrics, parents))
    if run.is_first:
        write_card(Path(section["output"]))
    return metrics
