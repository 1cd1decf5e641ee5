"""Command lines that ask for what cannot be: options, run directories, and what a run does not hold."""

from harness import Case


def _type(line: str, *says: str) -> Case:
    """A command line; ~ stands for a blank within a word."""
    words = tuple(word.replace("~", " ") for word in line.split())
    return Case(line or "nothing", words, says)


def _sample(options: str, *says: str) -> Case:
    return _type(f"sample runs/done --out new {options}", *says)


def _evaluate(options: str, *says: str) -> Case:
    return _type(f"evaluate runs/done {options}", *says)


def _with_weights(options: str, *says: str) -> Case:
    """An evaluation to which some file is given as Inception's weights."""
    return _evaluate(f"--inception-weights tiny.yaml {options}", *says)


PARSED = (
    _type("lanch tiny.yaml", "lanch", "Did you mean 'launch'"),
    _type("train tiny.yaml", "No such command 'train'", "--help"),
    _type("launch", "PLAN", "ebdiff launch --help"),
    _type("launch tiny.yaml other.yaml", "other.yaml", "ebdiff launch --help"),
    _type("launch tiny.yaml --rundir new", "--rundir", "--run-dir"),
    _type("launch tiny.yaml --run-dir", "--run-dir", "argument"),
    _type("launch --debugg tiny.yaml", "--debugg", "--help"),
    _type("resume", "DIR", "ebdiff resume --help"),
    _type("sample runs/done", "--out", "ebdiff sample --help"),
    _sample("-n 0", "--num-images = 0", "greater than or equal to 1"),
    _sample("-n five", "--num-images = five", "a whole number"),
    _sample("--steps 0", "--steps = 0", "greater than or equal to 1"),
    _sample("--batch-size -3", "--batch-size = -3", "greater than or equal to 1"),
    _sample("--class -1", "--class = -1", "greater than or equal to 0"),
    _sample("--guidance -2", "--guidance = -2", "greater than or equal to 0"),
    _sample("--dtype fp8", "--dtype = fp8", "'fp32', 'bf16', 'fp16'"),
    _sample("--workers 0", "--workers = 0", "greater than or equal to 1"),
    _sample("--stpes 5", "--stpes", "--steps"),
    _evaluate("-n 1", "--num-images = 1", "greater than or equal to 2"),
    _evaluate("--batch-size 0", "--batch-size = 0", "greater than or equal to 1"),
    _evaluate("--seed x", "--seed = x", "a whole number"),
    _type("compare", "RUN...", "ebdiff compare --help"),
    _type("compare runs/done --format xml", "--format = xml", "'table', 'markdown', 'csv', 'json'"),
    _type("plan tiny.yaml --gpus 0", "--gpus = 0", "greater than or equal to 1"),
    _type("plan tiny.yaml --gpus 2 --efficiency 2", "--efficiency = 2", "less than or equal to 1"),
    _type("estimate tiny.yaml --steps 1", "--steps = 1", "greater than or equal to 2"),
    _type("estimate tiny.yaml --images 0", "--images = 0", "greater than or equal to 1"),
    _type("estimate tiny.yaml --dense-steps 0", "--dense-steps = 0", "greater than or equal to 1"),
    _type("estimate tiny.yaml --draw-intervals 0", "--draw-intervals = 0", "greater than or equal to 1"),
    _type("tickets runs/done --last 1", "--last = 1", "greater than or equal to 2"),
    _type("status runs/done --jsn", "--jsn", "--json"),
)

