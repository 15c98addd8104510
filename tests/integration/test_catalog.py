"""Catalogs that reach the ledger: counts, replays, refusals, flags, and exact prices."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from routeledger import catalog
from tests.conftest import Database

ALWAYS = "1970-01-01T00:00:00+00:00"


def row(slug: str, price: str | None, **more: object) -> catalog.CatalogRow:
    value = None if price is None else Decimal(price)
    given = {"model_slug": slug, "valid_from": ALWAYS, "input_usd_per_mtok": value, **more}
    given.setdefault("output_usd_per_mtok", value)
    return given  # type: ignore[return-value]


def bring(db: Database, rows: list[catalog.CatalogRow | catalog.Skipped]) -> catalog.ImportReport:
    with db.connect("admin") as conn:
        return catalog.import_rows(conn, rows, batch_rows=2)


def test_rows_arrive_once_and_exactly(db: Database) -> None:
    rows = [row("a", "0.004688"), row("b", None), row("c", "0"), row("d", "1234567.123456789")]
    first = bring(db, [*rows, catalog.Skipped("e", "odd"), catalog.Skipped("f", "by hour", True)])
    assert (first.read, first.accepted, first.replayed, first.refused) == (6, 4, 0, 0)
    assert (first.skipped, first.unreadable, first.unknown_price) == (1, 1, 1)
    assert first.unread == [{"model": "e", "reason": "odd"}]
    again = bring(db, [*rows])
    assert (again.accepted, again.replayed) == (0, 4)
    assert db.execute(
        "select model_slug, input_usd_per_mtok from routeledger.model_prices order by 1"
    ) == [
        ("a", Decimal("0.004688")),
        ("b", None),
        ("c", Decimal(0)),
        ("d", Decimal("1234567.123456789")),
    ]


def test_a_bad_row_fails_alone(db: Database) -> None:
    report = bring(db, [row("a", "1"), row("b", "-1"), row("c", "1"), row("x" * 301, "1")])
    assert (report.accepted, report.refused) == (2, 2)
    assert [(r["model"][:1], r["code"]) for r in report.refusals] == [
        ("b", "RL103"),
        ("x", "RL108"),
    ]
    assert all(refusal["hint"] for refusal in report.refusals)


def test_a_price_far_off_its_neighbours_is_flagged(db: Database) -> None:
    """Whichever batch it came in: a family of one base model is judged as a whole."""
    sellers = [row(f"seller-{n}/m", "1.25", base_model="m") for n in range(5)]
    report = bring(db, [row("odd/m", "0.078125", base_model="m"), row("z", "1"), *sellers])
    assert (report.accepted, report.flagged) == (7, 1)
    assert [flag["model"] for flag in report.flags] == ["odd/m"]
    assert db.value("select count(*) from routeledger.flagged_prices") == 1


def test_a_models_attributes_are_those_of_its_latest_row(db: Database) -> None:
    rows = [
        row("m", "1", valid_from="2026-11-01T00:00:00+00:00", max_input_tokens=200, mode="chat"),
        row("m", "2", valid_from="2024-06-15T00:00:00+00:00", max_input_tokens=100, mode="old"),
    ]
    assert bring(db, [*rows]).accepted == 2
    assert db.execute("select max_input_tokens, mode from routeledger.models") == [(200, "chat")]
    assert bring(db, [*reversed(rows)]).replayed == 2


def test_a_cost_is_computed_from_what_was_imported(db: Database) -> None:
    bring(db, [row("m", "0.5", output_usd_per_mtok=Decimal("1.5")), row("n", None)])
    with db.connect("writer") as conn:
        costs = {}
        for model in ("m", "n"):
            decided = conn.execute(
                "select id from routeledger.insert_decision(p_tenant_id => 't',"
                " p_chosen_model_slug => %s)",
                (model,),
            ).fetchone()
            assert decided is not None
            costs[model] = conn.execute(
                "select cost_usd, cost_source from routeledger.complete_decision("
                "p_tenant_id => 't', p_id => %s, p_outcome_status => 'succeeded',"
                " p_input_tokens => 1000, p_output_tokens => 200)",
                decided,
            ).fetchone()
    assert costs == {"m": (Decimal("0.0008"), "catalog"), "n": (None, "unpriced")}


def test_the_default_catalog(db: Database) -> None:
    pytest.importorskip("genai_prices")
    with db.connect() as conn:
        first = catalog.import_rows(conn, catalog.read_genai_prices())
        again = catalog.import_rows(conn, catalog.read_genai_prices())
    assert first.refused == first.unreadable == 0
    assert first.accepted > 1000
    assert (again.accepted, again.replayed) == (0, first.accepted)
    assert first.flags == again.flags


# Dated catalogs as their makers ship them; where they lie beside the checkout, they are read too.
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "prices"
PRICES = Path(os.environ.get("ROUTELEDGER_PRICES", BESIDE))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["*.json.gz", "price*.csv.gz", "*.csv"])
def test_real_catalogs(db: Database, pattern: str) -> None:
    """Files under ROUTELEDGER_PRICES, or beside the checkout."""
    files = sorted(PRICES.glob(pattern)) if PRICES.is_dir() else []
    if not files:
        pytest.skip("ROUTELEDGER_PRICES names no folder with such a file")
    for file in files:
        with db.connect() as conn:
            with catalog.read_file(file) as rows:
                first = catalog.import_rows(conn, rows)
            with catalog.read_file(file) as rows:
                again = catalog.import_rows(conn, rows)
        assert first.refused == first.unreadable == 0
        assert first.accepted > 1000
        assert again.accepted == 0
        assert (
            db.value(
                "select count(*) from routeledger.model_prices where input_usd_per_mtok is null"
            )
            == again.unknown_price
        )
