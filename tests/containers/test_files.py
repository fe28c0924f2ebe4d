"""The files in containers/, checked without building an image; `test_images.py` builds and runs them."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
SETS = ("onnx", "openvino", "region")


def instructions() -> list[tuple[str, str]]:
    """Return the Containerfile's instructions as (word, rest), with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage by name, FROM first."""
    by_name: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            by_name[rest.split(" AS ")[1]] = []
        if by_name:
            by_name[list(by_name)[-1]].append((word, rest))
    return by_name


def lock(path: Path) -> dict[str, set[str]]:
    """Read a lock file: `name==version` → hashes and markers."""
    joined = path.read_text().replace("\\\n", " ")
    return {line.split()[0]: set(line.split()[1:]) for line in joined.splitlines() if line.strip()}


def test_the_containerfile_uses_only_known_instructions() -> None:
    known = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "WORKDIR"}

    assert {word for word, _ in instructions()} <= known


def test_files_copied_by_the_containerfile_exist_and_are_not_ignored() -> None:
    """`.dockerignore` excludes everything except the listed names."""
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                for name in SETS:
                    assert (ROOT / source.replace("${SET}", name)).exists(), source
                assert source.split("/")[0] in included, source


def test_building_an_image_runs_none_of_its_programs() -> None:
    """So arm64 needs no emulation: only the assembling stage runs commands, on the build machine's architecture."""
    by_name = stages()

    assert [name for name, inside in by_name.items() if any(word == "RUN" for word, _ in inside)] == ["assembled"]
    assert by_name["assembled"][0] == ("FROM", "--platform=${BUILDPLATFORM} ${BUILD_BASE} AS assembled")


def test_images_have_an_unprivileged_user_a_health_check_and_stop_on_sigterm() -> None:
    by_name = stages()
    image = dict(by_name["image"])

    assert image["USER"] == "10001:10001"
    assert image["STOPSIGNAL"] == "SIGTERM"
    for name, port in (("node", 9464), ("region", 9465)):
        (start, _), (check, how) = by_name[name]
        assert (start, check) == ("FROM", "HEALTHCHECK")
        assert f"http://127.0.0.1:{port}/healthz" in how


def test_everything_is_fetched_by_hash() -> None:
    """Neither by the Containerfile nor by the scripts it runs."""
    for text in ((FOLDER / "Containerfile").read_text(), (FOLDER / "assemble.sh").read_text()):
        for command in re.findall(r"pip install (?:[^\n]*\\\n)*[^\n]*", text):
            assert "--no-deps" in command
            assert "--require-hashes" in command or "--no-build-isolation" in command, command
        assert not re.search(r"\b(curl|wget|apt-get|git)\b +-", text)


@pytest.mark.parametrize("name", [*SETS, "build"])
def test_an_images_lock_matches_the_projects_lock(name: str) -> None:
    """The same versions and hashes, so that the tested packages run. (`make lock` writes both.)"""
    whole, part = lock(ROOT / "requirements.lock"), lock(FOLDER / "requirements" / f"{name}.lock")
    part = {package: rest for package, rest in part.items() if not package.startswith("uv==")}

    assert part
    assert {package: whole.get(package, set()) for package in part} == part
    uv = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert name != "build" or f"uv=={uv[0]}" in lock(FOLDER / "requirements" / "build.lock")


@pytest.mark.parametrize(
    ("name", "extras"), [("onnx", ["onnx"]), ("openvino", ["onnx", "openvino"]), ("region", ["region"])]
)
def test_an_images_lock_has_all_dependencies(name: str, extras: list[str]) -> None:
    """Otherwise a missing dependency would show only when the image runs."""
    projects = (
        [ROOT] if name == "region" else [ROOT, *(ROOT / "plugins" / one for one in ("vision", "audio", "signal"))]
    )
    requirements = []
    for project in projects:
        table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        requirements += table["dependencies"]
        if project == ROOT:
            requirements += [one for extra in extras for one in table["optional-dependencies"][extra]]
    names = {re.split(r"[^\w.-]", one)[0].lower().replace("_", "-").replace(".", "-") for one in requirements}
    locked = {package.partition("==")[0] for package in lock(FOLDER / "requirements" / f"{name}.lock")}

    assert not names - {"hedgerow"} - locked, "run `make lock`"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_the_scripts_are_valid_posix_shell(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env={"LC_ALL": "C"} | environment
    )


