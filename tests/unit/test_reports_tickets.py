"""`ebdiff tickets`: distances, when a ticket would have been drawn, and how tickets differ."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakePlan
from finished_run import end_stage, save_checkpoint
from PIL import Image
from rich.console import Console

from ebdiff_orchestrator.reports.masks import distance_matrix, drawn_at, pack
from ebdiff_orchestrator.reports.tickets import Settings, report_tickets
from ebdiff_orchestrator.reports.tickets_view import draw_pictures, show, write_report
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.resolve import adopt_dense
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.networks.dense import build_dense, dense_config
from region_workers.networks.pretrained import dense_counter
from region_workers.networks.pruned_unet import PrunedUNet2DModel
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.importance import channel_scores
from region_workers.pruning.mask import compute_mask, mask_distance, prunable_bits, queue_distances
from region_workers.storage.durable import write_model
from region_workers.storage.integrity import seal_folder
from region_workers.storage.tables import write_masks
from schemas.errors import UserError
from schemas.job import Ticket
from schemas.manifest import MANIFEST_FILE
from schemas.plan import DrawPlan, Plan


def _drifting(count: int, bits: int, seed: int = 0) -> list[torch.Tensor]:
    """Masks that change ever less, as real ones do."""
    generator = np.random.default_rng(seed)
    mask, masks = generator.random(bits) < 0.5, []
    for index in range(count):
        flip = generator.random(bits) < 0.3 / (index + 1)
        mask = mask ^ flip
        masks.append(torch.from_numpy(mask.copy()))
    return masks


def _packed(masks: list[torch.Tensor]) -> list[bytes]:
    return [np.packbits(mask.numpy()).tobytes() for mask in masks]


def _write(file: Path, masks: dict[str, list[torch.Tensor]], every: int = 10) -> None:
    rows: list[dict[str, object]] = [
        {"region": region, "interval": i + 1, "step": (i + 1) * every, "bits": mask.numel(), "mask": packed}
        for region, series in masks.items()
        for i, (mask, packed) in enumerate(zip(series, _packed(series), strict=True))
    ]
    write_masks(file, rows)


def _ticket(region: str, interval: int) -> Ticket:
    how = {"pruning_ratio": 0.3, "realised_ratio": 0.3, "importance": "magnitude", "weights": "raw"}
    drawn = {"interval": interval, "step": interval * 10, "distances": (0.01,), "converged": True}
    return Ticket.model_validate({"region": region, **how, **drawn, "kept_channels": {}})


def _run(folder: Path, plan: Plan, masks: dict[str, list[torch.Tensor]]) -> Path:
    """A run whose draws have ended with these masks; the ticket is the last one."""
    Ledger.begin(RunDirectory(folder), plan)
    for region, series in masks.items():
        _write(folder / f"draw/{region}/masks.arrow", {region: series})
        write_model(folder / f"draw/{region}/tickets/{region}/ticket.json", _ticket(region, len(series)))
        seal_folder(folder / f"draw/{region}/tickets/{region}")
        end_stage(folder, f"draw/{region}")
    return folder


@pytest.mark.parametrize("bits", [8, 64, 2592, 2593])
def test_the_matrix_is_the_distance_of_every_pair(bits: int) -> None:
    masks = _drifting(6, bits)
    expected = [[mask_distance(a, b) for b in masks] for a in masks]
    assert np.array_equal(distance_matrix(pack(_packed(masks)), bits), np.array(expected))


@pytest.mark.parametrize(("length", "stride", "threshold"), [(2, 1, 0.05), (5, 1, 0.1), (3, 4, 0.2), (5, 3, 0.15)])
def test_a_ticket_would_be_drawn_where_the_draw_itself_would_draw_it(
    length: int, stride: int, threshold: float
) -> None:
    masks = _drifting(40, 500)
    plan = DrawPlan(queue_length=length, queue_stride=stride, threshold=threshold)
    lengths = range(1, len(masks) + 1)
    expected = next((n - 1 for n in lengths if plan.masks_agree(queue_distances(masks[:n], plan))), None)
    assert expected is not None
    assert drawn_at(distance_matrix(pack(_packed(masks)), 500), plan) == expected


def test_it_says_where_the_recorded_masks_do_not_agree(
    tmp_path: Path, tiny_plan: MakePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path, tiny_plan(), {"0-260": _drifting(12, 200)})
    report = report_tickets(run, Settings(thresholds=(0.001,), queue_lengths=(5,), strides=(1, 10, 10**20)))
    (ticket,) = report.tickets
    found = {(i.threshold, i.queue_stride): i.interval for i in ticket.would_be_drawn}
    assert found[0.001, 1] is None
    assert found[0.5, 1] is not None  # the plan's own threshold is tried too
    show(report, Console(width=100), None)
    text = capsys.readouterr().out
    for part in ("12 masks of 200 bits", "drawn at interval 12", "not within the 12", "5 at stride 10 (41)"):
        assert part in text
    assert "440-1000: no mask has been saved yet." in text


def test_intervals_of_many_masks_are_told_apart(
    tmp_path: Path, tiny_plan: MakePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_tickets(_run(tmp_path, tiny_plan(), {"0-260": _drifting(1144, 8)}), Settings())
    show(report, Console(width=100), last=200)
    _, heading, first, *_ = capsys.readouterr().out.partition("Distance between")[2].splitlines()
    assert [int(interval) for interval in heading.split()][::17] == [945, 1144]
    assert first.split()[:2] == ["945", ".00"]


def test_slim_networks_are_said_to_take_no_masks(tmp_path: Path, tiny_plan: MakePlan) -> None:
    notes = report_tickets(_run(tmp_path, tiny_plan("draw.method=slim"), {}), Settings()).notes
    assert "440-1000: no mask is taken: slim keeps the first channels." in notes


def test_it_says_how_far_a_mask_of_weights_has_moved(tmp_path: Path, tiny_plan: MakePlan) -> None:
    plan = tiny_plan("sparsity.method=rigl", "regions.0.pruning_ratio=0", "regions.0.sparsity=0.25")
    ledger = Ledger.begin(RunDirectory(tmp_path), plan)
    trained = ledger.manifest.stage("train/0-260").model_copy(update={"metrics": {"replaced_share": 0.123}})
    write_model(tmp_path / MANIFEST_FILE, ledger.manifest.with_stage(trained))
    notes = report_tickets(tmp_path, Settings()).notes
    assert "0-260: 25% of the weights are masked (rigl); 12.3% of the first mask's weights were replaced." in notes
    assert "240-460: 50% of the weights are masked (rigl); not trained yet." in notes


def test_masks_of_a_draw_that_goes_on_come_from_its_newest_checkpoint(tmp_path: Path, tiny_plan: MakePlan) -> None:
    Ledger.begin(RunDirectory(tmp_path), tiny_plan("draw.scope=shared"))
    masks = _drifting(9, 100)
    for count in (4, 9):
        file = tmp_path / f"draw/shared/checkpoints/step-{count * 10:09d}/masks.arrow"
        _write(file, {"0-260": masks[:count], "240-460": masks[:count]})
        save_checkpoint(file, count * 10)
    report = report_tickets(tmp_path, Settings())
    shown = [(t.masks.region, len(t.masks), t.masks.finished) for t in report.tickets]
    assert shown == [("0-260", 9, False), ("240-460", 9, False)]
    assert report.differences[0].distance == 0
    assert "not drawn" in report.differences[0].a


def test_tickets_of_different_ratios_share_the_smaller_ones_channels(
    tmp_path: Path, tiny_plan: MakePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    large, small = torch.zeros(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    large[:70], small[60:80] = True, True
    run = _run(tmp_path / "a", tiny_plan(), {"0-260": [large], "440-1000": [small]})
    (difference,) = report_tickets(run, Settings()).differences
    assert (difference.distance, difference.overlap, difference.larger_keeps) == (0.70, 0.5, 0.7)
    other = _run(tmp_path / "[b]", tiny_plan(), {"0-260": [large]})
    report = report_tickets(run, Settings(), against=[other])
    assert [d.distance for d in report.differences] == [0.70, 0.0, 0.70]
    show(report, Console(width=400), None)
    assert "[b]: 0-260" in capsys.readouterr().out
    smaller_network = _run(tmp_path / "c", tiny_plan(), {"0-260": [large[:50]]})
    with pytest.raises(UserError, match="same dense network"):
        report_tickets(run, Settings(), against=[smaller_network])


def test_the_mask_of_a_trained_dense_model_is_at_the_tickets_ratio(tmp_path: Path, tiny_plan: MakePlan) -> None:
    plan = tiny_plan()
    dense = build_dense(plan.model, plan.data)
    dense.save_pretrained(tmp_path / "dense")
    groups = find_groups(dense, network_inputs(dense))
    scores = channel_scores(groups, {n: p.detach() for n, p in dense.named_parameters()}, "magnitude")
    masks = {r.name: [compute_mask(groups, scores, r.pruning_ratio)] for r in plan.regions}
    run = _run(tmp_path / "run", plan, masks)
    report = report_tickets(run, Settings(), dense=tmp_path / "dense")
    beside_dense = [d for d in report.differences if "dense" in d.b]
    assert [(d.b, d.distance) for d in beside_dense] == [(f"the dense model at {n}%", 0.0) for n in (30, 60, 80)]
    with pytest.raises(UserError, match="--dense"):
        report_tickets(run, Settings(), dense=tmp_path / "nothing")


def test_a_dense_start_is_known_by_what_it_is_built_from_also_where_the_plan_has_no_field_for_it(
    tmp_path: Path, tiny_plan: MakePlan
) -> None:
    plain = tiny_plan()
    PrunedUNet2DModel(
        **dense_config(plain.model, plain.data) | {"resnet_time_scale_shift": "scale_shift"}
    ).save_pretrained(tmp_path / "dense")
    plan, start = adopt_dense(tiny_plan(f"model.pretrained={tmp_path / 'dense'}"))
    bits = prunable_bits(dense_counter(plan.model, plan.data, start).groups)
    run = _run(tmp_path / "run", plan, {"0-260": _drifting(2, bits)})
    Ledger(RunDirectory(run)).record_dense(start)
    report = report_tickets(run, Settings(), dense=tmp_path / "dense")
    assert [each.b for each in report.differences] == ["the dense model at 30%"]


def test_files_hold_the_matrix_and_pictures(tmp_path: Path, tiny_plan: MakePlan) -> None:
    run = _run(tmp_path / "run", tiny_plan(), {"0-260": _drifting(7, 100), "240-460": _drifting(5, 100, seed=1)})
    report = report_tickets(run, Settings())
    write_report(report, tmp_path / "out", last=None)
    heading, *rows = csv.reader((tmp_path / "out/0-260.csv").open())
    assert heading == ["interval", *map(str, range(1, 8))]
    expected = report.tickets[0].distances
    assert np.allclose(np.array(rows, dtype=float)[:, 1:], expected)
    draw_pictures(report, tmp_path / "both.png", last=3)
    both, one = Image.open(tmp_path / "both.png"), Image.open(tmp_path / "out/240-460.png")
    assert (both.width, both.height) == (2 * one.width, one.height)
    assert len(one.getcolors(1 << 20) or []) > 20


def test_a_thousand_masks_of_twelve_thousand_bits_take_seconds() -> None:
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 256, 1500, dtype=np.uint8).tobytes() for _ in range(1000)]
    began = time.perf_counter()
    distances = distance_matrix(pack(masks), 12000)
    assert drawn_at(distances, DrawPlan()) is None
    assert time.perf_counter() - began < 10
