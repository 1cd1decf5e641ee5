"""Plans that are no plans: unreadable files, YAML that is none, names of nothing, changes that change nothing."""

from harness import Case

_BOMB = "".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"]
    + [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)]
)


def _launch(name: str, plan: str, *says: str) -> Case:
    return Case(name, ("launch", plan, "--run-dir", "new"), says)


def _file(name: str, content: str | bytes, *says: str) -> Case:
    return Case(name, ("launch", "plan.yaml", "--run-dir", "new"), ("plan.yaml", *says), content)


def _set(*changes: str, says: tuple[str, ...], plan: str | None = None) -> Case:
    options = [part for change in changes for part in ("--set", change)]
    argv = ("launch", "plan.yaml" if plan else "tiny.yaml", "--run-dir", "new", *options)
    return Case(f"set {' '.join(changes)}", argv, says, plan)


NAMES = (
    _launch("an unknown preset", "nosuch", "nosuch", "digits", "cifar10"),
    _launch("a misspelt preset", "cifar01", "cifar01", "Did you mean cifar10?"),
    _launch("a preset in capitals", "DIGITS", "DIGITS", "digits"),
    _launch("an unknown method", "cifar10-magic", "cifar10-magic", "cifar10-eb"),
    _launch(
        "opposite methods", "cifar10-eb-dense", "cifar10-eb-dense", "but eb and dense both set regions", "Leave one"
    ),
    _launch("widths of what is not pruned", "digits-rigl-slim", "but rigl and slim both set sparsity", "Leave one"),
    _launch("a misspelt method", "cifar10-spede", "cifar10-spede", "Did you mean cifar10-speed?"),
    _launch("a study's name as plan", "small", "PLAN = small: it is a study", "ebdiff study small"),
    _launch("a method without a preset", "eb", "eb", "preset"),
    _launch("a file that is not there", "nosuch.yaml", "nosuch.yaml", "no such file"),
    _launch("a folder as plan", "images", "images", "a folder"),
    _launch("a folder with a plan's suffix", "runs/empty", "runs/empty", "a folder"),
    _launch("an image as plan", "images/single.png", "images/single.png", "UTF-8"),
    _launch("weights as plan", "networks/good/diffusion_pytorch_model.safetensors", "safetensors", "UTF-8"),
    _launch("a table as plan", "tables/good.parquet", "tables/good.parquet", "UTF-8"),
    _launch("a device as plan", "/dev/null.yaml", "/dev/null.yaml", "no such file"),
    _launch("a run's manifest as plan", "runs/done/manifest.json", "created_at", "a key that plans have"),
    _launch("a prose file as plan", "a file", "a file", "mapping"),
    _launch("nothing as plan", "", "PLAN", "a folder"),
    _launch("a pipe as plan", "special/plan.yaml", "special/plan.yaml", "no regular file"),
    _launch("a plan of a long name", "n" * 300, "path = nnn", "at most 255 bytes"),
    _launch("a plan of a name that is no text", "\udcff.yaml", ".yaml", "no such file"),
)

