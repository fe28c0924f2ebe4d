"""Deployment of sites and regions: minimal privileges, and the same settings in all three forms."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from tests.topology.conftest import BASE

from hedgerow.config import MetricsSection
from hedgerow.configfile import BadConfigFile
from hedgerow.region.config import RegionConfig
from hedgerow.region.config import load as load_region
from hedgerow.topology.check import loose_images
from hedgerow.topology.k3s import named
from hedgerow.topology.load import load
from hedgerow.topology.render import render

ROOT = Path(__file__).parents[2]
PLACES = ("shop-12", "shop-13", "shop-14", "retail")
UID = re.search(r"^USER (\S+)$", (ROOT / "containers" / "Containerfile").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {str(path): text for path, text in render(load(ROOT / "configs" / "topology.yaml")).items()}


def compose(texts: dict[str, str], place: str) -> dict[str, Any]:
    services: dict[str, Any] = YAML(typ="safe").load(texts[f"{place}/compose.yaml"])["services"]
    return services


def quadlet(text: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    return unit


def manifests(text: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(text))


@pytest.mark.parametrize("place", PLACES)
def test_containers_run_with_minimal_privileges(texts: dict[str, str], place: str) -> None:
    for name, service in compose(texts, place).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"\d+m", service["mem_limit"])
        assert int(service["user"].split(":")[0]) > 0
        assert service["healthcheck"]["test"][0] == "CMD"
        written = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
        assert len(written) == 1, "only its state is writable"
        assert written[0].startswith("/var/lib/hedgerow/")


@pytest.mark.parametrize("place", PLACES)
def test_quadlet_units_match_the_compose_file(texts: dict[str, str], place: str) -> None:
    for name, service in compose(texts, place).items():
        unit = quadlet(texts[f"{place}/quadlet/hedgerow-{name}.container"])["Container"]
        assert unit["ReadOnly"] == unit["NoNewPrivileges"] == "true"
        assert unit["DropCapability"] == "all"
        assert f"{unit['User']}:{unit['Group']}" == service["user"]
        assert unit["Exec"].split() == service["command"]
        assert unit["Image"] == service["image"]
        assert f"--memory={service['mem_limit']}" in unit["PodmanArgs"]
        assert f"--stop-timeout={service['stop_grace_period'].rstrip('s')}" in unit["PodmanArgs"]
        assert unit["HealthCmd"].split() == service["healthcheck"]["test"][1:]
        for volume in service["volumes"]:
            assert f"\nVolume={volume}\n" in texts[f"{place}/quadlet/hedgerow-{name}.container"]


def test_nodes_and_the_regions_service_notify_systemd(texts: dict[str, str]) -> None:
    for path in ("shop-14/quadlet/hedgerow-office.container", "retail/quadlet/hedgerow-region.container"):
        unit = quadlet(texts[path])
        assert unit["Container"]["Notify"] == "true"
        assert unit["Container"]["Environment"] == f"WATCHDOG_USEC={unit['Service']['WatchdogSec']}000000"
    for path in ("shop-14/systemd/hedgerow-office.service", "retail/systemd/hedgerow-region.service"):
        assert "Type=notify\n" in texts[path]
        assert "WatchdogSec=60\n" in texts[path]
    assert "ExecReload=/bin/kill -HUP $MAINPID\n" in texts["shop-14/systemd/hedgerow-office.service"]
    assert "ExecReload" not in texts["retail/systemd/hedgerow-region.service"], "SIGHUP would terminate it"


def test_containers_run_as_the_user_of_the_image(texts: dict[str, str]) -> None:
    assert UID is not None
    assert compose(texts, "shop-12")["gateway"]["user"] == UID[1]
    assert f"chown -R {UID[1]} /var/lib/hedgerow/shop-12/gateway" in texts["shop-12/README.md"]


def test_the_regions_configuration_is_valid_and_its_probe_matches(texts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "region.yaml").write_text(texts["retail/service/region.yaml"])
    config = load_region(tmp_path / "region.yaml")

    assert config.region.name == "retail"
    assert config.metrics == RegionConfig().metrics == MetricsSection(port=9465)
    service = compose(texts, "retail")["region"]
    assert service["healthcheck"]["test"] == ["CMD", "probe", f"http://127.0.0.1:{config.metrics.port}/healthz"]
    assert service["volumes"][-1].split(":")[0] == str(Path(config.store.url).parent)


@pytest.mark.parametrize(
    ("metrics", "probe"),
    [
        ("{port: 9000}", "http://127.0.0.1:9000/healthz"),
        ("{port: 9000, host: 0.0.0.0}", "http://127.0.0.1:9000/healthz"),
        ("{port: 9000, host: '::'}", "http://[::1]:9000/healthz"),
        ("{port: 9000, host: 10.0.0.7}", "http://10.0.0.7:9000/healthz"),
        ("{port: 0}", None),
        ("{enabled: false}", None),
    ],
)
def test_a_nodes_probe_matches_its_metrics_address(tmp_path: Path, metrics: str, probe: str | None) -> None:
    (tmp_path / "base.yaml").write_text(BASE.replace("metrics: {port: 0}", f"metrics: {metrics}"))
    files_ = rendered(tmp_path, "region: {name: north, broker: r}\npipelines: base.yaml\n")

    check = compose(files_, "hall")["a"]["healthcheck"]
    unit = quadlet(files_["hall/quadlet/hedgerow-a.container"])["Container"]["HealthCmd"]
    assert (check.get("test"), unit) == ((["CMD", "probe", probe], f"probe {probe}") if probe else (None, "none"))


def rendered(folder: Path, text: str) -> dict[str, str]:
    if not (folder / "base.yaml").exists():
        (folder / "base.yaml").write_text(BASE)
    (folder / "t.yaml").write_text(text + "sites: {hall: {broker: h, nodes: [a]}}\n")
    return {str(path): content for path, content in render(load(folder / "t.yaml")).items()}


def test_a_region_with_an_external_broker_renders_only_its_service(tmp_path: Path) -> None:
    files_ = rendered(tmp_path, "region: {name: north, broker: r, external: true}\npipelines: base.yaml\n")

    assert list(compose(files_, "north")) == ["region"]
    assert "north/mosquitto.conf" not in files_
    assert [one["kind"] for one in manifests(files_["north/k3s.yaml"])] == [
        "Namespace", "ConfigMap", "StatefulSet", "NetworkPolicy",
    ]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_manifests_are_consistent(texts: dict[str, str], place: str) -> None:
    """Every volume is mounted, every name exists, the configuration matches its file, and there are no secrets."""
    objects = manifests(texts[f"{place}/k3s.yaml"])
    assert {one["kind"] for one in objects} == {"Namespace", "ConfigMap", "StatefulSet", "NetworkPolicy"}
    maps = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    assert "PRIVATE KEY" not in texts[f"{place}/k3s.yaml"]
    for stateful in (one for one in objects if one["kind"] == "StatefulSet"):
        pod = stateful["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert stateful["spec"]["replicas"] == 1
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert container["livenessProbe"]
        volumes = {one["name"]: one for one in pod["volumes"]} | {"state": {}}
        mounted = {one["name"]: one for one in container["volumeMounts"]}
        assert mounted.keys() == volumes.keys()
        assert all(one.get("readOnly") for name, one in mounted.items() if name not in ("state", "tmp"))
        assert volumes["config"]["configMap"]["name"] in maps
        for volume in volumes.values():
            if "secret" in volume:
                assert f"create secret generic {volume['secret']['secretName']} " in texts[f"{place}/README.md"]
    for name, data in maps.items():
        for file, text in data.items():
            beside = [one for path, one in texts.items() if PurePosixPath(path).name == file and path.startswith(place)]
            assert text in beside, (name, file)


def pods(text: str) -> dict[str, dict[str, Any]]:
    """Return the pods of a manifest by the name of their set."""
    found = {}
    for one in manifests(text):
        if one["kind"] == "StatefulSet":
            found[one["metadata"]["name"]] = one["spec"]["template"]["spec"]
    return found


def test_a_node_mounts_only_the_files_it_reads(tmp_path: Path) -> None:
    """Not those of the other nodes of its site, in any of the three forms."""
    for name in ("m.onnx", "other.onnx", "net.xml", "net.bin", "unused.onnx"):
        (tmp_path / name).write_bytes(b"model")
    (tmp_path / "base.yaml").write_text("models: {m: {path: m.onnx}, net: {path: net.xml}}\n" + BASE)
    (tmp_path / "t.yaml").write_text(
        "region: {name: north, broker: r}\npipelines: base.yaml\nsites: {hall: {broker: h, nodes: {a: , "
        "b: {override: {models: {m: {path: other.onnx}, net: null}}}}}}\n"
    )
    texts = {str(path): text for path, text in render(load(tmp_path / "t.yaml")).items()}
    folder = "/etc/hedgerow/hall/nodes"
    reads = {"a": ["a.yaml", "m.onnx", "net.xml", "net.bin"], "b": ["b.yaml", "other.onnx"]}
    for node, names in reads.items():
        expected = [f"{folder}/{name}:{folder}/{name}:ro" for name in names]
        own = [f"/etc/hedgerow/pki/hall/issued/{node}:/etc/hedgerow/pki/hall/issued/{node}:ro"]
        state = [f"/var/lib/hedgerow/hall/{node}:/var/lib/hedgerow/hall/{node}"]
        assert compose(texts, "hall")[node]["volumes"] == expected + own + state
        pod = pods(texts["hall/k3s.yaml"])[f"hall-{node}"]
        files = [one["hostPath"] for one in pod["volumes"] if "hostPath" in one]
        assert files == [{"path": f"{folder}/{name}", "type": "File"} for name in names[1:]]
        mounted = [one["mountPath"] for one in pod["containers"][0]["volumeMounts"]]
        assert mounted[: len(names)] == [f"{folder}/{name}" for name in names]


ENROLS = """\
region: {name: north, broker: r, enrolment_port: 1, roles: {collector: [collector]}}
pipelines: base.yaml
sites: {hall: {broker: h, enrolment_port: 2, nodes: {a: {enrols: true}, b: }}}
"""


@pytest.fixture(scope="module")
def enrolling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("enrols")
    (folder / "m.onnx").write_bytes(b"model")
    (folder / "base.yaml").write_text("models: {m: {path: m.onnx}}\n" + BASE)
    (folder / "t.yaml").write_text(ENROLS)
    return {str(path): text for path, text in render(load(folder / "t.yaml")).items()}


def test_a_node_that_enrols_has_all_in_the_folder_that_it_writes_to(enrolling: dict[str, str]) -> None:
    """Its root file system is read-only, and it has no certificate from elsewhere, in any of the forms."""
    state = "/var/lib/hedgerow/hall/a"
    service = compose(enrolling, "hall")["a"]
    assert (service["command"], service["volumes"]) == (["node", "run", f"{state}/node.yaml"], [f"{state}:{state}"])
    assert service["read_only"]
    unit = quadlet(enrolling["hall/quadlet/hedgerow-a.container"])["Container"]
    assert (unit["Exec"], unit["Volume"], unit["ReadOnly"]) == (
        f"node run {state}/node.yaml",
        f"{state}:{state}",
        "true",
    )
    system = quadlet(enrolling["hall/systemd/hedgerow-a.service"])["Service"]
    assert system["ExecStart"].endswith(f"node run {state}/node.yaml")
    assert (system["ReadWritePaths"], system["Restart"]) == (state, "always")

    pod = pods(enrolling["hall/k3s.yaml"])["hall-a"]
    (enrol,), (node,) = pod["initContainers"], pod["containers"]
    assert enrol["args"] == ["enrol", "/run/claim/claim", "--state", state]
    assert (enrol["image"], enrol["securityContext"]) == (node["image"], node["securityContext"])
    assert node["securityContext"]["readOnlyRootFilesystem"]
    assert [one["mountPath"] for one in node["volumeMounts"]] == [state, "/tmp"]
    claim, tmp = pod["volumes"]
    assert (claim["secret"]["secretName"], claim["secret"]["optional"], tmp["name"]) == ("hall-a-claim", True, "tmp")
    kinds = [(one["kind"], one["metadata"]["name"]) for one in manifests(enrolling["hall/k3s.yaml"])]
    assert ("ConfigMap", "hall-a") not in kinds
    assert ("ConfigMap", "hall-b") in kinds
    (policy,) = (
        one for one in manifests(enrolling["hall/k3s.yaml"])
        if (one["kind"], one["metadata"]["name"]) == ("NetworkPolicy", "hall-a")
    )  # fmt: skip
    assert {rule["port"] for rule in policy["spec"]["egress"][1]["ports"]} == {8883, 2, 1}
    assert "hall-a-claim --from-file=claim=claim.txt" in enrolling["hall/README.md"]
    assert f"hedgerow enrol claim.txt --state {state}" in enrolling["hall/README.md"]


@pytest.mark.parametrize("large", [False, True])
def test_the_regions_pod_has_what_nodes_get_that_enrol(
    enrolling: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, large: bool
) -> None:
    """In its ConfigMap; what is too large for one, from the machine's folder."""
    if large:
        monkeypatch.setattr("hedgerow.topology.k3s._MOST_CONFIG_BYTES", 1000)
        (tmp_path / "base.yaml").write_text(BASE)
        (tmp_path / "t.yaml").write_text(ENROLS)
        texts = {str(path): text for path, text in render(load(tmp_path / "t.yaml")).items()}
    else:
        texts = enrolling
    (config,) = (
        one for one in manifests(texts["north/k3s.yaml"])
        if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", "north-region")
    )  # fmt: skip
    pod = pods(texts["north/k3s.yaml"])["north-region"]
    path = "/etc/hedgerow/north/service/places.json"
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["mountPath"] == path)

    assert mount["subPath"] == "places.json"
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    if large:
        assert volume["hostPath"] == {"path": "/etc/hedgerow/north/service", "type": "Directory"}
        assert list(config["data"]) == ["region.yaml"]
    else:
        assert config["data"]["places.json"].strip() == texts["north/service/places.json"].strip()


