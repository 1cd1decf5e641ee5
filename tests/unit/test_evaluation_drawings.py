"""Evaluation of drawings: both sides rendered alike, and how they were rendered named and known by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakePlan
from drawing_files import VECTOR, scribbles, with_drawings, write_lines
from ensemble_fixtures import saved_ensemble
from finished_run import an_evaluation, finished_run
from PIL import Image
from rich.console import Console

from ebdiff_orchestrator import evaluate
from ebdiff_orchestrator.cli.evaluate import report_table
from ebdiff_orchestrator.ensemble import load_ensemble, samples_of
from ebdiff_orchestrator.evaluation.extractors import choose_extractor, load_extractor
from ebdiff_orchestrator.evaluation.random_conv import NUM_FEATURES
from ebdiff_orchestrator.evaluation.records import evaluation_folder, evaluation_key, recorded_report
from ebdiff_orchestrator.evaluation.reference import given_reference, own_reference
from ebdiff_orchestrator.evaluation.statistics import Statistics, read_statistics, write_statistics
from ebdiff_orchestrator.evaluation.values import OFFICIAL_SHA256, label_of
from ebdiff_orchestrator.evaluation.work import Shard, image_file, make_shards, read_features
from ebdiff_orchestrator.reports.compare import compare_runs, comparison_table
from region_workers.data.drawing_store import ensure_drawings
from region_workers.data.drawings import raster
from schemas.data import DrawingsPlan, RasterPlan
from schemas.errors import UserError
from schemas.evaluation import FeatureJob, Measure, SampledImages, StoredImages
from schemas.plan import DataPlan, TrainingPlan

RASTER = RasterPlan(canvas_px=24, line_width_px=1.5, margin=0.1)
MEASURE = Measure(extractor=choose_extractor("random-conv"), raster=RASTER)
NO_FID = {"fid": None, "inception_sha256": None, "extractor_sha256": "c", "frechet_distance": 1.0}
DRAWN = {"seed": 1, "steps": 2, "guidance_scale": 1.0, "batch_size": 2}


def features_of(pictures: np.ndarray) -> np.ndarray:
    return load_extractor(MEASURE.extractor, torch.device("cpu")).features(pictures)


def a_job(folder: Path, images: SampledImages | StoredImages) -> FeatureJob:
    return FeatureJob(folder=str(folder), num_images=4, images=images, measure=MEASURE, training=TrainingPlan())


def test_drawings_of_both_sides_are_rendered_as_the_measure_says(tmp_path: Path) -> None:
    saved_ensemble(tmp_path / "ensemble", kind="drawings")
    drawn = SampledImages(ensemble=str(tmp_path / "ensemble"), keep_images=True, **DRAWN)
    data = DataPlan(path=str(write_lines(tmp_path / "a.ndjson", scribbles(6))), drawings=DrawingsPlan(raster=RASTER))
    store = ensure_drawings(data, tmp_path / "cache")
    stored = StoredImages(data=data, cache_dir=str(tmp_path / "cache"), store_digest=store.digest)
    pipeline = load_ensemble(tmp_path / "ensemble")
    drawings = samples_of(pipeline, 4, seed=1, steps=2, batch_size=2)
    expected = {"drawn": np.stack([raster(each, RASTER) for each in drawings]), "stored": store.piece(0, 4, RASTER)}
    for name, images in (("drawn", drawn), ("stored", stored)):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        assert make_shards(a_job(folder, images).model_dump_json(), (0,)) is None
        assert expected[name].shape == (4, 24, 24, 1)
        assert np.array_equal(read_features(folder, Shard(0, 0, 4)), features_of(expected[name]))
    for index, picture in enumerate(expected["drawn"]):
        assert np.array_equal(np.asarray(Image.open(image_file(tmp_path / "drawn", index))), picture.squeeze())
    other = stored.model_copy(update={"store_digest": "0"})
    assert "the drawings on this node" in (make_shards(a_job(tmp_path / "x", other).model_dump_json(), (0,)) or "")


def test_a_run_of_drawings_is_evaluated_and_compared(
    tiny_plan: MakePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    finished_run(run_dir, tiny_plan(*with_drawings(VECTOR, tmp_path)))
    found = evaluate(run_dir, 6, extractor="random-conv", in_process=True, steps=2)
    report = recorded_report(run_dir, found)
    assert found.raster == RasterPlan()
    assert report.label == "FD-random-conv-6, 64 px, line 1 px, margin 5%"
    assert report.reference == "the run's data (24 drawings)"
    Console(width=120).print(report_table(report))
    shown = capsys.readouterr().out
    assert f"{report.label}: {found.distance:.4g}" in shown
    assert "6 in 2 steps" in shown
    assert "drawings" in shown
    assert "FD-random-conv, 64 px, line 1 px, margin 5%" in comparison_table(compare_runs([run_dir])).headings
    own = evaluation_folder(run_dir, found.key) / "statistics.npz"
    again = evaluate(run_dir, 6, reference=own, extractor="random-conv", in_process=True, steps=2)
    assert again.distance == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        (
            {"inception_sha256": OFFICIAL_SHA256},
            "FID-1k, 24 px, line 1.5 px, margin 10% (1,000 drawings; not comparable with FID-50k)",
        ),
        ({**NO_FID, "extractor": "random-conv"}, "FD-random-conv-1k, 24 px, line 1.5 px, margin 10%"),
    ],
)
def test_the_renderers_settings_stand_in_the_label(fields: dict[str, Any], label: str) -> None:
    assert label_of(an_evaluation(raster=RASTER, num_images=1000, **fields)) == label


def test_whatever_is_measured_otherwise_is_known_by_another_key(tiny_plan: MakePlan, tmp_path: Path) -> None:
    manifest = finished_run(tmp_path / "run", tiny_plan())
    data = DataPlan(path=str(write_lines(tmp_path / "a.ndjson", scribbles(6))), drawings=DrawingsPlan())
    store, plan = ensure_drawings(data, tmp_path / "cache"), tiny_plan()
    extractors = [choose_extractor("random-conv").model_copy(update={"digest": digest}) for digest in "ab"]
    rasters = [None, RASTER, RASTER.model_copy(update={"margin": 0.2})]
    measures = [Measure(extractor=extractor, raster=how) for extractor in extractors for how in rasters]
    sampled = SampledImages(ensemble="e", keep_images=False, **DRAWN)
    jobs = [a_job(tmp_path, sampled).model_copy(update={"measure": measure}) for measure in measures]
    references = [own_reference(plan, store, tmp_path, None, measure) for measure in measures]
    assert len({evaluation_key(manifest, job, "r") for job in jobs}) == len(jobs)
    assert len({reference.digest for reference in references}) == len(references)


def test_a_reference_of_another_size_or_measure_or_too_few_is_refused(tiny_plan: MakePlan, tmp_path: Path) -> None:
    for folder, side in (("right", 24), ("wrong", 28)):
        (tmp_path / folder).mkdir()
        for index in range(2):
            Image.new("L", (side, side), index).save(tmp_path / folder / f"{index}.png")
    assert given_reference(tmp_path / "right", tmp_path, MEASURE, side=24).num_images == 2
    with pytest.raises(UserError, match=r"--reference = .*wrong: expected images of 24x24, as the run's. Not of 28x28"):
        given_reference(tmp_path / "wrong", tmp_path, MEASURE, side=24)
    data = DataPlan(path=str(write_lines(tmp_path / "one.ndjson", scribbles(1))), drawings=DrawingsPlan(raster=RASTER))
    plan = tiny_plan(*VECTOR).model_copy(update={"data": data})
    with pytest.raises(UserError, match=r"data\.path = .*: expected at least 2 drawings to measure against"):
        own_reference(plan, ensure_drawings(data, tmp_path / "cache"), tmp_path, None, MEASURE)
    statistics = Statistics(np.zeros(NUM_FEATURES), np.eye(NUM_FEATURES), 12)
    plain = Measure(extractor=MEASURE.extractor)
    for name, measure in (("ours", MEASURE), ("other", plain)):
        write_statistics(tmp_path / f"{name}.npz", statistics, measure)
        assert read_statistics(tmp_path / f"{name}.npz", measure).num_images == 12
    with pytest.raises(UserError, match=r"--reference = .*other.npz.*drawings rendered otherwise"):
        given_reference(tmp_path / "other.npz", tmp_path, MEASURE)
    np.savez(tmp_path / "unmarked.npz", mu=statistics.mean, sigma=statistics.covariance)
    assert given_reference(tmp_path / "unmarked.npz", tmp_path, MEASURE).num_images == 0
