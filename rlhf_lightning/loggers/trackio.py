"""Trackio, which Lightning has no logger for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """A run of Trackio, in the folder of this machine that the variable ``TRACKIO_DIR`` names, or on a Space.

    Args:
        project: what the runs to be compared have in common.
        name: of the run.
        group: of runs that belong together.
        space_id: of a Space on the hub, ``user/name``, which then keeps and shows the run; None keeps it here.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """

    def __init__(
        self,
        project: str = "rlhf_lightning",
        name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
    ) -> None:
        super().__init__()
        import trackio  # noqa: F401  so that it is known now

        self.project, self.group, self.space_id = project, group, space_id
        self._name, self._run = name, None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `trackio.Run`, begun when it is first asked for."""
        if self._run is None:
            import trackio

            self._run = trackio.init(
                self.project, name=self._name, group=self.group, space_id=self.space_id, embed=False, auto_log_cpu=False
            )
        return self._run

    @property
    def name(self) -> str | None:
        """Of the run, as it was given."""
        return self._name

    @property
    def version(self) -> str | None:
        """The id of the run, once it has begun."""
        return getattr(self._run, "id", None)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add to the config of the run, which Trackio stores with the first metrics."""
        self.experiment.config.update(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A point of each curve."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int | None = None
    ) -> None:
        """Rows of values for the columns."""
        import trackio

        self.experiment.log({key: trackio.Table(columns=list(columns), data=[list(row) for row in data])}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str], step: int | None = None) -> None:
        """PNG files."""
        import trackio

        for number, image in enumerate(images):
            self.experiment.log({f"{key}/{number}" if number else key: trackio.Image(image)}, step=step)

    @rank_zero_only
    def end(self) -> None:
        """Write what is still on its way; the run takes no more."""
        if self._run is not None:
            self._run.finish()
