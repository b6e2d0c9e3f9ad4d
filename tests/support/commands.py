"""Gives `rlhf-lightning` many commands in one process and tells how each ended. Run as a script: reads and writes JSON.

Without torch a command line is judged in a fraction of a second, so that one process does for all of them.
"""

import contextlib
import io
import json
import os
import sys
import time


def answer(words):
    from rlhf_lightning.cli import main as cli

    sys.argv = ["rlhf-lightning", *words]
    out, err, code = io.StringIO(), io.StringIO(), None
    start = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    heavy = sorted({"torch", "lightning", "transformers"} & set(sys.modules))
    cpu = time.process_time() - start
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy, "cpu": cpu}


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    stdout = os.dup(1)
    answers = [answer(words) for words in commands]
    with os.fdopen(stdout, "w") as stream:
        json.dump(answers, stream)
