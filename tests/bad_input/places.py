"""The folder in which bad commands are typed: good plans, runs, images and networks, and bad ones beside them."""

import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from conftest import TINY
from drawing_files import as_svg, scribbles, write_lines
from finished_run import finished_run
from latent_fixtures import tiny_vae
from PIL import Image
from safetensors.torch import load_file, save_file

from ebdiff_orchestrator.plans.load import plan_from_values
from ebdiff_orchestrator.run.ledger import Ledger
from ebdiff_orchestrator.run.run_directory import RunDirectory
from region_workers.networks.dense import build_dense
from schemas.digest import digest
from schemas.plan import Plan

WEIGHTS = "diffusion_pytorch_model.safetensors"
DENSE = {"regions": [{"train": [0, 1000], "pruning_ratio": 0, "name": "all"}]}


def make_site(folder: Path) -> None:
    """Fill the folder."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "a file").write_text("not a run, not a plan\n")
    _images(folder / "images")
    _tables(folder / "tables")
    _drawings(folder / "drawings")
    _runs(folder / "runs")
    _networks(folder / "networks")
    _vaes(folder / "vaes")
    _special_files(folder / "special")
    for place, file in {
        "samples": "samples/a.png",
        "ensemble": "ensemble/a.txt",
        "train": "train/low/checkpoints/step-mine/a.txt",
        "partial": ".partial-mine",
        "owners": ".owners/somebody.json",
    }.items():
        (path := folder / "mine" / place / file).parent.mkdir(parents=True)
        path.write_text("somebody's own\n")


def _special_files(folder: Path) -> None:
    """Pipes, a socket and a link to a device, under the names of what is read."""
    folder.mkdir()
    for name in ("table.parquet", "image.png", "plan.yaml", "weights.safetensors", "reference.npz"):
        os.mkfifo(folder / name)
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path may not be long
        listening.bind("socket.parquet")
        os.chdir(here)
    (folder / "zeros.parquet").symlink_to("/dev/zero")
    for name in ("pipes for weights", "pipe for config"):
        shutil.copytree(folder.parent / "networks" / "good", folder / name)
    for name in (f"pipes for weights/{WEIGHTS}", "pipe for config/config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    index = json.dumps({"weight_map": {"conv_in.weight": "part.safetensors"}})
    (folder / f"pipes for weights/{WEIGHTS}.index.json").write_text(index)
    os.mkfifo(folder / "pipes for weights" / "part.safetensors")


def plan_of(**changes: Any) -> Plan:
    """The tiny plan with other sections."""
    return plan_from_values(json.loads(json.dumps({**TINY, **changes})))


def png(path: Path, side: int = 8, seed: int = 0) -> None:
    """A good image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _images(folder: Path) -> None:
    for index in range(12):
        png(folder / f"good/{index:02}.png", seed=index)
        png(folder / f"classes/{'ab'[index % 2]}/{index:02}.png", seed=index)
        png(folder / f"splits/{('train', 'test')[index % 2]}/{index:02}.png", seed=index)
        png(folder / f"some broken/{index:02}.png", seed=index)
        png(folder / f"half classes/{'a/' if index % 2 else ''}{index:02}.png", seed=index)
    png(folder / "single.png")
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "readme.txt").write_text("no images\n")
    (folder / "hidden").mkdir()
    png(folder / "hidden" / ".thumbnail.png")
    for name in ("broken", "some broken"):
        (folder / name).mkdir(exist_ok=True)
        for index in range(3):
            (folder / name / f"torn{index}.png").write_bytes((folder / "single.png").read_bytes()[: 20 * index])


def _tables(folder: Path) -> None:
    folder.mkdir()
    image = (folder.parent / "images" / "single.png").read_bytes()
    good = {"image": [image] * 12, "label": list(range(12)), "caption": ["a"] * 12}
    for name, columns in {
        "good": good,
        "two columns of images": {"image": [image] * 12, "thumbnail": [image] * 12},
        "no images": {"caption": ["a", "b"], "width": [1, 2]},
        "no rows": {"image": pa.array([], pa.binary())},
        "null images": {"image": pa.array([None] * 12, pa.binary())},
        "null label": {**good, "label": [None, *range(11)]},
        "negative label": {**good, "label": [-1, *range(11)]},
    }.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    whole = (folder / "good.parquet").read_bytes()
    (folder / "truncated.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "text.parquet").write_text("image,label\n")
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "garbled.parquet").write_bytes(whole[:12] + bytes(byte ^ 0xFF for byte in whole[12:200]) + whole[200:])
    both = folder.parent / "images" / "both"
    both.mkdir()
    shutil.copy(folder / "good.parquet", both)
    png(both / "a.png")


def _drawings(folder: Path) -> None:
    for name in ("empty", "both", "entities"):
        (folder / name).mkdir(parents=True)
    good = write_lines(folder / "good.ndjson", scribbles(12)).read_text()
    (folder / "broken.ndjson").write_text(good + "{}\n[]\nno JSON\n")
    (folder / "empty.ndjson").write_text("\n\n")
    write_lines(folder / "both/a.ndjson", scribbles(1))
    for name in ("one.svg", "both/a.svg"):
        (folder / name).write_text(as_svg(scribbles(1)[0]))
    (folder / "entities/a.svg").write_text('<!DOCTYPE svg [<!ENTITY a "M0 0L1 1">]><svg><path d="&a;"/></svg>')
    (folder / "text.zip").write_text("no archive")
    with zipfile.ZipFile(folder / "no drawings.zip", "w") as archive:
        archive.writestr("a.png", b"")
    os.mkfifo(folder / "pipe.ndjson")


