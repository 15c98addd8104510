"""Policies replayed over a matrix and over a ledger, ranked by the database."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from routeledger import catalog
from routeledger._embedded import EmbeddedServer, embedded
from routeledger.cli import app
from routeledger.demo.trace import data_dir
from routeledger.replay import (
    Matrix,
    Policy,
    Study,
    generate,
    load_matrix,
    replay_ledger,
    replay_matrix,
)
from routeledger.replay.matrix import FOLDER, Model
from routeledger.replay.study import BEST_SINGLE, CHEAP_SINGLE, REFERENCE, RULES
from tests.conftest import Database

SMALL = generate(3, models=12, share=0.15)
COSTS = tuple(policy for policy in RULES if policy.family == "price of a wrong answer")
TABLES = ("models", "model_prices", "model_performance_buckets", "routing_policies")


def study(db: Database, matrix: Matrix = SMALL, **changes: Any) -> Study:
    with db.connect() as conn:
        return replay_matrix(conn, matrix, **{"splits": 1, "resamples": 50, **changes})


def counts(db: Database) -> list[Any]:
    return [db.value(f"select count(*) from routeledger.{table}") for table in TABLES]


# -- matrices --------------------------------------------------------------------------------------


def test_a_matrix_is_replayed_and_nothing_is_left_behind(db: Database) -> None:
    before = counts(db)
    told: list[tuple[int, int]] = []
    found = study(db, progress=lambda done, total: told.append((done, total)))
    assert counts(db) == before
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.synthetic
    assert (found.prompts, found.models, found.priced) == (len(SMALL.tasks), 12, 11)
    assert found == study(db)  # the same again: nothing of it depends on chance
    titles = [line.title for line in found.lines]
    assert len(set(titles)) == len(titles) == len(RULES) + 5
    for line in found.lines:
        assert 0 <= line.right.low <= line.right.value <= line.right.high <= 1
        assert 0 <= line.usd_per_1000.low <= line.usd_per_1000.value <= line.usd_per_1000.high
    oracle = found.line("oracle")
    assert all(line.right.value <= oracle.right.value for line in found.lines)
    # what rejects answers no more than what asks the best instead, and costs no more
    for floor in ("0.80", "0.90", "0.95"):
        kept = found.line(f"cheapest ≥ {floor}, else the best")
        shy = found.line(f"cheapest ≥ {floor}, else rejected")
        assert shy.right.value <= kept.right.value
        assert shy.usd_per_1000.value <= kept.usd_per_1000.value
        assert shy.answered <= kept.answered == 1.0


def reference(matrix: Matrix, policy: Policy) -> tuple[float, float]:
    """A policy of the family REFERENCE on the even and odd prompts, written down plainly: what share
    of the odd ones is right, and USD per 1,000; costs by tokens that all models share."""
    right = usd = n = 0.0
    for task in sorted(set(matrix.tasks)):
        mine = [p for p in matrix.prompts if matrix.tasks[p] == task]
        even, odd = mine[::2], mine[1::2]
        known = [t for tokens in matrix.tokens for p in even if (t := tokens[p])]
        means = [round(sum(t[i] for t in known) / len(known)) for i in (0, 1)]

        def cost(m: int, used: Any) -> float:
            model = matrix.models[m]
            return float((used[0] * model.input_usd + used[1] * model.output_usd) / 1_000_000)

        priced = [m for m, model in enumerate(matrix.models) if model.priced]
        quality = {m: sum(matrix.right[m][p] for p in even) / len(even) for m in priced}
        good = [m for m in priced if quality[m] >= policy.overrides["min_quality"]]
        best = min(good, key=lambda m: (cost(m, means), -quality[m]), default=None)
        if best is None:
            top = max(quality.values())
            best = min((m for m in priced if quality[m] == top), key=lambda m: cost(m, means))
        for p in odd:
            right += matrix.right[best][p]
            usd += cost(best, matrix.tokens[best][p] or means)
            n += 1
    return right / n, usd / n * 1000


def test_the_database_chooses_what_the_rule_says(db: Database) -> None:
    found = study(db, policies=REFERENCE)
    for policy in REFERENCE:
        line = next(one for one in found.one_split if one.title == policy.title)
        assert (line.right.value, line.usd_per_1000.value) == pytest.approx(
            reference(SMALL, policy), rel=1e-9
        )


def test_the_half_that_judges_chooses_nothing(db: Database) -> None:
    """Other answers to the odd prompts: the same choices."""
    odd = {
        p
        for task in set(SMALL.tasks)
        for p in [p for p in SMALL.prompts if SMALL.tasks[p] == task][1::2]
    }
    other = replace(
        SMALL,
        right=tuple(
            bytes(1 - r if p in odd else r for p, r in enumerate(row)) for row in SMALL.right
        ),
    )
    one, two = study(db, policies=REFERENCE), study(db, other, policies=REFERENCE)
    for before, after in zip(one.one_split, two.one_split, strict=True):
        if before.title != "oracle":
            assert before.models == after.models
            assert before.right.value != after.right.value


def test_the_price_of_a_wrong_answer_buys_right_ones(db: Database) -> None:
    """A dearer wrong answer is never met with a worse choice, as far as the training half can tell;
    a price of 0 is the cheapest model."""
    rules = {"min_quality": 0, "ordering": "expected_total_cost"}
    found = study(
        db,
        policies=[
            Policy(f"{cost}", "default", {**rules, "failure_cost_usd": cost})
            for cost in (0, 1_000_000)
        ],
    )
    cheapest, best = found.line("0"), found.line("1000000")
    assert cheapest.usd_per_1000.value <= min(s.usd_per_1000 for s in found.singles) * 1.001
    assert best.right.value > cheapest.right.value
    assert best.usd_per_1000.value > cheapest.usd_per_1000.value


# -- what is wrong in the data must not win --------------------------------------------------------


def with_models(matrix: Matrix, extra: list[tuple[Model, int, bool]]) -> Matrix:
    """The matrix with more models: each answers as model number m does, with or without tokens."""
    return replace(
        matrix,
        models=(*matrix.models, *(model for model, _, _ in extra)),
        right=(*matrix.right, *(matrix.right[m] for _, m, _ in extra)),
        tokens=(
            *matrix.tokens,
            *(matrix.tokens[m] if known else (None,) * len(matrix.tasks) for _, m, known in extra),
        ),
    )


def best_model(matrix: Matrix) -> int:
    return max(
        (m for m, model in enumerate(matrix.models) if model.priced),
        key=lambda m: sum(matrix.right[m]),
    )


def test_a_price_listed_16_times_too_low_does_not_win(db: Database) -> None:
    m = best_model(SMALL)
    model = SMALL.models[m]
    assert model.input_usd is not None
    assert model.output_usd is not None
    cheap = Model("poisoned", model.base_model, model.input_usd / 16, model.output_usd / 16)
    twin = replace(model, name="twin")
    found = study(db, with_models(SMALL, [(cheap, m, True), (twin, m, True)]))
    assert found.flagged == ("poisoned",)
    for line in (*found.lines, *found.one_split):
        assert "poisoned" not in line.models.values()
    assert "poisoned" not in [single.model for single in found.singles]
    # without neighbours to tell it by it does win; so it is the flag that keeps it out
    alone = replace(cheap, base_model="alone")
    fooled = study(db, with_models(SMALL, [(alone, m, True)]), policies=COSTS)
    assert "poisoned" in fooled.line("a wrong answer costs $0.3").models.values()


def test_a_catalog_beside_the_matrix_tells_which_price_is_wrong(db: Database) -> None:
    m = best_model(SMALL)
    model = SMALL.models[m]
    assert model.input_usd is not None
    assert model.output_usd is not None
    cheap = Model("poisoned", "somewhere", model.input_usd / 16, model.output_usd / 16)
    neighbours: list[catalog.CatalogRow | catalog.Skipped] = [
        {
            "model_slug": f"vendor-{n}/somewhere",
            "base_model": "somewhere",
            "input_usd_per_mtok": model.input_usd,
            "output_usd_per_mtok": model.output_usd,
        }
        for n in range(2)
    ]
    found = study(
        db,
        with_models(SMALL, [(cheap, m, True)]),
        policies=COSTS,
        neighbours=[*neighbours, catalog.Skipped("x", "y")],
    )
    assert found.flagged == ("poisoned",)
    assert all("poisoned" not in line.models.values() for line in found.lines)


def test_answers_without_token_counts_are_not_free(db: Database) -> None:
    m = best_model(SMALL)
    model = SMALL.models[m]
    assert model.input_usd is not None
    assert model.output_usd is not None
    mute = Model("mute", "mute", model.input_usd * 10, model.output_usd * 10)
    free = Model("unpriced", "unpriced", None, None)
    found = study(db, with_models(SMALL, [(mute, m, False), (free, m, False)]))
    assert found.imputed == len(SMALL.tasks)
    alone = {single.model: single.usd_per_1000 for single in found.singles}
    assert alone["mute"] > alone[model.name]
    assert "unpriced" not in alone
    for line in (*found.lines, *found.one_split):
        assert not {"mute", "unpriced"} & set(line.models.values())
        assert math.isfinite(line.usd_per_1000.value)


# -- the recorded matrix, where it is --------------------------------------------------------------

RECORDED = [
    load_matrix(folder)
    for folder in [(data_dir() or Path()) / FOLDER]
    if (folder / "matrix.csv.gz").is_file()
]


@pytest.mark.slow
@pytest.mark.parametrize("matrix", [SMALL, *RECORDED], ids=lambda m: m.label.split(" ")[0])
def test_what_is_known_of_the_recorded_matrix(db: Database, matrix: Matrix) -> None:
    """Of the synthetic one only that it can be asked the same."""
    found = study(db, matrix, resamples=200)
    if matrix.synthetic:
        assert not found.flagged
        return
    split = {line.title: line for line in found.one_split}

    def near(title: str, right: float, usd: float) -> None:
        assert split[title].right.value == pytest.approx(right, abs=0.0006)
        assert split[title].usd_per_1000.value == pytest.approx(usd, abs=0.006)

    near(BEST_SINGLE, 0.898, 2.22)
    near("oracle", 0.973, 0.053)
    for policy in REFERENCE:
        near(policy.title, *reference(matrix, policy))
    for base, money in ((CHEAP_SINGLE, 0.084), (BEST_SINGLE, 2.21)):
        assert found.line(base).usd_per_1000.value == pytest.approx(money, rel=0.01)
        against = found.line(f"chosen in training, for the money of the {base}").against[base]
        assert against.right.value > 0
        assert against.usd_per_1000.high < 0
        assert against.sure > 0.9
    # no floor is as good for as little
    for line in found.lines:
        if line.family in ("cheapest above a floor", "lower bound", "cost per success"):
            assert not (
                line.right.value >= found.line(CHEAP_SINGLE).right.value
                and line.usd_per_1000.value <= found.line(CHEAP_SINGLE).usd_per_1000.value
            )


@pytest.mark.slow
@pytest.mark.parametrize("matrix", [SMALL, *RECORDED], ids=lambda m: m.label.split(" ")[0])
def test_the_recorded_prices_that_were_16_times_too_low(db: Database, matrix: Matrix) -> None:
    """gemini-1.5 at what vertex_ai listed in October 2024, beside the catalogs of the time. The
    synthetic matrix has no such model, and none of its prices is flagged."""
    listed = {"gemini-1.5-pro": Decimal("0.078125"), "gemini-1.5-flash": Decimal("0.004688")}
    poisoned = {model.name for model in matrix.models if model.base_model in listed}
    assert len(poisoned) == (0 if matrix.synthetic else 3)
    models = tuple(
        replace(model, input_usd=listed[model.base_model], output_usd=listed[model.base_model] * 4)
        if model.name in poisoned
        else model
        for model in matrix.models
    )
    with contextlib.ExitStack() as stack:
        rows: Iterable[catalog.CatalogRow | catalog.Skipped] = ()
        if poisoned:
            snapshots = (data_dir() or Path()) / "prices" / "price_snapshots.csv.gz"
            rows = stack.enter_context(catalog.read_file(snapshots))
        found = study(
            db, replace(matrix, models=models), policies=COSTS, neighbours=rows, resamples=10
        )
    assert set(found.flagged) == poisoned
    for line in (*found.lines, *found.one_split):
        assert not poisoned & set(line.models.values())


# -- ledgers ---------------------------------------------------------------------------------------

MODELS = [
    {
        "model_slug": slug,
        "input_usd_per_mtok": usd,
        "output_usd_per_mtok": usd and 3 * usd,
        "q_prior": prior,
    }
    for slug, usd, prior in (
        ("big", 10, 0.95),
        ("mid", 1, 0.9),
        ("small", 0.5, 0.5),
        ("unpriced", None, 0.99),
    )
]
ROLL_UP = "select * from routeledger.rollup_model_performance((now() - interval '9 days')::date)"
DAYS = 6
CHEAP = Policy("cheap", "default", {"min_quality": 0.7, "window_days": 30})


@pytest.fixture
def ledger(db: Database) -> Database:
    """Six days, on each 60 decisions of two task types served by big, mid and small in turn; every
    second one is labelled. small is good at easy ones from the first day on, and bad at hard ones."""
    with db.connect() as conn:
        conn.execute("select count(*) from routeledger.import_models(%s)", [json.dumps(MODELS)])
        for day in range(DAYS):
            conn.execute(f"select routeledger.set_clock(now() - interval '{DAYS - day} days')")
            conn.execute(
                """
                select routeledger.record_outcome('acme',
                  p_task_type => case i % 2 when 0 then 'easy' else 'hard' end,
                  p_candidates => '["big", "mid", "small", "unpriced"]', p_chosen_model_slug => m.slug,
                  p_attempts => jsonb_build_array(jsonb_build_object(
                    'model_slug', m.slug, 'status', 'succeeded', 'input_tokens', 1000, 'output_tokens', 100)))
                from generate_series(1, 60) i,
                  lateral (select (array['big', 'mid', 'small'])[1 + i / 2 % 3]) m (slug)
                """
            )
        conn.execute(
            """
            update routeledger.routing_outcomes o
            set reward = case
              when i.model_slug = 'small' and o.task_type = 'hard' then 0.2
              when i.model_slug = 'big' then 1
              else 0.9
            end
            from (
              select i.*, row_number() over (partition by o.task_type, i.model_slug order by o.id) as n
              from routeledger.routing_outcomes o
              join routeledger.inferences i on i.outcome_id = o.id and i.id = o.inference_id
            ) i
            where i.outcome_id = o.id and i.n % 2 = 0
            """
        )
        conn.execute(ROLL_UP)
        conn.execute("select routeledger.set_clock(null)")
    return db


def replayed(db: Database, *policies: Policy, role: str | None = "reader", **changes: Any) -> Any:
    with db.connect(role) as conn:
        return replay_ledger(conn, "acme", policies or [CHEAP], resamples=100, **changes)


def test_a_ledger_is_replayed(ledger: Database) -> None:
    found = replayed(ledger, replace(CHEAP, overrides={**CHEAP.overrides, "min_samples": 3}))
    was, cheap = found.lines
    assert found.decisions == DAYS * 60
    assert 0 < found.judged <= found.decisions
    assert was.title == "as it was"
    # small for the easy ones once it is known; mid for the hard ones; big never
    assert cheap.models == {"easy": "small", "hard": "mid"}
    assert cheap.usd_per_1000.value < was.usd_per_1000.value / 3
    assert cheap.right.value > was.right.value
    assert cheap.against["as it was"].usd_per_1000.high < 0
    coverage = found.coverage["cheap"]
    assert coverage.changed > 0
    assert 0 < coverage.by_reward < found.judged
    assert coverage.unpriced == coverage.without_candidates == 0
    assert len(coverage.ruleset_hash or "") == 64


def test_several_policies_are_judged_by_the_same_decisions(ledger: Database) -> None:
    nothing = Policy("nothing", "default", {"allow": ["nobody"]})
    found = replayed(ledger, CHEAP, nothing)
    was, cheap, none = found.lines
    assert none.answered == 0
    assert none.right.value == none.usd_per_1000.value == 0
    assert cheap.answered == 1
    assert was.right == replayed(ledger, nothing, CHEAP).lines[0].right


def test_the_window_the_limit_and_no_decisions(ledger: Database) -> None:
    (first,) = ledger.execute(
        "select min(created_at at time zone 'UTC')::date from routeledger.decisions"
    )[0]
    days = [first + timedelta(days=n) for n in range(DAYS)]
    assert replayed(ledger, begin=days[1], end=days[3]).decisions == 120
    assert replayed(ledger, limit=50).decisions == 50
    assert replayed(ledger, limit=50) == replayed(ledger, limit=50)
    nothing = replayed(ledger, begin=days[0], end=days[0])
    assert (nothing.decisions, nothing.judged) == (0, 0)
    assert nothing.lines[1].right.value == 0


def test_a_cost_of_9990_dollars_for_ten_tokens_counts_for_nothing(ledger: Database) -> None:
    before = replayed(ledger)
    with ledger.connect() as conn:
        conn.execute(
            """
            select routeledger.record_outcome('acme', p_task_type => 'easy',
              p_candidates => '["big", "mid", "small"]', p_chosen_model_slug => 'big',
              p_attempts => '[{"model_slug": "big", "status": "succeeded",
                "input_tokens": 5, "output_tokens": 5, "cost_usd": 9990}]')
            """
        )
        conn.execute(ROLL_UP)
    assert ledger.value("select max(cost_usd) from routeledger.model_performance_buckets") >= 9990
    after = replayed(ledger)
    assert (before.implausible_costs, after.implausible_costs) == (0, 1)
    assert after.lines[0].usd_per_1000.value == pytest.approx(
        before.lines[0].usd_per_1000.value, rel=0.02
    )
    assert after.lines[1].models == before.lines[1].models


def test_decisions_without_tokens_or_candidates(ledger: Database) -> None:
    with ledger.connect() as conn:
        conn.execute(
            """
            select routeledger.record_outcome('acme', p_task_type => 'easy', p_attempts =>
              '[{"model_slug": "big", "status": "succeeded", "input_tokens": 0, "output_tokens": 0}]')
            """
        )
    found = replayed(ledger, replace(CHEAP, overrides={**CHEAP.overrides, "min_samples": 1}))
    assert found.coverage["cheap"].without_candidates == 1
    rows = ledger.execute(
        "select candidates, model_slug, cost_usd from routeledger.replay_policy('acme', p_all_models => true)"
        " where input_tokens = 0"
    )
    # a thousand tokens in and five hundred out, as the policy assumes: not nothing
    assert rows == [(None, "small", Decimal("0.00125"))]


# -- the command -----------------------------------------------------------------------------------


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["replay", *args])


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without recorded data."""
    monkeypatch.setenv("ROUTELEDGER_DATA", "")


