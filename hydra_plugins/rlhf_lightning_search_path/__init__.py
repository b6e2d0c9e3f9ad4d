"""Lets any Hydra application compose the groups of rlhf_lightning (``kl=adaptive`` in your own ``@hydra.main``)."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from rlhf_lightning.config.locations import CONF_DIR


class RLHFLightningSearchPath(SearchPathPlugin):
    """Appends our config tree behind the application's own, which therefore wins where both define an option."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        known = {element.path for element in search_path.get_path()}
        if not known & {str(CONF_DIR), f"file://{CONF_DIR}"}:
            search_path.append(provider="rlhf-lightning", path=f"file://{CONF_DIR}")
