"""``rlhf-lightning chat``: talk to a policy in the terminal, beside another one and with a score if asked for."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.arguments import add_machine, device_of, parser
from rlhf_lightning.cli.generate import add_sampling, settings_of
from rlhf_lightning.cli.naming import names_of
from rlhf_lightning.console.display import plain
from rlhf_lightning.console.streams import quiet, say

if TYPE_CHECKING:
    from rlhf_lightning.labelling.inference import Responder
    from rlhf_lightning.scoring import RewardModelScorer

SHOWN = 12  # words of a small vocabulary
COMMANDS = "/new begins again, /quit ends (so does Ctrl-D)"


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    words = parser(
        "chat",
        "Talk to a policy, with its own chat template and generation_config.json; a model without a template goes on "
        f"writing what you begin. Reads lines from the keyboard or a pipe; {COMMANDS}.",
        "rlhf-lightning chat runs/mine/ppo --compare runs/mine/sft --reward runs/mine/reward",
    )
    words.add_argument("folder", metavar="FOLDER", help="of a policy")
    words.add_argument("--compare", metavar="FOLDER", help="another policy that answers the same")
    words.add_argument("--reward", metavar="FOLDER", help="a reward model, whose score stands under each answer")
    add_sampling(words)
    add_machine(words)
    return words


def run(words: Sequence[str]) -> None:
    """Talk until the input ends.

    Raises:
        CheckpointError: a folder is not what it is to be.
        ConfigError: the settings cannot work.
    """
    given = arguments().parse_args(words)
    quiet()
    from rlhf_lightning.labelling.inference import Responder
    from rlhf_lightning.models import Pretrained
    from rlhf_lightning.scoring import RewardModelScorer

    device, folders = device_of(given), [given.folder, *([given.compare] if given.compare else [])]
    voices, said = list[Voice](), list[list[str]]()
    for name, path in zip(names_of(folders), folders, strict=True):
        voices.append(Voice(name, Responder(path, device, given.dtype, settings_of(given)), said))
    scorer = RewardModelScorer(Pretrained(given.reward, dtype=given.dtype)) if given.reward else None
    if scorer is not None:
        scorer.to(device)
    for voice in voices:
        say(f"{voice.name}: {voice.introduction()}")
    say(COMMANDS)
    for number, line in enumerate(_lines()):
        if line == "/new":
            for voice in voices:
                voice.turns.clear()
            say("from the beginning")
            continue
        for voice in voices:
            voice.answer(line, given.seed + number, scorer)


class Voice:
    """One policy in the conversation, and what was said to it so far.

    Args:
        name: shown before its answers.
        policy: answers.
        said: words of the policies that were introduced before; those of its own are said unless they are the same.
    """

    def __init__(self, name: str, policy: Responder, said: list[list[str]]) -> None:
        from rlhf_lightning.labelling.inference import known_words

        self.name, self.policy = name, policy
        self.words = [] if (words := known_words(policy.tokenizer)) in said else words
        said.append(words)
        self.turns: list[dict[str, str]] = []

    def introduction(self) -> str:
        """How it answers, and which words it knows if they are few."""
        kind = "answers as its chat template says" if self.policy.is_chat else "goes on writing what you begin"
        text = f"{kind}; {self.policy}"
        if self.words:
            some = " ".join(random.Random(0).sample(self.words, min(SHOWN, len(self.words))))
            unknown = self.policy.tokenizer.unk_token
            text += f"\n  knows {len(self.words)} words, others become {unknown}; for example: {some}"
        return text

    def answer(self, line: str, seed: int, scorer: RewardModelScorer | None) -> None:
        """Show the answer to a line while it is written, and then its score."""
        from rlhf_lightning.data.readers.files import LocatedRow
        from rlhf_lightning.labelling.inference import unknown_words

        if self.words and (unknown := unknown_words(self.policy.tokenizer, line)):
            say(f"{self.name} does not know: {' '.join(unknown)}")
        self.turns.append({"role": "user", "content": line})
        prompt: Any = list(self.turns) if self.policy.is_chat else line
        while len(self.turns) > 1 and not self.policy.room(LocatedRow({"prompt": prompt}, "input", 1)):
            del self.turns[:2]  # the oldest exchange
            prompt = list(self.turns)
        _show(f"{self.name}> ")
        answer = self.policy.stream(LocatedRow({"prompt": prompt}, "input", 1), _show, seed)
        _show("\n" if answer.finished else " ... (cut)\n")
        self.turns = [*self.turns, {"role": "assistant", "content": answer.text}] if self.policy.is_chat else []
        if scorer is not None:
            (score,) = scorer.score_texts([prompt], [answer.text], [{}])
            say(f"  score {score:.3f}")


def _lines() -> Iterator[str]:
    """What is typed, line by line, until the end."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - `input` edits and remembers lines once it is imported
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "").rstrip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line.strip():
            yield line


def _show(piece: str) -> None:
    sys.stdout.write(plain(piece))
    sys.stdout.flush()