RUNS = (
    *(
        _type(f"{command} {folder.replace(' ', '~')} {options}", folder, found)
        for command, options in (
            ("status", ""),
            ("status", "--json"),
            ("resume", ""),
            ("evaluate", ""),
            ("tickets", ""),
            ("compare", ""),
            ("extend", "--set training.steps=20"),
        )
        for folder, found in (
            ("nosuch", "no run here"),
            ("runs/empty", "no run here"),
            ("tiny.yaml", "This is a file: name"),
            ("runs/torn", "manifest.json"),
        )
    ),
    *(
        _type(f"status runs/{name.replace(' ', '~')}", name, "manifest.json")
        for name in ("of a newer version", "of an unknown field", "with a list", "with nothing")
    ),
    _type("status runs/with~a~folder", "with a folder", "no run here"),
    _type("launch tiny.yaml --run-dir tiny.yaml", "DIR = ", "a folder, and", "tiny.yaml is a file"),
    _type("launch tiny.yaml --run-dir tiny.yaml/new", "tiny.yaml/new: expected a folder", "tiny.yaml is a file"),
    _type("launch tiny.yaml --run-dir /proc/nowhere", "DIR = /proc/nowhere", "a folder"),
    *(
        _type(f"launch tiny.yaml --run-dir {folder}", "DIR = ", folder, name, "no run", "Give another --run-dir")
        for folder, name in (
            ("images/texts", "readme.txt"),
            ("mine/samples", "samples"),
            ("mine/ensemble", "ensemble"),
            ("mine/train", "train"),
            ("mine/partial", ".partial-mine"),
            ("mine/owners", ".owners/somebody.json"),
        )
    ),
    _type("launch tiny.yaml --run-dir runs/other", "runs/other", "seed: 1 -> 0", "another --run-dir"),
    _type("launch tiny.yaml --run-dir runs/done --set seed=5", "runs/done", "seed: 0 -> 5", "the old one is finished"),
    _type("launch tiny.yaml --run-dir runs/done --set training.steps=20", "training.steps: 12 -> 20", "ebdiff extend"),
    _type("launch tiny.yaml --run-dir runs/torn", "runs/torn", "manifest.json"),
    _type("launch tiny.yaml --run-dir new --reuse nosuch", "nosuch", "no run here"),
    _type("launch tiny.yaml --run-dir new --reuse runs/torn", "runs/torn", "manifest.json"),
    _type("extend runs/done --set seed=1", "seed: 0 -> 1", "training.steps"),
    _type("extend runs/done --set training.step=20", "training.step", "Did you mean training.steps?"),
    _type("extend runs/done --set training.steps=x", "training.steps = x", "a whole number"),
    _type("extend runs/done --set regions.9.steps=20", "regions.9", "a position from 0 to 2"),
    _type("extend runs/done", "--set", "training.steps"),
)

SAMPLE = (
    _type("sample nosuch --out new", "path = nosuch", "an ensemble"),
    _type("sample runs/empty --out new", "path = runs/empty", "an ensemble"),
    _type("sample runs/unfinished --out new", "path = runs/unfinished", "an ensemble", "unfinished"),
    _type("sample runs/without~weights --out new", "without weights", "safetensors"),
    _type("sample networks/good --out new", "networks/good", "an ensemble"),
    _type("sample runs/done --out runs", "--out = runs", "new or empty folder"),
    _type("sample runs/done --out runs/done/samples", "--out = runs/done/samples", "a folder of yours"),
    _type("sample runs/done --out tiny.yaml", "--out = tiny.yaml", "new or empty folder"),
    _type("sample runs/done --out tiny.yaml/new", "--out", "tiny.yaml/new", "folder"),
    _type("sample runs/done --out /proc/nowhere", "--out", "/proc/nowhere", "folder"),
    _type("sample runs/done --out s3://bucket/new", "--out = s3://bucket/new", "not a URL"),
    _type("export runs/done s3://bucket/new", "s3://bucket/new", "not a URL"),
    _sample("--steps 2000", "--steps = 2000", "at most 1000"),
    _sample("--class 3", "--class = 3", "no classes", "Leave it out"),
    _sample("--guidance 3", "--guidance = 3", "no classes"),
    _sample("--guidance nan", "--guidance = nan", "less than or equal to 1000"),
    _sample("--dtype fp16", "dtype = fp16", "fp32 or bf16"),
    _sample("--address auto", "--address", "--workers"),
    _sample("-n 4 --workers 5", "--workers = 5", "at most 1"),
)

