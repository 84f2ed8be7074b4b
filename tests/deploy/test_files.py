"""The files of deploy/ say what the service does: schemas, names, ports and metrics, checked without a cluster."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.metrics import Metrics, Norms
from app.settings import Settings
from tests.running import ROOT, need

DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES_VERSION = "1.32"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/alignet.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]  # type: ignore[no-any-return]


def kubernetes(kind: str) -> dict[str, Any]:
    (found,) = [d for f in KUBERNETES for d in yaml.safe_load_all(f.read_text()) if d["kind"] == kind]
    return found  # type: ignore[no-any-return]


def exported() -> dict[str, set[str]]:
    """Every metric of the service as it is scraped, with its labels."""
    metrics = Metrics()
    Norms(metrics.norm, "m", {"aligned": [[1.0]]}).observe({"aligned": [[1.0]]})  # type: ignore[dict-item]
    found = {}
    for family in metrics.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        labels = {name for sample in family.samples for name in sample.labels}
        owner = next((m for m in vars(metrics).values() if getattr(m, "_name", None) == family.name), None)
        labels |= set(getattr(owner, "_labelnames", ()))
        found |= {family.name + suffix: labels for suffix in suffixes}
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    return [t["expr"] for panel in PANELS for t in panel["targets"]] + [rule["expr"] for rule in rules()]


@pytest.mark.parametrize("query", queries())
def test_every_metric_and_label_that_is_asked_for_is_exported(query: str) -> None:
    known = exported()
    names = re.findall(r"\b(?:alignet|process)_\w+", query)
    assert names or query.startswith("up{")
    assert not set(names) - set(known)
    for name, selector in re.findall(r"\b((?:alignet|process)_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)=", selector)) <= known[name] | {"job", "instance"}
    grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", query) for label in by.split(",")}
    assert grouped <= {"le", "instance"}.union(*(known[name] for name in names))


def test_the_dashboard_shows_every_metric_of_the_service() -> None:
    shown = {name for p in PANELS for t in p["targets"] for name in re.findall(r"\balignet_\w+", t["expr"])}
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    ours = {family.name for family in Metrics().registry.collect() if family.name.startswith("alignet_")}
    assert ours - families == set()


def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    promtool = need("promtool")
    exprs = [
        t["expr"].replace("$__rate_interval", "1m").replace("$job", "alignet") for p in PANELS for t in p["targets"]
    ]
    assert len(exprs) > 20
    records = [{"record": f"panel:{i}", "expr": expr} for i, expr in enumerate(exprs)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_every_alert_has_its_case() -> None:
    promtool, folder = need("promtool"), DEPLOY / "prometheus"
    for command in (["check", "config", "prometheus.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    cases = (folder / "alerts_test.yaml").read_text()
    assert not [rule["alert"] for rule in rules() if f'alertname="{rule["alert"]}"' not in cases]


def test_the_dashboards_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        g = panel["gridPos"]
        mine = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        assert max(x for x, _ in mine) < 24
        assert not mine & cells, panel["title"]
        cells |= mine


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.name)
def test_manifests_fit_the_schemas_of_kubernetes(file: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in yaml.safe_load_all(file.read_text()):
        if document["kind"] == "Kustomization":
            assert {f.name for f in KUBERNETES} == {*document["resources"], file.name}
        else:
            validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_a_manifest_with_an_unknown_field_is_refused() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    deployment = kubernetes("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(deployment, KUBERNETES_VERSION, strict=True)


def test_the_pod_is_locked_down_and_outlives_its_drain() -> None:
    pod = kubernetes("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    slept = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > slept + Settings().drain_delay + Settings().drain_seconds
    # Kubernetes would set ALIGNET_PORT for the Service `alignet`, over the image's own.
    assert pod["enableServiceLinks"] is False
    # The pod must be out of the service before it drains.
    probe = container["readinessProbe"]
    assert slept > probe["periodSeconds"] * probe["failureThreshold"]


def test_probes_are_paths_of_the_api_on_the_port_of_the_image(client: Any) -> None:
    (container,) = kubernetes("Deployment")["spec"]["template"]["spec"]["containers"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    paths.add(kubernetes("Deployment")["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"])
    assert all(client.get(path).status_code == 200 for path in paths)
    (port,) = container["ports"]
    assert f"ALIGNET_PORT={port['containerPort']}" in (ROOT / "Dockerfile").read_text()
    assert kubernetes("Service")["spec"]["ports"][0]["targetPort"] == port["name"]


def test_every_selector_finds_the_pods() -> None:
    labels = kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert kubernetes("Service")["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert kubernetes(kind)["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert kubernetes("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "alignet"


def test_the_autoscaler_asks_for_a_metric_that_is_exported() -> None:
    (metric,) = kubernetes("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in exported()


def test_what_compose_mounts_is_there_and_what_it_builds_is_a_stage() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert {"cpu", "gpu", "triton-client"} <= stages
    for name, service in compose().items():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (DEPLOY / volume.split(":")[0]).exists(), (name, volume)
        if "build" in service:
            assert re.fullmatch(r"\$\{\w+:-(\w+)\}", service["build"]["target"])[1] in stages  # type: ignore[index]


def test_compose_locks_every_container_down_and_lets_it_drain() -> None:
    for name, service in compose().items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
    for name in ("alignet-1", "alignet-2"):
        replica = compose()[name]
        assert replica["read_only"]
        assert int(replica["stop_grace_period"].rstrip("s")) > Settings().drain_delay + Settings().drain_seconds


def test_every_variable_of_ours_in_deploy_is_a_setting() -> None:
    own = {"ALIGNET_BIND", "ALIGNET_SERVER_1", "ALIGNET_SERVER_2", "ALIGNET_TARGET", "ALIGNET_MODELS"}
    known = {f"ALIGNET_{name.upper()}" for name in Settings.model_fields} | own
    for file in (f for f in [*DEPLOY.rglob("*"), ROOT / "Dockerfile"] if f.is_file()):
        assert not set(re.findall(r"\bALIGNET_[A-Z0-9_]+", file.read_text())) - known, file


def test_prometheus_scrapes_the_replicas_that_compose_runs() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    (static,) = job["static_configs"]
    assert static["targets"] == [f"{name}:8000" for name in compose() if name.startswith("alignet-")]
    assert job["job_name"] == "alignet"
