"""The store of drawings: built once, whole or not at all; and the batches that are served from it."""

import itertools
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing_files import as_line, scribbles, write_lines, write_svgs
from forked import ForkedProcess
from listener import Listener
from processes import wait_until

from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.launch import decode_data, samples_at_hand
from ebdiff_orchestrator.run.resolve import ResolvedPlan
from region_workers.data.batches import DrawingBatches
from region_workers.data.drawing_store import DrawingStore, ensure_drawings
from region_workers.data.drawings import raster, rows_of, strokes_of
from region_workers.data.samples import DrawingSamples
from schemas.data import DrawingsPlan, RasterPlan
from schemas.errors import PlanError, RunFailed
from schemas.plan import DataPlan

CPU = torch.device("cpu")
DRAWINGS = scribbles(40)
BUILD = """
import sys
from pathlib import Path
from region_workers.data.drawing_store import ensure_drawings
from schemas.data import DrawingsPlan
from schemas.plan import DataPlan

ensure_drawings(DataPlan(path=sys.argv[1], drawings=DrawingsPlan()), Path(sys.argv[2]))
"""


def plan_of(path: Path, **drawings: object) -> DataPlan:
    return DataPlan(path=str(path), drawings=DrawingsPlan(**drawings))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DrawingStore:
    folder = tmp_path_factory.mktemp("drawings")
    return ensure_drawings(plan_of(write_lines(folder / "a.ndjson", DRAWINGS)), folder / "cache")


def test_a_store_holds_the_rows_of_every_drawing(store: DrawingStore) -> None:
    rows = [rows_of(drawing, DrawingsPlan()) for drawing in DRAWINGS]
    assert store.lengths.tolist() == [len(each) for each in rows]
    assert (store.array == np.concatenate(rows)).all()
    padded = store.samples().read(np.array([7, 3]))
    assert padded.shape == (2, max(len(rows[7]), len(rows[3])), 3)
    for got, number in zip(padded, (7, 3), strict=True):
        assert (got[: len(rows[number])] == rows[number]).all()
        assert not got[len(rows[number]) :].any()


def test_a_store_is_built_once_and_found_by_its_digest(store: DrawingStore) -> None:
    cache = store.folder.parent.parent
    path = cache.parent / "a.ndjson"
    stamp = (store.folder / "samples.npy").stat().st_mtime_ns
    same = [plan_of(path), plan_of(path, raster={"canvas_px": 28})]
    for again in [*(ensure_drawings(plan, cache) for plan in same), DrawingStore.find(cache, store.digest)]:
        assert again is not None
        assert again.folder == store.folder
        assert (again.folder / "samples.npy").stat().st_mtime_ns == stamp
    others = [{"coordinates": "delta"}, {"point_spacing": 0.1}, {"scale": 1.0}, {"max_strokes": 2}, {"max_points": 99}]
    folders = {ensure_drawings(plan_of(path, **other), cache).folder for other in others}
    assert len(folders | {store.folder}) == 1 + len(others)


def test_svg_files_and_lines_of_the_same_drawings_have_the_same_rows(store: DrawingStore, tmp_path: Path) -> None:
    from_svg = ensure_drawings(plan_of(write_svgs(tmp_path / "svg", DRAWINGS)), tmp_path)
    np.testing.assert_allclose(from_svg.array, store.array, atol=1e-4)


def test_what_is_left_out_is_named_by_its_fault_or_its_length(tmp_path: Path) -> None:
    long = [np.stack([np.arange(400) % 2, np.arange(400) / 400], axis=1)]
    lines = [as_line(drawing) for drawing in (DRAWINGS[0], long, DRAWINGS[1])]
    (tmp_path / "a.ndjson").write_text("\n".join([*lines, '{"drawing": [[[3], [4]]]}', "no JSON"]))
    plan = plan_of(tmp_path / "a.ndjson")
    with pytest.raises(PlanError, match=r"share of the 5 drawings in .* line 4 \(it has no stroke"):
        ensure_drawings(plan, tmp_path)
    assert [path.name for path in (tmp_path / "drawings").iterdir() if path.is_dir()] == []
    store = ensure_drawings(plan.model_copy(update={"max_unreadable": 0.5}), tmp_path)
    assert len(store) == 2
    assert store.info.unreadable_names == ("line 4", "line 5")
    assert store.info.too_long_names == ("line 2",)
    with pytest.raises(PlanError, match=r"max_unreadable = 0\.01"):
        ensure_drawings(plan, tmp_path)


@pytest.mark.parametrize("file", ["samples.npy", "offsets.npy", "checksums.npy", "store.json"])
def test_a_damaged_store_is_never_served(tmp_path: Path, file: str) -> None:
    plan = plan_of(write_lines(tmp_path / "a.ndjson", DRAWINGS))
    whole = ensure_drawings(plan, tmp_path)
    good = whole.array.copy()
    data = bytearray((whole.folder / file).read_bytes())
    data[-5] ^= 1
    (whole.folder / file).write_bytes(data)
    if file == "samples.npy":  # as long as it was: found where the drawing is read
        with pytest.raises(RunFailed, match=f"row {len(DRAWINGS) - 1} is not what was written"):
            ensure_drawings(plan, tmp_path).samples().read(np.arange(len(DRAWINGS)))
    else:
        assert (ensure_drawings(plan, tmp_path).array == good).all()  # built anew
    (whole.folder / "samples.npy").write_bytes(b"")
    assert (ensure_drawings(plan, tmp_path).array == good).all()