EVALUATE = (
    _type("evaluate runs/unfinished", "runs/unfinished", "a finished run", "ebdiff resume"),
    _type("evaluate runs/without~weights", "without weights", "ebdiff resume"),
    _evaluate("--steps 2000", "--steps = 2000", "1 to 1000"),
    _evaluate("--extractor vgg", "--extractor", "vgg", "random-conv"),
    _evaluate(
        "--extractor random-conv --inception-weights tiny.yaml", "--inception-weights = tiny.yaml", "Leave it out"
    ),
    _evaluate("--guidance 3", "--guidance = 3", "no classes"),
    _evaluate("--guidance nan", "--guidance = nan", "less than or equal to 1000"),
    _evaluate("--inception-weights nosuch", "--inception-weights = nosuch", "a file"),
    _evaluate("--inception-weights images", "--inception-weights = images", "a file"),
    _evaluate("-n 4 --inception-weights tiny.yaml --here", "--inception-weights", "tiny.yaml", "Inception"),
    _evaluate(
        "-n 4 --inception-weights networks/good/diffusion_pytorch_model.safetensors --here",
        "--inception-weights",
        "networks/good",
        "Inception",
    ),
    _with_weights("--reference nosuch", "--reference", "nosuch", "a folder of images"),
    _with_weights("--reference images/empty", "--reference", "at least 2 images"),
    _with_weights("--reference images/broken", "--reference", "torn0.png", "an image"),
    _with_weights("--reference tiny.yaml", "--reference", "tiny.yaml", ".npz"),
    _with_weights("--reference-images 1", "--reference-images = 1", "2 to 1797"),
    _with_weights("--reference-images 5000", "--reference-images = 5000", "2 to 1797"),
    _with_weights(
        "--reference images/good --reference-images 5", "--reference and --reference-images", "Leave one out"
    ),
)

REPORTS = (
    _type("plan tiny.yaml --yaml --json", "--yaml", "Leave one out"),
    _type("plan tiny.yaml --gpus 2 --yaml", "--yaml", "Leave one out"),
    _type("plan tiny.yaml --measure", "--measure", "--gpus"),
    _type("plan tiny.yaml --efficiency 0.5", "--efficiency", "--gpus"),
    _type("plan tiny.yaml --gpus 2 --gpu-memory 4", "--gpu-memory = 4", "--measure"),
    _type("plan tiny.yaml --gpus 2 --efficiency nan", "--efficiency = nan", "a number"),
    _type("plan nosuch", "nosuch", "digits"),
    _type("study small --table --seeds 3", "--table: expected without --seeds", "Leave one out"),
    _type("study digits-eb", "STUDY = digits-eb: it is a plan", "ebdiff launch digits-eb"),
    _type("study tiny.yaml", "STUDY = tiny.yaml: it is a plan", "ebdiff launch tiny.yaml"),
    _type("doctor nosuch", "nosuch", "digits"),
    _type("plan tiny.yaml --set regions.0.pruning_ratio=2", "regions.0.pruning_ratio = 2", "less than 1"),
    _type(
        "estimate tiny.yaml --set draw.interval_steps=null --set data.path=images/good", "--images", "--images 50000"
    ),
    _type("estimate nosuch.yaml", "nosuch.yaml", "no such file"),
    _type("tickets runs/done --thresholds 0.1,x", "--thresholds = 0.1,x", "numbers"),
    _type("tickets runs/done --thresholds 0,0.1", "--thresholds", "over 0, up to 1"),
    _type("tickets runs/done --thresholds nan", "--thresholds = nan", "over 0, up to 1"),
    _type("tickets runs/done --queue-lengths 1,5", "--queue-lengths", "2 or more"),
    _type("tickets runs/done --queue-lengths 2.5", "--queue-lengths = 2.5", "whole numbers"),
    _type("tickets runs/done --strides 0", "--strides", "1 or more"),
    _type("tickets runs/done --strides ,", "--strides = ,", "whole numbers"),
    _type("tickets runs/done --plot tiny.yaml", "--plot = tiny.yaml", "ends in .png"),
    _type("report runs/done --out tiny.yaml", "--out = tiny.yaml", "ends in .html"),
    _type("tickets runs/done --out tiny.yaml", "--out = tiny.yaml", "a folder"),
    _type("tickets runs/done --out s3://bucket/new", "--out = s3://bucket/new", "not a URL"),
    _type("tickets runs/done --plot s3://bucket/new.png", "--plot = s3://bucket/new.png", "not a URL"),
    _type("tickets runs/done --against nosuch", "nosuch", "no run here"),
    _type("tickets runs/done --dense nosuch/nowhere/at-all", "--dense nosuch/nowhere/at-all", "check the path"),
    _type("tickets runs/done --dense runs/done", "--dense", "pruning_ratio 0"),
    _type("compare runs/done nosuch", "nosuch", "no run here"),
    _type("compare runs/done --against runs/other", "--against runs/other", "a dense run"),
    _type("compare runs/done --against nosuch", "nosuch", "no run here"),
)

