"""Let two folders trade places in one step, so that no reader ever finds the name empty. Linux only."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of the kernel's headers
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(first: Path, second: Path) -> bool:
    """Swap two existing paths of one filesystem at once; False, with nothing done, where the system cannot.

    Raises:
        OSError: the system can and it failed.

    Source: renameat2(2) with RENAME_EXCHANGE, Linux 3.15 and glibc 2.28.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    sys.audit("rlhf_lightning.exchange", str(first), str(second))
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNABLE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
