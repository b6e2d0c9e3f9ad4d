"""From a composed Hydra config to plain Python: resolve, judge, save, instantiate. Imports no torch, no Lightning."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from rlhf_lightning.config.allowlist import IMPORT_PATH_KEYS, check_names, check_objects
from rlhf_lightning.config.bounds import DEEPEST, MOST_VALUES, check_numbers
from rlhf_lightning.config.chain import complete
from rlhf_lightning.config.checks import check_config
from rlhf_lightning.config.ignored import check_ignored
from rlhf_lightning.config.judging import Judged
from rlhf_lightning.config.locations import CONF_DIR
from rlhf_lightning.config.rights import check as check_rights
from rlhf_lightning.config.signatures import signature_anywhere
from rlhf_lightning.config.tree import at, dotted, walk
from rlhf_lightning.console.redaction import redact as redact
from rlhf_lightning.errors import ConfigError, RLHFError, nearest

_CALLED_LATER = ("critic", "loss", "advantage", "optimizer", "scheduler")  # with arguments that only Python has


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> Judged:
    """The config of a command line as plain Python, without running anything: ``compose(["stage=ppo", "kl=fixed"])``.

    Raises:
        ConfigError: there is no such key or option, or see :func:`load_config`.
    """
    import hydra
    from hydra.errors import HydraException

    from rlhf_lightning.config.hydra_loader import composing
    from rlhf_lightning.config.messages import explain
    from rlhf_lightning.config.plain_values import readable

    overrides = readable(overrides)
    with composing(), hydra.initialize_config_dir(str(CONF_DIR), job_name="train", version_base=None):
        try:
            composed = hydra.compose(config_name, list(overrides))
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last: a group that is no text
            raise ConfigError(explain(error, overrides)) from error
        return load_config(composed, overrides)


def load_config(cfg: DictConfig, overrides: Sequence[str] | None = None) -> Judged:
    """Resolve ``cfg`` to plain dicts and lists and judge it: every ``_target_`` by name, and what files may not do.

    Args:
        cfg: what Hydra composed.
        overrides: the command line it was composed with; by default what Hydra remembers of it. Only a command line (or
            the environment) may trust targets: ``trusted_targets=[...]``, or a ``_target_`` or ``function`` set there;
            and only it may do what `rlhf_lightning.config.rights` says of files.

    Raises:
        ConfigError: a required value is missing, an interpolation leads nowhere, the config is too large, a target is
            not allowed, a file does what only a command line may, or a mistake that `check_config` finds.
    """
    from hydra.core.hydra_config import HydraConfig

    from rlhf_lightning.config import resolving

    cfg = cfg.copy()
    if overrides is None:
        node: Any = HydraConfig.get().overrides if HydraConfig.initialized() else {"task": [], "hydra": []}
        remembered: Any = OmegaConf.to_container(OmegaConf.create(node), resolve=False)
        overrides = [str(o) for o in (*remembered["task"], *remembered["hydra"])]
    if HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        # The folder Hydra made. Ranks started by Lightning get the same one on their command line.
        OmegaConf.update(cfg, "run_dir", HydraConfig.get().runtime.output_dir, force_add=True)
    typed = resolving.begin(overrides)
    try:
        config = _plain(cfg)
    finally:
        resolving.end()
    complete(config)
    config["trusted_targets"] = _trusted(config.get("trusted_targets") or [], overrides)
    _check_remote_code(config, overrides)
    check_names(config, config["trusted_targets"])
    check_numbers(config)  # one of very many digits has no text, which all others ask for
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    check_rights(config, raw if typed.local else None, typed)
    try:
        check_config(config)
    except ConfigError as error:
        raise ConfigError(_named_by_source(str(error), config, raw)) from None
    check_ignored(config, typed)
    return Judged(config, overrides=overrides)


def safe_instantiate(node: Any, key: str = "", /, *, trusted: Sequence[str] = (), **objects: Any) -> Any:
    """Build what ``node`` describes, after every target in it has passed the allowlist.

    Args:
        node: a dict with ``_target_``, or a dict or list of such.
        key: where it stands in the config, for messages.
        trusted: import prefixes allowed besides the list, usually ``config["trusted_targets"]``.
        objects: arguments that are Python objects rather than config; they override keys of ``node``.

    Raises:
        ConfigError: a target is not allowed or does not take the arguments given.

    >>> safe_instantiate({"_target_": "os.system", "command": "true"})
    Traceback (most recent call last):
        ...
    rlhf_lightning.errors.ConfigError: _target_: os.system is not on the list of classes a config may name.
    If it is yours and you trust it, add trusted_targets=[os] to the command or set RLHF_LIGHTNING_TRUSTED_TARGETS=os.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    tree = _plain(node) if OmegaConf.is_config(node) else node
    if tree is None:
        return None
    named = {key: tree} if key else tree
    check_names(named, trusted)
    _refuse_interpolations(named)
    check_objects(named, trusted)
    has_target = isinstance(tree, dict) and "_target_" in tree
    if objects and not has_target:
        raise ConfigError(f"arguments {sorted(objects)} were given for a node without _target_")
    try:
        if not has_target:
            return instantiate(tree, _convert_="all")
        # A partial first: objects then never pass through OmegaConf, which would copy some and unpack dataclasses.
        factory = instantiate({**tree, "_partial_": True, "_convert_": "all"})
        return functools.partial(factory, **objects) if tree.get("_partial_", False) else factory(**objects)
    except (InstantiationException, TypeError) as error:
        raise _build_error(error, tree, key) from error


