"""Plans with one bad value: every field out of range, of the wrong type, not a number, empty, negative or huge."""

from collections.abc import Iterator
from typing import get_args

from harness import Case
from pydantic import BaseModel

from schemas.plan import Plan

_MORE = "greater than or equal to"


def _set(change: str, *says: str, also: tuple[str, ...] = (), at: str | None = None) -> Case:
    """`change` (and others that are good) over the tiny plan; the message names its field, or the one of `at`."""
    field = change.partition("=")[0] if at is None else at
    options = [part for each in (*also, change) for part in ("--set", each)]
    return Case(f"set {change}", ("launch", "tiny.yaml", "--run-dir", "new", *options), (field, *says))


def _bad(change: str, *says: str, also: tuple[str, ...] = ()) -> Case:
    """`change` is refused as it is written."""
    field, _, value = change.partition("=")
    return _set(change, f"{field} = {value}: expected", *says, also=also)


def _yaml(name: str, plan: str, *says: str) -> Case:
    """A plan file of its own."""
    return Case(name, ("launch", "plan.yaml", "--run-dir", "new"), says, plan)


def _regions(name: str, trained: str, *says: str) -> Case:
    """A plan of regions that train on these timesteps (between bars), and may be named."""
    regions = ", ".join(f"{{train: {each}, pruning_ratio: 0.5}}" for each in trained.split(" | "))
    return _yaml(name, f"regions: [{regions}]", *says)


TOP = (
    _bad("name=..", "a name of the letters"),
    _set("name=a/b", "a/b", "a name of the letters"),
    _set("name=", "name", "text"),
    _set("name=[a]", "['a']", "text"),
    _bad("name=.hidden", "a name of the letters"),
    _bad("seed=-1", f"{_MORE} 0"),
    _bad("seed=many", "whole number"),
    _set("seed=yes", "= true: expected a number"),
    _bad("seed=1.5", "whole number"),
    _set("seed=.nan", "seed = nan: expected", "finite number"),
    _set("seed=.inf", "seed = inf: expected", "finite number"),
    _bad("seed=null", "whole number"),
    _set("seed=99999999999999999999999", "a number less than"),
    _bad("placement=spread", "'one-per-region', 'packed' or 'balanced'"),
    _bad("placement=3", "'one-per-region', 'packed' or 'balanced'"),
    _bad("data=images", "section"),
    _bad("model=5", "section"),
    _set("training=[1, 2]", "[1, 2]", "section"),
    _bad("sampling=null", "section"),
    _set("placement=packed", "workers.gpus of auto, 0 or 1", also=("workers.gpus=2",)),
    _set("placement=balanced", "one process", also=("workers.processes=2",)),
)

DATA = (
    _bad("data.path=5", "text"),
    _set("data.path=[a, b]", "['a', 'b']", "text"),
    _bad("data.resolution=3", f"{_MORE} 4"),
    _bad("data.resolution=-8", f"{_MORE} 4"),
    _bad("data.resolution=8.5", "whole number"),
    _bad("data.resolution=8x8", "whole number"),
    _bad("data.resolution=9", "a multiple of 2"),
    _bad("data.resolution=1000000000", "less than or equal to"),
    _bad("data.channels=2", "1 or 3"),
    _bad("data.channels=rgb", "1 or 3"),
    _bad("data.interpolation=nearest", "'lanczos', 'bilinear' or 'bicubic'"),
    _bad("data.random_flip=perhaps", "true or false"),
    _bad("data.max_unreadable=1", "less than 1"),
    _bad("data.max_unreadable=-0.1", f"{_MORE} 0"),
    _set("data.max_unreadable=.nan", "data.max_unreadable = nan: expected", "finite"),
    _bad("data.crop=centre", "section"),
    _set("data.crop={size: 4}", "data.crop.center_x", "missing"),
    _bad("data.crop.size=0", f"{_MORE} 1", also=("data.crop={center_x: 4, center_y: 4, size: 4}",)),
    _bad("data.crop.center_x=-1", f"{_MORE} 0", also=("data.crop={center_x: 4, center_y: 4, size: 4}",)),
    _bad("data.split=5", "text"),
    _set("data.label_column=[label]", "['label']", "text"),
)

