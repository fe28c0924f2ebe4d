"""`make release`: wheels that anyone can build again, bills of materials, and a statement that shows any change."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from hedgerow.testing import processes
from hedgerow.trust.keys import make_key

ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "requirements.lock")
FOLDERS = ("runtime", "plugins", "containers", "release")
# An engine that "builds" nothing, and runs what it is given on this machine.
ENGINE = """#!/bin/sh
case "$1" in
info | pull | build) ;;
inspect) echo docker.io/library/python@sha256:{digest} ;;
save) echo "image $4" >"$3" ;;
run) shift; while [ "$1" != - ]; do shift; done; exec {python} "$@" ;;
*) exit 1 ;;
esac
"""


def tool(name: str) -> ModuleType:
    """Import a module of release/."""
    sys.path.insert(0, str(ROOT / "release"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "release"))


def copy_of_project(folder: Path) -> Path:
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "models", "dist")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def git(folder: Path, *words: str) -> None:
    who = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null"}
    processes.run(["git", "-C", folder, *words], env=environment, check=True, capture_output=True)


def run(name: str, *words: str | Path, **environment: str) -> processes.subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "release" / f"{name}.py", *words]
    return processes.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `project`, `dist`, `release.pem` and `release.pub`; an uncommitted file is in the project."""
    folder = tmp_path_factory.mktemp("release")
    project = copy_of_project(folder / "project")
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "All")
    (project / "runtime/hedgerow/left_over.py").write_text("")
    make_key(folder / "release.pem", None)
    (folder / "bin").mkdir()
    (folder / "bin/docker").write_text(ENGINE.format(python=sys.executable, digest="ab" * 32))
    (folder / "bin/docker").chmod(0o755)
    done = run(
        "build", "--repository", project, "--key", folder / "release.pem", "--out", folder / "dist",
        ENGINE="docker", PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def dist(made: Path, tmp_path: Path) -> Path:
    """A copy of the release, to be changed."""
    return shutil.copytree(made / "dist", tmp_path / "dist")


def test_a_release_is_verified_with_the_public_key_alone(made: Path) -> None:
    done = run("verify", made / "dist", made / "release.pub")

    assert done.returncode == 0, done.stdout
    assert "files, as signed" in done.stdout
    assert f"pkg:docker/docker.io/library/python {'ab' * 32}" in done.stdout
    wheels = {path.name.split("-")[0] for path in (made / "dist").glob("*.whl")}
    assert wheels == {"hedgerow", "hedgerow_vision", "hedgerow_audio", "hedgerow_signal"}


def test_a_release_is_made_of_the_commit_alone(made: Path) -> None:
    (wheel,) = (made / "dist").glob("hedgerow-*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    assert "hedgerow/node/node.py" in names
    assert "hedgerow/left_over.py" not in names
    assert any(name.endswith("licenses/NOTICE") for name in names)


def _replace_statement(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "provenance.dsse.json"
    envelope = json.loads(path.read_bytes())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    path.write_text(json.dumps(envelope))


def _append(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        path.write_bytes(path.read_bytes() + b"\n")

    return change


def _link(folder: Path) -> None:
    (folder / "NOTICE").rename(folder.parent / "NOTICE")
    (folder / "NOTICE").symlink_to(folder.parent / "NOTICE")


def _sign_with_another_key(folder: Path) -> None:
    make_key(folder.parent / "other.pem", None)
    envelope = json.loads((folder / "provenance.dsse.json").read_bytes())
    payload = base64.b64decode(envelope["payload"])
    private: Any = load_pem_private_key((folder.parent / "other.pem").read_bytes(), None)
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    envelope["signatures"] = [{"keyid": "", "sig": base64.b64encode(private.sign(signed)).decode()}]
    (folder / "provenance.dsse.json").write_text(json.dumps(envelope))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_append("hedgerow-*.whl"), "has been changed"),
        (_append("hedgerow_vision-*.cdx.json"), "has been changed"),
        (_append("hedgerow-onnx-*.tar"), "has been changed"),
        (_append("LICENSE"), "has been changed"),
        (lambda folder: (folder / "NOTICE").unlink(), "NOTICE is missing"),
        (lambda folder: (folder / "hedgerow_extra-1.0-py3-none-any.whl").write_bytes(b""), "not in the statement"),
        (_link, "no regular file"),
        (lambda folder: (folder / "provenance.dsse.json").unlink(), "missing or no DSSE envelope"),
        (lambda folder: (folder / "provenance.dsse.json").write_text("{}"), "missing or no DSSE envelope"),
        (lambda folder: _replace_statement(folder, lambda each: each["subject"].pop()), "not signed with this key"),
        (_sign_with_another_key, "not signed with this key"),
    ],
    ids=["wheel", "bom", "image", "licence", "missing", "added", "link", "no-envelope", "empty", "statement", "other-key"],
)  # fmt: skip
def test_a_changed_release_is_refused(made: Path, dist: Path, change: Callable[[Path], None], said: str) -> None:
    change(dist)
    verify = tool("verify")

    with pytest.raises(verify.NotVerifiedError, match=said):
        verify.verify(dist, (made / "release.pub").read_bytes())


def test_wheels_are_the_same_wherever_they_are_built(made: Path, tmp_path: Path) -> None:
    project = copy_of_project(tmp_path / "elsewhere")
    for path in project.rglob("*"):
        path.chmod(0o700 if path.is_dir() or path.stat().st_mode & 0o100 else 0o600)
        os.utime(path, (1, 1))
    shown = processes.run(
        ["git", "-C", made / "project", "log", "-1", "--format=%ct"], capture_output=True, text=True, check=True
    )
    wheels = tool("build").build_wheels(project, tmp_path / "again", int(shown.stdout))

    assert len(wheels) == 4
    for wheel in wheels:
        assert wheel.read_bytes() == (made / "dist" / wheel.name).read_bytes(), wheel.name


def test_each_file_has_a_bill_of_materials_with_its_digest(made: Path) -> None:
    dist, sha256 = made / "dist", tool("build").sha256
    subjects = [*dist.glob("*.whl"), *dist.glob("*.tar")]
    assert len(subjects) == 7
    for path in subjects:
        document = json.loads(path.with_name(f"{path.name}.cdx.json").read_bytes())
        assert document["specVersion"] == "1.6"
        assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": sha256(path)}]
    node = json.loads(next(dist.glob("hedgerow-0*.cdx.json")).read_bytes())
    assert "pkg:pypi/pydantic" in {each["purl"] for each in node["components"]}
    image = json.loads(next(dist.glob("hedgerow-onnx*.cdx.json")).read_bytes())
    purls = {each["purl"].partition("@")[0] for each in image["components"]}
    assert "pkg:pypi/numpy" in purls
    if Path("/var/lib/dpkg/status").exists():
        assert "pkg:deb/debian/base-files" in purls


def test_a_release_needs_a_key_and_an_empty_folder(made: Path, tmp_path: Path) -> None:
    missing = run("build", "--repository", made / "project", "--key", tmp_path / "no.pem", "--out", tmp_path / "dist")
    assert missing.returncode == 1
    assert "cannot be read" in missing.stderr
    full = run("build", "--key", made / "release.pem", "--out", made / "dist")
    assert full.returncode == 2
    assert "is not empty" in full.stderr


def test_a_release_may_be_signed_by_a_token(
    made: Path, tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, verify = tool("build"), tool("verify")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/file").write_text("x")
    secrets = build.Secrets(pins=["1234"])
    content = build.statement(tmp_path / "dist", "0" * 40, [], build.datetime.now(build.UTC))
    (tmp_path / "dist" / verify.ENVELOPE).write_bytes(build.sign(content, token, secrets))

    verify.verify(tmp_path / "dist", build._pem(token, secrets))
    with pytest.raises(verify.NotVerifiedError):
        verify.verify(tmp_path / "dist", (made / "release.pub").read_bytes())


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the images have Python 3.11; other versions lock other packages"
)
def test_notice_has_the_licence_of_everything_in_the_images() -> None:
    notice = tool("notice").notice()

    assert (ROOT / "NOTICE").read_text("utf-8") == notice, "run `make notice`"
    assert "numpy" in notice
    assert "psycopg" in notice


def test_an_index_without_advisories_is_not_a_clean_bill() -> None:
    judge = tool("audit").judge
    skipped = {"name": "a", "skip_reason": "not found on PyPI"}
    clean: dict[str, Any] = {"name": "b", "version": "1", "vulns": []}
    bad = {"name": "c", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}

    assert "no advisories" in judge([skipped])[2]
    assert judge([clean]) == ([], [], "")
    assert judge([clean, bad, skipped]) == (["c 1: PYSEC-1, mended in 2"], ["a: not found on PyPI"], "")


def test_public_keys_of_both_kinds_are_read(tmp_path: Path) -> None:
    make_key(tmp_path / "k.pem", None)
    private: Any = load_pem_private_key((tmp_path / "k.pem").read_bytes(), None)
    expected = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    build = tool("build")
    assert build._pem(str(tmp_path / "k.pem"), build.Secrets()) == expected
