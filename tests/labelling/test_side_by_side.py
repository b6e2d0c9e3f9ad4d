"""Policies that write at the same time: each writes what it would write alone, and what ends one ends no other."""

import threading
import time

import pytest
import torch

from rlhf_lightning.errors import DataError
from rlhf_lightning.labelling.inference import Responder
from rlhf_lightning.labelling.side_by_side import Side, Turns
from rlhf_lightning.rollout.engine import Sampling
from tests.support import tiny

PROMPT = "the food was"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        model = tiny.policy(seed, layers=1, scale=0.2)
        model.generation_config.update(do_sample=True, temperature=0.01, top_k=1, repetition_penalty=9.0)
        model.save_pretrained(root / str(seed))
        tiny.tokenizer().save_pretrained(root / str(seed))
    return [root / "1", root / "2"]


@pytest.fixture
def sides(folders):
    turns = Turns()
    return [
        Side(f"policy {n}", "", Responder(str(folder), sampling=Sampling(max_new_tokens=16)), turns)
        for n, folder in enumerate(folders)
    ]


def at_once(*works):
    """Their results, each in a thread."""
    found = {}
    threads = [
        threading.Thread(target=lambda n=n, work=work: found.update({n: work()})) for n, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[n] for n in range(len(works))]


def nothing(piece):
    pass


def test_the_same_seed_gives_the_same_answer_alone_and_beside_others(sides):
    alone = [side.answer(PROMPT, seed, nothing) for side in sides for seed in (5, 6)]
    beside = at_once(*(lambda side=side, seed=seed: side.answer(PROMPT, seed, nothing)
                       for side in sides for seed in (5, 6)))  # fmt: skip
    assert beside == alone and len(set(alone)) == 4


def test_both_go_on_in_turns_and_pieces_add_up_to_the_answer(sides):
    order, pieces = [], ([], [])

    def write(place):
        def take(piece):
            order.append(place)
            pieces[place].append(piece)

        return take

    answers = at_once(*(lambda place=place: sides[place].answer(PROMPT, 5, write(place)) for place in (0, 1)))
    last = {place: number for number, place in enumerate(order)}
    both = order[: min(last.values()) + 1]  # one may have begun, and may end, alone
    first = next(n for n, place in enumerate(both) if place != both[0])
    assert all(one != other for one, other in zip(both[first:], both[first + 1 :], strict=False))
    assert ["".join(part).split() for part in pieces] == [answer.text.split() for answer in answers]


def test_turns_go_round_and_nobody_is_passed_over():
    turns, order = Turns(), []

    def work(number):
        with turns.held():
            for _ in range(20):
                order.append(number)
                turns.let_others(torch.device("cpu"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    with turns.held():
        for thread in threads:
            thread.start()
        while len(turns._queue) < 4:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert sorted(order[:3]) == [0, 1, 2] and order == 20 * order[:3]


def test_all_sample_alike_whatever_their_generation_configs_say(folders):
    sampling = Sampling(max_new_tokens=3, temperature=0.7, top_p=0.9)
    one, plain = Responder(str(folders[0]), sampling=sampling), Responder(str(folders[0]))
    assert str(one) == "sampled at temperature 0.7, top_p 0.9, at most 3 tokens"
    assert (one.config.repetition_penalty, plain.config.repetition_penalty) == (None, 9.0)
    assert one.model.generation_config.top_k == 0


def test_what_the_reader_raises_ends_the_answer_and_the_next_one_begins(sides):
    class Enough(Exception):
        pass

    def stop(piece):
        raise Enough

    other, ended = threading.Event(), []

    def answer():
        try:
            sides[0].answer(PROMPT, 5, stop)
        except Enough:
            ended.append(True)
        return sides[0].answer(PROMPT, 5, nothing)

    alone = sides[1].answer(PROMPT, 6, nothing)
    found, beside = at_once(answer, lambda: sides[1].answer(PROMPT, 6, lambda piece: other.set()))
    assert ended and other.is_set() and found.text and beside == alone


def test_who_waits_for_the_same_policy_is_asked_whether_anybody_still_wants_it(sides):
    class Enough(Exception):
        pass

    begun, go_on, asked = threading.Event(), threading.Event(), []

    def slow(piece):
        begun.set()
        go_on.wait(5)

    def impatient(piece):
        asked.append(piece)
        raise Enough

    def second():
        begun.wait(5)
        started = time.monotonic()
        with pytest.raises(Enough):
            sides[0].answer(PROMPT, 5, impatient)
        go_on.set()
        return time.monotonic() - started

    answer, seconds = at_once(lambda: sides[0].answer(PROMPT, 5, slow), second)
    assert asked == [""] and seconds < 2 and answer.text


def test_a_prompt_that_does_not_fit_is_said(sides):
    sides[0].check(PROMPT)
    with pytest.raises(DataError, match="prompt and answer do not fit the model"):
        sides[0].check("the " * 60)
    with pytest.raises(DataError):
        sides[0].check([{"role": "user", "content": "the"}])  # no chat template
    assert sides[0].is_chat is False


def test_the_random_stream_of_the_process_is_left_alone(sides):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sides[0].answer(PROMPT, 5, nothing)
    assert torch.equal(before, torch.get_rng_state())
