"""`python -m ebdiff_orchestrator.previews LOCATION OWNER`: draw one preview, out of everybody's way, and end.

It prints the preview's record, or nothing if a region has no whole checkpoint at the moment. It ends with its input, so
with the driver that started it. It takes the 0.8 GB of torch and diffusers, and its networks, only as long as it draws.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

from schemas.process import quick_imports


def main() -> None:
    """Draw the preview of the run at LOCATION, on behalf of the driver whose claim is OWNER."""
    Thread(target=_end_with_the_input, name="driver", daemon=True).start()
    _give_way()
    with quick_imports():  # of torch: not before we give way
        from ebdiff_orchestrator.previews.preview import make_preview
        from region_workers.training.failures import message_for_people

    try:
        record = make_preview(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001 - the driver shows one line
        sys.exit(" ".join(message_for_people(error).split()))
    if record is not None:
        print(record.model_dump_json())


def _give_way() -> None:
    """The lowest priority; and the first to be killed where memory runs out."""
    os.nice(19)
    with suppress(OSError):  # Linux may share the processor by session first; this process is one of its own
        Path("/proc/self/autogroup").write_text("19")
    with suppress(OSError):  # no Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_the_input() -> None:
    os.read(0, 1)  # not by sys.stdin, whose lock, held by a thread that waits, aborts Python at its end
    os._exit(1)


if __name__ == "__main__":
    main()
