"""Kill a process before every file operation of `write_folder`, one after the other, and say what is left.

``python -m tests.support.kill_worker FOLDER`` prints one JSON list with an entry for each kill.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rlhf_lightning.checkpoint import folders as handover
from rlhf_lightning.checkpoint import verify_folder
from rlhf_lightning.errors import CheckpointError
from tests.support.dying_child import dies_before

CHANGES = (
    "rlhf_lightning.exchange", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree",
    "tempfile.mkdtemp",
)  # fmt: skip


def write(path: Path, version: str) -> None:
    def fill(tmp: Path) -> None:
        (tmp / "weights.bin").write_bytes(version.encode() * 5000)
        (tmp / "config.json").write_text(version)

    handover.write_folder(path, fill, {"stage": "sft", "metrics": {"version": version}})


def listener(folder: Path) -> Callable[[Callable[[str], None]], None]:
    """Listens to every file operation in the folder."""

    def listen(before: Callable[[str], None]) -> None:
        def watch(event, arguments):
            touches = str(arguments[0] if arguments else "").startswith(str(folder))
            if touches and (event in CHANGES or event == "open"):
                before(event)

        sys.addaudithook(watch)

    return listen


def state_of(path: Path) -> str:
    """Which version verifies there, or why none does."""
    try:
        return verify_folder(path)["metrics"]["version"]
    except CheckpointError as error:
        return "absent" if not path.exists() else str(error)


def main(root: Path) -> None:
    found, number = [], 0
    while True:
        path = root / str(number) / "policy"
        write(path, "old")
        event = dies_before(number, partial(write, path, "new"), listener(path.parent))
        if event is None:
            break
        copies = [state_of(sibling) for sibling in path.parent.iterdir()]
        entry = {"before": event, "there": state_of(path), "copies": copies}
        write(path, "newer")
        left = [sibling.name for sibling in path.parent.iterdir()]
        found.append(entry | {"later": state_of(path), "left": left})
        number += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
