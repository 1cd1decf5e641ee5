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


def _yaml(name: str, plan: str, *says: str) -> Case:
    """A plan file of its own."""
    return Case(name, ("launch", "plan.yaml", "--run-dir", "new"), says, plan)


TOP = (
    _set("name=..", "name = ..: expected", "match pattern"),
    _set("name=a/b", "a/b", "match pattern"),
    _set("name=", "name", "text"),
    _set("name=[a]", "['a']", "text"),
    _set("name=.hidden", "name = .hidden: expected", "match pattern"),
    _set("seed=-1", "seed = -1: expected", f"{_MORE} 0"),
    _set("seed=many", "seed = many: expected", "whole number"),
    _set("seed=1.5", "seed = 1.5: expected", "whole number"),
    _set("seed=.nan", "seed = nan: expected", "finite number"),
    _set("seed=.inf", "seed = inf: expected", "finite number"),
    _set("seed=null", "seed = null: expected", "whole number"),
    _set("seed=99999999999999999999999", "a number less than"),
    _set("placement=spread", "placement = spread: expected", "'one-per-region', 'packed' or 'balanced'"),
    _set("placement=3", "placement = 3: expected", "'one-per-region', 'packed' or 'balanced'"),
    _set("data=images", "data = images: expected", "section"),
    _set("model=5", "model = 5: expected", "section"),
    _set("training=[1, 2]", "[1, 2]", "section"),
    _set("sampling=null", "sampling = null: expected", "section"),
    _set("placement=packed", "workers.gpus of auto, 0 or 1", also=("workers.gpus=2",)),
    _set("placement=balanced", "one process", also=("workers.processes=2",)),
)

DATA = (
    _set("data.path=5", "data.path = 5: expected", "text"),
    _set("data.path=[a, b]", "['a', 'b']", "text"),
    _set("data.resolution=3", "data.resolution = 3: expected", f"{_MORE} 4"),
    _set("data.resolution=-8", "data.resolution = -8: expected", f"{_MORE} 4"),
    _set("data.resolution=8.5", "data.resolution = 8.5: expected", "whole number"),
    _set("data.resolution=8x8", "data.resolution = 8x8: expected", "whole number"),
    _set("data.resolution=9", "data.resolution = 9: expected", "a multiple of 2"),
    _set("data.resolution=1000000000", "data.resolution = 1000000000: expected", "less than or equal to"),
    _set("data.channels=2", "data.channels = 2: expected", "1 or 3"),
    _set("data.channels=rgb", "data.channels = rgb: expected", "1 or 3"),
    _set("data.interpolation=nearest", "data.interpolation = nearest: expected", "'lanczos', 'bilinear' or 'bicubic'"),
    _set("data.random_flip=perhaps", "data.random_flip = perhaps: expected", "true or false"),
    _set("data.max_unreadable=1", "data.max_unreadable = 1: expected", "less than 1"),
    _set("data.max_unreadable=-0.1", "data.max_unreadable = -0.1: expected", f"{_MORE} 0"),
    _set("data.max_unreadable=.nan", "data.max_unreadable = nan: expected", "finite"),
    _set("data.crop=centre", "data.crop = centre: expected", "section"),
    _set("data.crop={size: 4}", "data.crop.center_x", "missing"),
    _set(
        "data.crop.size=0",
        "data.crop.size = 0: expected",
        f"{_MORE} 1",
        also=("data.crop={center_x: 4, center_y: 4, size: 4}",),
    ),
    _set(
        "data.crop.center_x=-1",
        "data.crop.center_x = -1: expected",
        f"{_MORE} 0",
        also=("data.crop={center_x: 4, center_y: 4, size: 4}",),
    ),
    _set("data.split=5", "data.split = 5: expected", "text"),
    _set("data.label_column=[label]", "['label']", "text"),
)

