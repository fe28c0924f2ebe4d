"""`setup.sh`, as the Makefile calls it: the next run completes an interrupted one, and missing packages are named.

Most tests use a fake Python that creates an environment instantly; one interrupts a real set-up.
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
# Acts as Python for -c and -V, and records other calls. $STOP names a step to be killed, with all its callers, to fail,
# or to wait until the pipe is opened.
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
    """A copy of the project files that the set-up needs, and the only programs on its PATH."""

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
        path.unlink(missing_ok=True)  # it may link to the machine's program
        path.write_text(text)
        path.chmod(0o755)

    def without(self, *names: str) -> None:
        for name in names:
            (self.programs / name).unlink()

    def start(self, goal: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return processes.start(
            [self.programs / "make", "--no-print-directory", goal, *arguments],
            cwd=self.folder,
            env={"PATH": str(self.programs)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def make(self, goal: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(goal, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def steps(self) -> list[str]:
        """Return the steps recorded since the last call."""
        path = self.folder / "steps"
        done = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return done


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_complete_environment_is_left_alone(checkout: Checkout) -> None:
    assert checkout.make("ready-for-demo").returncode == 0
    assert checkout.steps() == STEPS
    assert (checkout.folder / "configs/models/vibration.onnx").read_text() == "model\n"

    again = checkout.make("ready-for-demo")

    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.steps() == []


def test_the_test_environment_extends_the_demo_environment(checkout: Checkout) -> None:
    checkout.make("ready-for-demo")
    checkout.steps()

    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps() == [*STEPS[2:], "hedgerow_vision.fetch_ssd"]
    assert checkout.make("ready-for-demo").returncode == 0
    assert checkout.steps() == []


@pytest.mark.parametrize("step", [*STEPS, "hedgerow_vision.fetch_ssd"])
def test_an_interrupted_set_up_starts_again(checkout: Checkout, step: str) -> None:
    assert checkout.make(".venv/.ready", STOP=f"kill {step}").returncode == -signal.SIGKILL
    assert checkout.steps()[-1] == step
    (checkout.folder / ".venv" / "half-written").touch()

    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps() == [*STEPS, "hedgerow_vision.fetch_ssd"]
    assert not (checkout.folder / ".venv" / "half-written").exists()


def test_a_new_lock_file_is_installed_in_place_unless_interrupted(checkout: Checkout) -> None:
    checkout.make("ready-for-demo")
    with (checkout.folder / "requirements-demo.lock").open("a") as lock:
        lock.write("# newer\n")
    checkout.steps()

    checkout.make("ready-for-demo", STOP="kill packages")
    assert checkout.steps() == ["packages"]
    checkout.make("ready-for-demo")
    assert checkout.steps() == STEPS


def test_a_model_that_cannot_be_fetched_is_skipped_and_retried_next_time(checkout: Checkout) -> None:
    fetch = "hedgerow_vision.fetch_ssd"
    done = checkout.make(".venv/.ready", STOP=f"fail {fetch}")
    assert done.returncode == 0
    assert "Tests that use this model will be skipped." in done.stdout
    checkout.steps()

    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps()[-1] == fetch
    assert checkout.make(".venv/.ready").returncode == 0
    assert checkout.steps() == []


@pytest.mark.parametrize("change", ["removed", "upgraded", "moved"])
def test_an_environment_of_another_python_or_folder_is_recreated(checkout: Checkout, change: str) -> None:
    checkout.make("ready-for-demo")
    checkout.steps()
    python = checkout.folder / ".venv" / "bin" / "python"
    environment = {}
    if change == "removed":
        python.unlink()
        python.symlink_to("/usr/bin/python3.0")
    elif change == "upgraded":
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


def test_a_concurrent_set_up_waits_and_then_has_nothing_to_do(checkout: Checkout) -> None:
    os.mkfifo(checkout.folder / "pipe")
    first = checkout.start("ready-for-demo", STOP="wait packages")
    with (checkout.folder / "pipe").open("w") as pipe:  # opens when the first run waits
        second = checkout.start("ready-for-demo")
        assert second.stdout is not None
        assert second.stdout.readline() == "Waiting for another set-up of this folder…\n"
        pipe.write("\n")
    first.communicate(timeout=60)
    second.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (0, 0)
    assert checkout.steps() == STEPS


# Fails if it inherits the lock: a broker started by its package would hold it.
APT = '#!/bin/sh\n[ ! -e /proc/self/fd/9 ] && echo "$@" >>apt\n'


def test_the_demo_installs_no_packages_that_only_tests_need(checkout: Checkout) -> None:
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


@pytest.mark.parametrize("obstacle", ["no apt-get", "no sudo", "no rights"])
def test_without_rights_the_missing_packages_are_named_and_nothing_is_set_up(checkout: Checkout, obstacle: str) -> None:
    checkout.without("mosquitto_sub")
    checkout.program("id", "#!/bin/sh\necho 1000\n")
    if obstacle != "no apt-get":
        checkout.program("apt-get", APT)
    if obstacle != "no sudo":
        checkout.program("sudo", "#!/bin/sh\nexit 1\n")

    done = checkout.make("ready-for-demo", BARE="1")

    assert done.returncode != 0
    assert "These packages are missing: python3-venv mosquitto-clients." in done.stderr
    assert "As root: apt-get update && apt-get install python3-venv mosquitto-clients" in done.stderr
    assert checkout.steps() == []
    assert not (checkout.folder / "apt").exists()


def test_missing_packages_that_only_some_tests_need_are_reported_and_skipped(checkout: Checkout) -> None:
    checkout.without("npm", "faketime")

    done = checkout.make(".venv/.ready")

    assert done.returncode == 0
    skipped = re.search(
        r"^Tests that use (.*) will be skipped\. .*: apt-get update && apt-get install (.*)$", done.stdout, re.M
    )
    assert skipped
    assert {"npm", "faketime"} <= set(skipped[1].split())
    assert skipped[1] == skipped[2]
    assert checkout.steps() == STEPS


def test_a_python_that_is_too_old_is_refused_first(checkout: Checkout) -> None:
    checkout.program("apt-get", APT)
    checkout.without("mosquitto_sub")

    done = checkout.make("ready-for-demo", VERSION="3,10")

    assert done.returncode != 0
    message, remedy, *_ = done.stderr.splitlines()
    assert message == "error: Hedgerow needs Python 3.11 or later; python3 is Python 3.10."
    assert "make demo PYTHON=" in remedy
    assert checkout.steps() == []
    assert not (checkout.folder / "apt").exists()


def packages(path: Path) -> dict[str, str]:
    """Return the packages of a lock file: `name==version ; marker` → hashes."""
    joined = path.read_text().replace("\\\n", " ")
    return {line.partition(" --hash")[0].strip(): line for line in joined.splitlines() if "==" in line}


def test_the_demos_use_the_same_versions_as_the_tests() -> None:
    """The same versions and hashes. (`make lock` writes both.)"""
    all_packages, part = packages(ROOT / "requirements.lock"), packages(ROOT / "requirements-demo.lock")

    assert part
    assert {name: all_packages.get(name) for name in part} == part


def test_the_demo_lock_file_has_all_dependencies_of_the_project() -> None:
    """Otherwise a new dependency would be missing only on a new machine."""
    required: list[str] = []
    for project in (ROOT, *(ROOT / "plugins" / name for name in ("vision", "audio", "signal"))):
        project_table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        required += project_table["dependencies"]
        for extra in ("onnx", "openvino", "video", "build", "demo", "text", "train"):
            required += project_table.get("optional-dependencies", {}).get(extra, [])
    names = {re.split(r"[^\w.-]", one)[0].lower().replace("_", "-").replace(".", "-") for one in required}
    locked = {one.partition("==")[0] for one in packages(ROOT / "requirements-demo.lock")}

    assert {name for name in names if not name.startswith("hedgerow")} <= locked, "run `make lock`"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files tracked by git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


def wait_until(found: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not found():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_real_set_up_interrupted_three_times_and_moved_runs_the_demo(clone: Path) -> None:
    """Interrupted while the environment is created, packages are installed, and a model is trained."""
    for marker in (".venv/bin/pip*", ".venv/lib/python*/site-packages/numpy/__init__.py", "configs/models*"):
        shutil.rmtree(clone / "configs" / "models", ignore_errors=True)
        process = processes.start(["make", "ready-for-demo"], cwd=clone, start_new_session=True)
        wait_until(lambda marker=marker: any(clone.glob(marker)), process)
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
