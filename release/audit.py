"""Looks for known vulnerabilities of all locked packages. `make audit`.

Asks PyPI's index of advisories through pip-audit. Where it cannot be reached, this says so and why, and is no failure. Exit
status: 1 if a package has a known vulnerability.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
_PATIENCE_S: Final = 600


def audit(lock: Path, service: str = "pypi") -> tuple[list[str], list[str], str]:
    """Return the vulnerable packages of a lock file, those that are not known to the index, and why nothing is known."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return [], [], f"the index of advisories did not answer within {_PATIENCE_S} s"
    except (ValueError, KeyError):
        return [], [], (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
    return judge(packages)


def judge(packages: list[dict[str, Any]]) -> tuple[list[str], list[str], str]:
    """Return what pip-audit's report says: see `audit`."""
    unknown = [f"{each['name']}: {each['skip_reason']}" for each in packages if "skip_reason" in each]
    bad = [
        f"{each['name']} {each['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for each in packages
        for hole in each.get("vulns", [])
    ]
    if len(unknown) == len(packages):  # a mirror without advisories: pip-audit calls that a success
        return (
            [],
            [],
            f"the index has no advisories for any package ({unknown[0] if unknown else 'the lock file is empty'})",
        )
    return bad, unknown, ""


def main() -> int:
    """Audit all lock files."""
    failed = False
    for lock in sorted(
        [*ROOT.glob("*.lock"), *ROOT.glob("containers/requirements/*.lock"), *ROOT.glob("benchmarks/peers/*.lock")]
    ):
        bad, unknown, skipped = audit(lock)
        name = lock.relative_to(ROOT)
        if skipped:
            print(f"{name}: SKIPPED, not audited: {skipped}")
            continue
        failed = failed or bool(bad)
        print("\n".join([f"{name}: {len(bad)} known vulnerabilities", *(f"  {each}" for each in bad)]))
        print("".join(f"  not audited: {each}\n" for each in unknown), end="")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