MODEL = (
    _set("model.family=voxel", "model.family = voxel: expected", "'pixel' or 'latent' or 'vector'"),
    _set("model={family: vector}", "data.drawings = null: expected", "a section", "model.family = vector"),
    _set("data.drawings={}", "model.family = pixel: expected", "vector", "leave data.drawings out"),
    _set("model.family=latnt", "model.family = latnt: expected", "'pixel' or 'latent'"),
    _set("model.block_out_channels=[]", "[]", "at least one"),
    _set("model.block_out_channels=64", "model.block_out_channels = 64: expected", "a list"),
    _set("model.block_out_channels=[16, many]", "many", "whole number"),
    _set("model.block_out_channels=[0, 32]", "0", "greater than or equal to 1"),
    _set("model.block_out_channels=[-16, 32]", "-16", "greater than or equal to 1"),
    _set("model.block_out_channels=[16, 30]", "[16, 30]", "multiples of model.norm_num_groups = 4"),
    _set("model.block_out_channels=[16, 32, 64]", "model.down_block_types", "3 entries"),
    _set("model.block_out_channels=[16, 4000000000000]", "4000000000000", "less than or equal to"),
    _set("model.norm_num_groups=0", "model.norm_num_groups = 0: expected", f"{_MORE} 1"),
    _set("model.norm_num_groups=5", "model.block_out_channels", "multiples of model.norm_num_groups = 5"),
    _set("model.layers_per_block=0", "model.layers_per_block = 0: expected", f"{_MORE} 1"),
    _set("model.layers_per_block=1.5", "model.layers_per_block = 1.5: expected", "whole number"),
    _set("model.layers_per_block=1000000", "model.layers_per_block = 1000000: expected", "less than or equal to"),
    _set("model.down_block_types=[DownBlock2D]", "['DownBlock2D']", "2 entries"),
    _set("model.up_block_types=[]", "[]", "2 entries"),
    _set("model.up_block_types=[AttnUpBlock2D, UpBlok2D]", "UpBlok2D", "Did you mean UpBlock2D?"),
    _set("model.down_block_types=[DownBlock2D, ConvBlock9D]", "ConvBlock9D", "AttnDownBlock2D"),
    _set("model.down_block_types=[DownBlock2D, CrossAttnDownBlock2D]", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
    _set("model.down_block_types=DownBlock2D", "model.down_block_types = DownBlock2D: expected", "a list"),
    _set("model.act_fn=sillu", "model.act_fn = sillu: expected", "silu"),
    _set("model.act_fn=3", "model.act_fn = 3: expected", "'silu'"),
    _set("model.attention_head_dim=0", "model.attention_head_dim = 0: expected", f"{_MORE} 1"),
    _set("model.attention_head_dim=-8", "model.attention_head_dim = -8: expected", f"{_MORE} 1"),
    _set("model.dropout=1", "model.dropout = 1: expected", "less than 1"),
    _set("model.dropout=-0.1", "model.dropout = -0.1: expected", f"{_MORE} 0"),
    _set("model.dropout=.inf", "model.dropout = inf: expected", "finite"),
    _set("model.num_classes=0", "model.num_classes = 0: expected", f"{_MORE} 1"),
    _set("model.num_classes=ten", "model.num_classes = ten: expected", "whole number"),
    _set("model.num_classes=10", "data.label_column", "a column of labels"),
    _set("model.label_dropout=1", "model.label_dropout = 1: expected", "less than 1"),
    _set("model.norm_eps=0", "model.norm_eps = 0: expected", "greater than 0"),
    _set("model.norm_eps=.nan", "model.norm_eps = nan: expected", "finite"),
    _set("model.downsample_padding=-1", "model.downsample_padding = -1: expected", f"{_MORE} 0"),
    _set("model.freq_shift=16", "model.freq_shift = 16: expected", "less than"),
    _set("model.add_attention=maybe", "model.add_attention = maybe: expected", "true or false"),
    _set("model.flip_sin_to_cos=2", "model.flip_sin_to_cos = 2: expected", "true or false"),
    _set("model.pretrained=5", "model.pretrained = 5: expected", "text"),
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
    _set("diffusion.num_train_timesteps=1", "diffusion.num_train_timesteps = 1: expected", f"{_MORE} 2"),
    _set("diffusion.num_train_timesteps=1000.5", "diffusion.num_train_timesteps = 1000.5: expected", "whole number"),
    _set(
        "diffusion.num_train_timesteps=2000000000",
        "diffusion.num_train_timesteps = 2000000000: expected",
        "less than or equal to",
    ),
    _set(
        "diffusion.num_train_timesteps=500",
        "regions.2.train",
        "[440, 1000]",
        "equal to diffusion.num_train_timesteps = 500",
    ),
    _set("diffusion.beta_schedule=cosine", "diffusion.beta_schedule = cosine: expected", "'linear' or 'scaled_linear'"),
    _set("diffusion.beta_start=0", "diffusion.beta_start = 0: expected", "greater than 0"),
    _set(
        "diffusion.beta_start=0.5", "diffusion.beta_start = 0.5: expected", "at most diffusion.beta_end = 0.02", "Swap"
    ),
    _set("diffusion.beta_end=1", "diffusion.beta_end = 1: expected", "less than 1"),
    _set("diffusion.beta_end=.nan", "diffusion.beta_end = nan: expected", "finite"),
    _set("diffusion.beta_start=small", "diffusion.beta_start = small: expected", "number"),
)

DRAW = (
    _set("draw.scope=all", "draw.scope = all: expected", "'per-region' or 'shared'"),
    _set("draw.method=lottery", "draw.method = lottery: expected", "'early-bird', 'one-shot' or 'slim'"),
    _set("draw.method=one-shot", "model.pretrained", "a trained dense network"),
    _set("draw.scope=shared", "draw.scope = shared: expected per-region", also=("draw.method=slim",)),
    _set("model.pretrained=some", "model.pretrained = some: expected null", also=("draw.method=slim",)),
    _set("draw.inherit_weights=some", "draw.inherit_weights = some: expected", "true or false"),
    _set("draw.importance=magnitud", "draw.importance = magnitud: expected", "Did you mean magnitude?"),
    _set("draw.importance_timesteps=0", "draw.importance_timesteps = 0: expected", f"{_MORE} 1"),
    _set("draw.diff_pruning_threshold=1", "draw.diff_pruning_threshold = 1: expected", "less than 1"),
    _set("draw.interval_steps=0", "draw.interval_steps = 0: expected", f"{_MORE} 1"),
    _set("draw.interval_steps=epoch", "draw.interval_steps = epoch: expected", "whole number"),
    _set("draw.queue_length=1", "draw.queue_length = 1: expected", f"{_MORE} 2"),
    _set("draw.queue_length=1000", "draw.max_intervals = 30", "at least 1000"),
    _set("draw.queue_stride=0", "draw.queue_stride = 0: expected", f"{_MORE} 1"),
    _set("draw.queue_stride=50", "draw.max_intervals = 30", "at least 201", at="a queue of 5"),
    _set("draw.threshold=0", "draw.threshold = 0: expected", "greater than 0"),
    _set("draw.threshold=1.01", "draw.threshold = 1.01: expected", "less than or equal to 1"),
    _set("draw.threshold=10%", "draw.threshold = 10%: expected", "number"),
    _set("draw.max_intervals=4", "draw.max_intervals = 4: expected", "at least 5"),
    _set("draw.on_timeout=retry", "draw.on_timeout = retry: expected", "'error' or 'take_last'"),
    _set("draw.weights=mean", "draw.weights = mean: expected", "'raw' or 'ema'"),
    _set(
        "draw.weights=ema",
        "draw.weights = ema: expected",
        "training.ema_decay is null",
        also=("training.ema_decay=null",),
    ),
)

TRAINING = (
    _set("training.steps=0", "training.steps = 0: expected", f"{_MORE} 1"),
    _set("training.steps=-5", "training.steps = -5: expected", f"{_MORE} 1"),
    _set("training.steps=many", "training.steps = many: expected", "whole number"),
    _set("training.steps=.inf", "training.steps = inf: expected", "finite number"),
    _set("training.steps=10000000000000000", "training.steps = 10000000000000000: expected", "less than or equal to"),
    _set("training.batch_size=0", "training.batch_size = 0: expected", f"{_MORE} 1"),
    _set("training.batch_size=8.5", "training.batch_size = 8.5: expected", "whole number"),
    _set("training.batch_size=99999", "training.batch_size = 99999: expected", "at most the data set's 1797 images"),
    _set("training.learning_rate=0", "training.learning_rate = 0: expected", "greater than 0"),
    _set("training.learning_rate=-2e-4", "training.learning_rate = -0.0002: expected", "greater than 0"),
    _set("training.learning_rate=.inf", "training.learning_rate = inf: expected", "finite"),
    _set("training.learning_rate=.nan", "training.learning_rate = nan: expected", "finite"),
    _set("training.learning_rate=fast", "training.learning_rate = fast: expected", "number"),
    _set("training.learning_rate=1000", "training.learning_rate = 1000: expected", "less than or equal to"),
    _set("training.adam_betas=0.9", "training.adam_betas = 0.9: expected", "a list"),
    _set("training.adam_betas=[0.9]", "missing", "adam_betas.1"),
    _set("training.adam_betas=[0.9, 0.99, 0.999]", "at most 2"),
    _set("training.adam_betas=[0.9, 1]", "1", "less than 1"),
    _set("training.adam_eps=0", "training.adam_eps = 0: expected", "greater than 0"),
    _set("training.weight_decay=-1", "training.weight_decay = -1: expected", f"{_MORE} 0"),
    _set("training.gradient_clip=0", "training.gradient_clip = 0: expected", "greater than 0"),
    _set("training.ema_decay=1", "training.ema_decay = 1: expected", "less than 1"),
    _set("training.ema_warmup=yess", "training.ema_warmup = yess: expected", "true or false"),
    _set(
        "training.gradient_accumulation=3",
        "training.gradient_accumulation = 3: expected",
        "a divisor of training.batch_size = 8",
    ),
    _set("training.gradient_accumulation=0", "training.gradient_accumulation = 0: expected", f"{_MORE} 1"),
    _set("training.precision=fp8", "training.precision = fp8: expected", "'fp32' or 'bf16'"),
    _set("training.determinism=strict", "training.determinism = strict: expected", "'exact' or 'fast'"),
    _set("training.compile=on a GPU", "on a GPU", "true or false"),
    _set("training.cpu_threads=0", "training.cpu_threads = 0: expected", f"{_MORE} 1"),
    _set("training.cpu_threads=100000000000", "training.cpu_threads = 100000000000: expected", "less than or equal to"),
    _set("training.timesteps.sampling=log", "training.timesteps.sampling = log: expected", "'uniform' or 'speed'"),
    _set("training.timesteps.weighting=snr", "training.timesteps.weighting = snr: expected", "'min-snr'"),
    _set("training.timesteps.speed_tau=0", "training.timesteps.speed_tau = 0: expected", f"{_MORE} 1"),
    _set("training.timesteps.speed_k=0.5", "training.timesteps.speed_k = 0.5: expected", f"{_MORE} 1"),
    _set("training.timesteps.speed_lambda=0.4", "training.timesteps.speed_lambda = 0.4: expected", f"{_MORE} 0.5"),
    _set("training.timesteps.min_snr_gamma=0", "training.timesteps.min_snr_gamma = 0: expected", "greater than 0"),
    _set("training.timesteps.p2_k=0", "training.timesteps.p2_k = 0: expected", "greater than 0"),
    _set("training.timesteps=uniform", "training.timesteps = uniform: expected", "section"),
)

SAMPLING_AND_WORKERS = (
    _set("sampling.steps=0", "sampling.steps = 0: expected", f"{_MORE} 1"),
    _set("sampling.steps=1001", "sampling.steps = 1001: expected", "at most diffusion.num_train_timesteps = 1000"),
    _set("sampling.spacing=cubic", "sampling.spacing = cubic: expected", "'quadratic' or 'uniform'"),
    _set("sampling.steps_offset=-1", "sampling.steps_offset = -1: expected", f"{_MORE} 0"),
    _set("sampling.steps_offset=200", "sampling.steps_offset = 200: expected", "at most 199"),
    _set("sampling.eta=1.5", "sampling.eta = 1.5: expected", "less than or equal to 1"),
    _set("sampling.eta=-0.5", "sampling.eta = -0.5: expected", f"{_MORE} 0"),
    _set("sampling.guidance_scale=-1", "sampling.guidance_scale = -1: expected", f"{_MORE} 0"),
    _set("sampling.guidance_scale=3", "sampling.guidance_scale = 3.0: expected", "1, since the model has no classes"),
    _set("sampling.num_images=0", "sampling.num_images = 0: expected", f"{_MORE} 1"),
    _set("sampling.num_images=-4", "sampling.num_images = -4: expected", f"{_MORE} 1"),
    _set("sampling.num_images=10000000000", "sampling.num_images = 10000000000: expected", "less than or equal to"),
    _set("sampling.batch_size=0", "sampling.batch_size = 0: expected", f"{_MORE} 1"),
    _set("checkpointing.interval_steps=0", "checkpointing.interval_steps = 0: expected", f"{_MORE} 1"),
    _set("checkpointing.keep=0", "checkpointing.keep = 0: expected", f"{_MORE} 1"),
    _set("logging.interval_steps=-1", "logging.interval_steps = -1: expected", f"{_MORE} 1"),
    _set(
        "logging.trackers=[mlflow, mlflow]",
        "logging.trackers = ['mlflow', 'mlflow']: expected each tracker once",
        "Leave one out",
    ),
    _set("workers.gpus=-1", "workers.gpus = -1.0: expected", "a fraction up to 1"),
    _set("workers.gpus=1.5", "workers.gpus = 1.5: expected", "a whole number"),
    _set("workers.gpus=two", "workers.gpus = two: expected", "number", "'auto'"),
    _set("workers.gpus=.nan", "workers.gpus = nan: expected", "finite"),
    _set("workers.cpus=0", "workers.cpus = 0: expected", "greater than 0"),
    _set("workers.processes=0", "workers.processes = 0: expected", f"{_MORE} 1"),
    _set("workers.processes=3", "training.batch_size", "8", "a multiple of 3", at="workers"),
    _set("workers.parallel_efficiency=1.1", "workers.parallel_efficiency = 1.1: expected", "less than or equal to 1"),
    _set("workers.elastic=true", "one process", also=("workers.processes=2",)),
    _set("workers.retries=-1", "workers.retries = -1: expected", f"{_MORE} 0"),
    _set("workers.wait_limit_s=0", "workers.wait_limit_s = 0: expected", "greater than 0"),
    _set("workers.wait_limit_s=.inf", "workers.wait_limit_s = inf: expected", "finite"),
    _set("workers.cache_dir=7", "workers.cache_dir = 7: expected", "text"),
)

PREVIEWS = (
    _set("previews=true", "previews = true: expected", "section"),
    _set("previews.interval_s=0", "previews.interval_s = 0: expected", "greater than 0"),
    _set("previews.interval_s=1e300", "previews.interval_s = 1e+300: expected", "less than or equal to"),
    _set("previews.num_images=257", "previews.num_images = 257: expected", "less than or equal to 256"),
    _set("previews.steps=0", "previews.steps = 0: expected", f"{_MORE} 1"),
    _set("previews.steps=1001", "previews.steps = 1001: expected", "at most diffusion.num_train_timesteps = 1000"),
    _set("previews.measure=fid", "previews.measure = fid: expected", "'wavelet'"),
    _set("previews={num_images: 1, measure: wavelet}", "previews.measure = wavelet: expected", "two images or more"),
    _set("previews.images=4", "previews.images = 4: expected", "a key that plans have"),
)

_RIGL = ("sparsity.method=rigl",)
SPARSITY = (
    _set("sparsity=0.5", "sparsity = 0.5: expected", "section"),
    _set("sparsity={sparsity: 0.5}", "sparsity.method", "missing"),
    _set("sparsity.method=prune", "sparsity.method = prune: expected", "'static', 'rigl' or 'magran'"),
    _set("sparsity.sparsity=1", "sparsity.sparsity = 1: expected", "less than 1", also=_RIGL),
    _set("sparsity.sparsity=-0.1", "sparsity.sparsity = -0.1: expected", f"{_MORE} 0", also=_RIGL),
    _set("sparsity.sparsity=50%", "sparsity.sparsity = 50%: expected", "number", also=_RIGL),
    _set("sparsity.distribution=even", "sparsity.distribution = even: expected", "'erk', 'er' or", also=_RIGL),
    _set("sparsity.prune_ratio=1.5", "sparsity.prune_ratio = 1.5: expected", "less than or equal to 1", also=_RIGL),
    _set("sparsity.prune_ratio=.nan", "sparsity.prune_ratio = nan: expected", "finite", also=_RIGL),
    _set("sparsity.decay=linear", "sparsity.decay = linear: expected", "'constant' or 'cosine'", also=_RIGL),
    _set("sparsity.interval_steps=0", "sparsity.interval_steps = 0: expected", f"{_MORE} 1", also=_RIGL),
    _set("sparsity.stop_share=2", "sparsity.stop_share = 2: expected", "less than or equal to 1", also=_RIGL),
    _set("sparsity.sparsty=0.5", "Did you mean sparsity.sparsity?", also=_RIGL, at="sparsity.sparsty"),
    _set("regions.0.sparsity=1", "regions.0.sparsity = 1: expected", "less than 1", also=_RIGL),
    _set("regions.0.sparsity=0.3", "regions.0.sparsity = 0.3: expected", "none without a section", "sparsity.method"),
)

_DRAWN = ("model={family: vector}", "data.random_flip=false", "data.drawings={}")
DRAWINGS = (
    _set("data.random_flip=true", "data.random_flip = true: expected false, since data.drawings", also=_DRAWN),
    _set("data.crop={center_x: 5, center_y: 5, size: 4}", "null, since data.drawings is set", also=_DRAWN),
    _set("data.drawings.point_spacing=0", "data.drawings.point_spacing = 0: expected", "greater", also=_DRAWN),
    _set("data.drawings.raster={margin: 0.5}", "data.drawings.raster.margin", "less than 0.5", also=_DRAWN),
    _set("training.precision=bf16", "training.precision = bf16: expected fp32", "model.family = vector", also=_DRAWN),
    _set("training.compile=true", "training.compile = true: expected false", "model.family = vector", also=_DRAWN),
    _set("training.channels_last=true", "false, since model.family = vector", also=_DRAWN),
    _set("sampling.guidance_scale=2", "the model has no classes", also=_DRAWN),
    _set("model.time_embed_dim=7", "model.time_embed_dim = 7: expected", "a multiple of 2", also=_DRAWN),
    _set("model.num_classes=3", "a key that plans have", also=_DRAWN),
)

REGIONS = (
    _set("regions=[]", "regions", "at least one region"),
    _set("regions=3", "regions = 3: expected", "a list"),
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
    _set("regions=[{train: [0, 1000], pruning_ratio: 50%}]", "regions.0.pruning_ratio", "50%", "number"),
    _set("regions=[{train: [0, 1000], pruning_ratio: 0.5, steps: 0}]", "regions.0.steps", "0", f"{_MORE} 1"),
    _set("regions=[{train: [0, 1000], pruning_ratio: 0.5, name: ../x}]", "regions.0.name", "../x", "match pattern"),
    _set("regions=[{train: [0, 1000], pruning_ratio: 0.5, name: /tmp/x}]", "regions.0.name", "/tmp/x", "match pattern"),
    _set("regions=[{train: [10, 1000], pruning_ratio: 0.5}]", "regions.0.train", "[10, 1000]", "a start of 0"),
    _set("regions=[{train: [0, 900], pruning_ratio: 0.5}]", "regions.0.train", "[0, 900]", "= 1000"),
    _set("regions=[{train: [0, 1100], pruning_ratio: 0.5}]", "regions.0.train", "[0, 1100]", "= 1000"),
    _set("regions=[{train: [-5, 1000], pruning_ratio: 0.5}]", "regions.0.train", "[-5, 1000]", "0 <= start < stop"),
    _set("regions=[{train: [1000, 0], pruning_ratio: 0.5}]", "regions.0.train", "[1000, 0]", "0 <= start < stop"),
    _set("regions=[{train: [0, 0], pruning_ratio: 0.5}]", "regions.0.train", "[0, 0]", "0 <= start < stop"),
    _yaml(
        "a hole between two regions",
        "regions: [{train: [0, 200], pruning_ratio: 0.5}, {train: [300, 1000], pruning_ratio: 0.5}]",
        "regions.1.train",
        "[300, 1000]",
        "timesteps 200 to 299 have no region",
        "Close the hole",
    ),
    _yaml(
        "regions in the wrong order",
        "regions: [{train: [500, 1000], pruning_ratio: 0.5}, {train: [0, 500], pruning_ratio: 0.5}]",
        "regions.0.train",
        "[500, 1000]",
        "a start of 0",
    ),
    _yaml(
        "a region within another",
        "regions: [{train: [0, 800], pruning_ratio: 0.5}, {train: [100, 300], pruning_ratio: 0.5}, "
        "{train: [300, 1000], pruning_ratio: 0.5}]",
        "regions.1.train",
        "[100, 300]",
        "a stop above 800",
        "none may contain another",
    ),
    _yaml(
        "two regions that start together",
        "regions: [{train: [0, 600], pruning_ratio: 0.5}, {train: [0, 1000], pruning_ratio: 0.6}]",
        "regions.1.train",
        "[0, 1000]",
        "a start above 0",
    ),
    _yaml(
        "an overlap of regions that are no neighbours",
        "regions: [{train: [0, 600], pruning_ratio: 0.5}, {train: [300, 800], pruning_ratio: 0.5}, "
        "{train: [500, 1000], pruning_ratio: 0.5}]",
        "regions.2.train",
        "[500, 1000]",
        "only neighbours may overlap",
        "Shrink the overlap",
    ),
    _yaml(
        "two regions of one name",
        "regions: [{train: [0, 600], pruning_ratio: 0.5, name: a}, {train: [500, 1000], pruning_ratio: 0.5, name: a}]",
        "regions.name",
        "['a', 'a']",
        "different names",
        "Rename",
    ),
    _set("regions.0.pruning_ratio=0.01", "regions.0.pruning_ratio = 0.01: expected", "GroupNorm"),
    _set(
        "regions.0.pruning_ratio=0.999", "regions.0.pruning_ratio = 0.999: expected", "leaves a channel in every layer"
    ),
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
    _set("data.path=2024", "data.path = 2024: expected text", "Quote what YAML"),
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
    _yaml(
        "two regions of names that differ in capitals alone",
        "regions: [{train: [0, 600], pruning_ratio: 0.5, name: a}, {train: [500, 1000], pruning_ratio: 0.5, name: A}]",
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
    _set("workers.processes=1000000000", "workers.processes = 1000000000: expected", "less than or equal to 4096"),
    _set("workers.processes=9", "workers.processes = 9: expected", "at most training.batch_size = 8"),
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
