"""The cost of one cycle with 24 and with 120 partitions, against one.

Three databases on one server differ only in how many partitions the ledger has. pgbench runs the
same cycle against each in turn; the ratio is of the time a cycle takes.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.cycle import PROCEDURES
from bench.harness import Bench

SIZES = (1, 24, 120)
# keeps the partition of today and makes as many as asked for after it
RESIZE = """
do $$
declare
  v_table text;
begin
  for v_table in
    select c.oid::regclass from pg_class c join pg_inherits i on i.inhrelid = c.oid
    where i.inhparent in ('routeledger.routing_outcomes'::regclass,
      'routeledger.inferences'::regclass, 'routeledger.inference_payloads'::regclass,
      'routeledger.judge_verdicts'::regclass)
    order by i.inhparent = 'routeledger.inferences'::regclass
  loop
    execute format('drop table %s', v_table);
  end loop;
  perform routeledger.maintain(interval '1 week' * ({size} - 1));
end
$$;
select count(*) from pg_inherits where inhparent = 'routeledger.routing_outcomes'::regclass;
"""


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Milliseconds a cycle for each number of partitions, and the ratios to one partition."""
    databases = {}
    for size in SIZES:
        databases[size] = bench.database()
        made = bench.query(databases[size], RESIZE.format(size=size))
        if int(made) != size:
            raise RuntimeError(f"wanted {size} partitions, made {made}")
    rounds: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(bench.rounds + 2):
        for size in SIZES if number % 2 == 0 else SIZES[::-1]:
            rounds[size].append(1000 / bench.pgbench(databases[size], PROCEDURES, 1, folder))
    return {
        "what": "milliseconds a cycle by number of partitions, one client",
        "milliseconds": {str(s): round(statistics.median(r), 4) for s, r in rounds.items()},
        "ratio": {
            str(s): statistics.median(a / b for a, b in zip(rounds[s], rounds[1], strict=True))
            for s in SIZES[1:]
        },
        "target": "24: <= 1.20, 120: <= 1.25",
    }