def test_the_command_over_a_ledger(ledger: Database, tmp_path: Path) -> None:
    report = tmp_path / "replay.html"
    done = run("--dsn", ledger.dsn, "--tenant", "acme", "--policy", "default", "--policy",
               'default {"min_quality": 0.9}', "--out", str(report))  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "360 decisions of acme" in done.stdout
    assert "as it was" in done.stdout
    assert "would have gone elsewhere" in done.stdout
    # nobody said how likely these decisions were: nothing is estimated by it
    assert "left out: 360 without a propensity" in " ".join(done.stdout.split())
    assert "doubly robust" not in done.stdout
    page = report.read_text(encoding="utf-8")
    assert "ranked anew" in page
    assert "{{" not in page.split("</style>", 1)[1].split("<script>", 1)[0]
    done = run("--dsn", ledger.dsn, "--tenant", "acme", "--json")
    document = json.loads(done.stdout)
    assert document["decisions"] == 360
    assert [line["title"] for line in document["lines"]] == ["as it was", "default"]
    assert {row["no_propensity"] for row in document["estimates"]["default"]} == {360}


def test_the_command_over_a_matrix_says_when_it_is_synthetic(
    db: Database, tmp_path: Path, no_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routeledger.cli_replay.find_matrix", lambda data, seed: SMALL)
    report = tmp_path / "deep" / "replay.html"
    done = run(
        "--dsn", db.dsn, "--data", "auto", "--splits", "1", "--out", str(report),
        "--without", "relevance", "--merge", "script=java, javascript",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "synthetic" in done.stdout
    assert "one split" in done.stdout
    assert "The answers are synthetic." in report.read_text(encoding="utf-8")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The home of a private server. The account that runs it must be able to get there."""
    with tempfile.TemporaryDirectory(prefix="rl-replay-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("ROUTELEDGER_HOME", folder)
        yield
        EmbeddedServer.destroy(force=True)


@pytest.mark.db
@pytest.mark.usefixtures("home")
def test_the_command_over_a_folder_with_a_private_server(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    done = run("--data", str(folder), "--splits", "1", "--policy", '{"min_quality": 0}', "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["synthetic"] is False
    assert [line["title"] for line in document["lines"]][-1] == '{"min_quality": 0}'
    with embedded() as server, psycopg.connect(server.dsn) as conn:
        left = conn.execute("select from pg_database where datname like 'routeledger_replay%'")
        assert left.rowcount == 0


def small_folder(folder: Path) -> Path:
    """A matrix of three models and forty prompts as files."""
    names = [model.name for model in SMALL.models[:3]]
    with (folder / "matrix.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "category", "prompt_id", "input_tokens", "output_tokens", "correct"]
        )
        for m, name in enumerate(names):
            for p in SMALL.prompts[:40]:
                writer.writerow(
                    [
                        name,
                        SMALL.tasks[p],
                        f"x_{p}",
                        *(SMALL.tokens[m][p] or ("", "")),
                        SMALL.right[m][p],
                    ]
                )
    with (folder / "model_prices.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "input_usd_per_token", "output_usd_per_token"])
        writer.writerows([name, "1e-6", "2e-6"] for name in names)
    return folder


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((), "--tenant or --data"),
        (("--tenant", "a", "--data", "auto"), "--tenant or --data"),
        (("--data", "/nowhere"), "there must be a matrix.csv"),
        (("--data", "auto", "--without", "nothing"), "is no task type"),
        (("--data", "auto", "--merge", "x"), "is no task type"),
        (("--tenant", "a", "--policy", "default {"), "is not a policy"),
    ],
)
def test_the_command_used_wrongly(db: Database, args: tuple[str, ...], complaint: str) -> None:
    done = run("--dsn", db.dsn, *args)
    assert done.exit_code == 2
    assert complaint in done.output


def test_the_command_passes_on_what_the_ledger_refuses(db: Database) -> None:
    done = run("--dsn", db.dsn, "--tenant", "a", "--policy", "nobody")
    assert done.exit_code == 4
    assert "RL209" in done.output
    done = run("--dsn", db.dsn, "--tenant", "a", "--policy", '{"min_quality": 7}')
    assert done.exit_code == 4
    assert "RL103" in done.output


def test_no_role_but_reader_writer_and_admin_replays(db: Database) -> None:
    for role in ("judge", "nobody"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            replayed(db, role=role)
    for role in ("reader", "writer", "admin"):
        assert replayed(db, role=role).decisions == 0
