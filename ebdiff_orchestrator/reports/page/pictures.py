"""Pictures of a run inside a page: no larger than they are shown, so that the page stays small."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ebdiff_orchestrator.reports.formats import evenly_chosen
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import SAMPLE
from schemas.execution import PREVIEWS_FOLDER, PreviewRecord, picture_key

_MOST_PREVIEWS, _PREVIEW_PX, _GRID_PX = 8, 260, 900
_PNG_BYTES = 250_000  # a larger PNG becomes a JPEG
_LEAST_PX = 32


class Picture(NamedTuple):
    """An image as a data URL, with what it shows; `scaled`: it is smaller than the file."""

    url: str
    width: int
    height: int
    caption: str
    scaled: bool


def samples_grid(run: RunDirectory, most_bytes: int, most_px: int = _GRID_PX, caption: str = "") -> Picture | None:
    """The grid of the run's own samples, in at most so many bytes of the page."""
    file = run.fetch(f"{SAMPLE}/grid.png")
    return _picture(file, most_px, caption, most_bytes) if file.is_file() else None


def previews(run: RunDirectory, most_bytes: int) -> tuple[Picture, ...]:
    """Of the run's previews the first, the last and evenly many between them, in at most so many bytes of the page."""
    keys = sorted(key for key in run.files.list_keys(PREVIEWS_FOLDER) if key.endswith(".json"))
    places = evenly_chosen(len(keys), _MOST_PREVIEWS)
    found = []
    for place in places:
        record = PreviewRecord.model_validate_json(run.fetch(keys[place]).read_text())
        steps = ", ".join(
            f"{name} {record.steps[name]:,}{' (dense)' if source == 'dense' else ''}"
            for name, source in record.source.items()
        )
        file = run.fetch(picture_key(record.number))
        if file.is_file():
            found.append(_picture(file, _PREVIEW_PX, f"{record.number}: {steps} steps", most_bytes // len(places)))
    return tuple(found)


def _picture(file: Path, most_px: int, caption: str, most_bytes: int) -> Picture:
    with Image.open(file) as opened:
        whole = opened.convert("RGB")
    while True:
        picture = whole.copy()
        if max(whole.size) > most_px:
            picture.thumbnail((most_px, most_px), Image.Resampling.LANCZOS)
        data, kind = _encoded(picture, "PNG"), "png"
        if len(data) > min(_PNG_BYTES, most_bytes * 3 // 4):  # base64 takes four characters for three bytes
            data, kind = _encoded(picture, "JPEG"), "jpeg"
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        if len(url) <= most_bytes or max(picture.size) <= _LEAST_PX:
            return Picture(url, picture.width, picture.height, caption, picture.size != whole.size)
        most_px = max(_LEAST_PX, max(picture.size) * 3 // 4)


def _encoded(picture: Image.Image, form: str) -> bytes:
    output = io.BytesIO()
    picture.save(output, form, quality=85, optimize=True)
    return output.getvalue()
