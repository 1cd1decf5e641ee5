"""More measures than a Frechet distance: kernel distance, precision and recall, and evaluations by them."""

from itertools import permutations, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from conftest import MakePlan
from finished_run import an_evaluation, finished_run, recorded_as_finished
from PIL import Image
from rich.console import Console

from ebdiff_orchestrator import evaluate
from ebdiff_orchestrator.cli.evaluate import report_table
from ebdiff_orchestrator.evaluation import feature_measures
from ebdiff_orchestrator.evaluation.feature_measures import kernel_distance, measures_of_features, precision_and_recall
from ebdiff_orchestrator.evaluation.records import evaluation_folder, recorded_report
from ebdiff_orchestrator.evaluation.values import values_of
from ebdiff_orchestrator.evaluation.wavelet import quick_measure
from ebdiff_orchestrator.reports.compare import compare_runs, comparison_table
from ebdiff_orchestrator.reports.distances import measured_values
from ebdiff_orchestrator.run.run_directory import RunDirectory
from ebdiff_orchestrator.run.stages import ensemble_digest
from region_workers.data.store import ensure_store
from schemas.errors import RunFailed, UserError

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
    tiny_plan: MakePlan, tmp_path: Path, fields: dict[str, Any], shown: dict[str, str]
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


def test_more_measures_of_the_same_features_join_the_distance(tiny_plan: MakePlan, tmp_path: Path) -> None:
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
    again = {**options, "seed": 1}
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
    own = {"reference": evaluation_folder(run_dir, both.key) / "statistics.npz", "reference_images": None}
    with pytest.raises(UserError, match=r"--reference = .*npz: expected images, of which --measure kid needs"):
        evaluate(run_dir, 6, measures=("kid",), **{**options, **own})
    cells = comparison_table(compare_runs([run_dir]))
    assert [name for name in cells.headings if "random-conv" in name] == [
        *("FD-random-conv", "KID-random-conv", "precision-random-conv", "recall-random-conv")
    ]
    assert {"KID-random-conv-6", "recall-random-conv-6"} <= {
        each["label"] for each in compare_runs([run_dir]).rows[0].as_json()["measured"]
    }
    Console().print(report_table(recorded_report(run_dir, both)))


def test_the_wavelet_distance_is_that_of_the_same_images_in_memory(
    tiny_plan: MakePlan, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, plan = tmp_path / "run", tiny_plan()
    finished_run(run_dir, plan)
    options = {"measures": ("wavelet",), "in_process": True, "steps": 2, "keep_images": True}
    found = evaluate(run_dir, 20, reference_images=20, **options)
    folder = evaluation_folder(run_dir, found.key)
    drawn = [np.asarray(Image.open(path)) for path in sorted((folder / "images").glob("*.png"))]
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
    itself = evaluate(run_dir, 20, reference=folder / "statistics.npz", **options)
    assert itself.distance == pytest.approx(0, abs=1e-6)
    assert "FWD, level 3" in comparison_table(compare_runs([run_dir])).headings


def points(count: int, seed: int = 0, size: int = 3, shift: float = 0.0) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal((count, size)) + shift).astype(np.float32)


def test_the_kernel_distance_of_few_is_the_unbiased_sum_written_out() -> None:
    ours, theirs = points(5), points(5, 1, shift=0.5)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((np.dot(x.astype(float), y.astype(float)) / 3 + 1) ** 3)

    within = sum(np.mean([kernel(x, y) for x, y in permutations(side, 2)]) for side in (ours, theirs))
    between = np.mean([kernel(x, y) for x, y in product(ours, theirs)])
    assert kernel_distance(ours, theirs) == (pytest.approx(within - 2 * between), None)


def test_the_kernel_distance_over_subsets_is_torch_fidelity_s() -> None:
    """Of torch-fidelity 0.4.0 with rng_seed=0, 100 subsets of 1,000, on the same features: written down."""
    mean, deviation = kernel_distance(points(1500, 0, 16), points(1200, 1, 16, 0.1))
    assert (mean, deviation) == (pytest.approx(0.0394174266, rel=1e-5), pytest.approx(0.0045718655, rel=1e-5))


def test_equal_sets_are_at_no_distance_and_each_within_the_other_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    same, others = points(60, 0, 8), points(60, 2, 8, 0.3)
    mixed = np.random.RandomState(4).permutation(same)
    measures = ("kid", "precision-recall")
    for equal in (same, mixed):
        found = measures_of_features(measures, equal, same)
        assert (found["precision"], found["recall"], found["feature_images"]) == (1.0, 1.0, 60)
        assert found["kid"] is not None
        assert found["kid"] <= 0  # each image's likeness to itself is left out of one side only
    apart = measures_of_features(measures, same, others)
    assert measures_of_features(measures, mixed, others) == pytest.approx(apart)
    monkeypatch.setattr(feature_measures, "_ROWS", 7)
    assert measures_of_features(measures, mixed, others) == pytest.approx(apart)
    assert measures_of_features(("kid",), same, others).keys() == {"feature_images", "kid", "kid_deviation"}
    assert measures_of_features((), same, others) == {}


def test_precision_is_lost_by_strangers_and_recall_by_copies() -> None:
    theirs = points(400)
    half_far = np.concatenate([points(200, 1), points(200, 2, shift=50.0)])
    precision, recall = precision_and_recall(half_far, theirs)
    assert 0.4 < precision <= 0.5
    assert recall > 0.8
    copies = np.repeat(points(8, 3), 50, axis=0)
    precision, recall = precision_and_recall(copies, theirs)
    assert precision > 0.7
    assert recall < 0.05


def test_neighbours_are_counted_exactly() -> None:
    """On a line: balls of 0, 1, 2, 3, 10 reach 3, 2, 2, 3, 9 (their third neighbour); 13.5 lies in that of 10."""
    theirs = np.array([[0], [1], [2], [3], [10]], np.float32)
    ours = np.array([[-2.5], [6.5], [19.5], [-3.5], [13.5]], np.float32)
    precision, _ = precision_and_recall(ours, theirs)
    assert precision == 3 / 5  # -2.5 by the ball of 0, 6.5 and 13.5 by that of 10, which reaches 8
