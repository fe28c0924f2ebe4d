"""`setup.sh`, called by the Makefile: it completes interrupted runs and names missing packages.

Most tests use a fake Python that creates an environment of stand-ins quickly; one kills the real one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from hedgerow.testing import processes

ROOT = Path(__file__).parents[1]
TOOLS = "bash basename cat cp dirname env flock grep head id make mkdir mv nproc rm sh sha256sum tr"
# Runs -c and -V like Python, and records other calls as steps. At the step named in $STOP it kills its process group,
# waits for the pipe, or fails.
PYTHON = r"""#!/bin/sh
case "$1" in
-c) [ -n "$BARE" ] && [ "$2" = 'import ensurepip, venv' ] && exit 1
    [ -n "$VERSION" ] && exec {python} -c "import sys; sys.version_info = ($VERSION, 0); $2"
    exec {python} -c "$2" ;;
-V) echo "Python ${{VERSION:-3.11}}" | tr , . ; exit ;;
esac
step=$2
[ "$2" = pip ] && [ "$0" != .venv/bin/uv ] && step=uv
[ "$0" = .venv/bin/uv ] && case "$*" in *.lock*) step=packages ;; *) step=project ;; esac
echo "$step" >>steps
[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
[ "$STOP" = "kill $step" ] && kill -9 0
[ "$STOP" = "wait $step" ] && read -r _ <pipe
[ "$STOP" = "fail $step" ] && exit 1
[ $step = uv ] && cp "$0" .venv/bin/uv
[ $step = hedgerow_signal.train ] && mkdir -p .venv/models && echo model >"$3"
exit 0
"""
STEPS = ["venv", "uv", "packages", "project", "hedgerow_signal.train"]


class Checkout:
    """A copy of the files that set-up needs, and a folder with the only programs on its PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.programs = folder / "programs"
        self.programs.mkdir()
        for tool in TOOLS.split():
            found = shutil.which(tool)
            assert found, tool
            (self.programs / tool).symlink_to(found)
        self.program("python3", PYTHON.format(python=sys.executable))
        for name in ("mosquitto", "mosquitto_sub", "npm", "faketime", "softhsm2-util", "curl"):
            self.program(name, "#!/bin/sh\n")
        for path in ("Makefile", "setup.sh", "pyproject.toml", "requirements.lock", "requirements-demo.lock"):
            self._copy(path)
        for path in ROOT.glob("plugins/*/pyproject.toml"):
            self._copy(path.relative_to(ROOT).as_posix())

    def _copy(self, path: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, self.folder / path)

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.unlink(missing_ok=True)  # it may be a link to the real program
        path.write_text(text)
        path.chmod(0o755)

    def without(self, *names: str) -> None:
        for name in names:
            (self.programs / name).unlink()

    def start(self, goal: str, *words: str, **environment: str) -> subprocess.Popen[str]:
        return processes.start(
            [self.programs / "make", "--no-print-directory", goal, *words],
            cwd=self.folder,
            env={"PATH": str(self.programs)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def make(self, goal: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(goal, *words, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def steps(self) -> list[str]:
        """Return the steps since the last call."""
        path = self.folder / "steps"
        steps = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return steps


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_complete_set_up_is_not_repeated(checkout: Checkout) -> None:
    assert checkout.make("ready-for-demo").returncode == 0
    assert checkout.steps() == STEPS
    assert (checkout.folder / "configs/models/vibration.onnx").read_text() == "model\n"

    again = checkout.make("ready-for-demo")

    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.steps() == []


def test_setting_up_for_tests_completes_the_demos_set_up(checkout: Checkout) -> None:
    checkout.make("ready-for-demo")
    checkout.steps()

    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps() == [*STEPS[2:], "hedgerow_vision.fetch_ssd"]
    assert checkout.make("ready-for-demo").returncode == 0
    assert checkout.steps() == []


@pytest.mark.parametrize("step", [*STEPS, "hedgerow_vision.fetch_ssd"])
def test_a_set_up_killed_at_any_step_is_repeated(checkout: Checkout, step: str) -> None:
    assert checkout.make(".venv/.ready", STOP=f"kill {step}").returncode == -signal.SIGKILL
    assert checkout.steps()[-1] == step
    (checkout.folder / ".venv" / "half-written").touch()

    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps() == [*STEPS, "hedgerow_vision.fetch_ssd"]
    assert not (checkout.folder / ".venv" / "half-written").exists()


def test_a_new_lock_file_is_installed_in_place_unless_killed(checkout: Checkout) -> None:
    checkout.make("ready-for-demo")
    with (checkout.folder / "requirements-demo.lock").open("a") as lock:
        lock.write("# newer\n")
    checkout.steps()

    checkout.make("ready-for-demo", STOP="kill packages")
    assert checkout.steps() == ["packages"]
    checkout.make("ready-for-demo")
    assert checkout.steps() == STEPS


def test_a_model_that_cannot_be_fetched_is_skipped_and_retried(checkout: Checkout) -> None:
    fetch = "hedgerow_vision.fetch_ssd"
    result = checkout.make(".venv/.ready", STOP=f"fail {fetch}")
    assert result.returncode == 0
    assert "Tests that use this model will be skipped." in result.stdout
    checkout.steps()

    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps()[-1] == fetch
    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps() == []


@pytest.mark.parametrize("what", ["gone", "upgraded", "moved"])
def test_an_environment_with_another_python_or_folder_is_recreated(checkout: Checkout, what: str) -> None:
    checkout.make("ready-for-demo")
    checkout.steps()
    python = checkout.folder / ".venv" / "bin" / "python"
    environment = {}
    if what == "gone":
        python.unlink()
        python.symlink_to("/usr/bin/python3.0")
    elif what == "upgraded":
        environment = {"VERSION": "3,99"}
    else:
        checkout.folder = checkout.folder.rename(checkout.folder.with_name("elsewhere"))

    assert "Recreating .venv: " in checkout.make("ready-for-demo", **environment).stdout
    assert checkout.steps() == STEPS


def test_an_activated_environment_is_not_used_to_create_itself(checkout: Checkout) -> None:
    checkout.make("ready-for-demo", STOP="kill packages")
    python = checkout.folder / ".venv" / "bin" / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    checkout.steps()

    assert checkout.make("ready-for-demo", PATH=f"{python.parent}:{checkout.programs}").returncode == 0
    assert checkout.steps() == STEPS


def test_a_second_set_up_waits_for_the_first(checkout: Checkout) -> None:
    os.mkfifo(checkout.folder / "pipe")
    first = checkout.start("ready-for-demo", STOP="wait packages")
    with (checkout.folder / "pipe").open("w") as pipe:  # opens when the first reads from it
        second = checkout.start("ready-for-demo")
        assert second.stdout is not None
        assert second.stdout.readline() == "Waiting for another set-up of this folder…\n"
        pipe.write("\n")
    first.communicate(timeout=60)
    second.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (0, 0)
    assert checkout.steps() == STEPS


# Records its arguments, unless it inherits the lock: the broker that its package starts would hold it.
APT = '#!/bin/sh\n[ ! -e /proc/self/fd/9 ] && echo "$@" >>apt\n'


def test_the_demo_does_not_install_optional_packages(checkout: Checkout) -> None:
    checkout.program("apt-get", APT)
    checkout.program("id", "#!/bin/sh\necho 0\n")
    checkout.without("npm", "faketime", "softhsm2-util", "curl")

    assert checkout.make("ready-for-demo").returncode == 0
    assert not (checkout.folder / "apt").exists()

    assert checkout.make(".venv/.ready").returncode == 0
    update, install = (checkout.folder / "apt").read_text().splitlines()
    assert update == "update -qq"
    assert {"npm", "faketime", "softhsm2", "curl"} <= set(install.split())
    assert not {"mosquitto", "python3-venv"} & set(install.split())


@pytest.mark.parametrize("means", ["no apt-get", "no sudo", "no rights"])
def test_packages_that_cannot_be_installed_are_named_before_anything_is_done(checkout: Checkout, means: str) -> None:
    checkout.without("mosquitto_sub")
    checkout.program("id", "#!/bin/sh\necho 1000\n")
    if means != "no apt-get":
        checkout.program("apt-get", APT)
    if means != "no sudo":
        checkout.program("sudo", "#!/bin/sh\nexit 1\n")

    result = checkout.make("ready-for-demo", BARE="1")

    assert result.returncode != 0
    assert "These packages are missing: python3-venv mosquitto-clients." in result.stderr
    assert "As root: apt-get update && apt-get install python3-venv mosquitto-clients" in result.stderr
    assert checkout.steps() == []
    assert not (checkout.folder / "apt").exists()


def test_missing_optional_packages_are_named(checkout: Checkout) -> None:
    checkout.without("npm", "faketime")

    result = checkout.make(".venv/.ready")

    assert result.returncode == 0
    message = re.search(
        r"^Tests that use (.*) will be skipped\. .*: apt-get update && apt-get install (.*)$", result.stdout, re.M
    )
    assert message
    assert {"npm", "faketime"} <= set(message[1].split())
    assert message[1] == message[2]
    assert checkout.steps() == STEPS


def test_a_python_that_is_too_old_is_reported_before_anything_is_done(checkout: Checkout) -> None:
    checkout.program("apt-get", APT)
    checkout.without("mosquitto_sub")

    result = checkout.make("ready-for-demo", VERSION="3,10")

    assert result.returncode != 0
    message, remedy, *_ = result.stderr.splitlines()
    assert message == "error: Hedgerow needs Python 3.11 or later; python3 is Python 3.10."
    assert "make demo PYTHON=" in remedy
    assert checkout.steps() == []
    assert not (checkout.folder / "apt").exists()


def packages(path: Path) -> dict[str, str]:
    """Read a lock file: `name==version ; marker` → hashes."""
    joined = path.read_text().replace("\\\n", " ")
    return {line.partition(" --hash")[0].strip(): line for line in joined.splitlines() if "==" in line}


def test_the_demos_lock_matches_the_tests_lock() -> None:
    """The same versions and hashes. (`make lock` writes both.)"""
    whole, part = packages(ROOT / "requirements.lock"), packages(ROOT / "requirements-demo.lock")

    assert part
    assert {name: whole.get(name) for name in part} == part


def test_the_demos_lock_has_all_dependencies() -> None:
    """Otherwise a missing dependency would show only on a new machine."""
    requirements: list[str] = []
    for project in (ROOT, *(ROOT / "plugins" / name for name in ("vision", "audio", "signal"))):
        table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        requirements += table["dependencies"]
        for extra in ("onnx", "openvino", "video", "build", "demo", "text", "train"):
            requirements += table.get("optional-dependencies", {}).get(extra, [])
    names = {re.split(r"[^\w.-]", one)[0].lower().replace("_", "-").replace(".", "-") for one in requirements}
    locked = {one.partition("==")[0] for one in packages(ROOT / "requirements-demo.lock")}

    assert {name for name in names if not name.startswith("hedgerow")} <= locked, "run `make lock`"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files tracked by git, without tests, documentation and benchmarks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


def wait_until(found: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not found():
        assert process.poll() is None, "exited before it could be killed"
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_real_set_up_killed_three_times_and_moved_runs_the_demo(clone: Path) -> None:
    """Killed while creating the environment, installing packages, and training a model."""
    for sign in (".venv/bin/pip*", ".venv/lib/python*/site-packages/numpy/__init__.py", "configs/models*"):
        shutil.rmtree(clone / "configs" / "models", ignore_errors=True)
        process = processes.start(["make", "ready-for-demo"], cwd=clone, start_new_session=True)
        wait_until(lambda sign=sign: any(clone.glob(sign)), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (clone / ".venv" / ".ready").exists()
    moved = clone.rename(clone.with_name("moved"))

    processes.run(["make", "ready-for-demo"], cwd=moved, check=True)

    run = processes.run(
        [moved / ".venv/bin/hedgerow", "demo", "--seconds", "8", "--json"], cwd=moved, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["ok"]
