"""Build one store, or go on with it, or open it, in a process of its own that can be watched and killed.

    python tests/benchmarks/build_one.py PLAN_JSON CACHE [SAFE]

Prints JSON: the `seconds` of all, and those until the first image beyond number SAFE was decoded (`first_s`).
"""

import json
import sys
import time
from pathlib import Path

from region_workers.data.store import ensure_store
from schemas.plan import DataPlan


def main() -> None:
    plan, cache = DataPlan.model_validate_json(sys.argv[1]), Path(sys.argv[2])
    safe = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    began = time.perf_counter()
    first_s: float | None = None

    def report(done: int, _: int) -> None:
        nonlocal first_s
        if first_s is None and done > safe:
            first_s = time.perf_counter() - began

    ensure_store(plan, cache, report)
    print(json.dumps({"seconds": time.perf_counter() - began, "first_s": first_s}))


if __name__ == "__main__":
    main()