FILES = (
    _file("an empty file", "", "mapping"),
    _file("only comments", "# nothing yet\n", "mapping"),
    _file("a list", "- training\n- sampling\n", "mapping"),
    _file("a number", "5\n", "mapping"),
    _file("a study as plan", "rows: [{label: a, plan: digits}]\n", "it is a study", "ebdiff study plan.yaml"),
    _file("an open bracket", "regions: [{train: [0, 1000]\n", "valid YAML", "line"),
    _file("a tab for indentation", "training:\n\tsteps: 5\n", "valid YAML", "\\t"),
    _file("a colon in a value", "data: {path: C:\\images: 1}\n", "data"),
    _file("indentation that does not fit", "training:\n    steps: 5\n  batch_size: 8\n", "valid YAML", "line 3"),
    _file("a key that stands twice", "training: {steps: 5}\ntraining: {batch_size: 8}\n", "training stands twice"),
    _file("a key that stands twice in a section", "training:\n  steps: 5\n  steps: 6\n", "steps stands twice"),
    _file("two documents", "seed: 1\n---\nseed: 2\n", "valid YAML", "single document"),
    _file("a binary file", bytes(range(256)), "UTF-8"),
    _file("an encoding of Windows", "name: Größe\n".encode("latin-1"), "UTF-8"),
    _file("UTF-16", "seed: 1\n".encode("utf-16"), "UTF-8"),
    _file("a null character", "seed: \x00\n", "valid YAML"),
    _file("a number as key", "5: 3\n", "5", "text"),
    _file("a number as key of a section", "training: {5: 3}\n", "training.5", "text"),
    _file("null as key", "~: 3\n", "text"),
    _file("a list as key", "? [a, b]\n: 3\n", "valid YAML"),
    _file("a Python object", "seed: !!python/object/apply:os.system ['true']\n", "valid YAML", "python/object"),
    _file("an unknown tag", "seed: !gpu 5\n", "valid YAML", "!gpu"),
    _file("a date that there is not", "seed: 2026-13-45\n", "month must be in 1..12"),
    _file("a date as seed", "seed: 2026-01-01\n", "seed = 2026-01-01", "a whole number"),
    _file("a number of five thousand digits", f"seed: {'9' * 5000}\n", "5000 digits"),
    _file("a number of many hexadecimal digits", f"seed: 0x{'f' * 5000}\n", "seed", "a number of 20000 bits"),
    _file("an alias of nothing", "seed: *later\n", "valid YAML", "later"),
    _file("anchors that explode", _BOMB, "valid YAML", "unfold"),
    _file("an anchor within itself", "data: &data\n  crop: *data\n", "valid YAML", "contains itself"),
    _file("brackets within brackets", f"seed: {'[' * 5000}{']' * 5000}\n", "deep"),
    _file("a file of two million characters", "# " + "x" * 2_000_000, "characters", "smaller"),
    _file("an unknown base", "base: nosuch\n", "base = nosuch", "preset"),
    _file("a base that is a number", "base: 5\n", "base = 5", "preset"),
    _file("a base that is itself", "base: plan.yaml\n", "base = plan.yaml", "another YAML file"),
    _file("a base that is a folder", "base: images\n", "base = images", "a folder"),
    _file("a base that is no plan", "base: 'a file'\n", "base = a file", "mapping"),
    _file("a base that is a pipe", "base: special/plan.yaml\n", "base = special/plan.yaml", "no regular file"),
    _file("a base outside with a mistake", "base: digits\ntraining: {steps: none}\n", "training.steps", "whole number"),
)

CHANGES = (
    _set("training.steps", says=("--set training.steps", "key=value")),
    _set("=5", says=("--set =5", "key=value")),
    _set("training.steps 5", says=("--set training.steps 5", "key=value")),
    _set("", says=("--set", "key=value")),
    _set("training.steps==5", says=("training.steps = =5", "whole number")),
    _set("training.steps=[1", says=("--set training.steps=[1", "valid YAML")),
    _set("training.steps={a: 1", says=("--set training.steps={a: 1", "valid YAML")),
    _set("training.steps=", says=("training.steps = null", "whole number")),
    _set("seed=1", "seed.high=1", says=("--set seed.high=1", "seed is a single value", "section")),
    _set("regions.9.pruning_ratio=0.5", says=("regions.9", "a position from 0 to 2")),
    _set("regions.-1.pruning_ratio=0.5", says=("regions.-1", "a position from 0 to 2")),
    _set("regions.first.pruning_ratio=0.5", says=("regions.first", "a position from 0 to 2")),
    _set("regions.0.train.2=5", says=("regions.0.train.2", "a position from 0 to 1")),
    _set("regions.0=5", says=("regions.0 = 5", "section")),
    _set("regions.0.train=[0, 100]", says=("regions.1.train", "have no region")),
    _set("training..steps=5", says=("training.", "a key that plans have")),
    _set(".=5", says=("a key that plans have",)),
    _set("TRAINING.STEPS=5", says=("TRAINING", "a key that plans have")),
    _set("training.steps =5", says=("training.steps", "Did you mean training.steps?")),
    _set("training=5", "training.steps=7", says=("training is a single value", "section")),
    _set("seed=2026-02-31", says=("--set seed=2026-02-31", "day is out of range")),
    _set(f"seed={'9' * 5000}", says=("seed", "5000 digits")),
    _set("regions.0.pruning_ratio=0.5", says=("regions", "section"), plan="regions: 5\n"),
    _set("regions.0.steps=5", says=("regions.0 is a single value", "section"), plan="regions: [5]\n"),
    Case("change nothing", ("launch", "tiny.yaml", "--set"), ("--set", "argument")),
)

CASES = (*NAMES, *FILES, *CHANGES)
