import json

import pytest

from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation import before_and_after, conclusion, print_table, read_history, write_report
from rlhf_lightning.evaluation.trust import doubts


def estimate(mean, stderr=0.1):
    return {"mean": mean, "stderr": stderr}


def policy(gold, proxy, kl, completion="fine"):
    summary = {
        "count": 100,
        "prompts": 100,
        "scores": {"gold": estimate(gold), "proxy": estimate(proxy, 0.2)},
        "kl": None if kl is None else estimate(kl),
        "length": estimate(12.0),
        "eos_rate": 0.875,
        "distinct_2": 0.5,
    }
    sample = {
        "prompt": "tell | me",
        "completion": completion,
        "scores": {"gold": gold, "proxy": proxy},
        "length": 2,
        "finished": False,
        "kl": kl,
    }
    return {"summary": summary, "samples": [sample]}


def evaluation(gold=2.0, proxy=3.0):
    wins = {
        "judge": "gold",
        "wins": 80,
        "ties": 0,
        "losses": 20,
        "unpaired": 0,
        "win_rate": 0.8,
        "low": 0.71,
        "high": 0.87,
        "length_controlled": {"win_rate": 0.7, "low": 0.6, "high": 0.78},
    }
    return {
        "judge": "gold",
        "proxy": "proxy",
        "policies": {
            "base": policy(0.0, 0.0, None),
            "sft": policy(1.0, 1.0, 0.0),
            "ppo": policy(gold, proxy, 5.0, "<b>"),
        },
        "win_rates": {"ppo vs sft": wins, "sft vs base": {**wins, "win_rate": 0.75, "low": 0.6, "high": 0.85}},
    }


def test_the_conclusion_names_change_kl_win_rate_judge_and_proxy():
    # sqrt(2) * 0.1; spreads over 100 prompts are 1 and 2, so both rose by one of their own
    assert conclusion(evaluation()) == (
        "gold up by 1.000 (± 0.141) from sft to ppo at a KL of 5.00 nats per response; "
        "win rate 80.0% [71.0, 87.0] against sft, judged by gold; "
        "proxy, which was optimised, +2.000."
    )


@pytest.mark.parametrize(
    ("gold", "proxy", "found"),
    [
        (0.5, 3.0, "WARNING, reward hacking: proxy rose while gold fell"),
        (1.1, 3.0, "Caution: proxy rose without a clear gain in gold"),
        (2.0, 4.9, None),  # 1.95 deviations against 1
        (2.0, 5.1, "over-optimisation: proxy rose by 2.0 standard deviations and gold by 1.0"),
        (0.5, 0.0, None),  # both fell: bad, but the proxy is not lying
    ],
)
def test_a_proxy_that_rises_alone_is_named_for_what_it_is(gold, proxy, found):
    sentence = conclusion(evaluation(gold, proxy))
    assert ("WARNING" in sentence or "Caution" in sentence) is (found is not None)
    assert (found or "") in sentence


def test_a_change_within_its_error_is_no_change():
    assert conclusion(evaluation(gold=1.2)).startswith("gold did not clearly change from sft to ppo (+0.200 ± 0.141)")


def test_a_change_on_a_single_prompt_is_no_change():
    one = evaluation()
    for of in one["policies"].values():
        of["summary"]["scores"] |= {
            name: {"mean": score["mean"], "stderr": None} for name, score in of["summary"]["scores"].items()
        }
    sentence = conclusion(one)
    assert sentence.startswith("gold +1.000 from sft to ppo on a single prompt, which is too few to tell, at a KL of")
    assert "WARNING" not in sentence


def test_a_single_policy_has_nothing_to_compare_with():
    alone = evaluation()
    alone["policies"] = {"sft": alone["policies"]["sft"]}
    assert conclusion(alone) == "Only sft was evaluated: there is nothing to compare it with."


def test_the_table_mirrors_the_win_rate_of_what_came_before_sft():
    lines = before_and_after(evaluation()).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:5]]
    assert cells[0] == [
        "base",
        "0.000 ± 0.100",
        "0.000 ± 0.200",
        "-",
        "12.0 ± 0.1",
        "88%",
        "0.500",
        "25.0% [15.0, 40.0]",
        "30.0% [22.0, 40.0]",
    ]
    assert [row[-2] for row in cells] == ["25.0% [15.0, 40.0]", "-", "80.0% [71.0, 87.0]"]
    assert [row[-1] for row in cells] == ["30.0% [22.0, 40.0]", "-", "70.0% [60.0, 78.0]"]
    assert cells[2][3] == "5.00 ± 0.10"


def run_folder(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    (tmp_path / "history").mkdir()
    (tmp_path / "history" / "ppo.csv").write_text(
        "step,kind,seconds,objective/scores,objective/kl\n1,train,0.5,0.25,1.0\n2,train,1.5,0.5,2.0\n"
    )
    (tmp_path / "history" / "reward.csv").write_text(
        "step,kind,seconds,val/accuracy,val/reliability/0/confidence,val/reliability/0/accuracy,val/reliability/0/count\n"
        "5,validation,2.0,0.75,0.8,0.7,10\n"
    )
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    return tmp_path


def test_the_report_holds_conclusion_table_samples_figures_and_configuration(tmp_path):
    text = write_report(run_folder(tmp_path)).read_text()
    assert text.startswith("# Report: base → sft → ppo\n\n**gold up by 1.000")
    assert "| ppo | &lt;b&gt; *(truncated)* | 2.000 | 3.000 |" in text
    assert "**Prompt** tell &#124; me" in text
    assert "* **ppo**: rollouts 2, score 0.500, KL 2.00, 2 s" in text
    assert "[config.yaml](config.yaml)" in text and "seed: 7" not in text
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == text.count("](figures/") and "figures/" not in page
    assert "<td>&lt;b&gt; <em>(truncated)</em></td>" in page
    for name in ("reward_kl_frontier", "kl_control", "reward_model_reliability"):
        assert f"(figures/{name}.png)" in text
        assert (tmp_path / "figures" / f"{name}.png").exists()
    assert "sft_loss" not in text


def test_the_report_needs_nothing_but_the_evaluation(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation() | {"doubts": ["it counts <b>"]}))
    text = write_report(tmp_path).read_text()
    assert "**Warning: it counts &lt;b&gt;.**" in text
    assert "## Figures" not in text
    assert "## Configuration" not in text


