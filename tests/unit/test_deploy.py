"""What is in deploy/ fits what reads it: KubeRay's and Kubernetes' fields, Docker's rules, and this project's own."""

import copy
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ebdiff_orchestrator.plans.load import load_plan
from region_workers.storage.run_files import local_folder

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"
KUBERNETES = "1.33"
CRD = ROOT.parent / "shared/kuberay/ray.io_rayjobs.yaml"  # KubeRay's helm-chart/kuberay-operator/crds has it

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEMPLATE = {"type": "object", "required": ["spec"]}  # Kubernetes' own schema looks at what is in it


def _fields(required: str = "", **fields: Any) -> dict[str, Any]:
    """An object of exactly these fields."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


# The fields of KubeRay 1.7's ray.io/v1 RayJob that are used here, after its API reference; any other is refused.
_WHOLE, _TEXT, _YES = {"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}, {"type": "boolean"}
_GROUP = {"rayStartParams": _STRINGS, "template": _TEMPLATE}
RAYJOB = _fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_fields("name", name={"type": "string", "pattern": r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}),
    spec=_fields(
        "entrypoint rayClusterSpec",
        entrypoint=_TEXT,
        backoffLimit=_WHOLE,
        submitterConfig=_fields(backoffLimit=_WHOLE),
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=_YES,
        ttlSecondsAfterFinished=_WHOLE,
        submitterPodTemplate=_TEMPLATE,
        rayClusterSpec=_fields(
            "rayVersion headGroupSpec",
            rayVersion=_TEXT,
            authOptions=_fields(mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
            headGroupSpec=_fields("template", **_GROUP),
            workerGroupSpecs={
                "type": "array",
                "items": _fields(
                    "groupName template minReplicas maxReplicas",
                    groupName=_TEXT,
                    replicas=_WHOLE,
                    minReplicas=_WHOLE,
                    maxReplicas=_WHOLE,
                    **_GROUP,
                ),
            },
        ),
    ),
)


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _patched(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """A RayJob with a folder's values put in, as kustomize does."""
    job = copy.deepcopy(job)
    for change in _load(KUBERAY / folder / "values.yaml"):
        *above, last = change["path"].strip("/").split("/")
        target: Any = job
        for part in above:
            target = target[int(part) if isinstance(target, list) else part]
        place = int(last) if isinstance(target, list) else last
        if change["op"] != "add":
            target[place]  # there is something to replace or remove
        if change["op"] == "remove":
            del target[place]
        else:
            target[place] = copy.deepcopy(change["value"])
    return job


BASE = _load(KUBERAY / "base" / "rayjob.yaml")
GPU = _patched(BASE, "gpu")
JOBS = {"base": BASE, "gpu": GPU, "bucket": _patched(GPU, "bucket")}


def _templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": job["spec"]["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **workers}