def test_without_an_engine_the_error_says_what_to_install(tmp_path: Path) -> None:
    for tool in ("sh", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    result = run(tmp_path / "sh", FOLDER / "build.sh", PATH=str(tmp_path))

    assert result.returncode == 1
    assert "error: images are built with podman, docker or buildah, but none of them is installed" in result.stderr
    assert "→ Install one: `apt-get install podman`" in result.stderr


def test_an_engine_without_a_daemon_is_not_used(tmp_path: Path) -> None:
    """The docker command is often installed without a running daemon."""
    for name, code in (("docker", 1), ("buildah", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sh").symlink_to(shutil.which("sh") or "")

    assert run("sh", FOLDER / "engine.sh", PATH=str(tmp_path)).stdout == "buildah\n"
    result = run("sh", FOLDER / "engine.sh", PATH=str(tmp_path), ENGINE="docker")
    assert result.returncode == 1
    assert "error: installed but not working: docker" in result.stderr
    assert "→ Run `docker info`" in result.stderr


def test_an_unknown_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "podman").write_text("#!/bin/sh\n")
    (tmp_path / "podman").chmod(0o755)
    result = run("sh", FOLDER / "build.sh", "onyx", PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert result.returncode == 2
    assert "unknown image onyx" in result.stderr
    assert "onnx, openvino or region" in result.stderr


class _Probed(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_health_check_accepts_only_status_200() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Probed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    probe = (sys.executable, "-I", "-S", FOLDER / "probe.py")
    try:
        assert run(*probe, f"{here}/healthz").returncode == 0
        assert run(*probe, f"{here}/readyz").returncode == 1
    finally:
        server.shutdown()
        server.server_close()
    stopped = run(*probe, f"{here}/healthz")
    assert stopped.returncode == 1
    assert "does not respond" in stopped.stderr


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", SETS)
def test_every_locked_package_has_a_wheel_for_the_architecture(name: str, machine: str, tmp_path: Path) -> None:
    """Wheels match the hashes in the lock file. Queries the package index, so it is slow."""
    result = run(
        Path(sys.executable).with_name("uv"), "pip", "install", "--dry-run", "--target", tmp_path, "--system-certs",
        "--python-version", "3.11", "--python-platform", f"{machine}-manylinux_2_36", "--require-hashes", "--no-deps",
        "--only-binary", ":all:", "-r", FOLDER / "requirements" / f"{name}.lock", **os.environ,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert "+ numpy==" in result.stderr


ENGINE = """#!/bin/sh
case "$1 $2" in
    "image inspect") echo "sha256:$(printf '%064d' 7)" ;;
esac
"""


@pytest.mark.parametrize(
    ("base", "warned"), [(None, True), ("python:3.11", True), (f"python@sha256:{'0' * 64}", False)]
)
def test_a_build_prints_digests_and_warns_of_a_base_named_by_tag(
    tmp_path: Path, base: str | None, warned: bool
) -> None:
    """With an engine that only says what it would."""
    (tmp_path / "podman").write_text(ENGINE)
    (tmp_path / "podman").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("BASE", "SSL_CERT_FILE")}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENGINE": "podman"} | ({"BASE": base} if base else {})
    done = subprocess.run(
        ["sh", FOLDER / "build.sh", "onnx", "openvino"], env=environment, capture_output=True, text=True, check=True
    )

    digest = f"sha256:{'0' * 63}7"
    assert f"localhost/hedgerow:onnx: localhost/hedgerow@{digest}\n" in done.stdout
    assert f"localhost/hedgerow:latest: localhost/hedgerow@{digest}\n" in done.stdout
    assert ("is named by a tag" in done.stderr) is warned