def test_the_report_shows_where_the_reward_model_is_most_wrong(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    file = tmp_path / "history" / "reward_most_wrong.jsonl"
    file.parent.mkdir()
    row = {"prompt": "a|b", "chosen": "good", "rejected": "<bad>", "score_chosen": -1.0, "score_rejected": 2.5}
    file.write_text("".join(json.dumps(row | {"chosen": f"good {n}"}) + "\n" for n in range(7)))
    text = write_report(tmp_path).read_text()
    assert "| a&#124;b | good 4 | &lt;bad&gt; | -1.00 | 2.50 |" in text and "good 5" not in text
    file.write_text("")
    assert "most wrong" not in write_report(tmp_path).read_text()
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"reward_most_wrong\.jsonl: is damaged"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("repetition_3", "repeats itself: 31 %"), ("same_answers", "same answer again: 31 %")]
)
def test_answers_that_repeat_are_told_where_the_policy_before_did_not(tmp_path, name, said):
    told = evaluation()
    for policy, share in (("base", 0.0), ("sft", 0.2), ("ppo", 0.31)):
        told["policies"][policy]["summary"][name] = share
    (tmp_path / "evaluation.json").write_text(json.dumps(told))
    assert f"**Warning: ppo {'gives the ' * ('same' in said)}{said}" in write_report(tmp_path).read_text()
    told["policies"]["sft"]["summary"][name] = 0.22
    (tmp_path / "evaluation.json").write_text(json.dumps(told))
    assert "Warning" not in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "evaluation.json: not found"), ("{", "evaluation.json:1: not JSON"), ('{"judge": "g"}', "json: policies")],
)
def test_a_broken_evaluation_is_refused_by_name(tmp_path, content, message):
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(tmp_path)


def test_a_damaged_history_is_refused_by_line_and_column(tmp_path):
    path = tmp_path / "sft.csv"
    path.write_text("step,kind,train/loss\n1,train,1.0\n2,train,oops\n")
    with pytest.raises(DataError, match=r"sft\.csv:3: train/loss: 'oops'"):
        read_history(path)


def test_empty_cells_of_a_history_are_left_out(tmp_path):
    path = tmp_path / "sft.csv"
    path.write_text("step,kind,seconds,train/loss,val/loss\n1,train,0.5,2.0,\n1,validation,0.6,,3.0\n")
    assert read_history(path) == [
        {"step": 1.0, "kind": "train", "seconds": 0.5, "train/loss": 2.0},
        {"step": 1.0, "kind": "validation", "seconds": 0.6, "val/loss": 3.0},
    ]


def test_the_terminal_table_shows_a_column_for_each_policy(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    print_table(evaluation() | {"doubts": ["it counts"]})
    shown = capsys.readouterr().out
    assert shown.endswith("warning: it counts.\n")
    assert all(
        name in shown for name in ("base", "sft", "ppo", "gold (judge)", "80.0% [71.0, 87.0]", "gold up by 1.000")
    )


CHANCE = {"val/accuracy": 0.553, "val/accuracy_low": 0.487, "val/accuracy_high": 0.617, "val/num_pairs": 300.0}
SOUND = {"val/accuracy": 0.76, "val/accuracy_low": 0.70, "val/accuracy_high": 0.81, "val/num_pairs": 300.0}
BY_LENGTH = {
    **{f"val/num_pairs_longer_is_{half}": 150.0 for half in ("better", "worse")},
    "val/accuracy_longer_is_better": 0.42,
    "val/accuracy_longer_is_worse": 0.78,
    "val/length_spearman_in_prompt": -0.5,
    "val/length_spearman_of_labels": -0.05,
}


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        (SOUND | {"baseline_length_accuracy": 0.6, "baseline_words_accuracy": 0.79}, []),
        (CHANCE, ["IS AT CHANCE: accuracy 0.553 on 300 held-out pairs (95% interval 0.487 to 0.617"]),
        (SOUND | {"baseline_length_accuracy": 0.76}, ["NO BETTER THAN LENGTH ALONE, which ranks 0.760 right"]),
        (CHANCE | {"baseline_words_accuracy": 0.727}, ["AT CHANCE", "WORSE THAN COUNTING WORDS, which ranks 0.727"]),
        (SOUND | BY_LENGTH, ["prefers shorter answers more than the labels do: it ranks 0.420 of the pairs right"]),
        (SOUND | BY_LENGTH | {"val/num_pairs_longer_is_worse": 9.0}, []),
        (SOUND | BY_LENGTH | {"val/length_spearman_of_labels": -0.4, "val/accuracy_longer_is_better": 0.7}, []),
    ],
)  # fmt: skip
def test_a_reward_model_that_should_not_be_climbed_is_named_for_what_it_is(metrics, found):
    said = doubts(metrics)
    assert len(said) == len(found) and all(part in sentence for part, sentence in zip(found, said, strict=True))
