"""Drawings from an ensemble, and drawings on disk."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ensemble_fixtures import (
    LENGTH_COUNTS,
    NAMES,
    ROUTES,
    by_hand,
    draw,
    drawing_experts,
    ensemble,
    noise_of,
    saved_ensemble,
    seeded,
    tiny_vae,
)

from ebdiff_orchestrator.ensemble import ListDDIMScheduler, TimestepRouter, load_ensemble, samples_of
from ebdiff_orchestrator.ensemble.loading import pipeline_of
from region_workers.data.drawings import raster, strokes_of
from region_workers.storage.integrity import seal_folder
from schemas.data import RasterPlan
from schemas.errors import UserError


def as_lists(drawing: list[np.ndarray]) -> list[list[list[float]]]:
    return [stroke.tolist() for stroke in drawing]


def rows_of_call(pipe: Any, count: int, **options: Any) -> list[np.ndarray]:
    (rows,) = pipe(count, output_type="rows", show_progress=False, **options)
    return rows


def test_rows_are_ddim_by_hand_over_the_experts_and_become_strokes_and_pictures() -> None:
    made, lengths = ensemble("drawings"), torch.tensor([6, 4])
    x = by_hand(made, noise_of((6, 3), 3, 4), lambda expert, x, timestep: expert(x, timestep, lengths).sample)
    expected = [x[0].numpy(), x[1, :4].numpy()]
    for ours, rows in zip(rows_of_call(made, 2, generator=seeded(3, 4), lengths=[6, 4]), expected, strict=True):
        assert np.array_equal(ours, rows)

    plan = RasterPlan(canvas_px=32, line_width_px=2)
    output = made(2, generator=seeded(3, 4), lengths=[6, 4], raster=plan)
    drawings, images = made(2, generator=seeded(3, 4), lengths=[6, 4], raster=plan, return_dict=False)
    for drawing, again, image, rows in zip(output.drawings, drawings, images, expected, strict=True):
        strokes = strokes_of(rows, "absolute")
        assert as_lists(drawing) == as_lists(again) == as_lists(strokes)
        assert np.array_equal(np.asarray(image), raster(strokes, plan)[..., 0])
    assert [image.size for image in output.images] == [(32, 32)] * 2


def test_drawings_are_as_long_as_the_trainings_unless_told_otherwise() -> None:
    made = ensemble("drawings", num_inference_steps=1)
    lengths = Counter(map(len, rows_of_call(made, 600, generator=torch.Generator().manual_seed(0))))
    total = sum(LENGTH_COUNTS)
    assert set(lengths) == {length for length, count in enumerate(LENGTH_COUNTS) if count}
    assert all(abs(count / 600 - LENGTH_COUNTS[length] / total) < 0.08 for length, count in lengths.items())
    for given, expected in ((3, [3, 3]), ([1, 6], [1, 6]), (torch.tensor([2, 5]), [2, 5])):
        assert [len(rows) for rows in rows_of_call(made, 2, lengths=given)] == expected
    assert len(made(lengths=[2, 5, 6], show_progress=False).drawings) == 3


def test_steps_between_points_are_summed_up() -> None:
    made = ensemble("drawings", drawing_experts(coordinates="delta"))
    (rows,) = rows_of_call(made, 1, generator=seeded(1), lengths=6)
    (drawing,) = made(1, generator=seeded(1), lengths=6, show_progress=False).drawings
    assert as_lists(drawing) == as_lists(strokes_of(rows, "delta"))
    assert as_lists(drawing) != as_lists(strokes_of(rows, "absolute"))


def test_batch_size_and_where_a_range_begins_change_nothing_but_rounding() -> None:
    made = ensemble("drawings", num_inference_steps=4, eta=1.0)
    state = torch.get_rng_state()
    whole = samples_of(made, 5, seed=3, steps=None, batch_size=5)
    for batch_size, first in ((2, 0), (2, 3), (1, 3)):
        part = samples_of(made, 5 - first, 3, None, batch_size, first=first)
        for drawing, expected in zip(part, whole[first:], strict=True):
            assert [len(stroke) for stroke in drawing] == [len(stroke) for stroke in expected]
            assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(drawing, expected, strict=True))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is neither read nor moved"


def test_drawings_of_several_owners_and_lengths_go_to_their_experts() -> None:
    router = TimestepRouter(drawing_experts(), ROUTES, NAMES)
    rows, timesteps, lengths = torch.randn(3, 6, 3), torch.tensor([900, 5, 300]), torch.tensor([6, 2, 4])
    with torch.no_grad():
        together = router(rows, timesteps, lengths=lengths).sample
        for index, owner in enumerate((2, 0, 1)):
            one = slice(index, index + 1)
            alone = router.experts[owner](rows[one], timesteps[one], lengths[one]).sample
            assert torch.allclose(together[one], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": 0}, "lengths = 0: expected whole numbers from 1 to 6"),
        ({"lengths": [3, 7]}, "lengths = 7: expected whole numbers from 1 to 6"),
        ({"lengths": [3, 2.5]}, r"lengths = 2\.5: expected whole"),
        ({"lengths": [10**30, 1]}, "lengths = 1000.*: expected whole"),
        ({"lengths": [1, 2, 3]}, "lengths = 3 of them: expected 2, one a drawing"),
        ({"output_type": "pt"}, "output_type = pt: expected one of pil, rows"),
        ({"generator": [torch.Generator()]}, "generator = a list of 1: expected 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ensemble("drawings")(2, **options)


@pytest.mark.parametrize(("option", "value"), [("classes", [0]), ("guidance_scale", 2.0)])
def test_drawings_have_no_classes(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{option} = .*the ensemble has no classes"):
        samples_of(ensemble("drawings"), 1, 0, None, 1, **{option: value})


def test_an_ensemble_that_knows_no_lengths_must_be_told_them() -> None:
    made = ensemble("drawings", drawing_experts(length_counts=None))
    with pytest.raises(UserError, match="lengths = None: expected one, or one a drawing"):
        made(1)
    assert [len(rows) for rows in rows_of_call(made, 2, lengths=[9, 2])] == [9, 2]


def test_experts_that_do_not_belong_together_make_no_ensemble() -> None:
    experts = drawing_experts()
    other_counts = drawing_experts(length_counts=(0, 1))[0]
    with pytest.raises(UserError, match=r"length_counts = .*one value"):
        TimestepRouter([other_counts, *experts[1:]], ROUTES, NAMES)
    with pytest.raises(UserError, match="vae = VQModel: expected none"):
        pipeline_of(TimestepRouter(experts, ROUTES, NAMES), ListDDIMScheduler(), tiny_vae())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *[
            ({"length_counts": counts}, "length_counts = in the experts' config: expected how many drawings")
            for counts in ([], [0, 0], [1, 2], [0, -1], [0, 1.5], [0, True], [0, 2**62], [0, "9"], {"9": 9}, "abc", 7)
        ],
        ({"length_counts": [0] * 100_001 + [1]}, "none above 100000"),
        ({"coordinates": "polar"}, "coordinates = polar: expected absolute or delta"),
        ({"coordinates": ["absolute"]}, "coordinates = "),
        ({"hidden_size": -1}, "expected a config.json of a"),
        ({"hidden_size": 5}, "expected weights that fit"),
        ({"frequencies": []}, "expected weights that fit"),
        *[({"frequencies": bad}, "frequencies = ") for bad in (["a", "b"], "ab", [float("inf"), 1.0], [None, 1])],
        ({"frequencies": 7}, "expected a config.json of a"),
        *[({"num_train_timesteps": bad}, "num_train_timesteps = ") for bad in (0, -5, "many", 2.5)],
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_tampered_config_is_an_error_for_people(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    saved_ensemble(tmp_path, kind="drawings")
    for name in NAMES:
        file = tmp_path / "unet" / name / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(UserError, match="the file as it was saved"):
        load_ensemble(tmp_path)
    for folder in (tmp_path / "unet", tmp_path):
        seal_folder(folder)
    with pytest.raises(UserError, match=message):
        load_ensemble(tmp_path)


def test_drawings_are_not_compiled(tmp_path: Path) -> None:
    saved_ensemble(tmp_path, kind="drawings")
    with pytest.raises(UserError, match="compile = True: expected False for drawings"):
        load_ensemble(tmp_path, compile=True)
    assert draw(load_ensemble(tmp_path), 1).shape == (1, 6, 3)
