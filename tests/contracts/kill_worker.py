"""Kill a process before every file operation of `write_folder`, one after the other, and say what is left.

``python -m tests.contracts.kill_worker FOLDER`` prints one JSON list with an entry for each kill.
"""

import json
import os
import sys
from pathlib import Path

from rlhf_lightning.checkpoint import handover
from rlhf_lightning.errors import CheckpointError

KILLED = 137
CHANGES = (
    "rlhf_lightning.exchange", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree",
    "tempfile.mkdtemp",
)  # fmt: skip


def write(path: Path, version: str) -> None:
    def fill(tmp: Path) -> None:
        (tmp / "weights.bin").write_bytes(version.encode() * 5000)
        (tmp / "config.json").write_text(version)

    handover.write_folder(path, fill, {"stage": "sft", "metrics": {"version": version}})


def killed_before(number: int, path: Path) -> str | None:
    """Write the new version in a child that dies before its file operation ``number``; which one, None if it ended."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        left = number

        def watch(event, arguments):
            nonlocal left
            touches = str(arguments[0] if arguments else "").startswith(str(path.parent))
            if touches and (event in CHANGES or event == "open"):
                if left == 0:
                    os.write(tell, event.encode())
                    os._exit(KILLED)
                left -= 1

        sys.addaudithook(watch)
        write(path, "new")
        os._exit(0)
    os.close(tell)
    _, status = os.waitpid(child, 0)
    with os.fdopen(told) as stream:
        event = stream.read()
    assert os.waitstatus_to_exitcode(status) in (0, KILLED)
    return event or None


def state_of(path: Path) -> str:
    """Which version verifies there, or why none does."""
    try:
        return handover.verify_folder(path)["metrics"]["version"]
    except CheckpointError as error:
        return "absent" if not path.exists() else str(error)


def main(root: Path) -> None:
    found, number = [], 0
    while True:
        path = root / str(number) / "policy"
        write(path, "old")
        event = killed_before(number, path)
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
