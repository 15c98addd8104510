"""The learning demo without a database: its world, its plan, and what it makes of what was served."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime, timezone
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from routeledger.demo.learn import words
from routeledger.demo.learn.loop import Served
from routeledger.demo.learn.plan import EXPLORING, Plan, make_plan, policy
from routeledger.demo.learn.report import render, write_report
from routeledger.demo.learn.summary import (
    WITH,
    WITHOUT,
    Books,
    Learning,
    baselines,
    find_problems,
    fleet,
    read_run,
    task_types,
)
from routeledger.demo.learn.terminal import learning_view
from routeledger.demo.learn.world import (
    FAILURE_COST_USD,
    MOVES,
    OTHERS,
    TYPES,
    World,
    answer_name,
    make_world,
)
from routeledger.demo.summary import Phase, Server
from routeledger.replay.matrix import generate

pytest.importorskip("plotly")

WORLD = make_world(generate(3, share=0.2), 3)
PLAN = make_plan(WORLD, 8, 8 * 48, 3)
ALIAS = WORLD.alias


# -- the world -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_alias_of_a_made_up_world_is_worth_its_price_until_it_moves(seed: int) -> None:
    world = make_world(generate(seed, share=0.3), seed)
    assert world == make_world(generate(seed, share=0.3), seed)
    assert len(world.arms) == 1 + len(OTHERS)
    assert len({arm.slug for arm in world.arms}) == len(world.arms)
    commonest = max(range(len(TYPES)), key=world.type_of.count)
    before, after = (losses[commonest] for losses in world.losses)
    assert min(before) == before[world.alias]
    assert max(after) == after[world.alias]
    assert before[1:] == after[1:]
    assert world.leaned_on != world.arms[world.alias].provider


def test_the_recorded_fleet_is_taken_where_the_matrix_has_it() -> None:
    matrix = generate(1, models=24, share=0.1)
    names = [*MOVES, *(name for name, _ in OTHERS)]
    priced = [model for model in matrix.models if model.priced]
    renamed = {model.name: name for model, name in zip(priced, names, strict=False)}
    world = make_world(
        replace(
            matrix,
            models=tuple(replace(m, name=renamed.get(m.name, m.name)) for m in matrix.models),
        ),
        1,
    )
    assert [arm.slug for arm in world.arms] == ["gpt-4o", *(name for name, _ in OTHERS)]
    assert world.arms[0].answers_with == MOVES
    # the price is that of the first: nobody says that it has moved
    assert world.arms[0].input_usd == float(priced[0].input_usd or 0)
    assert world.arms[0].right[0] != world.arms[0].right[1]


def test_priors_are_guesses_from_the_price_or_shares_of_right_answers() -> None:
    by_price = WORLD.priors("price")
    assert (max(by_price.values()), min(by_price.values())) == (0.9, 0.6)
    dear = sorted(WORLD.arms, key=lambda arm: arm.input_usd)
    assert [arm.slug for arm in dear] == sorted(by_price, key=by_price.__getitem__)
    by_benchmark = WORLD.priors("benchmark")
    for a, arm in enumerate(WORLD.arms):
        assert by_benchmark[arm.slug] == pytest.approx(WORLD.share_right(a), abs=1e-3)


def test_the_judge_knows_every_answer() -> None:
    for arm in WORLD.arms:
        for name, row in zip(arm.answers_with, arm.right, strict=True):
            assert [WORLD.is_right(answer_name(name, p)) for p in range(len(row))] == list(row)


# -- the plan --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "requests"), [(8, 192), (9, 500), (14, 3360), (30, 100_000)])
def test_every_request_has_its_round_and_its_day(days: int, requests: int) -> None:
    plan = make_plan(WORLD, days, requests, 1)
    rounds = [plan.of_round(n) for n in range(plan.rounds)]
    assert list(chain(*rounds)) == list(range(requests))
    assert min(map(len, rounds)) >= 8
    assert all(plan.round_of(i) == n for n, places in enumerate(rounds) for i in places)
    assert list(chain(*(plan.of_day(day) for day in range(days)))) == list(range(requests))
    moved = plan.of_day(plan.move_day).start
    assert plan.first_after_move == moved
    assert not plan.moved(plan.round_of(moved) - 1)
    assert plan.moved(plan.round_of(moved))
    down = [n for n in range(plan.rounds) if plan.down(n)]
    assert down == list(plan.outage)
    assert {n // plan.rounds_a_day for n in down} == {plan.outage_day}
    assert plan == make_plan(WORLD, days, requests, 1)
    assert plan.requests != make_plan(WORLD, days, requests, 2).requests
    # there is time to notice, and to see that it was for good
    assert requests - moved > plan.notice_limit + plan.a_day


def test_both_runs_follow_one_policy() -> None:
    rules = policy(WORLD, ["a", "b"])
    assert rules["allow"] == ["a", "b"]
    assert rules["failure_cost_usd"] == FAILURE_COST_USD
    assert not set(EXPLORING) & set(rules)


# -- what is made of it ----------------------------------------------------------------------------


def served(
    chosen: dict[int, int] | None = None, *, plan: Plan = PLAN, world: World = WORLD
) -> list[Served]:
    """All requests, served by the alias, or by what ``chosen`` says: {place: arm}."""
    answers = []
    for i, prompt in enumerate(plan.requests):
        n = plan.round_of(i)
        arm = (chosen or {}).get(i, world.alias)
        one = world.arms[arm]
        right = bool(one.right[plan.moved(n)][prompt])
        answers.append(Served(i, arm, arm, False, 1, one.usd(prompt, plan.moved(n)), right))
    return answers


def since(after: int, arm: int, until: int = len(PLAN.requests)) -> dict[int, int]:
    first = PLAN.first_after_move + after
    return dict.fromkeys(range(first, until), arm)


def test_the_move_is_noticed_where_the_alias_is_left_for_a_day() -> None:
    run = read_run(WORLD, PLAN, WITHOUT, "t", served(since(30, 1)))
    assert run.notice.after is not None
    assert run.notice.after <= 30
    assert run.notice.toll == 30
    assert run.notice.retries == 0
    assert {gone.task_type for gone in run.notice.task_types} == set(task_types(WORLD, PLAN))
    assert run.notice.right > run.notice.frozen_right
    assert all(choice.learnt for choice in run.choices)
    assert find_problems([run], [books(run)], PLAN) == ()


def test_what_comes_back_within_a_day_had_not_gone() -> None:
    chosen = since(10, 1)
    type_of = WORLD.type_of[PLAN.requests[PLAN.first_after_move + PLAN.a_day - 1]]
    del chosen[PLAN.first_after_move + PLAN.a_day - 1]
    run = read_run(WORLD, PLAN, WITHOUT, "t", served(chosen))
    gone = {one.task_type: one for one in run.notice.task_types}[WORLD.types[type_of]]
    assert gone.after == PLAN.a_day
    # and what comes back later was tried again
    chosen = since(10, 1)
    del chosen[len(PLAN.requests) - 1]
    assert read_run(WORLD, PLAN, WITHOUT, "t", served(chosen)).notice.retries == 1


def test_a_move_that_nobody_notices_is_a_problem() -> None:
    run = read_run(WORLD, PLAN, WITHOUT, "t", served())
    assert run.notice.after is None
    assert run.notice.right == run.notice.frozen_right
    assert not any(choice.learnt for choice in run.choices)
    assert "without exploration: the move of the alias was never noticed" in find_problems(
        [run], [books(run)], PLAN
    )
    late = read_run(WORLD, PLAN, WITHOUT, "t", served(since(PLAN.notice_limit + 9, 1)))
    assert any("only, not within" in text for text in find_problems([late], [books(late)], PLAN))
    other = read_run(WORLD, PLAN, WITHOUT, "t", served(dict.fromkeys(range(len(PLAN.requests)), 1)))
    assert other.notice.after == 0
    assert any("nothing to notice" in text for text in find_problems([other], [books(other)], PLAN))


def test_explored_requests_are_nobodys_choice() -> None:
    answers = [replace(one, explored=True) for one in served(since(0, 1))]
    run = read_run(WORLD, PLAN, WITH, "t", answers)
    assert run.explored == len(answers)
    assert run.notice.task_types == ()
    assert all(choice.by_priors is None for choice in run.choices)


def test_regret_is_nothing_for_one_who_knows_and_never_negative() -> None:
    def best(i: int) -> int:
        n = PLAN.round_of(i)
        losses = WORLD.losses[PLAN.moved(n)][WORLD.type_of[PLAN.requests[i]]]
        up = [a for a, arm in enumerate(WORLD.arms) if arm.provider != PLAN.down(n)]
        return min(up, key=losses.__getitem__)

    known = {i: best(i) for i in range(len(PLAN.requests))}
    run = read_run(WORLD, PLAN, WITHOUT, "t", served(known))
    assert run.line.regret_usd == 0
    assert min(read_run(WORLD, PLAN, WITHOUT, "t", served()).regret) >= 0


def test_the_oracle_is_right_where_any_model_is_and_no_single_one_more_often() -> None:
    single, oracle = baselines(WORLD, PLAN)
    alone = read_run(
        WORLD,
        PLAN,
        WITHOUT,
        "t",
        served(
            dict.fromkeys(
                range(len(PLAN.requests)),
                [arm.slug for arm in WORLD.arms].index(single.model or ""),
            )
        ),
    )
    # a run of that model alone would have been answered by others while its provider was down
    assert alone.line.right >= single.right
    assert oracle.right >= alone.line.right
    assert sum(day.requests for day in oracle.days) == len(PLAN.requests)


def test_the_outage_counts_what_met_it() -> None:
    answers = served()
    dead = next(a for a, arm in enumerate(WORLD.arms) if arm.provider == PLAN.provider)
    first = PLAN.of_round(PLAN.outage.start)
    for i in first:
        answers[i] = replace(answers[i], first=dead, attempts=3)
    outage = read_run(WORLD, PLAN, WITHOUT, "t", answers).outage
    assert outage.requests == sum(len(PLAN.of_round(n)) for n in PLAN.outage)
    assert outage.hit == outage.hit_in_first_round == len(first)
    assert outage.failed_attempts == 2 * len(first)
    assert outage.unanswered == 0
    answers[first[0]] = replace(answers[first[0]], arm=dead)
    run = read_run(WORLD, PLAN, WITHOUT, "t", answers)
    assert any("went unanswered" in text for text in find_problems([run], [books(run)], PLAN))


def books(run: Any, **changes: Any) -> Books:
    n = len(PLAN.requests)
    right = sum(day.right for day in run.line.days)
    kept = Books(run.tenant, n, n, n, n, n, right, run.line.total_usd, 0)
    return replace(kept, **changes)


def test_books_that_disagree_are_problems() -> None:
    run = read_run(WORLD, PLAN, WITHOUT, "t", served(since(30, 1)))
    for changes, text in (
        ({"verdicts": 3}, "3 verdicts"),
        ({"rewards": 0}, "0 rewards in the buckets"),
        ({"reward_sum": 0.0}, "the rewards are not what was right"),
        ({"orphans": 2}, "2 orphans"),
    ):
        assert any(text in one for one in find_problems([run], [books(run, **changes)], PLAN))


# -- what is shown ---------------------------------------------------------------------------------


def sample(**changes: Any) -> Learning:
    runs = (
        read_run(WORLD, PLAN, WITHOUT, "t-1", served(since(30, 1))),
        read_run(WORLD, PLAN, WITH, "t-2", served(since(10, 1))),
    )
    return replace(
        Learning(
            version="9.9.9",
            started_at=datetime(2026, 11, 21, 12, tzinfo=timezone.utc),
            seconds=12.3,
            phases=(Phase("loop", 11.0),),
            server=Server("PostgreSQL 18 <here>", "18.6", True, "db"),
            label=WORLD.label,
            synthetic=WORLD.synthetic,
            seed=3,
            priors="price",
            policy=policy(WORLD, []),
            exploring=EXPLORING,
            days=PLAN.days,
            rounds_a_day=PLAN.rounds_a_day,
            requests=len(PLAN.requests),
            task_types=task_types(WORLD, PLAN),
            fleet=fleet(WORLD, WORLD.priors("price")),
            alias=WORLD.arms[ALIAS].slug,
            moves=WORLD.arms[ALIAS].answers_with,
            move_day=PLAN.move_day,
            outage_provider=PLAN.provider,
            outage_day=PLAN.outage_day,
            outage=(0.25, 0.75),
            notice_limit=PLAN.notice_limit,
            runs=runs,
            baselines=baselines(WORLD, PLAN),
            books=tuple(books(run) for run in runs),
        ),
        **changes,
    )


def test_the_report_stands_alone(tmp_path: Path) -> None:
    path = write_report(sample(), tmp_path / "folder" / "report.html")
    page = path.read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert "The loop closed." in body
    assert "PostgreSQL 18 &lt;here&gt;" in body
    assert not re.search(r'(?:src|href)="', body)
    found = re.search(r"const FIGURES = (\{.*\});", page)
    assert found
    figures = json.loads(found[1].replace("<\\/", "</"))
    assert {f'id="{name}"' for name in figures} <= set(re.findall(r'id="[\w-]+"', body))
    for figure in figures.values():
        texts = [note["text"] for note in figure["layout"]["annotations"]]
        assert texts == [f"{PLAN.provider} is down", "alias moves"]
        assert len(figure["layout"]["shapes"]) == 2
    for name in ("right", "cost"):
        assert [line["name"] for line in figures[name]["data"]] == [
            WITHOUT, WITH, "best single model", "oracle",
        ]  # fmt: skip
    last = [line["y"][-1] for line in figures["regret"]["data"]]
    assert last == pytest.approx([run.line.regret_usd for run in sample().runs], abs=1e-3)


def test_what_is_wrong_is_said() -> None:
    page = render(sample(problems=("<it> was never noticed",)))
    assert "The loop did not close." in page
    assert "&lt;it&gt; was never noticed" in page


@pytest.mark.parametrize("problems", [(), ("nothing was learnt",)])
def test_the_terminal_says_the_same(problems: tuple[str, ...]) -> None:
    out = StringIO()
    learning = sample(problems=problems)
    Console(file=out, width=100, no_color=True).print(learning_view(learning, Path("report.html")))
    shown = out.getvalue()
    assert ("The loop closed." in shown) == (not problems)
    assert all(problem in shown for problem in problems)
    for name in (*(run.line.title for run in learning.runs), "best single model", "oracle"):
        assert name in shown


def test_exploration_that_does_not_pay_is_said_not_to() -> None:
    one, two = sample().runs
    assert "did not pay" in words.exploration(sample(runs=(two, one)))
    assert "exploration paid" in words.exploration(sample(runs=(one, two)))


def test_the_summary_is_json() -> None:
    document = json.loads(json.dumps(sample().to_json()))
    assert document["ok"] is True
    assert document["runs"][0]["line"]["right"] == pytest.approx(
        sample().runs[0].line.right, abs=1e-6
    )
    assert document["baselines"][1]["title"] == "oracle"
    assert document["notice_limit"] == PLAN.notice_limit
