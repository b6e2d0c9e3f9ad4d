"""While a config is composed and resolved: interpolations have a budget, and ``oc.env`` asks who wrote it.

Elsewhere OmegaConf behaves as ever, in the same process too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.resolvers import oc

from rlhf_lightning.config import chain, rounds
from rlhf_lightning.config.bounds import LONGEST, Budget, check_expression, check_text
from rlhf_lightning.config.rights import HARMLESS, PLACES, check_variable
from rlhf_lightning.config.typed import Typed
from rlhf_lightning.console.redaction import remember
from rlhf_lightning.errors import ConfigError, RLHFError
from rlhf_lightning.private_api.omegaconf import content_of, place_of, resolve_through

_NO_DEFAULT: Any = object()
_now: tuple[Typed, Budget] | None = None


def begin(overrides: Sequence[str]) -> Typed:
    """From now on until `end`, a config of this command line is composed and resolved. Ends what began before."""
    global _now
    _now = Typed(overrides), Budget()
    ours: dict[str, Any] = {
        "oc.env": _env,
        "oc.decode": _decode,
        "oc.create": _create,
        "made": chain.made,
        "first": chain.first,
        "earlier": rounds.earlier,
        "with_earlier": rounds.with_earlier,
    }
    for name, resolver in ours.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    resolve_through(_within_budget)
    return _now[0]


def end() -> None:
    """Composing is over."""
    global _now
    _now = None
    resolve_through(None)


def ours(error: BaseException | None) -> RLHFError | None:
    """The error of this library behind one of OmegaConf or Hydra, which wrap what is raised inside of them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, RLHFError):
            # OmegaConf adds lines of its own to what it passes on
            return type(error)(str(error).partition("\n    full_key:")[0]) if isinstance(error, ConfigError) else error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def too_deep(error: BaseException | None) -> bool:
    """Whether Python's stack was too small for it, which happens where something leads to itself."""
    while error is not None:
        if isinstance(error, RecursionError) or "RecursionError" in str(error)[:200]:
            return True
        error = error.__cause__ or error.__context__
    return False


def _within_budget(node: Any, key: Any, resolve: Callable[[], Any]) -> Any:
    assert _now is not None
    budget, name = _now[1], ".".join(place_of(node)) or str(key)
    with budget.one_more(name):
        found = resolve()
    content = content_of(found) if found is not None and not isinstance(found, Container) else None
    if isinstance(content, (str, bytes)):
        if len(content) > LONGEST:
            raise ConfigError(f"{name}: interpolations make a text of more than {LONGEST} characters")
        budget.spend(name, len(content) // 100)
    return found


def _env(variable: str, default: Any = _NO_DEFAULT, *, _node_: Any) -> Any:
    given = () if default is _NO_DEFAULT else (default,)
    if _now is None:
        return oc.env(variable, *given)
    key = place_of(_node_)
    check_variable(key, content_of(_node_), str(variable), _now[0])
    value = oc.env(variable, *given)
    if value and variable not in HARMLESS | PLACES:
        remember([(key[-1] if key else "", value)])
    return value


def _decode(expression: Any, *, _parent_: Any, _node_: Any) -> Any:
    if _now is not None and isinstance(expression, str):
        check_expression("${" + expression, ".".join(place_of(_node_)))
    return oc.decode(expression, _parent_=_parent_, _node_=_node_)


def _create(content: Any, *, _parent_: Any, _node_: Any) -> Any:
    if _now is not None and isinstance(content, str):
        check_text(content, ".".join(place_of(_node_)))
    return oc.create(content, _parent_=_parent_)
