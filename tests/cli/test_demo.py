"""`hedgerow demo` as a newcomer runs it: a broker, a node, real models on real frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from hedgerow.cli.feeds import demo_feeds
from hedgerow.errors import HedgerowError

_STREET = Path(sys.prefix) / "models" / "ssd_mobilenetv2_oidv4.tflite"


@pytest.mark.timeout(180)
def test_the_demo_reads_sees_and_hears_and_accounts_for_every_frame(tmp_path: Path) -> None:
    """What came in went out, or was dropped for a reason; none died, and none is left."""
    if not _STREET.exists():
        pytest.skip(f"the street model is missing; `python -m hedgerow_vision.fetch_ssd {_STREET.parent}` fetches it")
    try:
        demo_feeds()
    except HedgerowError as error:
        pytest.skip(error.explain())

    done = subprocess.run(
        [sys.executable, "-m", "hedgerow", "demo", "--seconds", "8", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    report = orjson.loads(done.stdout)
    assert report["ok"]
    assert "Region-based segmentation" in report["texts"]
    assert report["labels"].keys() >= {"Car", "face"}
    assert report["speech_s"] > 0
    assert report["pictures"] > 0
    assert report["dead"] == {}
    assert report["frames"] >= report["published"] > 0
    for name, each in report["pipelines"].items():
        assert each["received"] == each["out"] + sum(each["dropped"].values()), name
        assert each["in_flight"] == 0, name
