"""Kill runs of the real command line at random moments and see whether they end in the same bits.

    python tests/faults/kills.py --kills 100 --each 3 --json kills.json

A run takes one kill in each stage, `--each` many where workers train, and then a minute to its evaluation's end.
The exit code is 0 if every run ended as the undisturbed one. The folder of a run that did not is kept.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # what tests share

from kill_campaign import Campaign, Decks, Row
from kill_job import STAGES
from kill_processes import adopt_orphans, end_orphans


def main() -> int:
    """Carry out the campaign and print its table."""
    options = _options()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"seed {seed}, folder {folder}", flush=True)
    adopt_orphans()
    began = time.monotonic()
    campaign = Campaign(folder, seed, options.limit, partial(print, flush=True), each=options.each)
    try:
        campaign.take_the_undisturbed_run()
        decks = Decks(options.only, random.Random(seed), options.each)
        for number in count(1):
            wanted = options.kills - len(campaign.rows)
            if wanted <= 0:
                break
            for aim in campaign.attack(number, decks.draw()[:wanted]):
                decks.put_back(aim)
    finally:
        end_orphans()
        if options.json:
            _write(options.json, seed, campaign, time.monotonic() - began)
    print(table(campaign.rows))
    return 0 if all(row.survived for row in campaign.rows) else 1


def table(rows: Sequence[Row]) -> str:
    """Survived out of tried, by stage, victim and signal."""
    lines = []
    for kind in ("stage", "victim", "signal"):
        tried = Counter(getattr(row, kind) for row in rows)
        survived = Counter(getattr(row, kind) for row in rows if row.survived)
        lines += [f"{name:16}{survived[name]:5} of {number}" for name, number in tried.items()] + [""]
    return "\n".join([*lines, f"{'in all':16}{sum(row.survived for row in rows):5} of {len(rows)}"])


def _write(path: Path, seed: int, campaign: Campaign, seconds: float) -> None:
    values = {
        "seed": seed,
        "seconds": round(seconds),
        "tried": len(campaign.rows),
        "survived": sum(row.survived for row in campaign.rows),
        "kills": [row.as_json() for row in campaign.rows],
    }
    path.write_text(json.dumps(values, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many (100)")
    parser.add_argument("--each", type=int, default=1, help="kills of a run in each stage that workers train in (1)")
    parser.add_argument("--seed", type=int, help="of all that is random; default: a new one, printed")
    parser.add_argument("--folder", type=Path, help="a new folder to work in; default: a temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kill there")
    parser.add_argument("--only", type=_stages, default=STAGES, metavar="STAGE,...", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one command may take (600)")
    return parser.parse_args()


def _stages(text: str) -> tuple[str, ...]:
    wanted = [stage.strip() for stage in text.split(",")]
    unknown = [stage for stage in wanted if stage not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: expected one of {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in wanted)


if __name__ == "__main__":
    sys.exit(main())
