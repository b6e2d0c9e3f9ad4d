"""What a reader of the documentation has at hand, in small, and commands that take seconds."""

import ast
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from rlhf_lightning.cli.commands import COMMANDS
from rlhf_lightning.config.compose import compose
from rlhf_lightning.rules.stages import names
from rlhf_lightning.stages.pipeline import run
from rlhf_lightning.tasks.miniature.prepare import prepare_miniature
from tests.gates.gate_docs import Block, blocks, overrides
from tests.gates.gate_docs import commands as commands_of
from tests.gates.gate_sources import ROOT
from tests.people.arena_world import Voter
from tests.support import commands, phases, tiny
from tests.support.reward_service import reward_service

DOCS = ROOT / "docs"
START = [
    ROOT / "README.md",
    DOCS / "getting_started.md",
    *(DOCS / "stages" / f"{name}.md" for name in ("sft", "rank", "reward", "ppo", "evaluate")),
    DOCS / "after_training.md",
    DOCS / "stages" / "score.md",
    DOCS / "people.md",
    DOCS / "tutorial.md",
]
"""Pages whose commands run in this order."""
EXTENDING = DOCS / "extending.md"
"""Its commands run each by itself."""
TASK = {"demonstrations": 64, "texts": 40, "prompts": 48, "heldout_prompts": 16}
SERVICE = "http://localhost:9000/score"  # of the reader
SHELL = {"bash", "sh", "console", "shell"}
MINE = """
from pathlib import Path


class Judge:
    def __init__(self, path):
        self.words = Path(path).read_text().split()

    def __call__(self, prompts, completions, **columns):
        return [float(sum(word in text for word in self.words)) for text in completions]


def quality(prompts, completions, **columns):
    return [float(len(set(text.split()))) for text in completions]
"""


def make(folder: Path, pages: list[Path]) -> None:
    """Fill the folder in which the commands of the pages run."""
    phases.write(folder)
    tiny.policy(scale=0.3, positions=512).save_pretrained(folder / "my_model")
    tiny.tokenizer().save_pretrained(folder / "my_model")
    for name, source in (
        ("sft", "demonstrations"),
        ("held_out", "prompts"),
        ("pairs", "rankings"),
        ("ranked", "rankings"),
    ):
        (folder / f"{name}.jsonl").write_text(3 * (folder / f"{source}.jsonl").read_text())
    texts = [{"text": f"{prompt} {completion.strip()}"} for prompt, completion in phases.DEMONSTRATIONS]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in 4 * texts))
    (folder / "words.txt").write_text("good kind")
    secrets = [{"prompt": "guess", "secret": secret} for secret in ("one", "two", "three") * 4]
    (folder / "secrets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in secrets))
    annotation = {"generator_1": "theirs", "generator_2": "mine", "annotator": "a judge", "output_1": "good"}
    said = [annotation | {"instruction": p, "output_2": c, "preference": 1.6} for p, c in phases.DEMONSTRATIONS]
    (folder / "annotations.json").write_text(json.dumps(said))
    forum = [{"question": p, "answers": [{"text": c, "votes": 2}]} for p, c in phases.DEMONSTRATIONS]
    (folder / "forum.jsonl").write_text("".join(json.dumps(row) + "\n" for row in forum))
    package = folder / "my_project"
    package.mkdir()
    text = "\n\n".join([*(definitions(page.read_text()) for page in pages), MINE])
    for name in ("__init__", "games", "losses", "rewards"):
        (package / f"{name}.py").write_text(text)
    prepare_miniature(folder / "runs" / "assets" / "miniature", **TASK)


def definitions(text: str) -> str:
    """Imports, constants, functions and classes of the Python blocks of a page, without what it does with them."""
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    bodies = [ast.parse(block.body).body for block in blocks(text) if block.language == "python"]
    nodes = [node for body in bodies for node in body if isinstance(node, kept) or _is_constant(node)]
    return "\n\n".join(map(ast.unparse, nodes))


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()


def lines_of(page: Path) -> list[tuple[int, list[str]]]:
    """The commands of a page that compose a config, each with the line of its block, in order."""
    shell: list[Block] = [b for b in blocks(page.read_text()) if b.language in SHELL and b.no_run is None]
    found = [(block.line, words) for block in shell for words in commands_of(block.body)]
    return [
        (line, words) for line, words in found if words[:1] not in (["prepare"], ["data"]) and "--help" not in words
    ]


def follow(words: list[str]) -> dict[str, float]:
    """Run a command in this process, as it stands but for the sizes; what is typed into one is a line of text."""
    if words[:1] in (["label"], ["arena"]) and words[1] not in ("export", "import", "results"):
        with served(words) as people:
            (rank_all if words[0] == "label" else vote)(people)
        return {}
    if words[:1] and words[0] in COMMANDS:
        with patch("sys.stdin", io.StringIO("the food was\n")):
            done = commands.answer(words)
        assert not done["code"], done["err"]
        return {}
    with reward_service() as service:
        return run(shrunk(compose(overrides([word.replace(SERVICE, service.address) for word in words]))))


@contextmanager
def served(words: list[str]) -> Iterator[list[Voter]]:
    """Open a page as the words say, with those who take part, and close it as Ctrl-C does."""
    command = [sys.executable, str(ROOT / "train.py"), *words, "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host = re.match(r"http://([^/]+)/", process.stdout.readline())[1]
        links = [process.stdout.readline().rpartition("/enter/")[2].strip() for _ in _annotators(words)]
        people = [Voter(host, None, token) for token in links] or [Voter(host, "ann")]
        yield people
        for person in people:
            person.wire.close()
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def rank_all(people: list[Voter]) -> None:
    """All rank all that they are shown."""
    for person in people:
        while (item := person.next()) is not None:
            status, _ = person.send(item, list(range(1, len(item["order"]) + 1)))
            assert status == 200


def vote(people: list[Voter]) -> None:
    """Each asks a question of their own and takes a given prompt, and votes on the answers."""
    for person in people:
        for prompt, kind in (("the food was", "left"), (None, "right")):
            assert person.battle(prompt)[1][-1]["item"] == person.next()
            assert person.vote(person.next(), kind)[0] == 200


def _annotators(words: list[str]) -> list[str]:
    return words[words.index("--annotators") + 1].split(",") if "--annotators" in words else []


def shrunk(config: dict) -> dict:
    """The config with sizes that take seconds: a few rows, two steps of each fit, four tokens to an answer."""
    config = json.loads(json.dumps(config, default=str))
    config["trainer"] |= {"limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"}
    if "miniature" in str(config["task"]):
        config["task"] |= TASK
    for name in names(config["stages"]):
        _shrink(config[name])
        if name == "ppo":
            config[name]["settings"]["entropy_coef"] = 0.01  # something to learn where four answers score the same
    for group in ("judge", "scorer"):
        _without_worker(config.get(group))
    return config


def _shrink(section: dict) -> None:
    for key, value in section.items():
        if isinstance(value, dict):
            _shrink(value)
        elif key in ("max_rows", "max_prompts"):
            section[key] = 8
        elif key in ("batch_size", "micro_batch_size") and value is not None:
            section[key] = 4
        elif key in ("rollouts", "num_minibatches") and value is not None:
            section[key] = 1
        elif key in ("max_new_tokens", "max_prompt_length"):
            section[key] = {"max_new_tokens": 4, "max_prompt_length": 32}[key]


def _without_worker(node: object) -> None:
    """A process for each reward function would take longer than all the rest; tests/scoring covers them."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _without_worker(value)
    if isinstance(node, dict) and "isolate" in node:
        node["isolate"] = False
