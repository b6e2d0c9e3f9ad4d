"""People's votes in the place of a judge: ratings of policies, and win rates between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_lightning.checkpoint.provenance import weights_sha256
from rlhf_lightning.console.display import markdown
from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation.compare import Record, describe, later_and_earlier, win_rate
from rlhf_lightning.evaluation.conclusion import PEOPLE, opponent, rate_text
from rlhf_lightning.people.judgements import Item, Judgement
from rlhf_lightning.people.votes import POLICIES, WEIGHTS, compared, policies_of, read_votes, standings, weights_by_name


@dataclass(frozen=True)
class PeopleVotes:
    """The votes between the policies that are compared, by the names that they have there."""

    items: Sequence[Item]
    judgements: Sequence[Judgement]
    others: int  # judgements of other policies, or of other weights

    def compare(self, policies: Mapping[str, Sequence[Record]], proxy: str | None = None) -> dict[str, Any]:
        """As `rlhf_lightning.evaluation.compare`, with the votes as the judge.

        The judge's score of a policy is its Bradley-Terry rating, in log-odds against the policy that the newest one is
        compared with; single answers have none. At equal length, that of a voted answer is in characters.

        Returns:
            also ``people``: `Standings.summary` of the votes.
        """
        evaluation: dict[str, Any] = {"judge": PEOPLE, "proxy": proxy, "policies": describe(policies)}
        found = standings(self.items, self.judgements, anchor=opponent(evaluation))
        for one in found.ratings:
            rating = {"mean": one.rating, "stderr": one.stderr}
            evaluation["policies"][one.policy]["summary"]["scores"][PEOPLE] = rating
        rates = {pair: self._win_rate(*pair) for pair in later_and_earlier(list(policies))}
        named = {f"{later} vs {earlier}": rate for (later, earlier), rate in rates.items() if rate is not None}
        return evaluation | {"win_rates": named, PEOPLE: found.summary() | {"others": self.others}}

    def _win_rate(self, later: str, earlier: str) -> dict[str, Any] | None:
        """`win_rate` over the votes between two policies; None where they never met."""
        ours, theirs = list[Record](), list[Record]()
        for one in compared(self.items, self.judgements):
            shares = {one.vote.first: one.vote.share, one.vote.second: 1 - one.vote.share}
            lengths = dict(zip((one.vote.first, one.vote.second), one.lengths, strict=True))
            if set(shares) == {later, earlier}:
                for side, name in ((ours, later), (theirs, earlier)):
                    said = {"prompt": one.prompt, "scores": {PEOPLE: shares[name]}, "length": lengths[name]}
                    side.append(said)
        return win_rate(ours, theirs, PEOPLE) if ours else None


class PeopleJudge:
    """What people voted in the arena.

    Args:
        votes: the record that `rlhf-lightning arena` filled.
    """

    name = PEOPLE

    def __init__(self, votes: str) -> None:
        self.votes = votes

    def about(self, folders: Mapping[str, str]) -> PeopleVotes:
        """The votes on policies, which are known by their weights, whatever they were called in the arena.

        Args:
            folders: of the policies, by name.

        Raises:
            DataError: nobody voted on the weights of one of them, or two have the same; names it.
            CheckpointError: a folder holds no weights.
        """
        items, judgements = read_votes(self.votes)
        weights = {name: weights_sha256(folder) for name, folder in folders.items()}
        weights_by_name({}, weights, self.votes)
        names = {digest: name for name, digest in weights.items()}
        kept = [
            replace(item, row={**item.row, POLICIES: [names[digest] for digest in item.row[WEIGHTS]]})
            for item in items if set(item.row[WEIGHTS]) <= set(names)
        ]  # fmt: skip
        numbers = {item.number for item in kept}
        said = [one for one in judgements if one.item in numbers]
        voted = {name for one in compared(kept, said) for name in (one.vote.first, one.vote.second)}
        if missing := [name for name in folders if name not in voted]:
            known = policies_of(items, self.votes)
            name = min(missing, key=lambda name: weights[name] in known.values())  # one that is new there first
            raise DataError(self._missing(name, folders[name], weights[name], known, judgements))
        return PeopleVotes(kept, said, len(judgements) - len(said))

    def _missing(
        self, name: str, folder: str, weights: str, known: Mapping[str, str], said: Sequence[Judgement]
    ) -> str:
        if not any(one.ranks is not None for one in said):
            return f"{self.votes}: nobody has voted yet; `rlhf-lightning arena` collects votes"
        newer = "; these are newer than those that were voted on" if known.get(name, weights) != weights else ""
        return (
            f"evaluate.policies.{name}={folder}: {self.votes} has no vote between its weights and others of "
            f"evaluate.policies{newer}. Votes are on {', '.join(sorted(known))}. Vote again, or leave the policy out "
            f"with ++evaluate.policies.{name}=null"
        )


def people_section(evaluation: Mapping[str, Any]) -> str:
    """What people said, for the report: win rates of each two policies, and ratings; empty where nobody voted."""
    if PEOPLE not in evaluation:
        return ""
    said = evaluation[PEOPLE]
    left = rate_text(*(said["left"][name] for name in ("share", "low", "high")))
    others = f" {said['others']} more are on other policies or weights." if said["others"] else ""
    prior = " So far a policy has won or lost all, so that each rating is drawn to 0 by one tied vote."
    lines = [
        f"Votes: {said['votes']}; people: {said['people']}; skipped: {said['skipped']}.{others} The answer at the left "
        f"wins {left}.{prior if said['prior'] else ''}",
        "",
        "| policies | wins | losses | both good | both bad | win rate |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for pair in said["pairs"]:
        counts = " | ".join(str(pair[name]) for name in ("wins", "losses", "both_good", "both_bad"))
        rate = rate_text(*(pair["win_rate"][name] for name in ("share", "low", "high")))
        lines.append(f"| {markdown(pair['first'])} vs {markdown(pair['second'])} | {counts} | {rate} |")
    lines += ["", "| policy | rating (log-odds) | 95% interval | votes |", "| --- | ---: | ---: | ---: |"]
    for one in said["ratings"]:
        interval = f"{one['low']:z.2f} to {one['high']:z.2f}"
        lines.append(f"| {markdown(one['policy'])} | {one['rating']:z.2f} | {interval} | {one['votes']} |")
    return "## People\n\n" + "\n".join(lines)