def config_text(config: Mapping[str, Any]) -> str:
    """What stands in ``config.yaml``: the resolved config with passwords and tokens blanked out."""
    return OmegaConf.to_yaml(OmegaConf.create(redact(dict(config))))


def _plain(cfg: Any) -> Any:
    from rlhf_lightning.config import resolving

    try:
        tree = _resolved(cfg)
    except (OmegaConfBaseException, ConfigError) as error:
        if (known := resolving.ours(error)) is not None:
            raise known from None
        if isinstance(error, (MissingMandatoryValue, InterpolationToMissingValueError)):
            raise _not_given(_missing(OmegaConf.to_container(cfg))) from None
        hint = " Is the environment variable set?" if "Environment variable" in str(error) else ""
        raise ConfigError(
            f"{getattr(error, 'full_key', None) or 'config'}: {str(error).splitlines()[0]}.{hint}"
        ) from error
    if missing := _missing(tree):
        raise _not_given(missing)
    return tree


def _resolved(node: Any, key: str = "", counted: list[str] | None = None) -> Any:
    """As plain dicts and lists, every interpolation followed; in our hands because it stops where there is no end."""
    counted = [] if counted is None else counted
    counted.append(key)
    depth = key.count(".") + key.count("[")
    if depth > DEEPEST or len(counted) > MOST_VALUES:
        limit = f"{DEEPEST} containers in each other" if depth > DEEPEST else f"{MOST_VALUES} values"
        raise ConfigError(f"{key[:60]}: the config has more than {limit} here, or leads to itself by interpolations")
    if not isinstance(node, (DictConfig, ListConfig)):
        return node
    tree: dict[Any, Any] = {}
    names: Any = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        inside = f"{key}[{name}]" if isinstance(node, ListConfig) else f"{key}.{name!s}" if key else str(name)
        missing = OmegaConf.is_missing(node, name)
        tree[name] = "???" if missing else _resolved(node[name], inside, counted)
    return tree if isinstance(node, DictConfig) else list(tree.values())