def test_a_killed_build_does_no_harm(tmp_path: Path) -> None:
    plan = plan_of(write_lines(tmp_path / "a.ndjson", scribbles(6_000)))
    process = ForkedProcess("-c", BUILD, plan.path, tmp_path / "cache")
    samples = tmp_path / "cache/drawings"
    wait_until(lambda: any(path.stat().st_size for path in samples.glob("*/samples.npy")), "data", process, look_s=0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list(samples.glob("*/store.json"))
    again, undisturbed = (ensure_drawings(plan, tmp_path / cache) for cache in ("cache", "other"))
    assert again.digest == undisturbed.digest
    assert len(again) == 6_000


def test_pictures_of_a_piece_are_those_of_its_drawings(store: DrawingStore) -> None:
    plan = RasterPlan(canvas_px=28)
    pictures = store.piece(38, 50, plan)
    assert pictures.shape == (2, 28, 28, 1)
    strokes = strokes_of(rows_of(DRAWINGS[39], DrawingsPlan()), "absolute")
    assert (pictures[1] == raster(strokes, plan)).all()
    assert store.piece(40, 41, plan).shape == (0, 28, 28, 1)


def drawings_of_lengths(lengths: np.ndarray) -> DrawingSamples:
    """Each row holds its drawing's number."""
    rows = np.repeat(np.arange(len(lengths)), lengths).astype(np.float32)
    return DrawingSamples(np.stack([rows] * 3, axis=1), np.concatenate([[0], np.cumsum(lengths)]))


def test_an_epoch_is_a_permutation_in_batches_of_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 300, 130)
    batches = DrawingBatches(drawings_of_lengths(lengths), CPU, 8, seed=1)
    assert batches.steps_per_epoch == 16
    for epoch in range(2):
        drawn = [batches.indices(epoch * 16 + step) for step in range(16)]
        numbers = np.concatenate(drawn)
        assert len(set(numbers.tolist())) == 128
        spreads = [np.ptp(lengths[batch]) for batch in drawn]
        assert np.mean(spreads) < 40  # a batch of any eight spreads over 230
        means = [lengths[batch].mean() for batch in drawn]
        assert sorted(means) != means  # their order says nothing of their lengths
    first, second = ([tuple(sorted(batches.indices(start + step))) for step in range(16)] for start in (0, 16))
    assert not set(first) & set(second)  # others share a batch in each epoch


def test_batches_are_a_function_of_seed_and_step_and_share_their_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 300, 50)
    samples = drawings_of_lengths(lengths)
    ahead, back = (DrawingBatches(samples, CPU, 6, seed=1) for _ in range(2))
    for step in (0, 3, 17):
        clean, found = ahead.batch(step)
    again, _ = back.batch(17)
    assert torch.equal(clean, again)
    assert clean.dtype == torch.float32
    assert found.dtype == torch.int64
    assert clean.shape == (6, int(found.max()), 3)
    assert found.tolist() == lengths[back.indices(17)].tolist()
    for drawing, number, length in zip(clean, back.indices(17), found.tolist(), strict=True):
        assert (drawing[:length] == float(number)).all()
        assert not drawing[length:].any()
    parts = [back.batch(17, slice(start, start + 2)) for start in (0, 2, 4)]
    assert torch.equal(torch.cat([part for part, _ in parts]), clean)
    assert torch.equal(torch.cat([part for _, part in parts]), found)
    other = DrawingBatches(samples, CPU, 6, seed=2)
    assert any((one.indices(step) != other.indices(step)).any() for one, step in itertools.product([ahead], range(3)))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(PlanError, match="at most the 3 drawings of the data"):
        DrawingBatches(drawings_of_lengths(np.array([3, 4, 5])), CPU, 4, seed=0)


def test_the_driver_makes_the_store_and_tells_what_was_left_out(tmp_path: Path) -> None:
    long = [np.stack([np.arange(400) % 2, np.arange(400) / 400], axis=1)]
    write_lines(tmp_path / "a.ndjson", [*DRAWINGS[:5], long, [np.zeros((1, 2))]])
    data = {"path": str(tmp_path / "a.ndjson"), "drawings": {}, "max_unreadable": 0.2}
    workers = {"cache_dir": str(tmp_path / "cache"), "processes": 1}
    values = {"model": {"family": "vector"}, "data": data, "workers": workers, "training": {"batch_size": 4}}
    said = Counting()
    resolved = ResolvedPlan(plan_from_values(values), None)
    store = decode_data(resolved, said)
    assert isinstance(store, DrawingStore)
    assert samples_at_hand(resolved, store) is store
    assert said.said == [
        "1 unreadable drawings were left out: line 7.",
        "1 drawings of 300 points or more were left out: line 6.",
    ]
    assert said.progress[-1] == (7, 7, "decoding drawings")
    with pytest.raises(PlanError, match="at most the data set's 5 drawings"):
        decode_data(ResolvedPlan(plan_from_values({**values, "training": {"batch_size": 8}}), None), said)


class Counting(Listener):
    """Remembers the counts, too."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: list[tuple[int, int, str]] = []

    def images(self, done: int, total: int, what: str = "decoding images") -> None:
        self.progress.append((done, total, what))
