"""The operations kit before the tools that an operator checks such files with; each of them can fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from warrener.ml import MLSettings

ROOT = Path(__file__).parents[2]
KIT = ROOT / "examples" / "operations"

pytestmark = pytest.mark.full


def program(name: str) -> str:
    """A program of this environment, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here")
    return found


def passes(*command: str | Path, cwd: Path = KIT) -> str:
    """Run a tool that has to find nothing, and return what it printed."""
    done = subprocess.run(
        [program(str(command[0])), *map(str, command[1:])], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_image_is_built_as_it_should_be() -> None:
    """hadolint finds nothing; two stages, a user by number, and packages as locked."""
    passes("hadolint", KIT / "Dockerfile")
    lines = (KIT / "Dockerfile").read_text()
    assert len(re.findall(r"^FROM ", lines, re.MULTILINE)) == 2
    assert re.search(r"^USER \d+:\d+$", lines, re.MULTILINE)
    assert "PIP_CONSTRAINT=/build/requirements-dev.lock" in lines
    assert ":latest" not in lines


def test_what_the_image_is_built_from_is_in_its_context() -> None:
    """.dockerignore lets through what the Dockerfile copies, and nothing else."""
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (KIT / "Dockerfile").read_text(), re.MULTILINE)
    assert allowed == {name for line in copied for name in line.split()}


def pinned(text: str) -> dict[str, str]:
    """Return the version of each package that the text pins."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_image_s_program_can_be_built_and_runs(tmp_path: Path) -> None:
    """The build's steps in a folder, with nothing but what the context has: as locked, and with all that the service imports."""
    context, target = tmp_path / "build", tmp_path / "warrener"
    context.mkdir()
    dockerfile = (KIT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE):
        for name in line.split():
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, context / name)
    (command,) = re.findall(r"^RUN (.*)$", dockerfile, re.MULTILINE)
    (constraint,) = re.findall(r"PIP_CONSTRAINT=(\S+)", dockerfile)
    environment = {**os.environ, "PIP_CONSTRAINT": constraint.replace("/build", str(context)), "PYTHONPATH": ""}
    command = command.replace("/opt/warrener", str(target)).replace("python -m venv", f"{sys.executable} -m venv", 1)
    done = subprocess.run(
        ["sh", "-c", command], cwd=context, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    locked = pinned((ROOT / "requirements-dev.lock").read_text())
    frozen = subprocess.run(
        [target / "bin" / "pip", "freeze"], capture_output=True, text=True, check=True, env=environment
    )
    installed = pinned(frozen.stdout)
    assert installed
    assert {name: locked.get(name) for name in installed} == installed
    wrong = subprocess.run(
        [target / "bin" / "warrener", "serve"],
        env={"PATH": "", "PREFERRED_STT": "gpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (2, "warrener serve: preferred_stt must be") == (wrong.returncode, wrong.stderr[:37])


def test_compose_is_valid_and_confines_every_container() -> None:
    """The schema of compose; no capability, no new privilege, a read-only root, a bound on memory and processes."""
    passes("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    services = yaml.safe_load((KIT / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert not service["image"].endswith(":latest"), name
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_kubernetes_takes_the_objects() -> None:
    """Against the schemas of Kubernetes, strictly; and what a careful operator asks for beyond them."""
    passes("kubernetes-validate", "--strict", "kubernetes.yaml")
    objects = {each["kind"]: each for each in yaml.safe_load_all((KIT / "kubernetes.yaml").read_text())}
    assert {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"} == objects.keys()
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"requests", "limits"} == container["resources"].keys()
    assert {"startupProbe", "livenessProbe", "readinessProbe", "lifecycle"} <= container.keys()
    assert not container["image"].endswith(":latest")
    assert objects["PodDisruptionBudget"]["spec"]["minAvailable"] < objects["Deployment"]["spec"]["replicas"]


def test_the_service_admits_the_names_that_the_kit_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus and the clients ask by the names of compose and Kubernetes; others are turned away by default."""
    compose = yaml.safe_load((KIT / "compose.yaml").read_text())["services"]["producer"]["environment"]
    objects = {each["kind"]: each for each in yaml.safe_load_all((KIT / "kubernetes.yaml").read_text())}
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    pod = {each["name"]: each.get("value") for each in container["env"]}
    scraped = yaml.safe_load((KIT / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    for given, names in (
        (compose, tuple(target.partition(":")[0] for target in scraped)),
        (pod, (objects["Service"]["metadata"]["name"],)),
    ):
        monkeypatch.setenv("RABBITMQ_URL", "amqp://localhost/")
        monkeypatch.setenv("ML_PRODUCER_ALLOWED_HOSTS", given["ML_PRODUCER_ALLOWED_HOSTS"])
        assert MLSettings.load().allowed_hosts == names


def test_the_unit_may_do_little(tmp_path: Path) -> None:
    """systemd takes the unit, and rates what it may do with 2.0 at most."""
    unit = tmp_path / "warrener.service"
    # The program is not installed here, and systemd looks for it.
    unit.write_text(
        re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", (KIT / "warrener.service").read_text(), flags=re.MULTILINE)
    )
    passes("systemd-analyze", "verify", "--man=no", unit)
    rated = passes("systemd-analyze", "security", "--offline=yes", "--no-pager", unit)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", rated)
    assert exposure is not None, rated
    assert float(exposure[1]) <= 2.0


def test_wrong_settings_are_not_tried_again() -> None:
    """The status of wrong settings ends the unit; the status of having given up restarts it."""
    unit = (KIT / "warrener.service").read_text()
    assert re.findall(r"^Restart(?:PreventExitStatus)?=(.*)$", unit, re.MULTILINE) == ["on-failure", "2"]


def test_prometheus_takes_the_rules_and_they_fire() -> None:
    """promtool: the rules and the configuration parse, and alerts_test.yml holds."""
    passes("promtool", "check", "config", "prometheus.yml")
    passes("promtool", "test", "rules", "alerts_test.yml")


def test_prometheus_takes_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    """Each panel's expression parses, as a rule does."""
    dashboard = json.loads((KIT / "grafana" / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions)
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert rules
    passes("promtool", "check", "rules", file)


def test_the_workflows_are_sound() -> None:
    """The forge's schema, and zizmor's rules about what a workflow may be made to do."""
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    passes("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    passes("zizmor", "--offline", "--no-progress", ROOT / ".github")


def test_the_scripts_are_sound() -> None:
    """shellcheck finds nothing in the set-up."""
    passes("shellcheck", *sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run")
