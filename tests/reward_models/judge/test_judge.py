"""A judge over HTTP: both orders, verdicts, and every way in which a server can fail."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import JudgeScorer
from pipeline.errors import UserError
from pipeline.types import Group, Message, Prompt, Response
from reward_models.answers.accounts import Accounts
from reward_models.answers.cache import LabelCache
from reward_models.answers.labellers import OneByOne, TwoByTwo
from reward_models.answers.spending import Call, Ledger
from reward_models.judge import judge
from reward_models.judge.budget import BudgetMeter
from reward_models.judge.judge import Judge
from reward_models.labeller import Labels
from tests.support.judge_server import JudgeServer, judge_server, longer_wins, shown

KEY = "sk-never-to-be-seen"


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server(longer_wins) as made:
        yield made


def group(*texts: str, prompt: str = "Say it.") -> Group:
    return Group(Prompt((Message("user", prompt),)), (1,), tuple(Response(t, (1,), (), "stop") for t in texts))


def accounts(folder: Path | None = None) -> Accounts:
    if folder is None:
        return Accounts(LabelCache(None), Ledger(None), "round_001/labels")
    return Accounts(LabelCache(folder / "labels.sqlite"), Ledger(folder / "spending.jsonl"), "round_001/labels")


def settings(server: JudgeServer, endpoint: dict[str, Any] | None = None, **given: Any) -> JudgeScorer:
    usual = {"base_url": server.url, "model": "judge", "backoff": 0.01, "timeout": 60.0}
    return JudgeScorer.model_validate({"server": {**usual, **(endpoint or {})}, **given})


def ask(given: JudgeScorer, books: Accounts, *groups: Group) -> list[Labels]:
    judge = Judge(given, books)
    labeller = TwoByTwo(judge, books, given.pairs_per_prompt) if given.mode == "pairwise" else OneByOne(judge, books)
    return labeller.label(groups)


def test_every_two_in_both_orders_and_ties_are_kept(server: JudgeServer) -> None:
    books = accounts()
    (labels,) = ask(settings(server), books, group("aaa", "b", "ccc", "b"))
    assert labels.wins == ((0.5, 1.0, 0.5, 1.0), (0.0, 0.5, 0.0, 0.5), (0.5, 1.0, 0.5, 1.0), (0.0, 0.5, 0.0, 0.5))
    assert labels.scores == pytest.approx((5 / 6, 1 / 6, 5 / 6, 1 / 6))
    # Equal texts are asked about once a pair of texts, and against each other not at all.
    questions = [body["messages"][0]["content"] for body in server.seen]
    pairs = {(shown(question, "RESPONSE A"), shown(question, "RESPONSE B")) for question in questions}
    assert pairs == {("aaa", "b"), ("b", "aaa"), ("aaa", "ccc"), ("ccc", "aaa"), ("b", "ccc"), ("ccc", "b")}
    assert len(server.seen) == 6
    assert books.counts["compared"] == 5 and not books.counts["contradicted"]


def test_a_liking_for_a_place_comes_out_as_a_tie_and_is_counted(server: JudgeServer) -> None:
    server.judge = lambda question: "Verdict: A"
    books = accounts()
    (labels,) = ask(settings(server), books, group("x", "y"))
    assert labels.wins[0][1] == 0.5 and books.counts["contradicted"] == books.counts["compared"] == 1


def test_a_few_pairs_a_prompt_connect_all_responses(server: JudgeServer) -> None:
    (labels,) = ask(settings(server, pairs_per_prompt=4), accounts(), group("a", "bb", "ccc", "dddd"))
    assert labels.wins == (
        (0.5, 0.0, None, 0.0), (1.0, 0.5, 0.0, None), (None, 1.0, 0.5, 0.0), (1.0, None, 1.0, 0.5)
    )  # fmt: skip
    assert labels.scores == (0.0, 0.5, 0.5, 1.0) and len(server.seen) == 8


@pytest.mark.parametrize(
    ("said", "wins", "missing"),
    [
        ("It is so.\n\n**Verdict:** [[A]].", 1.0, None),
        ("Verdict: A was my first idea.\nVerdict: B", 0.0, None),
        ("verdict: TIE\n", 0.5, None),
        ("Verdict: none", None, "abstained"),
        ("Verdict: A tie", None, "unparsed"),
        ("A", None, "unparsed"),
        ("I cannot say", None, "unparsed"),
    ],
)
def test_verdicts_in_words(server: JudgeServer, said: str, wins: float | None, missing: str | None) -> None:
    # Seen from the other side the same verdict says the opposite, so one order alone is answered.
    server.judge = lambda question: said if shown(question, "RESPONSE A") == "x" else "Verdict: tie"
    books = accounts()
    (labels,) = ask(settings(server), books, group("x", "y"))
    assert labels.wins[0][1] == (None if wins is None else (wins + 0.5) / 2)
    assert books.missing == ({missing: 1} if missing else {})


@pytest.mark.parametrize(
    ("said", "score"),
    [("Good.\nScore: 7", 7.0), ("Score: 7.5/10", 7.5), ("Score: 11", None), ("Score: none", None), ("7", None)],
)
def test_marks_on_a_scale(server: JudgeServer, said: str, score: float | None) -> None:
    server.judge = lambda question: said
    assert ask(settings(server, mode="pointwise"), accounts(), group("x"))[0].scores == (score,)
    assert "from 1 (useless) to 10" in server.seen[0]["messages"][0]["content"]


def test_log_probabilities_of_the_one_token(server: JudgeServer) -> None:
    first = {"A": math.log(0.6), " A": math.log(0.1), "B": math.log(0.2), "C": math.log(0.05)}
    server.judge = lambda question: first if shown(question, "RESPONSE A") == "x" else {"A": math.log(0.4), "B": -0.6}
    (labels,) = ask(settings(server, verdict="logprobs"), accounts(), group("x", "y"))
    assert labels.wins[0][1] == pytest.approx((0.7 / 0.9 + math.exp(-0.6) / (0.4 + math.exp(-0.6))) / 2)
    body = server.seen[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 0.0)
    server.judge = lambda question: {"1": math.log(0.25), "5": math.log(0.25), "x": math.log(0.5)}
    (labels,) = ask(settings(server, verdict="logprobs", mode="pointwise", scale=(1, 5)), accounts(), group("z"))
    assert labels.scores == (pytest.approx(3.0),)
    server.judge = lambda question: "Verdict: A"
    books = accounts()
    ask(settings(server, verdict="logprobs"), books, group("x", "z"))
    assert books.missing == {"no_logprobs": 2}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("429 0", "rate_limited"),
        ("429 Wed, 21 Oct 2026 07:28:00 GMT", "rate_limited"),
        ("500", "server_error"),
        ("503 0", "server_error"),
        ("close", "connection"),
        ("cut body", "connection"),
        ("truncated", "malformed_answer"),
        ("other json", "malformed_answer"),
        ("no choices", "empty_answer"),
        ("empty", "empty_answer"),
        ("null", "empty_answer"),
        ("slow", "timeout"),
        ("drip", "timeout"),
    ],
)
def test_what_fails_is_asked_again_and_then_missing(
    server: JudgeServer, fault: str, cause: str, tmp_path: Path
) -> None:
    given = settings(server, {"attempts": 2, "timeout": 1.5 if cause == "timeout" else 60.0, "concurrency": 2})
    server.faults = [fault]
    books = accounts(tmp_path)
    (labels,) = ask(given, books, group("long", "x"))
    assert labels.scores == (1.0, 0.0) and len(server.seen) == 3 and not books.missing
    server.always = fault
    (labels,) = ask(given, books, group("long", "y"))
    assert labels.scores == (None, None) and labels.wins[0][1] is None
    assert len(server.seen) == 7 and books.missing == {cause: 2}
    server.always = ""
    (labels,) = ask(given, books, group("long", "y"))
    assert labels.scores == (1.0, 0.0), "a failure is not kept"


def test_retry_after_is_waited_for(server: JudgeServer) -> None:
    server.faults = ["429 0.5"]
    ask(settings(server, {"concurrency": 1}), accounts(), group("long", "x"))
    assert server.times[1] - server.times[0] >= 0.5


def test_requests_keep_to_the_rate_and_the_concurrency(server: JudgeServer) -> None:
    three, under_way, most = threading.Barrier(3), set(), []

    def judge(question: str) -> str:
        under_way.add(question)
        most.append(len(under_way))
        three.wait(60)
        under_way.discard(question)
        return "Verdict: A"

    server.judge = judge
    ask(settings(server, {"concurrency": 3}), accounts(), group("a", "bb", "ccc"))
    assert max(most) == 3 and len(server.seen) == 6
    server.judge = longer_wins
    server.times.clear()
    ask(settings(server, {"requests_per_minute": 300}), accounts(), group("a", "bb", "eee"))
    # A second altogether; the first of them may have been late.
    assert server.times[-1] - server.times[0] >= 0.5


def test_a_server_that_is_gone_is_given_up(server: JudgeServer) -> None:
    server.always = "500"
    books = accounts()
    groups = [group("a", "bb", prompt=f"p{n}") for n in range(20)]
    labels = ask(settings(server, {"attempts": 2, "concurrency": 2, "give_up_after": 4}), books, *groups)
    assert {one.scores for one in labels} == {(None, None)}
    assert books.missing["server_error"] + books.missing["unreachable"] == 40
    assert books.missing["unreachable"] >= 32 and len(server.seen) <= 14


def test_a_second_run_pays_nothing_and_another_judge_pays(server: JudgeServer, tmp_path: Path) -> None:
    first = ask(settings(server), accounts(tmp_path), group("aaa", "b"))
    books = accounts(tmp_path)
    assert ask(settings(server), books, group("aaa", "b")) == first and len(server.seen) == 2
    assert books.counts["cached"] == books.counts["questions"] == 2
    # Where the server is, and how often it is asked, decides no label.
    assert ask(settings(server, {"concurrency": 2, "timeout": 9.0}), books, group("b", "aaa")) != first
    assert len(server.seen) == 2
    ask(settings(server, {"version": "2"}), books, group("aaa", "b"))
    ask(settings(server, {"model": "other"}), books, group("aaa", "b"))
    ask(settings(server, temperature=1.0), books, group("aaa", "b"))
    ask(settings(server), books, group("aaa", "b", prompt="Say something else."))
    assert len(server.seen) == 10


def test_what_is_no_verdict_is_not_paid_for_again(server: JudgeServer, tmp_path: Path) -> None:
    server.judge = lambda question: "Hm."
    ask(settings(server), accounts(tmp_path), group("x", "y"))
    books = accounts(tmp_path)
    ask(settings(server), books, group("x", "y"))
    assert len(server.seen) == 2 and books.missing == {"unparsed": 2}


def test_a_budget_of_calls_holds_over_kills(server: JudgeServer, tmp_path: Path) -> None:
    given = settings(server, {"budget": {"calls": 5}, "attempts": 3})
    server.faults = ["500"]
    books = accounts(tmp_path)
    ask(given, books, group("a", "bb"), group("a", "bb", prompt="2"), group("a", "bb", prompt="3"))
    assert len(server.seen) == 5 and books.missing == {"budget": 2}
    books = accounts(tmp_path)
    ask(given, books, group("a", "bb", prompt="4"))
    assert len(server.seen) == 5 and books.missing == {"budget": 2}
    spent = books.spent()
    assert (spent.calls, spent.failed_calls, spent.prompt_tokens, spent.completion_tokens) == (5, 1, 400, 40)


def test_a_call_that_a_kill_cuts_off_counts_with_the_most_that_it_can_cost(server: JudgeServer, tmp_path: Path) -> None:
    given = settings(server, {"budget": {"calls": 3}, "price": {"input": 1.0, "output": 2.0}})
    ask(given, books := accounts(tmp_path), group("a", "bb"))
    labeller = Judge(given, books).version
    before = books.spent().cost
    assert BudgetMeter(given.server, labeller, books).reserve(0.25) is not None
    again = accounts(tmp_path)
    assert again.spent().calls == 3 and again.spent().cost == pytest.approx(before + 0.25)
    ask(given, again, group("a", "bb", prompt="2"))
    assert len(server.seen) == 2 and again.missing == {"budget": 2}


def test_a_call_that_cannot_be_written_down_is_not_waited_for(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for one call at a time.
    given = settings(server, {"budget": {"cost": 1.0}, "price": {"input": 1.0, "output": 2.0}})
    budget = BudgetMeter(given.server, "l", books := accounts())

    def full(call: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(books.ledger, "add", full)
        budget.reserve(0.9)
    got: list[str | None] = []
    waiting = threading.Thread(target=lambda: got.append(budget.reserve(0.9)), daemon=True)
    waiting.start()
    waiting.join(20)
    assert len(got) == 1 and got[0] is not None


def test_a_call_that_cannot_be_priced_is_not_waited_for(server: JudgeServer) -> None:
    given = settings(server, {"budget": {"cost": 1.0}, "price": {"input": 1.0, "output": 2.0}})
    budget = BudgetMeter(given.server, "l", accounts())
    call = budget.reserve(0.9)
    assert call is not None
    with pytest.raises(OverflowError):
        budget.settle(call, "ok", (10**400, 1), billed=True)
    got: list[str | None] = []
    waiting = threading.Thread(target=lambda: got.append(budget.reserve(0.9)), daemon=True)
    waiting.start()
    waiting.join(20)
    assert len(got) == 1 and got[0] is not None


def test_a_server_that_turns_us_away_loses_no_answer_that_is_on_its_way(server: JudgeServer, tmp_path: Path) -> None:
    turned_away = threading.Event()

    def late(question: str) -> str:
        # Of two questions, the one that is let through is answered after the other was refused.
        assert turned_away.wait(20)
        time.sleep(0.3)
        return longer_wins(question)

    server.judge, server.faults = late, ["", "401"]
    given = settings(server, {"concurrency": 2})
    threading.Thread(target=lambda: wait_until(lambda: len(server.seen) == 2, turned_away.set), daemon=True).start()
    with pytest.raises(UserError, match="the server refuses"):
        ask(given, accounts(tmp_path), group("a", "bb"))
    ask(given, books := accounts(tmp_path), group("a", "bb"))
    assert len(server.seen) == 3 and books.counts["cached"] == 1


@pytest.mark.parametrize(
    ("late", "causes"), [("I cannot tell.", {"unparsed": 1}), ("<think>Hm.", {"reasoning_only": 1})]
)
def test_a_late_answer_without_a_verdict_is_paid_for_once_too(
    server: JudgeServer, tmp_path: Path, late: str, causes: dict[str, int]
) -> None:
    turned_away = threading.Event()

    def judge(question: str) -> str:
        assert turned_away.wait(20)
        time.sleep(0.3)
        return late

    server.judge, server.faults = judge, ["", "401"]
    given = settings(server, {"concurrency": 2})
    threading.Thread(target=lambda: wait_until(lambda: len(server.seen) == 2, turned_away.set), daemon=True).start()
    with pytest.raises(UserError, match="the server refuses"):
        ask(given, accounts(tmp_path), group("a", "bb"))
    server.judge = longer_wins
    ask(given, books := accounts(tmp_path), group("a", "bb"))
    assert len(server.seen) == 3 and books.counts["cached"] == 1 and books.missing == causes


def test_a_call_that_cannot_be_written_down_loses_no_answer_that_is_on_its_way(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    books, add = accounts(), Ledger.add

    def judge(question: str) -> str:
        first = shown(question, "RESPONSE A") == "a"
        assert first or full.wait(20)
        return longer_wins(question)

    def once(ledger: Ledger, call: Call) -> None:
        if call.outcome == "ok" and not full.is_set():
            wait_until(lambda: len(server.seen) == 2, full.set)
            raise OSError(28, "No space left on device")
        add(ledger, call)

    server.judge = judge
    monkeypatch.setattr(Ledger, "add", once)
    given = settings(server, {"concurrency": 2})
    with pytest.raises(OSError, match="No space left"):
        ask(given, books, group("a", "bb"))
    ask(given, books, group("a", "bb"))
    assert len(server.seen) == 3 and books.counts["cached"] == 1


def test_a_server_that_is_for_ever_about_to_answer_shows_as_standing_still(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "TICK_SECONDS", 0.05)
    server.always, ticks = "processing", []
    books = accounts()
    books.changed = lambda: ticks.append(time.monotonic())
    asking = threading.Thread(target=ask, args=(settings(server), books, group("a", "bb")), daemon=True)
    asking.start()
    wait_until(lambda: len(server.seen) == 2, lambda: None)
    before = len(ticks)
    asking.join(1.0)
    assert asking.is_alive() and len(ticks) == before
    server.over.set()
    asking.join(20)
    assert not asking.is_alive() and len(ticks) > before and books.missing == {"connection": 2}


def wait_until(happened: Callable[[], bool], then: Callable[[], None]) -> None:
    deadline = time.monotonic() + 20
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    then()


def test_a_budget_of_money_is_never_passed(server: JudgeServer, tmp_path: Path) -> None:
    # A call costs 100 x 1 + 10 x 2 = 120 millionths; the most that one can cost is far more.
    given = settings(
        server, {"budget": {"cost": 0.005}, "price": {"input": 1.0, "output": 2.0}, "concurrency": 8}, max_tokens=50
    )
    books = accounts(tmp_path)
    ask(given, books, *[group("a", "bb", prompt=str(n)) for n in range(60)])
    spent = books.spent()
    assert spent.cost == pytest.approx(len(server.seen) * 120e-6) and spent.cost <= 0.005
    assert len(server.seen) > 15 and books.missing["budget"] == 120 - len(server.seen)
    server.usage = None
    books = accounts()
    ask(given, books, group("a", "bb"))
    assert 0.002 < books.spent().cost < 0.005, "without usage the most that it can have cost counts"


@pytest.mark.parametrize(
    ("fault", "said"),
    [("401", "judge.server.api_key_env: the server refuses the key in JUDGE_TEST_KEY"), ("404", "no model 'judge'")],
)
def test_a_wrong_key_or_model_ends_the_run_and_shows_no_key(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, said: str
) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", KEY)
    server.faults = ["", ""]
    server.always = fault
    given = settings(server, {"api_key_env": "JUDGE_TEST_KEY", "concurrency": 1})
    judge = Judge(given, books := accounts(tmp_path), "judge")
    with pytest.raises(UserError) as caught:
        TwoByTwo(judge, books, None).label([group("a", "bb"), group("c", "dd")])
    assert said in str(caught.value) and KEY not in str(caught.value)
    assert {headers["Authorization"] for headers in server.headers_seen} == {f"Bearer {KEY}"}
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert KEY.encode() not in written and KEY not in given.model_dump_json()
    server.always = ""
    assert ask(given, accounts(tmp_path), group("a", "bb"))[0].scores == (0.0, 1.0)
    assert len(server.seen) == 3, "what was labelled before is kept"


def test_a_key_that_is_not_set_is_named(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_TEST_KEY", raising=False)
    with pytest.raises(UserError, match=r"scorer\.server\.api_key_env: the environment variable JUDGE_TEST_KEY is not"):
        Judge(settings(server, {"api_key_env": "JUDGE_TEST_KEY"}), accounts())


def test_a_question_that_the_server_refuses_is_missing_and_not_asked_again(server: JudgeServer) -> None:
    server.faults = ["400"]
    books = accounts()
    ask(settings(server, {"concurrency": 1}), books, group("a", "bb"))
    assert len(server.seen) == 2 and books.missing == {"refused": 1}


def test_the_ledger_stands_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "spending.jsonl"
    Ledger(file).add(Call(stage="round_001/labels", labeller="x", outcome="ok", cost=2.0))
    with file.open("a") as lines:
        lines.write('{"stage": "rou')
    assert accounts(tmp_path).spent().cost == 2.0


def test_answers_are_kept_one_by_one(server: JudgeServer, tmp_path: Path) -> None:
    """Whatever ends a run in the midst of a shard, the labels that it paid for are there."""
    books = accounts(tmp_path)

    def interrupt() -> None:
        if books.counts["answered"] == 3:
            raise KeyboardInterrupt

    books.changed = interrupt
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(settings(server, {"concurrency": 1}), books, *[group("a", "bb", prompt=str(n)) for n in range(200)])
    assert len(server.seen) < 100 and time.monotonic() - started < 60
    keys = LabelCache(tmp_path / "labels.sqlite")
    assert keys._open().execute("SELECT count(*) FROM labels").fetchone()[0] == 3
