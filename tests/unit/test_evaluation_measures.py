"""Evaluation by more measures than a Frechet distance of a network's features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from finished_run import an_evaluation, finished_run, recorded_as_finished
from PIL import Image
from rich.console import Console

from ebdiff_orchestrator import evaluate
from ebdiff_orchestrator.cli.evaluate import report_table
from ebdiff_orchestrator.evaluation.records import ensemble_digest, evaluation_folder, recorded_report
from ebdiff_orchestrator.evaluation.values import values_of
from ebdiff_orchestrator.evaluation.wavelet import quick_measure
from ebdiff_orchestrator.reports.compare import compare_runs, comparison_table
from ebdiff_orchestrator.reports.distances import measured_values
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.data.store import ensure_store
from schemas.errors import RunFailed, UserError
from schemas.plan import Plan

FEATURES = {"feature_images": 1000, "kid": 0.0021, "kid_deviation": 0.0003, "precision": 0.75, "recall": 0.5}
NO_FID = {"fid": None, "inception_sha256": None, "frechet_distance": 0.02, "extractor_sha256": "c", "num_images": 1000}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        (
            {**FEATURES, "num_images": 1000},
            {"FID-1k": "1.00", "KID-1k": "0.0021 ± 0.0003", "precision-inception-1k": "0.750"},
        ),
        (
            {**NO_FID, **FEATURES, "extractor": "random-conv"},
            {"FD-random-conv-1k": "0.02", "KID-random-conv-1k": "0.0021 ± 0.0003", "recall-random-conv-1k": "0.500"},
        ),
        ({**NO_FID, "extractor": "wavelet", "packet_level": 4}, {"FWD-1k": "0.02"}),
        ({**NO_FID, "extractor": "wavelet", "packet_level": 3}, {"FWD-1k, level 3": "0.02"}),
    ],
)
def test_each_value_has_a_name_that_says_what_it_is_and_of_how_many_images(
    tiny_plan: Callable[..., Plan], tmp_path: Path, fields: dict[str, Any], shown: dict[str, str]
) -> None:
    manifest = recorded_as_finished(tmp_path, tiny_plan())
    found = an_evaluation(**fields, ensemble_digest=ensemble_digest(manifest))
    fewer = found.model_copy(update={"num_images": 10, "key": "fewer", "at": found.at + 1, "kid": None})
    other = found.model_copy(update={"ensemble_digest": "another", "num_images": 50_000})
    evaluations = {str(index): each for index, each in enumerate((found, fewer, other))}
    values = measured_values(manifest.model_copy(update={"evaluations": evaluations}))
    by_label = {value.label: value for value in values}
    assert {label: by_label[label].text(2) for label in shown} == shown
    assert [value.label for value in values] == [value.label for value in values_of(found)]
    assert all(value.higher_is_better == (value.value >= 0.5) for value in values[1:])
    assert all(value.comparable_note for value in values)


def test_more_measures_of_the_same_features_join_the_distance(tiny_plan: Callable[..., Plan], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    finished_run(run_dir, tiny_plan())
    options = {"reference_images": 30, "extractor": "random-conv", "in_process": True, "steps": 2}
    distance = evaluate(run_dir, 6, **options)
    assert distance.kid is distance.precision is None
    kid = evaluate(run_dir, 6, measures=("kid",), **options)
    assert (kid.key, kid.distance, kid.precision) == (distance.key, distance.distance, None)
    both = evaluate(run_dir, 6, measures=("fid", "precision-recall"), **options)
    assert (both.kid, both.feature_images) == (kid.kid, 6)
    assert both.kid > 0
    assert both.precision == 0  # of an ensemble that never trained
    assert both.recall is not None
    again = {"reference_images": 30, "extractor": "random-conv", "in_process": True, "steps": 2, "seed": 1}
    with (
        patch("ebdiff_orchestrator.evaluation.evaluate.measures_of_features", side_effect=RunFailed("killed")),
        pytest.raises(RunFailed, match="killed"),
    ):
        evaluate(run_dir, 6, measures=("kid", "precision-recall"), **again)
    with patch("ebdiff_orchestrator.evaluation.features.make_shards", return_value="drawn again"):
        resumed = evaluate(run_dir, 6, measures=("kid", "precision-recall"), **again)
        assert evaluate(run_dir, 6, measures=("kid", "fid"), **options) == both
        assert evaluate(run_dir, 6, measures=("precision-recall",), **again) == resumed
    assert None not in (resumed.kid, resumed.precision)
    (evaluation_folder(run_dir, resumed.key) / "report.json").unlink()
    assert evaluate(run_dir, 6, **again).kid == resumed.kid
    statistics = evaluation_folder(run_dir, both.key) / "statistics.npz"
    with pytest.raises(UserError, match=r"--reference = .*npz: expected images, of which --measure kid needs"):
        evaluate(run_dir, 6, measures=("kid",), reference=statistics, extractor="random-conv", in_process=True)
    cells = comparison_table(compare_runs([run_dir]))
    assert [name for name in cells.headings if "random-conv" in name] == [
        *("FD-random-conv", "KID-random-conv", "precision-random-conv", "recall-random-conv")
    ]
    assert {"KID-random-conv-6", "recall-random-conv-6"} <= {
        each["label"] for each in compare_runs([run_dir]).rows[0].as_json()["measured"]
    }
    Console().print(report_table(recorded_report(run_dir, both)))


def test_the_wavelet_distance_is_that_of_the_same_images_in_memory(
    tiny_plan: Callable[..., Plan], tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, plan = tmp_path / "run", tiny_plan()
    finished_run(run_dir, plan)
    options = {"measures": ("wavelet",), "in_process": True, "steps": 2, "keep_images": True}
    found = evaluate(run_dir, 20, reference_images=20, **options)
    drawn = [
        np.asarray(Image.open(path))
        for path in sorted((evaluation_folder(run_dir, found.key) / "images").glob("*.png"))
    ]
    reference = ensure_store(RunDirectory(run_dir).read().plan.data, cache_dir).array[:20]
    images = np.stack(drawn).reshape(reference.shape)
    assert found.frechet_distance == pytest.approx(quick_measure(images, reference))
    assert evaluate(run_dir, 20, reference_images=20, **options) == found
    report = recorded_report(run_dir, found)
    assert report.label == "FWD-20, level 3"
    Console().print(report_table(report.model_copy(update={"reference": "[b]images"})))
    shown = " ".join(capsys.readouterr().out.split())
    assert "Haar packets of level 3" in shown
    assert "[b]images" in shown
    itself = evaluate(run_dir, 20, reference=evaluation_folder(run_dir, found.key) / "statistics.npz", **options)
    assert itself.distance == pytest.approx(0, abs=1e-6)
    assert "FWD, level 3" in comparison_table(compare_runs([run_dir])).headings
