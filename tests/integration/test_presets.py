"""Every preset's whole path at small size, on data of its own layout: data, draw, train, assemble, sample."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from drawing_files import with_drawings
from latent_fixtures import tiny_vae
from pictures import save_images
from PIL import Image
from serial_cluster import SerialCluster

from ebdiff_orchestrator.plans.load import load_plan
from ebdiff_orchestrator.run import launch as driver
from ebdiff_orchestrator.run.launch import RunHandle
from region_workers.data.store import ensure_store
from schemas.errors import PlanError
from schemas.plan import Plan

SHORT = (
    "training.batch_size=4",
    "training.steps=2",
    "draw.interval_steps=1",
    "draw.threshold=1.0",
    "draw.queue_length=2",
    "sampling.steps=5",
    "sampling.num_images=3",
)
SMALL = (*SHORT, "model.layers_per_block=1", "model.norm_num_groups=4")
IMAGES = 12


def _cifar10(folder: Path) -> Sequence[str]:
    widths = "model.block_out_channels=[16,16,32,32]"
    return f"data.path={save_images(folder / 'images', [(32, 32)] * IMAGES)}", "data.resolution=8", widths


def _celeba64(folder: Path) -> Sequence[str]:
    images = save_images(folder / "img_align_celeba", [(178, 218)] * IMAGES, "jpg")
    widths = "model.block_out_channels=[16,16,16,16,32]"
    return f"data.path={images}", "data.image_column=null", "data.resolution=32", widths


def _lsun(folder: Path) -> Sequence[str]:
    images = save_images(folder / "lsun", [(300, 256)] * IMAGES, "webp")
    return f"data.path={images}", "data.resolution=32", "model.block_out_channels=[16,16,16,16,32,32]"


def _latents(folder: Path) -> Sequence[str]:
    return (
        f"model.vae={tiny_vae(folder / 'vae')}",
        "model.vae_subfolder=null",
        "model.latent_downscale=2",
        "model.block_out_channels=[16,16,32,32]",
        "data.image_column=null",
    )


def _imagenet256_ldm(folder: Path) -> Sequence[str]:
    for synset in ("n01440764", "n01443537", "n01484850"):
        save_images(folder / "train" / synset, [(40, 32)] * IMAGES, "jpg")
    classes = ("model.num_classes=3", "model.cross_attention_dim=8")
    return f"data.path={folder / 'train'}", "data.resolution=32", *_latents(folder), *classes


def _unconditional_ldm(folder: Path) -> Sequence[str]:
    return *_lsun(folder)[:2], *_latents(folder), "model.attention_head_dim=4"


ROOT = Path(__file__).resolve().parents[2]
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10-train.parquet"
Launch = Callable[[Plan, str], RunHandle]


@pytest.fixture
def launch(serial_cluster: SerialCluster, tmp_path: Path) -> Launch:
    """Runs a plan in the folder of that name."""
    return lambda plan, name: driver.launch(plan, tmp_path / name, executor=serial_cluster)


LAYOUTS: dict[str, Callable[[Path], Sequence[str]]] = {
    "cifar10": _cifar10,
    "celeba64": _celeba64,
    "lsun-church256": _lsun,
    "lsun-bedroom256": _lsun,
    "imagenet256-ldm": _imagenet256_ldm,
    "celebahq256-ldm": _unconditional_ldm,  # and so the two others of its network
}


@pytest.mark.parametrize("preset", sorted(LAYOUTS))
def test_the_whole_path_of_a_preset(preset: str, launch: Launch, tmp_path: Path) -> None:
    manifest = launch(load_plan(preset, [*LAYOUTS[preset](tmp_path), *SMALL]), "run").manifest
    assert manifest.finished()
    assert len(manifest.plan.regions) == 3
    first = Image.open(tmp_path / "run/samples/00000.png")
    assert first.size == (manifest.plan.data.resolution,) * 2
    assert len(list((tmp_path / "run/samples").glob("0*.png"))) == 3
    assert {held.job for held in manifest.usage} >= {"region 0-260", "ensemble", "samples"}
    assert ("encode" in {held.job for held in manifest.usage}) == preset.endswith("-ldm")
    assert all(record.peak_memory_bytes for name, record in manifest.stages.items() if name.startswith("train/"))


@pytest.mark.parametrize("preset", ["kanji", "kanji-rigl", "chirodiff-quickdraw"])
def test_the_whole_path_of_a_preset_of_drawings(preset: str, launch: Launch, tmp_path: Path) -> None:
    (path,) = with_drawings(("data.path=DRAWINGS",), tmp_path)
    plan = load_plan(preset, [path, *SHORT, "model.hidden_size=8"])
    handle = launch(plan, "run")
    assert handle.manifest.finished()
    assert len(list((tmp_path / "run/samples").glob("0*.svg"))) == 3
    assert len(handle.ensemble(batch_size=2, show_progress=False).drawings) == 2


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_file(), reason="needs ../shared/data/cifar10-train.parquet")
def test_the_paper_s_cifar10_job_finishes_when_shrunk(launch: Launch, cache_dir: Path, tmp_path: Path) -> None:
    quick = ("draw.threshold=0.1", "training.batch_size=2", "sampling.num_images=2", "sampling.steps=2")
    manifest = launch(load_plan("cifar10", [f"data.path={CIFAR10}", *SHORT, *quick]), "run").manifest
    assert manifest.finished()
    assert np.asarray(Image.open(tmp_path / "run" / "samples" / "00001.png")).shape == (32, 32, 3)
    images = ensure_store(manifest.plan.data, cache_dir)
    assert images.array.shape == (50_000, 32, 32, 3)
    assert not images.info.unreadable_names
    mean_of_channels = images.array[:5000].mean(axis=(0, 1, 2)) / 255
    assert 0.35 < mean_of_channels.min() < mean_of_channels.max() < 0.6


def _hub_folders(folder: Path) -> dict[str, Path]:
    """Networks with random weights, as diffusers saves them: a pipeline, a model, and one for texts."""
    shape = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "norm_num_groups": 4, "layers_per_block": 1}
    widths = {"block_out_channels": (16, 32)}
    plain = UNet2DModel(
        **shape,
        **widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    DDPMPipeline(plain, DDPMScheduler()).save_pretrained(folder / "pipeline")
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    UNet2DConditionModel(
        **shape, **widths, **blocks, mid_block_type="UNetMidBlock2D", num_class_embeds=4
    ).save_pretrained(folder / "classes")
    UNet2DConditionModel(
        **shape,
        **widths,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    ).save_pretrained(folder / "text")
    return {name: folder / name for name in ("pipeline", "classes", "text")}


def test_networks_from_the_hub_are_pruned_trained_and_routed_without_a_preset(launch: Launch, tmp_path: Path) -> None:
    networks = _hub_folders(tmp_path)
    for label in ("a", "b", "c"):
        save_images(tmp_path / "images" / label, [(8, 8)] * IMAGES)
    data = {"path": str(tmp_path / "images"), "resolution": 8, "channels": 3}
    training = {"steps": 2, "batch_size": 4, "ema_decay": 0.9}
    sampling: dict[str, object] = {"steps": 4, "num_images": 2}
    quick = {"training": training, "draw": {"interval_steps": 1, "threshold": 1.0}, "sampling": sampling}

    def plan(network: str, **more: object) -> Plan:
        model = {"pretrained": str(networks[network])}
        return Plan.model_validate({"data": data, "model": model, **quick, **more})

    handle = launch(plan("pipeline"), "plain")
    assert handle.manifest.finished()
    assert handle.manifest.plan.model.block_out_channels == (16, 32)
    assert handle.ensemble.unet.experts[2].conv_in.weight.shape[0] == 4

    classes = {"pretrained": str(networks["classes"]), "num_classes": 3}
    guided = {**sampling, "guidance_scale": 2.0}
    labelled = plan("classes", data={**data, "label_column": "label"}, model=classes, sampling=guided)
    assert launch(labelled, "classes-run").manifest.finished()
    for network, refusal in (("classes", r"model\.num_classes = null: expected 3"), ("text", "text")):
        with pytest.raises(PlanError, match=refusal):
            launch(plan(network), "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("method", ["released", "eb-iterwise", "eb-speed", "speed", "rigl", "slim", "ta-sparse"])
def test_the_methods_that_need_no_dense_run(method: str, launch: Launch, tmp_path: Path) -> None:
    manifest = launch(load_plan(f"cifar10-{method}", [*_cifar10(tmp_path), *SMALL]), "run").manifest
    assert manifest.finished()
    if method == "released":
        assert [region.train for region in manifest.plan.regions] == [(0, 261), (240, 461), (440, 1000)]
        assert manifest.plan.draw.scoring == "sequential"
        assert {name for name in manifest.stages if name.startswith("draw/")} == {"draw/shared"}


def test_the_methods_that_start_from_a_dense_run_know_what_it_cost(launch: Launch, tmp_path: Path) -> None:
    small = [*_cifar10(tmp_path), *SMALL]
    launch(load_plan("cifar10-dense", small), "dense")
    for method in ("scratch", "finetune"):
        changes = [*small, f"model.pretrained={tmp_path / 'dense'}", "training.steps=1"]
        manifest = launch(load_plan(f"cifar10-{method}", changes), method).manifest
        assert manifest.finished()
        assert manifest.dense is not None
        assert manifest.dense.path == str(tmp_path / "dense")
        assert manifest.dense.cost is not None
        assert manifest.dense.cost.steps == 2
        assert manifest.dense.cost.worker_hours > 0