MODEL = (
    _bad("model.family=voxel", "'pixel' or 'latent' or 'vector'"),
    _set("model={family: vector}", "data.drawings = null: expected", "a section", "model.family = vector"),
    _set("data.drawings={}", "model.family = pixel: expected", "vector", "leave data.drawings out"),
    _bad("model.family=latnt", "'pixel' or 'latent'"),
    _set("model.block_out_channels=[]", "[]", "at least one"),
    _bad("model.block_out_channels=64", "a list"),
    _set("model.block_out_channels=[16, many]", "many", "whole number"),
    _set("model.block_out_channels=[0, 32]", "0", "greater than or equal to 1"),
    _set("model.block_out_channels=[-16, 32]", "-16", "greater than or equal to 1"),
    _set("model.block_out_channels=[16, 30]", "[16, 30]", "multiples of model.norm_num_groups = 4"),
    _set("model.block_out_channels=[16, 32, 64]", "model.down_block_types", "3 entries"),
    _set("model.block_out_channels=[16, 4000000000000]", "4000000000000", "less than or equal to"),
    _bad("model.norm_num_groups=0", f"{_MORE} 1"),
    _set("model.norm_num_groups=5", "model.block_out_channels", "multiples of model.norm_num_groups = 5"),
    _bad("model.layers_per_block=0", f"{_MORE} 1"),
    _bad("model.layers_per_block=1.5", "whole number"),
    _bad("model.layers_per_block=1000000", "less than or equal to"),
    _set("model.down_block_types=[DownBlock2D]", "['DownBlock2D']", "2 entries"),
    _set("model.up_block_types=[]", "[]", "2 entries"),
    _set("model.up_block_types=[AttnUpBlock2D, UpBlok2D]", "UpBlok2D", "Did you mean UpBlock2D?"),
    _set("model.down_block_types=[DownBlock2D, ConvBlock9D]", "ConvBlock9D", "AttnDownBlock2D"),
    _set("model.down_block_types=[DownBlock2D, CrossAttnDownBlock2D]", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
    _bad("model.down_block_types=DownBlock2D", "a list"),
    _bad("model.act_fn=sillu", "silu"),
    _bad("model.act_fn=3", "'silu'"),
    _bad("model.attention_head_dim=0", f"{_MORE} 1"),
    _bad("model.attention_head_dim=-8", f"{_MORE} 1"),
    _bad("model.dropout=1", "less than 1"),
    _bad("model.dropout=-0.1", f"{_MORE} 0"),
    _set("model.dropout=.inf", "model.dropout = inf: expected", "finite"),
    _bad("model.num_classes=0", f"{_MORE} 1"),
    _bad("model.num_classes=ten", "whole number"),
    _set("model.num_classes=10", "data.label_column", "a column of labels"),
    _bad("model.label_dropout=1", "less than 1"),
    _bad("model.norm_eps=0", "greater than 0"),
    _set("model.norm_eps=.nan", "model.norm_eps = nan: expected", "finite"),
    _bad("model.downsample_padding=-1", f"{_MORE} 0"),
    _bad("model.freq_shift=16", "less than"),
    _bad("model.add_attention=maybe", "true or false"),
    _bad("model.flip_sin_to_cos=2", "true or false"),
    _bad("model.pretrained=5", "text"),
    _set("model.vae=x", "model.vae", "a key that"),
    _set("model={family: latent}", "model.vae", "missing"),
    _set("model={family: latent, vae: x}", "model.num_classes", "CrossAttn"),
    _set("model={family: latent, vae: x, network: UNet2DModel}", "model.down_block_types", "no context to attend to"),
    _set(
        "model={family: latent, vae: x, network: Transformer}", "model.network = Transformer: expected", "UNet2DModel"
    ),
    _set("model={family: latent, vae: x, num_classes: 2, scaling_factor: 0}", "model.scaling_factor", "greater than 0"),
    _set("model={family: latent, vae: x, num_classes: 2, latent_channels: 0}", "model.latent_channels", f"{_MORE} 1"),
    _set("model={family: latent, vae: x, num_classes: 2, latent_downscale: 0}", "model.latent_downscale", f"{_MORE} 1"),
)

DIFFUSION = (
    _bad("diffusion.num_train_timesteps=1", f"{_MORE} 2"),
    _bad("diffusion.num_train_timesteps=1000.5", "whole number"),
    _bad("diffusion.num_train_timesteps=2000000000", "less than or equal to"),
    _set(
        "diffusion.num_train_timesteps=500",
        "regions.2.train",
        "[440, 1000]",
        "equal to diffusion.num_train_timesteps = 500",
    ),
    _bad("diffusion.beta_schedule=cosine", "'linear' or 'scaled_linear'"),
    _bad("diffusion.beta_start=0", "greater than 0"),
    _bad("diffusion.beta_start=0.5", "at most diffusion.beta_end = 0.02", "Swap"),
    _bad("diffusion.beta_end=1", "less than 1"),
    _set("diffusion.beta_end=.nan", "diffusion.beta_end = nan: expected", "finite"),
    _bad("diffusion.beta_start=small", "number"),
)

DRAW = (
    _bad("draw.scope=all", "'per-region' or 'shared'"),
    _bad("draw.method=lottery", "'early-bird', 'one-shot' or 'slim'"),
    _set("draw.method=one-shot", "model.pretrained", "a trained dense network"),
    _bad("draw.scope=shared", "per-region", also=("draw.method=slim",)),
    _bad("model.pretrained=some", "null", also=("draw.method=slim",)),
    _bad("draw.inherit_weights=some", "true or false"),
    _bad("draw.importance=magnitud", "Did you mean magnitude?"),
    _bad("draw.importance_timesteps=0", f"{_MORE} 1"),
    _bad("draw.diff_pruning_threshold=1", "less than 1"),
    _bad("draw.interval_steps=0", f"{_MORE} 1"),
    _bad("draw.interval_steps=epoch", "whole number"),
    _bad("draw.queue_length=1", f"{_MORE} 2"),
    _set("draw.queue_length=1000", "draw.max_intervals = 30", "at least 1000"),
    _bad("draw.queue_stride=0", f"{_MORE} 1"),
    _set("draw.queue_stride=50", "draw.max_intervals = 30", "at least 201", at="a queue of 5"),
    _bad("draw.threshold=0", "greater than 0"),
    _bad("draw.threshold=1.01", "less than or equal to 1"),
    _bad("draw.threshold=10%", "number"),
    _bad("draw.max_intervals=4", "at least 5"),
    _bad("draw.on_timeout=retry", "'error' or 'take_last'"),
    _bad("draw.weights=mean", "'raw' or 'ema'"),
    _bad("draw.weights=ema", "training.ema_decay is null", also=("training.ema_decay=null",)),
)

TRAINING = (
    _bad("training.steps=0", f"{_MORE} 1"),
    _bad("training.steps=-5", f"{_MORE} 1"),
    _bad("training.steps=many", "whole number"),
    _set("training.steps=.inf", "training.steps = inf: expected", "finite number"),
    _bad("training.steps=10000000000000000", "less than or equal to"),
    _bad("training.batch_size=0", f"{_MORE} 1"),
    _bad("training.batch_size=8.5", "whole number"),
    _bad("training.batch_size=99999", "at most the data set's 1797 images"),
    _bad("training.learning_rate=0", "greater than 0"),
    _set("training.learning_rate=-2e-4", "training.learning_rate = -0.0002: expected", "greater than 0"),
    _set("training.learning_rate=.inf", "training.learning_rate = inf: expected", "finite"),
    _set("training.learning_rate=.nan", "training.learning_rate = nan: expected", "finite"),
    _bad("training.learning_rate=fast", "number"),
    _bad("training.learning_rate=1000", "less than or equal to"),
    _bad("training.adam_betas=0.9", "a list"),
    _set("training.adam_betas=[0.9]", "missing", "adam_betas.1"),
    _set("training.adam_betas=[0.9, 0.99, 0.999]", "at most 2"),
    _set("training.adam_betas=[0.9, 1]", "1", "less than 1"),
    _bad("training.adam_eps=0", "greater than 0"),
    _bad("training.weight_decay=-1", f"{_MORE} 0"),
    _bad("training.gradient_clip=0", "greater than 0"),
    _bad("training.ema_decay=1", "less than 1"),
    _set("training.ema_decay=no", "= false: expected a number", "null for none"),
    _bad("training.ema_warmup=yess", "true or false"),
    _bad("training.gradient_accumulation=3", "a divisor of training.batch_size = 8"),
    _bad("training.gradient_accumulation=0", f"{_MORE} 1"),
    _bad("training.precision=fp8", "'fp32' or 'bf16'"),
    _bad("training.determinism=strict", "'exact' or 'fast'"),
    _set("training.compile=on a GPU", "on a GPU", "true or false"),
    _bad("training.cpu_threads=0", f"{_MORE} 1"),
    _bad("training.cpu_threads=100000000000", "less than or equal to"),
    _bad("training.timesteps.sampling=log", "'uniform' or 'speed'"),
    _bad("training.timesteps.weighting=snr", "'min-snr'"),
    _bad("training.timesteps.speed_tau=0", f"{_MORE} 1"),
    _bad("training.timesteps.speed_k=0.5", f"{_MORE} 1"),
    _bad("training.timesteps.speed_lambda=0.4", f"{_MORE} 0.5"),
    _bad("training.timesteps.min_snr_gamma=0", "greater than 0"),
    _bad("training.timesteps.p2_k=0", "greater than 0"),
    _bad("training.timesteps=uniform", "section"),
)

SAMPLING_AND_WORKERS = (
    _bad("sampling.steps=0", f"{_MORE} 1"),
    _bad("sampling.steps=1001", "at most diffusion.num_train_timesteps = 1000"),
    _bad("sampling.spacing=cubic", "'quadratic' or 'uniform'"),
    _bad("sampling.steps_offset=-1", f"{_MORE} 0"),
    _bad("sampling.steps_offset=200", "at most 199"),
    _bad("sampling.eta=1.5", "less than or equal to 1"),
    _bad("sampling.eta=-0.5", f"{_MORE} 0"),
    _bad("sampling.guidance_scale=-1", f"{_MORE} 0"),
    _set("sampling.guidance_scale=3", "sampling.guidance_scale = 3.0: expected", "1, since the model has no classes"),
    _bad("sampling.num_images=0", f"{_MORE} 1"),
    _bad("sampling.num_images=-4", f"{_MORE} 1"),
    _bad("sampling.num_images=10000000000", "less than or equal to"),
    _bad("sampling.batch_size=0", f"{_MORE} 1"),
    _bad("checkpointing.interval_steps=0", f"{_MORE} 1"),
    _bad("checkpointing.keep=0", f"{_MORE} 1"),
    _bad("logging.interval_steps=-1", f"{_MORE} 1"),
    _set(
        "logging.trackers=[mlflow, mlflow]",
        "logging.trackers = ['mlflow', 'mlflow']: expected each tracker once",
        "Leave one out",
    ),
    _set("workers.gpus=-1", "workers.gpus = -1.0: expected", "a fraction up to 1"),
    _bad("workers.gpus=1.5", "a whole number"),
    _bad("workers.gpus=two", "number", "'auto'"),
    _set("workers.gpus=.nan", "workers.gpus = nan: expected", "finite"),
    _bad("workers.cpus=0", "greater than 0"),
    _bad("workers.processes=0", f"{_MORE} 1"),
    _set("workers.processes=3", "training.batch_size", "8", "a multiple of 3", at="workers"),
    _bad("workers.parallel_efficiency=1.1", "less than or equal to 1"),
    _set("workers.elastic=true", "one process", also=("workers.processes=2",)),
    _bad("workers.retries=-1", f"{_MORE} 0"),
    _bad("workers.wait_limit_s=0", "greater than 0"),
    _set("workers.wait_limit_s=.inf", "workers.wait_limit_s = inf: expected", "finite"),
    _bad("workers.cache_dir=7", "text"),
)

PREVIEWS = (
    _bad("previews=true", "section"),
    _bad("previews.interval_s=0", "greater than 0"),
    _set("previews.interval_s=1e300", "previews.interval_s = 1e+300: expected", "less than or equal to"),
    _bad("previews.num_images=257", "less than or equal to 256"),
    _bad("previews.steps=0", f"{_MORE} 1"),
    _bad("previews.steps=1001", "at most diffusion.num_train_timesteps = 1000"),
    _bad("previews.measure=fid", "'wavelet'"),
    _set("previews={num_images: 1, measure: wavelet}", "previews.measure = wavelet: expected", "two images or more"),
    _bad("previews.images=4", "a key that plans have"),
)

_RIGL = ("sparsity.method=rigl",)
SPARSITY = (
    _bad("sparsity=0.5", "section"),
    _set("sparsity={sparsity: 0.5}", "sparsity.method", "missing"),
    _bad("sparsity.method=prune", "'static', 'rigl' or 'magran'"),
    _bad("sparsity.sparsity=1", "less than 1", also=_RIGL),
    _bad("sparsity.sparsity=-0.1", f"{_MORE} 0", also=_RIGL),
    _bad("sparsity.sparsity=50%", "number", also=_RIGL),
    _bad("sparsity.distribution=even", "'erk', 'er' or", also=_RIGL),
    _bad("sparsity.prune_ratio=1.5", "less than or equal to 1", also=_RIGL),
    _set("sparsity.prune_ratio=.nan", "sparsity.prune_ratio = nan: expected", "finite", also=_RIGL),
    _bad("sparsity.decay=linear", "'constant' or 'cosine'", also=_RIGL),
    _bad("sparsity.interval_steps=0", f"{_MORE} 1", also=_RIGL),
    _bad("sparsity.stop_share=2", "less than or equal to 1", also=_RIGL),
    _set("sparsity.sparsty=0.5", "Did you mean sparsity.sparsity?", also=_RIGL, at="sparsity.sparsty"),
    _bad("regions.0.sparsity=1", "less than 1", also=_RIGL),
    _bad("regions.0.sparsity=0.3", "none without a section", "sparsity.method"),
)

_DRAWN = ("model={family: vector}", "data.random_flip=false", "data.drawings={}")
DRAWINGS = (
    _bad("data.random_flip=true", "false, since data.drawings", also=_DRAWN),
    _set("data.crop={center_x: 5, center_y: 5, size: 4}", "null, since data.drawings is set", also=_DRAWN),
    _bad("data.drawings.point_spacing=0", "greater", also=_DRAWN),
    _set("data.drawings.raster={margin: 0.5}", "data.drawings.raster.margin", "less than 0.5", also=_DRAWN),
    _bad("training.precision=bf16", "fp32", "model.family = vector", also=_DRAWN),
    _bad("training.compile=true", "false", "model.family = vector", also=_DRAWN),
    _set("training.channels_last=true", "false, since model.family = vector", also=_DRAWN),
    _set("sampling.guidance_scale=2", "the model has no classes", also=_DRAWN),
    _bad("model.time_embed_dim=7", "a multiple of 2", also=_DRAWN),
    _set("model.num_classes=3", "a key that plans have", also=_DRAWN),
)

REGIONS = (
    _set("regions=[]", "regions", "at least one region"),
    _bad("regions=3", "a list"),
    _set("regions={train: [0, 1000]}", "a list"),
    _set("regions=[5]", "regions.0", "5", "section"),
    _set("regions=[{train: [0, 1000]}]", "regions.0.pruning_ratio", "missing"),
    _set("regions=[{pruning_ratio: 0.5}]", "regions.0.train", "missing"),
    _set("regions=[{train: 1000, pruning_ratio: 0.5}]", "regions.0.train", "1000", "a list"),
    _set("regions=[{train: [0], pruning_ratio: 0.5}]", "regions.0.train.1", "missing"),
    _set("regions=[{train: [0, 500, 1000], pruning_ratio: 0.5}]", "regions.0.train", "at most 2"),
    _set("regions=[{train: [0, all], pruning_ratio: 0.5}]", "regions.0.train.1", "all", "whole number"),
    _set("regions=[{train: [0, 1000], pruning_ratio: 1}]", "regions.0.pruning_ratio", "1", "less than 1"),
    _set("regions=[{train: [0, 1000], pruning_ratio: -0.5}]", "regions.0.pruning_ratio", "-0.5", f"{_MORE} 0"),
    _set("regions=[{train: [0, 1000], pruning_ratio: .nan}]", "regions.0.pruning_ratio", "nan", "finite"),
    _set("regions=[{train: [0, 1000], pruning_ratio: 50%}]", "regions.0.pruning_ratio", "50%", "number", "50% is 0.5"),
    _set("regions=[{train: [0, 1000], pruning_ratio: 0.5, steps: 0}]", "regions.0.steps", "0", f"{_MORE} 1"),
    _set(
        "regions=[{train: [0, 1000], pruning_ratio: 0.5, name: ../x}]",
        "regions.0.name",
        "../x",
        "a name of the letters",
    ),
    _set(
        "regions=[{train: [0, 1000], pruning_ratio: 0.5, name: /tmp/x}]",
        "regions.0.name",
        "/tmp/x",
        "a name of the letters",
    ),
    _set("regions=[{train: [10, 1000], pruning_ratio: 0.5}]", "regions.0.train", "[10, 1000]", "a start of 0"),
    _set("regions=[{train: [0, 900], pruning_ratio: 0.5}]", "regions.0.train", "[0, 900]", "= 1000"),
    _set("regions=[{train: [0, 1100], pruning_ratio: 0.5}]", "regions.0.train", "[0, 1100]", "= 1000"),
    _set("regions=[{train: [-5, 1000], pruning_ratio: 0.5}]", "regions.0.train", "[-5, 1000]", "0 <= start < stop"),
    _set("regions=[{train: [1000, 0], pruning_ratio: 0.5}]", "regions.0.train", "[1000, 0]", "0 <= start < stop"),
    _set("regions=[{train: [0, 0], pruning_ratio: 0.5}]", "regions.0.train", "[0, 0]", "0 <= start < stop"),
    _regions(
        "a hole between two regions",
        "[0, 200] | [300, 1000]",
        "regions.1.train",
        "[300, 1000]",
        "timesteps 200 to 299 have no region",
        "Close the hole",
    ),
    _regions("regions in the wrong order", "[500, 1000] | [0, 500]", "regions.0.train", "[500, 1000]", "a start of 0"),
    _regions(
        "a region within another",
        "[0, 800] | [100, 300] | [300, 1000]",
        "regions.1.train",
        "[100, 300]",
        "a stop above 800",
        "none may contain another",
    ),
    _regions(
        "two regions that start together", "[0, 600] | [0, 1000]", "regions.1.train", "[0, 1000]", "a start above 0"
    ),
    _regions(
        "an overlap of regions that are no neighbours",
        "[0, 600] | [300, 800] | [500, 1000]",
        "regions.2.train",
        "[500, 1000]",
        "only neighbours may overlap",
        "Shrink the overlap",
    ),
    _regions(
        "two regions of one name",
        "[0, 600], name: a | [500, 1000], name: a",
        "regions.name",
        "['a', 'a']",
        "different names",
        "Rename",
    ),
    _bad("regions.0.pruning_ratio=0.01", "GroupNorm"),
    _bad("regions.0.pruning_ratio=0.999", "leaves a channel in every layer"),
)

MISSPELT = (
    _set("training.stepz=5", "Did you mean training.steps?"),
    _set("training.batchsize=5", "Did you mean training.batch_size?"),
    _set("trainig.steps=5", "Did you mean training?", at="trainig = "),
    _set("modle.dropout=0.1", "Did you mean model?", at="modle = "),
    _set("model.block_out_chanels=[16, 32]", "Did you mean model.block_out_channels?"),
    _set("data.resoluton=8", "Did you mean data.resolution?"),
    _set("batch_size=8", "Did you mean training.batch_size"),
    _set("learning_rate=0.1", "Did you mean training.learning_rate?"),
    _set("draw.treshold=0.1", "Did you mean draw.threshold?"),
    _set("workers.gpu=1", "Did you mean workers.gpus?"),
    _set("regions.0.prune_ratio=0.5", "Did you mean regions.0.pruning_ratio?"),
    _set("sampling.num_image=5", "Did you mean sampling.num_images?"),
    _set("training.timesteps.samplng=speed", "Did you mean training.timesteps.sampling?"),
    _set("checkpoint.keep=2", "Did you mean checkpointing?", at="checkpoint = "),
    _set("quantum=1", "quantum", "a key that", "ebdiff plan"),
    _yaml("a misspelt section", "trainings: {steps: 5}\n", "trainings", "Did you mean training?"),
    _yaml("a misspelt region", "regions: [{trian: [0, 1000], pruning_ratio: 0.5}]", "Did you mean regions.0.train?"),
    _yaml(
        "several mistakes at once",
        "training: {steps: 0, learning_rate: -1}\nseed: -5\n",
        "training.steps",
        "training.learning_rate",
        "seed",
    ),
)

_KEY = "s3://AKIAKEY:very/secret+key@bucket/images"
_TEXT, _PRINTED = "without null characters", "printable characters"
_WHOLE = "regions=[{train: [0, 1000], pruning_ratio: 0.5, name: %s}]"

PLACES = (
    *(
        _set(f"{field}={value}", f"{field} = {shown}", expected)
        for field in ("data.path", "model.pretrained", "workers.cache_dir")
        for value, shown, expected in (
            ('"a\\0b"', "a\\x00b", _TEXT),
            ("n" * 300, "nnn", "at most 4000 bytes, and 255"),
            ("n/" * 3000, "n/n", "at most 4000"),
            (_KEY, "s3://...@bucket/images", "the environment"),
            ("''", "", "at least 1 character"),
        )
    ),
    *(
        _set(f'{field}="a\\0b"', f"{field} = a\\x00b", _PRINTED)
        for field in ("data.split", "data.config_name", "data.image_column", "data.label_column")
    ),
    *(
        _set(f"{field}=s3://bucket/x", f"{field} = s3://bucket/x: expected", "no field of a plan can be a URL")
        for field in ("data.path", "model.pretrained")
    ),
    _bad("data.path=2024", "text", "Quote what YAML"),
    _set("data.path=photos #1", "where YAML begins a comment", "Quote the value"),
    _set("workers.cache_dir=tiny.yaml", "a folder that can be written"),
    _set("data.path=special/table.parquet", "no regular file"),
    _set("data.path=special/image.png", "data.path"),
    _set("data.path=special/socket.parquet", "no regular file"),
    _set("data.path=special/zeros.parquet", "no regular file"),
    _set("model.pretrained=special/weights.safetensors", "a diffusers model folder"),
    _set("model.pretrained=special/pipes for weights", "no regular file"),
    _set("model.pretrained=special/pipe for config", "a diffusers model folder"),
)

NAMES = (
    *(
        _set(_WHOLE % name, name, "a folder's name", at="regions.0.name")
        for name in ("config.json", "Seal.JSON", "a.py")
    ),
    _set(_WHOLE % ("n" * 300), "nnn", "at most 100 characters", at="regions.0.name"),
    _set(f"name={'n' * 300}", "nnn", "at most 100 characters"),
    _regions(
        "two regions of names that differ in capitals alone",
        "[0, 600], name: a | [500, 1000], name: A",
        "regions.name",
        "['a', 'A']",
        "capitals aside",
    ),
)


def _bounded(section: type[BaseModel], above: str) -> Iterator[str]:
    """The fields of numbers in a section and below it."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        if any(kind in (int, float) for kind in kinds) and bool not in kinds:
            yield above + name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _bounded(kind, f"{above}{name}." if kind is field.annotation else f"{above}{name}.0.")


HUGE = tuple(
    _set(f"{field}=1{'0' * 100}", field, "less than")
    for field in _bounded(Plan, "")
    if not field.startswith(("data.crop.", "data.drawings.", "previews.", "sparsity."))
)
HUGE_WORKERS = (
    _set("workers.cpus=1e300", "workers.cpus = 1e+300: expected", "less than or equal to 4096"),
    _set("workers.gpus=1e300", "workers.gpus = 1e+300: expected", "less than or equal to 4096"),
    _bad("workers.processes=1000000000", "less than or equal to 4096"),
    _bad("workers.processes=9", "at most training.batch_size = 8"),
    _set("workers.gpus=9", "workers.gpus = 9.0: expected", "at most training.batch_size = 8"),
)

CASES = (
    *PLACES,
    *NAMES,
    *HUGE,
    *HUGE_WORKERS,
    *TOP,
    *DATA,
    *MODEL,
    *DIFFUSION,
    *DRAW,
    *TRAINING,
    *SAMPLING_AND_WORKERS,
    *PREVIEWS,
    *SPARSITY,
    *DRAWINGS,
    *REGIONS,
    *MISSPELT,
)