def test_a_file_whose_name_a_container_could_not_mount_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m:x.onnx").write_bytes(b"model")
    (tmp_path / "base.yaml").write_text('models: {m: {path: "m:x.onnx"}}\n' + BASE)
    with pytest.raises(BadConfigFile, match=r"'m:x\.onnx' has the character ':'"):
        rendered(tmp_path, "region: {name: north, broker: r}\npipelines: base.yaml\n")


@pytest.mark.parametrize("place", PLACES)
def test_each_workload_has_a_policy_and_no_privileges(texts: dict[str, str], place: str) -> None:
    objects = manifests(texts[f"{place}/k3s.yaml"])
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    assert "0.0.0.0" not in texts[f"{place}/k3s.yaml"]
    workloads = [one for one in objects if one["kind"] == "StatefulSet"]
    assert policies.keys() == {one["metadata"]["name"] for one in workloads}
    for one in workloads:
        spec = one["spec"]["template"]
        policy, pod = policies[one["metadata"]["name"]], spec["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= spec["metadata"]["labels"].items()
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        for rule in (*policy["ingress"], *policy["egress"]):
            assert rule["ports"], "an empty list would allow all ports"
            assert all(isinstance(port["port"], int) for port in rule["ports"])
        (container,) = pod["containers"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        assert not any("hostPort" in port for port in container.get("ports", ()))
        inside = container["securityContext"]
        assert (inside["runAsNonRoot"], inside["allowPrivilegeEscalation"], inside["privileged"]) == (
            True,
            False,
            False,
        )
        if one["metadata"]["labels"]["app.kubernetes.io/component"] != "broker":
            assert "hostNetwork" not in pod
            (metrics,) = policy["ingress"]
            assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"hedgerow/metrics": "allowed"}}}]
            assert metrics["ports"] == [{"port": container["livenessProbe"]["httpGet"]["port"], "protocol": "TCP"}]
            address = next(value for value in container["env"] if value["name"] == "POD_IP")
            assert address["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
            hosts = [value["value"] for value in container["env"] if value["name"].endswith("METRICS__HOST")]
            assert [*hosts, *container["args"]].count("$(POD_IP)") == 1


def test_the_policy_of_a_node_allows_its_broker_and_the_web_only_if_it_fetches_models_there(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    egress = {}
    for origins in ("", ", origins: ['https://models.example/x']"):
        (tmp_path / "base.yaml").write_text(
            f"fleet: {{root_file: root.json{origins}}}\nmodels: {{m: {{path: 'bundle:m'}}}}\n" + BASE
        )
        text = rendered(tmp_path, "region: {name: north, broker: 'r:8884'}\npipelines: base.yaml\n")["hall/k3s.yaml"]
        policies = {one["metadata"]["name"]: one["spec"] for one in manifests(text) if one["kind"] == "NetworkPolicy"}
        egress[bool(origins)] = [port["port"] for rule in policies["hall-a"]["egress"] for port in rule["ports"]]
        assert [port["port"] for port in policies["hall-broker"]["egress"][1]["ports"]] == [8884]
    assert egress == {False: [53, 53, 8883], True: [53, 53, 8883, 443]}


def test_images_named_by_tag_are_a_remark(tmp_path: Path) -> None:
    digest = "@sha256:" + "0" * 64
    images = {"broker_image": "a/b:1", "node_image": f"a/c:1{digest}", "region_image": f"registry.lan:5000/d{digest}"}
    base = "region: {name: north, broker: r}\npipelines: base.yaml\n"
    machine = ", ".join(f"{name}: '{image}'" for name, image in images.items())
    rendered(tmp_path, f"{base}machine: {{{machine}}}\n")
    assert loose_images(load(tmp_path / "t.yaml").topology) == ["machine.broker_image"]


@pytest.mark.parametrize(
    "image", ["", "a b", "a:", "a@sha256:12", "-a", "a//b", "a/", "a:b:c", "http://a/b", "a\n", "a/B"]
)
def test_what_is_no_image_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(BadConfigFile, match="NAME@sha256:DIGEST"):
        rendered(
            tmp_path, f"region: {{name: n, broker: r}}\npipelines: base.yaml\nmachine: {{node_image: {image!r}}}\n"
        )


def test_a_region_with_models_stores_them_beside_its_database_and_nodes_get_the_root(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    (tmp_path / "base.yaml").write_text("fleet: {root_file: root.json}\nmodels: {m: {path: 'bundle:m'}}\n" + BASE)
    files_ = rendered(tmp_path, "region: {name: north, broker: r}\npipelines: base.yaml\nmodels: true\n")
    (tmp_path / "region.yaml").write_text(files_["north/service/region.yaml"])
    config = load_region(tmp_path / "region.yaml")

    assert config.models.repository == Path(config.store.url).parent / "models"
    assert load(tmp_path / "t.yaml").models["hall"] == {Path("root.json"): tmp_path / "root.json"}


def test_manifests_are_valid_for_kubernetes(texts: dict[str, str]) -> None:
    """Validated by its own schemas, with unknown keys refused."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate, with schemas of 100 MB, is not installed"
    )
    for place in PLACES:
        for one in manifests(texts[f"{place}/k3s.yaml"]):
            validate.validate(one, validate.latest_version(), strict=True)


@pytest.mark.skipif(shutil.which("podman-compose") is None, reason="podman-compose is not installed")
def test_compose_files_are_valid_for_compose(texts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(texts["shop-14/compose.yaml"])
    subprocess.run(["podman-compose", "config"], cwd=tmp_path, check=True, capture_output=True)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(st.lists(st.tuples(names, names), min_size=2, max_size=2, unique=True))
def test_object_names_are_valid_for_kubernetes_and_unique(pairs: list[tuple[str, str]]) -> None:
    first, second = (named(*pair) for pair in pairs)

    for name in (first, second):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
        assert len(name) <= 48
    plain = {"-".join(pair) for pair in pairs}
    assert first != second or len(plain) == 1