def _runs(folder: Path) -> None:
    _trained_run(folder / "done", plan_of())
    _trained_run(folder / "other", plan_of(seed=1))
    Ledger.begin(RunDirectory(folder / "unfinished"), plan_of())
    Ledger.begin(RunDirectory(folder / "unfinished dense"), plan_of(**DENSE))
    (folder / "empty").mkdir()
    manifest = (folder / "done" / "manifest.json").read_text()
    for name, text in {
        "torn": manifest[: len(manifest) // 2],
        "of a newer version": json.dumps({**json.loads(manifest), "version": 99, "seal": None}),
        "of an unknown field": json.dumps({**json.loads(manifest), "mystery": 1, "seal": None}),
        "with a list": "[1, 2, 3]",
        "with nothing": "",
    }.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(text)
    (folder / "with a folder" / "manifest.json").mkdir(parents=True)
    shutil.copytree(folder / "done", folder / "without weights")
    next((folder / "without weights").rglob("*.safetensors")).unlink()


def _trained_run(path: Path, plan: Plan) -> None:
    """A finished run whose trainings have made all of their steps."""
    manifest = finished_run(path, plan)
    for region in plan.regions:
        record = manifest.stage(f"train/{region.name}")
        manifest = manifest.with_stage(record.model_copy(update={"steps": plan.steps_of(region)}))
    RunDirectory(path).write(manifest)


def _networks(folder: Path) -> None:
    torch.manual_seed(0)
    plan = plan_of(**DENSE)
    good = folder / "good"
    build_dense(plan.model, plan.data).save_pretrained(good)
    config = json.loads((good / "config.json").read_text())
    weights = load_file(good / WEIGHTS)
    whole = (good / WEIGHTS).read_bytes()
    first = next(iter(weights))

    def copy(name: str, remove: str = "", **changes: Any) -> Path:
        shutil.copytree(good, folder / name)
        if remove:
            (folder / name / remove).unlink()
        if changes:
            (folder / name / "config.json").write_text(json.dumps({**config, **changes}))
        return folder / name

    copy("without config", remove="config.json")
    copy("without weights", remove=WEIGHTS)
    pickled = copy("pickled", remove=WEIGHTS)
    torch.save(weights, pickled / "diffusion_pytorch_model.bin")
    (copy("renamed pickle") / WEIGHTS).write_bytes((pickled / "diffusion_pytorch_model.bin").read_bytes())
    (copy("truncated") / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    (copy("empty weights") / WEIGHTS).write_bytes(b"")
    (copy("long header") / WEIGHTS).write_bytes((1 << 60).to_bytes(8, "little") + whole[8:])
    (copy("wrong offsets") / WEIGHTS).write_bytes(lying_offsets(whole))
    save_file({name: tensor for name, tensor in weights.items() if name != first}, copy("missing tensor") / WEIGHTS)
    save_file({**weights, first: weights[first][:1].clone()}, copy("misshapen tensor") / WEIGHTS)
    copy("other class", _class_name="AutoencoderKL")
    copy("without class", _class_name=None)
    copy("unknown block", down_block_types=["DownBlock2D", "MysteryBlock"])
    copy("unknown time", time_embedding_type="sundial")
    copy("no blocks", down_block_types=[], up_block_types=[], block_out_channels=[])
    copy("other size", sample_size=64)
    copy("learned variance", out_channels=2)
    copy("pruned", kept_channels={"conv_in": {"outputs": [0, 1, 2, 3], "inputs": None}})
    (copy("torn config") / "config.json").write_text(json.dumps(config)[:100])
    (copy("list config") / "config.json").write_text("[]")
    (copy("binary config") / "config.json").write_bytes(b"\xff\xfe\x00\x01")

    colour = plan_of(**DENSE, data={"channels": 3})
    build_dense(colour.model, colour.data).save_pretrained(folder / "three channels")


def lying_offsets(whole: bytes) -> bytes:
    """A safetensors file whose first tensor claims to lie behind the end of the file."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    header[first]["data_offsets"] = [1 << 40, (1 << 40) + 64]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


class Harm:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._mark,)


def reseal(file: Path, **changes: Any) -> None:
    """Give a record other values and a seal that fits them."""
    values = {**json.loads(file.read_text()), **changes}
    values.pop("seal", None)
    file.write_text(json.dumps({**values, "seal": digest(values)}))


def _vaes(folder: Path) -> None:
    good = tiny_vae(folder / "good")
    whole = (good / WEIGHTS).read_bytes()
    shutil.copytree(good, folder / "truncated")
    (folder / "truncated" / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    shutil.copytree(good, folder / "pickled")
    (folder / "pickled" / WEIGHTS).unlink()
    torch.save({}, folder / "pickled" / "diffusion_pytorch_model.bin")
    shutil.copytree(good, folder / "other class")
    config = json.loads((good / "config.json").read_text())
    (folder / "other class" / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    (folder / "torn config").mkdir()
    (folder / "torn config" / "config.json").write_text("{")
    (folder / "empty").mkdir()
