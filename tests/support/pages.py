"""Runs the Python of several pages, each in a fork of one process that has imported what all of them need.

Run as a script in a folder with ``<page>/page.py`` for each: writes what a page said to ``<page>/said``, and prints the
names of the pages that failed.
"""

import os
import runpy
import sys
import traceback
import warnings
from pathlib import Path

import rlhf_lightning.modules
import rlhf_lightning.stages  # noqa: F401


def run(place):
    """Whether the page of a folder ends without an error."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    code = 1
    try:
        os.chdir(place)
        said = os.open("said", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        warnings.simplefilter("ignore")
        sys.path[0] = "."
        runpy.run_path("page.py", run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    print(*(place.name for place in sorted(Path.cwd().iterdir()) if not run(place)))
