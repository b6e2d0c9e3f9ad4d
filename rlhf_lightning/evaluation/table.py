"""Before and after: a row for each policy, on the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.console.display import markdown, plain
from rlhf_lightning.console.streams import say
from rlhf_lightning.evaluation.conclusion import PEOPLE, conclusion, opponent, rate_text, repetitions


def print_table(evaluation: Mapping[str, Any]) -> None:
    """The conclusion and the before/after table on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a name in brackets is no markup

    table = Table(title="before and after", title_justify="left", header_style="bold")
    for i, cells in enumerate(zip(_headings(evaluation), *_table_rows(evaluation), strict=True)):
        if i == 0:
            for j, name in enumerate(cells):
                table.add_column("" if j == 0 else Text(plain(name)), justify="left" if j == 0 else "right")
        else:
            table.add_row(*(Text(plain(cell)) for cell in cells))
    console = Console(highlight=False, force_terminal=False)
    with console.capture() as shown:
        console.print(table)
        warnings = [*repetitions(evaluation), *evaluation.get("doubts", ())]
        for sentence in (conclusion(evaluation), *(f"warning: {warning}." for warning in warnings)):
            console.print(Text(plain(sentence)))
    say(shown.get().rstrip())


def before_and_after(evaluation: Mapping[str, Any]) -> str:
    """Markdown table with a row for each policy; numbers are means and their standard errors."""
    headings = _headings(evaluation)
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    lines = [
        list(map(markdown, headings)),
        rule,
        *([markdown(name), *numbers] for name, *numbers in _table_rows(evaluation)),
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    prompts = next(iter(evaluation["policies"].values()))["summary"]["prompts"]
    judge, other = markdown(evaluation["judge"]), markdown(opponent(evaluation))
    return (
        f"{table}\n\nMeans over {markdown(str(prompts))} held-out prompts ± standard error. Win rate: share of pairs "
        f"where *{judge}* prefers the policy to *{other}*, ties half, 95% Wilson interval; at equal length: what a "
        "logistic regression on the length difference leaves of it, 95% bootstrap interval over prompts, at least "
        "Wilson's."
        f"{_of_people(evaluation)}"
    )


def _of_people(evaluation: Mapping[str, Any]) -> str:
    if PEOPLE not in evaluation:
        return ""
    return (
        f" *{PEOPLE}*: Bradley-Terry rating of {evaluation[PEOPLE]['votes']} votes, in log-odds against "
        f"*{markdown(opponent(evaluation))}*, and what these votes say of pairs."
    )


def _scores(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """What judge and proxy are, by their names; they may be one."""
    judge, proxy = evaluation["judge"], evaluation.get("proxy")
    return {judge: "judge and proxy"} if judge == proxy else {judge: "judge", **({proxy: "proxy"} if proxy else {})}


def _headings(evaluation: Mapping[str, Any]) -> list[str]:
    return [
        "policy",
        *(f"{name} ({what})" for name, what in _scores(evaluation).items()),
        "KL (nats)",
        "length (tokens)",
        "EOS rate",
        "distinct-2",
        f"win rate vs {opponent(evaluation)}",
        "at equal length",
    ]


def _table_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, policy in evaluation["policies"].items():
        summary = policy["summary"]
        scores = [_estimate(summary["scores"].get(score)) for score in _scores(evaluation)]
        row = [name, *scores, _estimate(summary.get("kl"), 2), _estimate(summary.get("length"), 1)]
        row += [f"{100 * summary['eos_rate']:.0f}%", f"{summary['distinct_2']:.3f}", *_win_rates(evaluation, name)]
        rows.append(row)
    return rows


def _estimate(estimate: Mapping[str, float | None] | None, digits: int = 3) -> str:
    if estimate is None or estimate["mean"] is None:
        return "-"
    error = "" if estimate["stderr"] is None else f" ± {estimate['stderr']:.{digits}f}"
    return f"{estimate['mean']:z.{digits}f}{error}"


def _win_rates(evaluation: Mapping[str, Any], name: str) -> list[str]:
    """Against the opponent: as counted, and at equal length."""
    other = opponent(evaluation)
    result = evaluation["win_rates"].get(f"{name} vs {other}")
    mirrored = evaluation["win_rates"].get(f"{other} vs {name}")
    found = result or mirrored
    if found is None:
        return ["-", "-"]
    rates = [found, found.get("length_controlled")]
    keys = ("win_rate", "low", "high") if result else ("win_rate", "high", "low")
    return ["-" if r is None else rate_text(*(r[k] if result else 1 - r[k] for k in keys)) for r in rates]
