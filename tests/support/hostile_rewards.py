"""Reward functions that fail in every way we know of. Imports nothing heavy: a worker loads this file."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path


def words(prompts, completions, **columns):
    return [float(len(completion.split())) for completion in completions]


def bare(prompts, completions):
    return [0.0] * len(completions)


def tells_and_waits(prompts, completions, **columns):
    """Leaves a file for every call; those from number WAIT_FROM on take WAIT_SECONDS."""
    folder = Path(os.environ["CALLS"])
    number = len(list(folder.iterdir()))
    (folder / f"{number}.{os.getpid()}").touch()
    if number >= int(os.environ.get("WAIT_FROM", "0")):
        time.sleep(float(os.environ.get("WAIT_SECONDS", "0")))
    return [float(len(completion)) for completion in completions]


def raises(prompts, completions, **columns):
    return [{"good": 1.0, "bad": -1.0}.get(c, 0.0) if c != "odd" else {}[c] for c in completions]


def sleeps(prompts, completions, **columns):
    time.sleep(1e6)


def regex(prompts, completions, **columns):
    """Hangs in C code on one completion, and holds the interpreter lock there."""
    return [float(bool(re.match(r"(a+)+$", "a" * 60 + "b" if c == "odd" else c))) for c in completions]


def ignores_signals(prompts, completions, **columns):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1e6)


def exits(prompts, completions, **columns):
    os._exit(3)


def sys_exits(prompts, completions, **columns):
    sys.exit(0)


def segfaults(prompts, completions, **columns):
    ctypes.string_at(0)


def killed(prompts, completions, **columns):
    os.kill(os.getpid(), signal.SIGKILL)


def nan(prompts, completions, **columns):
    return [float("nan") if c == "odd" else 1.0 for c in completions]


def infinite(prompts, completions, **columns):
    return [float("-inf") if c == "odd" else 1.0 for c in completions]


def too_large(prompts, completions, **columns):
    return [1e39 if c == "odd" else 1.0 for c in completions]


def enormous(prompts, completions, **columns):
    return [10**400 if c == "odd" else 1.0 for c in completions]


def huge(prompts, completions, **columns):
    return [1e30 * (-1) ** i for i in range(len(completions))]


def changes(prompts, completions, steps, **columns):
    steps[0].append("think")
    words = list(completions)
    prompts.clear()
    completions.clear()
    return [float("nan") if w == "odd" else 1.0 for w in words]


def forks(prompts, completions, **columns):
    if os.fork():
        time.sleep(0.5)
        return [1.0] * len(completions)
    return [9.0] * len(completions)


def text(prompts, completions, **columns):
    return ["1.0" if c == "odd" else 1.0 for c in completions]


def nothing(prompts, completions, **columns):
    return None


def one_number(prompts, completions, **columns):
    return 0.5


def too_few(prompts, completions, **columns):
    return [1.0 for c in completions if c != "odd"]


def generator(prompts, completions, **columns):
    return (1.0 for _ in completions)


def mapping(prompts, completions, **columns):
    return dict.fromkeys(completions, 1.0)


def cube(prompts, completions, **columns):
    import torch

    return torch.zeros(len(completions), 2, 2)


def column_vector(prompts, completions, completion_ids, **columns):
    import torch

    return torch.ones(len(completions), 1)


def tensor(prompts, completions, **columns):
    import torch

    return torch.arange(len(completions))


def decimals(prompts, completions, **columns):
    return tuple(Decimal("0.5") for _ in completions)


def prints(prompts, completions, **columns):
    print("to stdout", flush=True)
    print('{"returned": [9.0]}', file=sys.stderr)
    os.write(1, b"to descriptor 1\n")
    subprocess.run(["echo", "from a child"], check=True)
    assert sys.stdin.read() == ""
    return words(prompts, completions)


def columns_back(prompts, completions, **columns):
    assert prompts == ["p", [{"role": "user", "content": "h\u00e9\ud800"}]], prompts
    assert completions == ["a", [{"role": "assistant", "content": "b\x00\u2028"}]], completions
    assert columns["pair"] == [[1, 2], None] and columns["array"] == [[0.0, 1.0], None], columns
    assert columns["number"][0] == float("inf"), columns
    return [1.0, None]


def second_time(prompts, completions, folder, **columns):
    """Ends its process at the first call, and works after that."""
    marker = Path(folder[0]) / "seen"
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return words(prompts, completions)


def spawns(prompts, completions, folder, **columns):
    child = subprocess.Popen(["sleep", "1000"])
    (Path(folder[0]) / "pid").write_text(str(child.pid))
    time.sleep(1e6)


def says(prompts, completions, **columns):
    print("a line", flush=True)
    print("another", file=sys.stderr, flush=True)
    return [float(len(completion)) for completion in completions]


def child_answers_signals(prompts, completions, **columns):
    """How a process that the function forks ends after SIGTERM."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    return [float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for _ in completions]