def _named_by_source(message: str, config: Any, raw: Any) -> str:
    """A message about a value that is taken from another key, with that key in front: it is the one to change."""
    while found := re.match(r"([\w.]+)(?=[=:])", message):
        path = tuple(found[1].split("."))
        keys = re.findall(r"\$\{(\w[\w.]*)\}", str(at(raw, path)))
        taken = next((key for key in keys if at(config, tuple(key.split("."))) == at(config, path)), None)
        if taken is None:
            break
        message = taken + message[found.end() :]
    return message


def _not_given(missing: list[str]) -> ConfigError:
    key = missing[0]
    others = f" Also missing: {', '.join(missing[1:])}." if missing[1:] else ""
    return ConfigError(f"{key} has no default and must be given: add {key}=VALUE to the command.{others}")


def _missing(tree: Any) -> list[str]:
    return sorted(entry.key for entry in walk(tree) if isinstance(entry.value, str) and entry.value == "???")


def _trusted(configured: Sequence[str], overrides: Sequence[str]) -> list[str]:
    pairs = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    if configured and not any(key == "trusted_targets" for key, _ in pairs):
        raise ConfigError(
            "trusted_targets is set by a config file; it is taken from the command line only: "
            f"add 'trusted_targets=[{','.join(map(str, configured))}]' if you trust it"
        )
    named = [v.strip("'\"") for k, v in pairs if k.split(".")[-1] in IMPORT_PATH_KEYS | {"_target_"}]
    named += [v.strip(" '\"") for k, value in pairs if k == "stages" for v in value.strip("'\"[] ").split(",")]
    return [str(t) for t in configured] + [name for name in named if re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", name)]


def _check_remote_code(tree: Any, overrides: Sequence[str]) -> None:
    """Code beside weights runs only where the command line says so, for one model and one commit of it."""
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    for entry in walk(tree):
        if entry.path[-1:] != ("trust_remote_code",) or not entry.value:
            continue
        key = entry.key
        if typed.isdisjoint((key, key.removeprefix("scorer."))):  # a scorer may repeat the judge
            raise ConfigError(
                f"{key} is set by a config file; it is taken from the command line only: add {key}=true if "
                "you have read the code beside the weights"
            )
        if entry.holder.get("revision") is None:
            raise ConfigError(
                f"{key}=true needs a pinned {dotted(entry.path[:-1])}.revision (the commit you have read)"
            )


def _refuse_interpolations(tree: Any) -> None:
    # Hydra resolves once more while instantiating: a `${...}` that survived so far could still become a target.
    for entry in walk(tree):
        if isinstance(entry.value, str) and "${" in entry.value:
            raise ConfigError(f"{entry.key}: the text '${{' cannot be passed to a target")


def _build_error(error: Exception, tree: Any, key: str) -> Exception:
    """Our own errors as they were raised; wrong arguments as a ConfigError; anything else untouched."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RLHFError):
            return cause
        cause = cause.__cause__
    inner = re.search(r"full_key: (\S+)", str(error))
    path = tuple(inner[1].split(".")) if inner else ()
    node = at(tree, path)
    node, path = (tree, ()) if node is ... else (node, path)  # in a list: Hydra does not say where
    target = node.get("_target_", "config") if isinstance(node, dict) else "config"
    root = error.__cause__ or error
    wrong_call = isinstance(root, TypeError) and re.search(r"argument|positional|keyword", str(root))
    if wrong_call or (isinstance(error, TypeError) is False and root is error):
        where = dotted((*([key] if key else []), *path))
        return ConfigError(f"{f'{where}: ' if where else ''}{target}: {root}{_remedy(str(root), key, target)}")
    return error


def _remedy(text: str, key: str, target: str) -> str:
    """What may have been meant by a call with wrong arguments."""
    takes = signature_anywhere(target)
    if (unknown := re.search(r"unexpected keyword argument '(\w+)'", text)) and takes is not None:
        return f".{nearest(unknown[1], list(takes.parameters))}"
    if "missing" in text and key.rpartition(".")[2] in _CALLED_LATER:
        return "; if that is given when it is called, add _partial_: true to the node"
    return ""
