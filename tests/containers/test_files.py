"""What images are made of, as far as it can be seen without building one; `test_images.py` builds and runs them."""

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
    """Those of the Containerfile, as (word, rest), with lines that go on joined."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage by its name, FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split(" AS ")[1]] = []
        if found:
            found[list(found)[-1]].append((word, rest))
    return found


def lock(path: Path) -> dict[str, set[str]]:
    """What a lock file holds: `name==version` → hashes and markers."""
    joined = path.read_text().replace("\\\n", " ")
    return {line.split()[0]: set(line.split()[1:]) for line in joined.splitlines() if line.strip()}


def test_every_word_of_the_containerfile_is_one_that_engines_know() -> None:
    known = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "WORKDIR"}

    assert {word for word, _ in instructions()} <= known


def test_what_the_containerfile_copies_is_there_and_is_sent_to_the_engine() -> None:
    """`.dockerignore` refuses everything and lets in what is named."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                for name in SETS:
                    assert (ROOT / source.replace("${SET}", name)).exists(), source
                assert source.split("/")[0] in let_in, source


def test_images_run_nothing_of_their_own_while_they_are_built() -> None:
    """So one for arm64 needs no emulation: only the stage that assembles runs commands, and it is of the machine that builds."""
    made = stages()

    assert [name for name, inside in made.items() if any(word == "RUN" for word, _ in inside)] == ["assembled"]
    assert made["assembled"][0] == ("FROM", "--platform=${BUILDPLATFORM} ${BUILD_BASE} AS assembled")


def test_images_have_a_user_without_rights_a_health_check_and_end_on_sigterm() -> None:
    made = stages()
    image = dict(made["image"])

    assert image["USER"] == "10001:10001"
    assert image["STOPSIGNAL"] == "SIGTERM"
    for name, port in (("node", 9464), ("region", 9465)):
        (start, _), (check, how) = made[name]
        assert (start, check) == ("FROM", "HEALTHCHECK")
        assert f"http://127.0.0.1:{port}/healthz" in how


def test_nothing_is_fetched_but_by_its_hash() -> None:
    """Not by the Containerfile, and not by what it runs."""
    for text in ((FOLDER / "Containerfile").read_text(), (FOLDER / "assemble.sh").read_text()):
        for command in re.findall(r"pip install (?:[^\n]*\\\n)*[^\n]*", text):
            assert "--no-deps" in command
            assert "--require-hashes" in command or "--no-build-isolation" in command, command
        assert not re.search(r"\b(curl|wget|apt-get|git)\b +-", text)


@pytest.mark.parametrize("name", [*SETS, "build"])
def test_an_image_has_what_the_lock_file_has(name: str) -> None:
    """The same versions and hashes, so that what was tested is what runs. (`make lock` writes both.)"""
    whole, part = lock(ROOT / "requirements.lock"), lock(FOLDER / "requirements" / f"{name}.lock")
    part = {package: rest for package, rest in part.items() if not package.startswith("uv==")}

    assert part
    assert {package: whole.get(package, set()) for package in part} == part
    uv = re.findall(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert name != "build" or f"uv=={uv[0]}" in lock(FOLDER / "requirements" / "build.lock")


@pytest.mark.parametrize(
    ("name", "extras"), [("onnx", ["onnx"]), ("openvino", ["onnx", "openvino"]), ("region", ["region"])]
)
def test_an_image_has_all_that_the_project_asks_for(name: str, extras: list[str]) -> None:
    """Or a new dependency would be missed only where the image runs."""
    projects = (
        [ROOT] if name == "region" else [ROOT, *(ROOT / "plugins" / one for one in ("vision", "audio", "signal"))]
    )
    asked = []
    for project in projects:
        told = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        asked += told["dependencies"]
        if project == ROOT:
            asked += [one for extra in extras for one in told["optional-dependencies"][extra]]
    wanted = {re.split(r"[^\w.-]", one)[0].lower().replace("_", "-").replace(".", "-") for one in asked} - {"hedgerow"}
    there = {package.partition("==")[0] for package in lock(FOLDER / "requirements" / f"{name}.lock")}

    assert not wanted - there, "run `make lock`"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_the_scripts_can_be_read_by_a_plain_shell(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env={"LC_ALL": "C"} | environment
    )


def test_without_an_engine_it_says_what_to_install(tmp_path: Path) -> None:
    for tool in ("sh", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    said = run(tmp_path / "sh", FOLDER / "build.sh", PATH=str(tmp_path))

    assert said.returncode == 1
    assert "error: images are built with podman, docker or buildah" in said.stderr
    assert "→ Install one: `apt-get install podman`" in said.stderr


def test_an_engine_whose_daemon_is_silent_is_not_taken(tmp_path: Path) -> None:
    """A docker command without a daemon is common."""
    for name, code in (("docker", 1), ("buildah", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sh").symlink_to(shutil.which("sh") or "")

    assert run("sh", FOLDER / "engine.sh", PATH=str(tmp_path)).stdout == "buildah\n"
    said = run("sh", FOLDER / "engine.sh", PATH=str(tmp_path), ENGINE="docker")
    assert said.returncode == 1
    assert "→ Run `docker info`" in said.stderr


def test_an_image_that_is_not_known_is_named(tmp_path: Path) -> None:
    (tmp_path / "podman").write_text("#!/bin/sh\n")
    (tmp_path / "podman").chmod(0o755)
    said = run("sh", FOLDER / "build.sh", "onyx", PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert said.returncode == 2
    assert "no image is called onyx" in said.stderr
    assert "onnx, openvino, region" in said.stderr


class _Probed(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_health_check_believes_only_a_good_answer() -> None:
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
    silent = run(*probe, f"{here}/healthz")
    assert silent.returncode == 1
    assert "does not answer" in silent.stderr


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", SETS)
def test_every_locked_package_has_a_wheel_for_the_architecture(name: str, machine: str, tmp_path: Path) -> None:
    """Of the very hashes in the lock file. It asks the package index, so it is slow."""
    said = run(
        Path(sys.executable).with_name("uv"), "pip", "install", "--dry-run", "--target", tmp_path, "--system-certs",
        "--python-version", "3.11", "--python-platform", f"{machine}-manylinux_2_36", "--require-hashes", "--no-deps",
        "--only-binary", ":all:", "-r", FOLDER / "requirements" / f"{name}.lock", **os.environ,
    )  # fmt: skip

    assert said.returncode == 0, said.stderr
    assert "+ numpy==" in said.stderr