_KEY = "AKIAKEY:very/secret+key@"
_LONG = "n" * 300


def _set_in(name: str, value: str, line: str, *says: str) -> Case:
    """A command line with a variable of the environment."""
    return Case(f"{name}={value[:20]} {line}", tuple(line.split()), (name, *says), environment=((name, value),))


HUGE = tuple(
    _type(f"{command} {option} 1{'0' * 30}", option, "less than or equal to")
    for command, options in (
        ("sample runs/done --out new", "--num-images --steps --batch-size --class --guidance --workers"),
        ("evaluate runs/done", "--num-images --steps --batch-size --guidance"),
        ("plan tiny.yaml", "--gpus"),
        ("plan tiny.yaml --gpus 2 --measure", "--gpu-memory"),
        ("estimate tiny.yaml", "--steps --images --dense-steps --draw-intervals --gpus"),
        ("tickets runs/done", "--last"),
        ("doctor tiny.yaml --run-dir new", "--nodes --wait"),
    )
    for option in options.split()
)
LAUNCH = "launch tiny.yaml --run-dir new"
SURROUNDINGS = (
    *(
        _type(f"{LAUNCH} --address {address}", f"--address = {address}", "HOST:PORT")
        for address in (
            "garbage",
            "http://127.0.0.1:8265",
            "x://y",
            "host:",
            "host:port",
            "host:123456",
            "user@host:1",
            "ray://",
        )
    ),
    _type("resume runs/unfinished --address garbage", "--address = garbage", "HOST:PORT"),
    _evaluate("--address garbage", "--address = garbage", "HOST:PORT"),
    _sample("-n 2 --workers 1 --address garbage", "--address = garbage", "HOST:PORT"),
    _set_in("RAY_ADDRESS", "garbage", LAUNCH, "RAY_ADDRESS = garbage", "HOST:PORT"),
    *(
        _set_in(name, folder, line, f"{name} = {folder[:50]}", says)
        for name in ("RAY_TMPDIR", "TMPDIR")
        for line in (LAUNCH, "resume runs/unfinished")
        for folder, says in (
            ("tiny.yaml", "a folder that can be made"),
            ("/proc/nowhere", "a folder that can be made"),
            ("long/" * 30, "sockets"),
            (_LONG, "at most 4000 bytes, and 255"),
        )
    ),
)

PLACES = (
    _type(f"launch tiny.yaml --run-dir s3://{_KEY}bucket/run", "DIR = s3://...@bucket/run", "the environment"),
    *(
        _type(f"{command} s3://{_KEY}bucket/run", "s3://...@bucket/run", "the environment")
        for command in ("status", "resume", "evaluate", "tickets", "compare")
    ),
    _type(f"{LAUNCH} --reuse gs://{_KEY}bucket/run", "gs://...@bucket/run", "the environment"),
    _type(f"launch tiny.yaml --run-dir {_LONG}", "nnn", "at most 4000 bytes, and 255"),
    *(
        _type(f"{command} {_LONG}", "nnn", "255")
        for command in ("status", "resume", "evaluate", "compare", "doctor tiny.yaml --run-dir")
    ),
    _type(f"sample {_LONG} --out new", "nnn", "255"),
    _type(f"sample runs/done --out {_LONG}", "nnn", "255"),
    _evaluate(f"--inception-weights {_LONG}", "nnn", "255"),
    _with_weights(f"--reference {_LONG}", "nnn", "255"),
    _evaluate("--inception-weights special/weights.safetensors", "--inception-weights", "a file"),
    _with_weights("--reference special/reference.npz", "--reference", "no regular file"),
)

CASES = (*PARSED, *RUNS, *SAMPLE, *EVALUATE, *REPORTS, *HUGE, *SURROUNDINGS, *PLACES)
