"""The figure of a region's masks of weights: how they have moved, over the steps, and how dense each layer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ebdiff_orchestrator.reports.mask_moves import RecordedMoves, Shares

_DRAWN, _SHOWN = 4, 2  # pixels a unit: as it is drawn, and as it is shown, so that lines are smooth
_WIDTH, _LEFT, _RIGHT = 440, 56, 16
_TOP, _HEIGHT, _BETWEEN, _BOTTOM = 64, 170, 84, 44
Colour = tuple[int, int, int]

_INK: Colour = (30, 30, 30)
_GRID: Colour = (226, 226, 226)
_BLUE: Colour = (0, 114, 178)  # of Okabe and Ito, whom the colour-blind can tell apart
_ORANGE: Colour = (213, 94, 0)
_GREEN: Colour = (0, 158, 115)
_PALE_GREEN: Colour = (172, 222, 207)
_LINES = {"ever_kept": ("ever kept", _GREEN), "replaced": ("replaced", _ORANGE), "exchanged": ("exchanged", _BLUE)}


def moves_picture(moves: RecordedMoves) -> Image.Image:
    """The figure as RGB: shares over the steps above, shares by layer below."""
    size = (_LEFT + _WIDTH + _RIGHT, _TOP + 2 * _HEIGHT + _BETWEEN + _BOTTOM)
    picture = Image.new("RGB", (size[0] * _DRAWN, size[1] * _DRAWN), "white")
    pen = ImageDraw.Draw(picture)
    title = f"{moves.region}: {moves.plan.method}, {moves.plan.sparsity:.0%} of the weights masked"
    _text(pen, (_LEFT, 10), title, 14)
    _draw_over_time(_Panel(pen, _TOP), moves)
    _draw_layers(_Panel(pen, _TOP + _HEIGHT + _BETWEEN), moves)
    return picture.resize((size[0] * _SHOWN, size[1] * _SHOWN), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class _Panel:
    """Axes whose height is the shares from 0 to 1; `across` and shares are from 0 to 1."""

    pen: ImageDraw.ImageDraw
    top: float

    def point(self, across: float, share: float) -> tuple[float, float]:
        return (_LEFT + across * _WIDTH) * _DRAWN, (self.top + (1 - share) * _HEIGHT) * _DRAWN

    def frame(self, ticks: Sequence[tuple[float, str]], axis: str) -> None:
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            self.pen.line((self.point(0, share), self.point(1, share)), _GRID, _DRAWN)
            place = (_LEFT - 7, self.top + (1 - share) * _HEIGHT)
            _text(self.pen, place, f"{share:.0%}", 11, "rm")
        for across, label in ticks:
            x, y = _LEFT + across * _WIDTH, self.top + _HEIGHT
            self.pen.line((x * _DRAWN, y * _DRAWN, x * _DRAWN, (y + 4) * _DRAWN), _INK, _DRAWN)
            _text(self.pen, (x, y + 7), label, 11, "mt")
        _text(self.pen, (_LEFT + _WIDTH / 2, self.top + _HEIGHT + 24), axis, 12, "mt")

    def edges(self) -> None:
        self.pen.line((self.point(0, 1), self.point(0, 0), self.point(1, 0)), _INK, _DRAWN)

    def line(self, across: Shares, shares: Shares, colour: Colour) -> None:
        points = [self.point(float(x), float(share)) for x, share in zip(across, shares, strict=True)]
        self.pen.line(points, colour, 2 * _DRAWN, joint="curve")
        if len(points) <= _WIDTH / 12:  # few enough to be seen
            for x, y in points:
                self.pen.circle((x, y), 2.5 * _DRAWN, colour)

    def dashes(self, share: float, colour: Colour, label: str) -> None:
        for across in np.arange(0, 1, 0.02):
            self.pen.line((self.point(across, share), self.point(across + 0.01, share)), colour, _DRAWN)
        x, y = self.point(0.995, share)
        self.pen.text((x, y - 3 * _DRAWN), label, fill=colour, font=_font(11), anchor="rs")

    def legend(self, entries: Sequence[tuple[str, Colour]]) -> None:
        left = float(_LEFT)
        for label, colour in entries:
            y = self.top - 18
            self.pen.rectangle((left * _DRAWN, (y - 3) * _DRAWN, (left + 14) * _DRAWN, (y + 3) * _DRAWN), colour)
            _text(self.pen, (left + 19, y), label, 11, "lm")
            left += 34 + _font(11).getlength(label) / _DRAWN


def _draw_over_time(panel: _Panel, moves: RecordedMoves) -> None:
    shares, last = moves.over_time(), max(int(moves.steps[-1]), 1)
    ticks = [(step / last, f"{step:,}") for step in _round_numbers(last)]
    panel.frame(ticks, "step")
    by_chance = moves.replaced_by_chance()
    panel.dashes(by_chance, _ORANGE, "replaced by chance")
    for name, (_, colour) in _LINES.items():
        first = 1 if name == "exchanged" else 0  # nothing was exchanged for the first mask
        panel.line(moves.steps[first:] / last, shares[name][first:], colour)
    panel.edges()
    panel.legend(list(_LINES.values()))


def _draw_layers(panel: _Panel, moves: RecordedMoves) -> None:
    shares, count = moves.by_layer(), len(moves.layers)
    ticks = [((number - 0.5) / count, str(number)) for number in _round_numbers(count) if number] or [(0.5, "1")]
    panel.frame(ticks, "masked layer, from the first to the last")
    for index in range(count):
        left, right = (index + 0.12) / count, (index + 0.88) / count
        for name, colour in (("ever_kept", _PALE_GREEN), ("density", _GREEN)):
            panel.pen.rectangle((panel.point(left, float(shares[name][index])), panel.point(right, 0)), colour)
    panel.edges()
    panel.legend([("kept", _GREEN), ("kept earlier", _PALE_GREEN)])


def _round_numbers(last: int) -> list[int]:
    """From 0 up to `last`, four to eight of them where there are so many."""
    step = 10 ** max(len(str(last)) - 1, 0)
    step = next((step // part for part in (1, 2, 5, 10) if step % part == 0 and last // (step // part) >= 4), 1)
    return list(range(0, last + 1, step))


def _text(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str | None = None
) -> None:
    pen.text((place[0] * _DRAWN, place[1] * _DRAWN), text, fill=_INK, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _DRAWN)
