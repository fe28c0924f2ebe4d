"""`hedgerow region` and `hedgerow results`, on a store with results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Hedgerow, Result

from hedgerow.bus.outbox.records import Number
from hedgerow.region import config
from hedgerow.region.config import RegionConfig
from hedgerow.region.store.database.open import open_database
from hedgerow.region.store.records import ResultRecord
from hedgerow.region.store.store import RegionStore
from hedgerow.testing import processes
from hedgerow.topics import Address


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with region.yaml and its store: 1200 results of two nodes, up to two hours old, and a picture."""
    folder = tmp_path_factory.mktemp("region")
    (folder / "region.yaml").write_text("region: {name: test}\nstore: {url: here.db}\n")
    url = str(folder / "here.db")
    config = RegionConfig.model_validate({"region": {"name": "test"}, "store": {"url": url}})
    filled = RegionStore(open_database(url, write=True), config)
    now = time.time()
    records = []
    for n in range(1, 1201):
        body = json.dumps({"at": now, "result": {"detections": [{"label": "face", "n": n}]}}).encode()
        node = Address("test", "s1" if n % 2 else "s2", "gate")
        number = Number("e1", 0, n) if n % 3 else None
        at = now - 7200 + n
        records.append(
            ResultRecord(node, len(body), now, True, "doors", number, f"i{n}", at, "application/json", None, body)
        )
    picture = Address("test", "s1", "cam")
    records.append(
        ResultRecord(picture, 3, now, True, "views", None, "pic", now, "image/jpeg", '[["a","b"]]', b"\xff\xd8\xff")
    )
    filled.apply(records)
    filled.close()
    return folder


@pytest.fixture
def filled(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the current one."""
    monkeypatch.chdir(store)
    return store


def rows_of(result: Result) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    return list(result.json_lines)


def test_json_prints_all_results_as_lines_in_order_of_capture(filled: Path, hedgerow: Hedgerow) -> None:
    found = rows_of(hedgerow("results", "query", "--json"))

    assert len(found) == 1201
    assert [row["captured_at"] for row in found] == sorted(row["captured_at"] for row in found)
    assert [row["payload"]["result"]["detections"][0]["n"] for row in found[:-1]] == list(range(1, 1201))
    assert found[-1]["payload_base64"] == "/9j/"
    assert found[-1]["properties"] == [["a", "b"]]
    assert [row["number"] for row in found[:3]] == ["e1/0/1", "e1/0/2", None]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--site", "s1"], 601),
        (["--node", "gate", "--site", "s2"], 600),
        (["--pipeline", "views"], 1),
        (["--since", "1h"], 1),
        (["--until", "1h"], 1200),
        (["--until", "1d"], 0),
        (["--newest", "700"], 700),
        (["--newest", "5000"], 1201),
        (["--site", "s2", "--newest", "3"], 3),
        (["--since", "2020-01-01", "--until", "2020-01-02T00:00Z"], 0),
        (["--since", "2020-01-01"], 1201),
    ],
)
def test_results_are_filtered_by_site_node_pipeline_and_time(
    filled: Path, hedgerow: Hedgerow, options: list[str], count: int
) -> None:
    found = rows_of(hedgerow("results", "query", "--json", *options))

    assert len(found) == count
    assert [row["captured_at"] for row in found] == sorted(row["captured_at"] for row in found)


def test_a_table_shows_the_newest(filled: Path, hedgerow: Hedgerow) -> None:
    result = hedgerow("results", "query", "--newest", "2")

    assert " face" in result.out
    assert "image/jpeg, 3 bytes" in result.out
    assert result.out.endswith("2 results.\n")


def test_a_parquet_file_has_the_same_results(filled: Path, hedgerow: Hedgerow, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result = hedgerow("results", "query", "--parquet", str(tmp_path / "all.parquet"))

    assert result.code == 0, result.err
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.num_rows == 1201
    assert table.column("id").to_pylist()[:3] == ["i1", "i2", "i3"]
    assert json.loads(table.column("result")[0].as_py()) == {"detections": [{"label": "face", "n": 1}]}
    assert str(table.schema.field("captured_at").type) == "timestamp[us, tz=UTC]"
    assert list(tmp_path.iterdir()) == [tmp_path / "all.parquet"]


@pytest.mark.parametrize(
    ("package", "args", "extra"),
    [
        ("pyarrow", ["results", "query", "--parquet", "x.parquet"], "hedgerow[parquet]"),
        ("psycopg", ["region", "status", "--store", "postgresql://x/y"], "hedgerow[region]"),
    ],
)
def test_a_missing_library_is_an_error_that_names_the_extra(
    filled: Path, package: str, args: list[str], extra: str
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from hedgerow.cli.main import main; main()"
    done = processes.run(
        [sys.executable, "-c", code, *args], stderr=subprocess.PIPE, text=True, cwd=filled, check=False
    )

    assert done.returncode == 1
    assert extra in done.stderr


def test_status_reports_that_no_collector_is_connected(filled: Path, hedgerow: Hedgerow) -> None:
    status = hedgerow("region", "status", "--json").json

    assert [site["site"] for site in status["sites"]] == ["s1", "s2"]
    assert sum(site["results"] for site in status["sites"]) == 1201
    assert status["collector"]["connected"] is False
    assert "test/s2/gate" in hedgerow("region", "status").out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["results", "query", "--since", "yesterday"], 2, "is not a time"),
        (["results", "query", "--site", "a/b"], 2, "is not a valid name"),
        (["results", "query", "--json", "--parquet", "x"], 2, "Use only one of them"),
        (["results", "query", "--store", "nothing.db"], 1, "There is no store"),
        (["region", "status", "--config", "nothing.yaml"], 2, "cannot be read"),
    ],
)
def test_invalid_arguments_are_errors_with_a_remedy(
    filled: Path, hedgerow: Hedgerow, args: list[str], code: int, message: str
) -> None:
    result = hedgerow(*args)

    assert result.code == code
    assert message in result.err
    assert "→" in result.err


def test_without_a_store_the_error_names_the_options(
    tmp_path: Path, hedgerow: Hedgerow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = hedgerow("region", "status")

    assert result.code == 2
    assert "--store STORE or --config FILE" in result.err


def test_an_invalid_configuration_is_reported_with_its_line(
    tmp_path: Path, hedgerow: Hedgerow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "region.yaml").write_text("region:\n  name: test\nretention:\n  day: 3\n")
    result = hedgerow("region", "check", "region.yaml")

    assert result.code == 2
    assert "region.yaml:4: retention.day: unknown key" in result.err
    assert "Did you mean `days`?" in result.err
    (tmp_path / "region.yaml").write_text("region: {name: test}\n")
    assert "ok (region test)" in hedgerow("region", "check", "region.yaml").out


def test_the_example_configuration_is_valid() -> None:
    example = Path(__file__).parents[3] / "configs" / "region.yaml"
    assert config.load(example).region.name == "retail"
