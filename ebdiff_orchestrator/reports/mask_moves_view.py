"""How `ebdiff tickets` shows masks of weights that move: tables in a terminal, and a CSV file by layer and update."""

from __future__ import annotations

from rich.console import Console

from ebdiff_orchestrator.reports.formats import as_csv, plain_table, say
from ebdiff_orchestrator.reports.heat_maps import evenly_chosen
from ebdiff_orchestrator.reports.mask_moves import RecordedMoves

_MOST_ROWS = 16
_MEASURES = ("exchanged", "replaced", "distance", "ever_kept")
_EXPLAINED = (
    "exchanged: of the kept weights, those that an update took for others (by layer: all updates together). replaced: "
    "of those that the first mask kept, those that are kept no more. distance: the share of bits that differ from the "
    "first mask. ever kept: of all weights of the masked layers. Layers that keep everything have no mask."
)


def show_moves(found: tuple[RecordedMoves, ...], console: Console, last: int | None) -> None:
    """Print of each region how its masks have moved, and how dense its layers are."""
    for moves in found:
        say(console, headline(moves), style="bold")
        if len(moves.steps) > 1:
            _show_over_time(moves, console, last)
        _show_layers(moves, console)
        console.print()
    if found:
        say(console, _EXPLAINED)


def headline(moves: RecordedMoves) -> str:
    """Such as `weights of all (rigl 60%): 71,000 of 179,000 kept in 19 masked layers, 3 updates up to step 6`."""
    counts = f"{moves.kept.sum():,} of {moves.weights.sum():,} kept in {len(moves.layers)} masked layers"
    updates = len(moves.steps) - 1
    moved = f"{updates} updates up to step {moves.steps[-1]}" if updates else "no update"
    state = "" if moves.finished else "; it trains on"
    return f"weights of {moves.region} ({moves.plan.method} {moves.plan.sparsity:.0%}): {counts}, {moved}{state}"


def moves_as_csv(moves: RecordedMoves) -> str:
    """A row for each layer and mask, in numbers of weights."""
    return as_csv(
        [
            {
                "step": int(step),
                "layer": layer,
                "weights": int(moves.weights[index]),
                "kept": int(moves.kept[index]),
                "exchanged": int(moves.exchanged[mask, index]),
                "replaced": int(moves.replaced[mask, index]),
                "ever_kept": int(moves.ever_kept[mask, index]),
            }
            for mask, step in enumerate(moves.steps)
            for index, layer in enumerate(moves.layers)
        ]
    )


def _show_over_time(moves: RecordedMoves, console: Console, last: int | None) -> None:
    shares, count = moves.over_time(), len(moves.steps)
    first = max(0, count - last) if last else 0
    rows = [first + position for position in evenly_chosen(count - first, _MOST_ROWS)]
    chosen = "" if len(rows) == count - first else f" ({len(rows)} of {count - first}, evenly chosen)"
    say(
        console,
        f"Masks after each update{chosen}; {moves.replaced_by_chance():.1%} would be replaced by chance:",
    )
    table = plain_table(("step", *(name.replace("_", " ") for name in _MEASURES)), left=(), no_wrap=True)
    for row in rows:
        table.add_row(str(moves.steps[row]), *(f"{shares[name][row]:.1%}" for name in _MEASURES))
    console.print(table)


def _show_layers(moves: RecordedMoves, console: Console) -> None:
    shares = moves.by_layer()
    rows = evenly_chosen(len(moves.layers), _MOST_ROWS)
    chosen = "" if len(rows) == len(moves.layers) else f" ({len(rows)} of {len(moves.layers)}, evenly chosen)"
    say(console, f"Layers{chosen}:")
    headings = ("layer", "weights", *(name.replace("_", " ") for name in shares))
    table = plain_table(headings, left=("layer",), no_wrap=True)
    for column in table.columns[1:]:
        column.min_width = len(max(headings[1:], key=len))
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # its end tells layers apart
    for row in rows:
        cells = (f"{share[row]:.1%}" for share in shares.values())
        table.add_row(moves.layers[row].removesuffix(".weight"), f"{moves.weights[row]:,}", *cells)
    console.print(table)