def _pods(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, template in _templates(job).items():
        yield name, template["spec"]


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_the_rayjob_has_kuberay_s_fields_and_no_others(kind: str) -> None:
    jsonschema.validate(JOBS[kind], RAYJOB)


def test_a_misspelt_field_would_be_found() -> None:
    job = copy.deepcopy(GPU)
    job["spec"]["rayClusterSpec"]["authOption"] = job["spec"]["rayClusterSpec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(job, RAYJOB)


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_its_pods_and_the_volume_are_what_kubernetes_accepts(kind: str) -> None:
    for template in _templates(JOBS[kind]).values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    kubernetes_validate.validate(_load(KUBERAY / "volume.yaml"), KUBERNETES, strict=True)


@pytest.mark.skipif(not CRD.is_file(), reason=f"KubeRay's published schema is not at {CRD}")
@pytest.mark.parametrize("kind", sorted(JOBS))
def test_the_rayjob_fits_the_published_schema(kind: str) -> None:
    versions = yaml.load(CRD.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    jsonschema.validate(JOBS[kind], _strict(schema))


def _strict(schema: Any) -> Any:
    """A structural schema that refuses what the API server would drop."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    return strict


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("kind", sorted(JOBS))
def test_kustomize_puts_the_values_in_as_these_tests_do(kind: str) -> None:
    build = ["kubectl", "kustomize", KUBERAY / kind]
    built = subprocess.run(build, capture_output=True, text=True, timeout=60, check=True)
    assert yaml.safe_load(built.stdout) == JOBS[kind]


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_a_retry_makes_no_new_cluster_and_the_cluster_ends_with_the_job(kind: str) -> None:
    spec = JOBS[kind]["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["submitterConfig"]["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True  # without it KubeRay refuses the time to live
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 0


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_ray_asks_for_a_token_and_nobody_wrote_one_down(kind: str) -> None:
    cluster = JOBS[kind]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    for name, pod in _pods(JOBS[kind]):
        for container in pod["containers"]:
            named = [variable["name"] for variable in container.get("env", ())]
            assert not [variable for variable in named if re.search("TOKEN|SECRET|PASSWORD|KEY", variable)], name


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_no_container_runs_as_root_or_can_become_it(kind: str) -> None:
    for name, pod in _pods(JOBS[kind]):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == _user_of_the_image(), name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_every_node_has_one_image_and_the_tested_ray(kind: str) -> None:
    images = {container["image"] for _, pod in _pods(JOBS[kind]) for container in pod["containers"]}
    assert len(images) == 1
    assert not images.pop().endswith(":latest")
    assert JOBS[kind]["spec"]["rayClusterSpec"]["rayVersion"] == _pinned()["ray"]


@pytest.mark.parametrize("kind", ["base", "gpu"])
def test_the_run_lies_on_a_volume_that_head_and_workers_share(kind: str) -> None:
    volume = _load(KUBERAY / "volume.yaml")
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    run_dir = _run_dir(JOBS[kind])
    for name, pod in _pods(JOBS[kind]):
        if name == "submitter":
            continue
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        (shared,) = [path for volume_name, path in mounts.items() if volume_name in claims]
        assert run_dir.startswith(f"{shared}/"), name
        assert set(claims.values()) == {volume["metadata"]["name"]}, name


def test_a_run_in_a_bucket_needs_no_volume_and_its_credentials_come_from_a_secret() -> None:
    assert local_folder(_run_dir(JOBS["bucket"])) is None
    for name, pod in _pods(JOBS["bucket"]):
        if name != "submitter":
            assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume], name
            assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {"cache"}, name
            assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "ebdiff-bucket"}}], name


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_a_stopped_job_has_time_to_save_before_its_pods_are_killed(kind: str) -> None:
    head = _templates(JOBS[kind])["head"]["spec"]
    waits = {v["name"]: v["value"] for v in head["containers"][0]["env"]}
    assert 120 < int(waits["RAY_JOB_STOP_WAIT_TIME_S"]) < head["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("kind", ["gpu", "bucket"])
def test_the_values_for_gpus_give_every_worker_one(kind: str) -> None:
    worker = _templates(JOBS[kind])["regions"]["spec"]
    resources = worker["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"


def test_deleting_a_run_leaves_the_volume() -> None:
    for folder in JOBS:
        resources = _load(KUBERAY / folder / "kustomization.yaml")["resources"]
        assert not [name for name in resources if "volume" in name]


def test_the_image_starts_from_a_digest_and_from_the_tested_python() -> None:
    base = dict(word.split("=", 1) for kind, word in _instructions() if kind == "ARG" and "=" in word)["BASE"]
    assert re.fullmatch(r"python:3\.11[\w.-]*@sha256:[0-9a-f]{64}", base)
    assert "Python 3.11" in (DEPLOY / "constraints.txt").read_text().splitlines()[0]
    assert [text for kind, text in _instructions() if kind == "FROM"] == ["${BASE}"]


def test_the_image_runs_as_a_numbered_user_and_leaves_the_command_to_kuberay() -> None:
    kinds = [kind for kind, _ in _instructions()]
    assert _user_of_the_image() > 0
    assert "ENTRYPOINT" not in kinds
    assert kinds.index("USER") > max(i for i, (kind, text) in enumerate(_instructions()) if "pip install" in text)


def test_every_package_in_the_image_is_pinned() -> None:
    installs = [line for _, text in _instructions() for line in re.findall(r"pip install[^&]*", text)]
    assert [any(word in line for word in ("--require-hashes", "--constraint")) for line in installs] == [
        True,
        True,
        False,
    ]
    assert all("--no-deps" in line for line in installs)
    assert "--no-build-isolation /opt/ebdiff" in installs[-1], "what builds it would come unchecked"


def test_the_image_holds_no_secret_and_only_what_is_let_in() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert not re.search(r"(TOKEN|SECRET|PASSWORD)\s*=", text)
    let_in = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [word for kind, words in _instructions() if kind == "COPY" for word in words.split()[:-1]]
    assert sorted(let_in) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_s_commands_are_valid_shell() -> None:
    for kind, text in _instructions():
        if kind == "RUN":
            subprocess.run(["sh", "-n", "-c", text], check=True, timeout=10)


def test_the_lock_holds_what_pyproject_asks_for_in_the_constraints_versions_and_the_hash_of_each() -> None:
    lines = [line for line in (DEPLOY / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    locked = {canonicalize_name(match[1]): match[2] for match in found if match}
    assert len(locked) == len(lines)
    assert locked.items() <= {canonicalize_name(name): version for name, version in _pinned().items()}.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [Requirement(text) for text in project["project"]["dependencies"] + project["build-system"]["requires"]]
    for each in needed:
        assert each.specifier.contains(locked[canonicalize_name(each.name)]), each


def _run_dir(job: dict[str, Any]) -> str:
    """Where the job's entrypoint, which must be a launch of a plan that there is, keeps its run."""
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["ebdiff", "launch"]
    load_plan(words[2])
    return words[words.index("--run-dir") + 1]


def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, comments left out and continued lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(kind, text.strip()) for kind, _, text in (line.partition(" ") for line in joined.splitlines() if line)]


def _user_of_the_image() -> int:
    *_, user = [text for kind, text in _instructions() if kind == "USER"]
    return int(user.split(":")[0])


def _pinned() -> dict[str, str]:
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)
