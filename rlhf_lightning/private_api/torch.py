"""What PyTorch does not promise to keep."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def view_of(module: M) -> M:
    """A shallow copy whose children can be replaced without changing the module; parameters are shared.

    Relies on ``_modules``, the dict of children, which `copy.copy` shares. A module has no public shallow copy.
    """
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view
