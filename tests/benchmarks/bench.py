"""What the benchmarks share: functions timed in turn, figures beside their targets, a table and a JSON file."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what tests share
SMALL = "model.block_out_channels=[16, 32]"  # in the short form, for networks of a plan of digits


@dataclass(frozen=True)
class Figure:
    """One measured value, and the target it is held against: `at_least` or `at_most`, or none."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def target(self) -> str:
        """For the table."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class NotMeasured:
    """What was to be measured and was not, and why: it does not apply here, or it failed."""

    name: str
    why: str
    failed: bool


class Report:
    """The figures of one benchmark, in order, and what was not measured."""

    def __init__(self, title: str, settings: Mapping[str, Any]) -> None:
        self.title, self.settings = title, dict(settings)
        self.figures: list[Figure] = []
        self.not_measured: list[NotMeasured] = []

    def add(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        at_any_size: bool = False,
    ) -> None:
        """Note a figure; in the short form only what holds at any size has a target, since that measures nothing."""
        if self.settings.get("short") and not at_any_size:
            at_least = at_most = None
        self.figures.append(Figure(name, value, unit, at_least, at_most))

    def skip(self, name: str, why: str) -> None:
        """Note what is not measured here."""
        self.not_measured.append(NotMeasured(name, why, failed=False))

    def fail(self, name: str, why: str) -> None:
        """Note what broke."""
        self.not_measured.append(NotMeasured(name, why, failed=True))

    @property
    def holds(self) -> bool:
        """Whether nothing broke and no target is missed."""
        missed = any(figure.holds is False for figure in self.figures)
        return not missed and not any(each.failed for each in self.not_measured)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with what the machine was."""
        figures = [{**asdict(figure), "holds": figure.holds} for figure in self.figures]
        told = {"benchmark": self.title, "settings": self.settings, "machine": machine(), "figures": figures}
        return told | ({"not_measured": [asdict(each) for each in self.not_measured]} if self.not_measured else {})

    def take_over(self, told: Mapping[str, Any], prefix: str = "") -> None:
        """What another report's `as_json` tells, behind this one's; each name begins with `prefix` here."""
        for figure in told["figures"]:
            fields = {name: value for name, value in figure.items() if name != "holds"}
            self.figures.append(Figure(**fields | {"name": prefix + figure["name"]}))
        for each in told.get("not_measured", ()):
            self.not_measured.append(NotMeasured(**each | {"name": prefix + each["name"]}))

    def show(self, file: Path | None) -> None:
        """Print the table; write the JSON where it was asked for."""
        table = Table(title=self.title, title_justify="left", show_edge=False, pad_edge=False)
        table.add_column("measured")
        for column in ("value", "unit", "target", "met"):
            table.add_column(column, justify="right" if column == "value" else "left")
        for figure in self.figures:
            met = "" if figure.holds is None else ("yes" if figure.holds else "NO")
            table.add_row(figure.name, f"{figure.value:.4g}", figure.unit, figure.target, met)
        Console(width=110).print(table)
        for each in self.not_measured:
            print(f"{'FAILED' if each.failed else 'skipped'}: {each.name}: {each.why}")
        self.write(file)

    def write(self, file: Path | None) -> None:
        """The JSON, where it was asked for."""
        if file is not None:
            file.write_text(json.dumps(self.as_json(), indent=2, default=str) + "\n")


def arguments(text: str | None, threads: int = 2, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes, and an option for each default; `changes` are those of a plan."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--short", action="store_true", help="as small as it goes: it runs, it measures nothing")
    parser.add_argument("--threads", type=int, default=threads, help=f"threads of the process (default {threads})")
    for name, value in defaults.items():
        if name == "changes":
            parser.add_argument("--set", dest=name, action="append", default=value, metavar="KEY=VALUE")
        else:
            option = f"--{name.replace('_', '-')}"
            parser.add_argument(option, type=type(value), default=value, help=f"default {value}")
    return parser


def parsed(parser: argparse.ArgumentParser, **short: Any) -> argparse.Namespace:
    """The command line, in the short form with these values instead; torch has its threads from now on."""
    options = parser.parse_args()
    vars(options).update(short if options.short else {})
    torch.set_num_threads(options.threads)
    return options


def training_changes(options: argparse.Namespace) -> list[str]:
    """Of a plan: the batch and threads of the command line, then its `--set`."""
    return [f"training.batch_size={options.batch_size}", f"training.cpu_threads={options.threads}", *options.changes]


@contextmanager
def benchmark(title: str, options: argparse.Namespace, **settings: Any) -> Iterator[tuple[Report, Path]]:
    """A report that is shown at the end, and a folder that lasts as long: in `--folder`, where there is that option."""
    report = Report(title, settings_of(options) | settings)
    with tempfile.TemporaryDirectory(dir=vars(options).get("folder"), ignore_cleanup_errors=True) as folder:
        yield report, Path(folder)
    report.show(options.json)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options, for the report."""
    return {name: value for name, value in vars(options).items() if name != "json"}


def this_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "processor": platform.machine(), "gpu": gpu, "torch": torch.__version__}


def in_turn(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1, untimed: int = 0
) -> dict[str, list[float]]:
    """Seconds of each function in each round, one after another in every round: a drift of the machine meets all.

    Each turn begins with so many `untimed` calls, where a function must find its memory and caches warm again. On a GPU
    each call is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(warm_up + rounds):
        for name, function in functions.items():
            for _ in range(untimed):
                function()
            spent = timed(function)
            if index >= warm_up:
                seconds[name].append(spent)
    return seconds


def median_s(function: Callable[[], object], calls: int, warm_up: int = 1) -> float:
    """Median seconds of a call."""
    return statistics.median(in_turn({"": function}, calls, warm_up)[""])


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, the device's work included."""
    began = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios `over` / `under`."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
