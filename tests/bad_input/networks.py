"""Networks that cannot be started from, and VAEs that cannot encode."""

from harness import ONE_NETWORK, Case

_LATENT = (
    *ONE_NETWORK,
    "--set",
    "model={family: latent, vae: vaes/VAE, latent_channels: 3, latent_downscale: 2, "
    "block_out_channels: [16, 32], down_block_types: [DownBlock2D, DownBlock2D], "
    "up_block_types: [UpBlock2D, UpBlock2D], norm_num_groups: 4, layers_per_block: 1}",
    "--set",
    "data={path: images/classes, channels: 3, resolution: 16}",
    "--set",
    "training.batch_size=4",
)


def _start(name: str, *says: str, sets: tuple[str, ...] = ()) -> Case:
    """`launch` from a network of the site."""
    options = [part for change in (f"model.pretrained=networks/{name}", *sets) for part in ("--set", change)]
    argv = ("launch", "tiny.yaml", "--run-dir", "new", *options)
    return Case(f"the network '{name}' {' '.join(sets)}".rstrip(), argv, ("model.pretrained", *says))


def _run(name: str, *says: str) -> Case:
    argv = ("launch", "tiny.yaml", "--run-dir", "new", "--set", f"model.pretrained={name}")
    return Case(f"a start from '{name}'", argv, ("model.pretrained", name, *says))


def _vae(name: str, *says: str, sets: tuple[str, ...] = ()) -> Case:
    more = [part for change in sets for part in ("--set", change)]
    options = (*(word.replace("VAE", name) for word in _LATENT), *more)
    return Case(
        f"the VAE '{name}' {' '.join(sets)}".rstrip(), ("launch", "tiny.yaml", "--run-dir", "new", *options), says
    )


STARTS = (
    _start("no/such", "a diffusers model folder", "check the path"),
    _start("without config", "config.json"),
    _start("without weights", "diffusion_pytorch_model.safetensors", "Convert them"),
    _start("pickled", "diffusion_pytorch_model.safetensors", "no pickle is read"),
    _start("renamed pickle", "safetensors", "Replace"),
    _start("truncated", "safetensors", "Replace"),
    _start("empty weights", "safetensors", "Replace"),
    _start("long header", "safetensors", "Replace"),
    _start("wrong offsets", "safetensors", "Replace"),
    _start("missing tensor", "weights that fit", "Replace"),
    _start("misshapen tensor", "weights that fit", "Replace"),
    _start("other class", "_class_name = AutoencoderKL", "UNet2DModel"),
    _start("without class", "_class_name", "UNet2DModel"),
    _start("unknown block", "MysteryBlock"),
    _start("unknown time", "config.json", "Replace the file"),
    _start("no blocks", "config.json", "Replace the file"),
    _start("other size", "data.resolution = 8", "64"),
    _start("three channels", "data.channels = 1", "3"),
    _start("learned variance", "out_channels = 2", "in_channels = 1"),
    _start("pruned", "a dense network", "This one is pruned"),
    _start("torn config", "config.json", "Replace"),
    _start("list config", "config.json", "Replace"),
    _start("binary config", "config.json", "Replace"),
    _start("good", "model.layers_per_block = 3", "1, as in", sets=("model.layers_per_block=3",)),
    _start("good", "model.num_classes = 10", "null", sets=("model.num_classes=10", "data.label_column=label")),
    _run("runs/done", "one region with pruning_ratio 0"),
    _run("runs/unfinished dense", "a finished run", "ebdiff resume"),
    _run("runs/torn", "manifest.json"),
    _run("runs/empty", "config.json"),
    _run("images/good", "config.json"),
    _run("tiny.yaml", "a diffusers model folder"),
    _run("a file", "a diffusers model folder"),
)

VAES = (
    _vae("no/such", "vaes/no/such", "AutoencoderKL or VQModel", "check the path"),
    _vae("empty", "vaes/empty", "AutoencoderKL or VQModel", "config.json"),
    _vae("other class", "vaes/other class", "one of AutoencoderKL, VQModel", "choose another"),
    _vae("pickled", "vaes/pickled", "no pickle is read", "Save the weights anew"),
    _vae("truncated", "vaes/truncated", "replace the files"),
    _vae("torn config", "vaes/torn config", "config.json"),
    _vae("good", "model.latent_channels = 4", "3, the channels of the latents", sets=("model.latent_channels=4",)),
    _vae("good", "model.latent_downscale = 4", "2, by which", sets=("model.latent_downscale=4",)),
    _vae("good", "data.channels = 1", "3, which", sets=("data.channels=1",)),
    _vae("good", "data.resolution = 18", "a multiple of 4", sets=("data.resolution=18",)),
    _vae("good", "vaes/good", "model.vae_subfolder", sets=("model.vae_subfolder=vae",)),
)

CASES = (*STARTS, *VAES)
