"""A study's results as a table for people, and as a plot of quality against device-hours."""

from collections.abc import Iterator
from pathlib import Path

from ebdiff_orchestrator.reports.formats import MISSING, TextTable
from ebdiff_orchestrator.study.results import EQUAL_COST, Spread, StudyResults
from region_workers.storage.durable import write_file
from schemas.errors import UserError, user_error

_FORMATS = {".svg": "svg", ".png": "png"}
_MOST_LETTERS = 300  # letters of why a run failed


def results_table(results: StudyResults, with_unfinished: bool = True) -> TextTable:
    """A row a label: mean ± standard deviation over seeds; a dash for what is not known yet.

    `with_unfinished`: the footnotes say which runs are not finished, and why.
    """
    rows = []
    for row in results.rows:
        values = [_spread(row.values.get(name), row.finished) for name in results.measures]
        costs = [_spread(row.dense_steps, row.finished), row.equal_cost, _spread(row.device_hours, row.finished)]
        rows.append((row.label, f"{row.finished}/{len(row.runs)}", *values, *costs))
    notes = [*_footnotes(results)]
    if with_unfinished:
        notes += [f"{runs}: {reason}" for runs, reason, _ in unfinished(results)]
    measures = results.measures
    headings = ("row", "n", *measures, "dense steps", "equal cost", "device-hours")
    return TextTable(
        headings,
        tuple(rows),
        tuple(notes),
        most_wanted=("n", *measures[:1], "dense steps", "equal cost", *measures[1:], "device-hours"),
        whole_with="--format markdown or json",
    )


def check_plot(file: Path) -> None:
    """UserError unless the file can be a picture's."""
    if file.suffix not in _FORMATS:
        raise user_error("--plot", file, "a name that ends in .svg or .png", "Change it.")
    if not file.absolute().parent.is_dir():
        raise user_error("--plot", file, "a file in a folder that is there", "Make the folder, or change it.")


def plot_results(results: StudyResults, file: Path) -> None:
    """The paper's figure 1 with error bars: a panel a measure, a point a row. UserError if nothing is measured yet."""
    if not results.measures:
        raise UserError("--plot: expected at least one measured run in the study. Let it run for longer.")
    from matplotlib.figure import Figure

    count = len(results.measures)
    figure = Figure(figsize=(5.5 * count, 4.0), layout="constrained")
    for axes, measure in zip(figure.subplots(1, count, squeeze=False)[0], results.measures, strict=True):
        for index, row in enumerate(results.rows):
            quality, hours = row.values.get(measure), row.device_hours
            if quality is not None and hours is not None:
                error = {"xerr": hours.deviation or 0.0, "yerr": quality.deviation or 0.0}
                axes.errorbar(hours.mean, quality.mean, **error, fmt="o", color=f"C{index}", capsize=3, label=row.label)
        axes.set(xlabel="device-hours, draws included", ylabel=measure)
        lowest, highest = axes.get_ylim()  # a KID may be negative
        axes.set(xlim=(0, 1.1 * axes.get_xlim()[1]), ylim=(min(0.0, lowest), 1.1 * highest))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.suptitle(f"{results.name}: mean and standard deviation over seeds")
    write_file(file, lambda path: figure.savefig(path, format=_FORMATS[file.suffix], dpi=150))


def _spread(spread: Spread | None, finished: int) -> str:
    if spread is None:
        return MISSING
    text = _number(spread.mean) if spread.deviation is None else f"{_number(spread.mean)} ± {spread.deviation:.2g}"
    return text if spread.n == finished else f"{text} (n={spread.n})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _footnotes(results: StudyResults) -> Iterator[str]:
    yield (
        "n: finished seeds of those asked for. ±: standard deviation over them, with n - 1. dense steps: what drawing "
        f"and training took, in steps of row {results.rows[0].label}'s dense network by multiply-accumulates. "
        "device-hours: seconds of drawing and training times workers. Both count a dense start and stages taken over."
    )
    yield f"equal cost: rows of one letter are within {EQUAL_COST:.0%} of the cheapest of them in dense steps."
    yield from results.notes


def unfinished(results: StudyResults, most_letters: int = _MOST_LETTERS) -> Iterator[tuple[str, str, bool]]:
    """Runs that are not finished, why, and whether they failed: those of one reason together."""
    reasons: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for row in results.rows:
        for run in row.runs:
            if not run.is_finished:
                words = " ".join(run.state.split())
                words = words[:most_letters] + "..." * (len(words) > most_letters)
                rows = reasons.setdefault((words, run.has_failed), {})
                rows.setdefault(row.label, []).append(str(run.seed))
    for (words, has_failed), rows in reasons.items():
        yield "; ".join(f"{label}, seed {', '.join(seeds)}" for label, seeds in rows.items()), words, has_failed
