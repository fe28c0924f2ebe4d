"""Names of classes: a name is never given to another class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.errors import ConfigError
from hedgerow.models.bundle.class_names import class_names, names_in_metadata, read_class_names


def read(folder: Path, text: str | bytes) -> tuple[str, ...]:
    path = folder / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_class_names(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("person\nbicycle\ncar\n", ("person", "bicycle", "car")),
        ("person\n\n\ncar\n", ("person", "", "", "car")),
        ("\nperson\n", ("", "person")),
        ("person\n  \t\ncar", ("person", "", "car")),
        ("person\ncar\n\n\n", ("person", "car")),
        (b"\xef\xbb\xbfperson\r\ncar\r\n", ("person", "car")),
        ("0 person\n1 bicycle\n2 car", ("person", "bicycle", "car")),
        ("0: person\n1: bicycle", ("person", "bicycle")),
        ("0:person\n1:bicycle", ("person", "bicycle")),
        ("0,person\n1,bicycle", ("person", "bicycle")),
        ("id,name\n0,person\n1,bicycle", ("person", "bicycle")),
        ("0\tperson\n1\ttraffic light", ("person", "traffic light")),
        ("0  person\n1  bicycle\n2  car\n4  airplane\n", ("person", "bicycle", "car", "", "airplane")),
        ("0 person\n\n1 bicycle\n", ("person", "bicycle")),
        ("0 background\n1\n2 car", ("background", "", "car")),
        ("0 person", ("person",)),
        ("0\n1\n2\n3", ("0", "1", "2", "3")),
        ("20 km/h\n30 km/h\n50 km/h", ("20 km/h", "30 km/h", "50 km/h")),
        ("1 cent\n2 cent\n5 cent", ("1 cent", "2 cent", "5 cent")),
        ("2 door\n4 door\nvan", ("2 door", "4 door", "van")),
        ("7up\ncola", ("7up", "cola")),
        ("0 %\n5 %\n10 %", ("0 %", "5 %", "10 %")),
        ("1 euro\n2 euro\n50 cent\n20 cent", ("1 euro", "2 euro", "50 cent", "20 cent")),
        ("1 bicycle\n0 person", ("person", "bicycle")),
        ("0) person\n1) bicycle", ("person", "bicycle")),
        ("[0] person\n[1] bicycle", ("person", "bicycle")),
        ("0. person\n1. bicycle", ("person", "bicycle")),
        ("0 person\n1 n/a\n2 n/a\n4 car", ("person", "n/a", "n/a", "", "car")),
        ("person\n???\ncar", ("person", "???", "car")),
        (b"person\rcar\r", ("person", "car")),
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish", ("n01440764 tench, Tinca tinca", "n01443537 goldfish")),
        ("0.5 mm\n0.8 mm", ("0.5 mm", "0.8 mm")),
        ("a\u2028b\nc", ("a\u2028b", "c")),
        ('["person", "car"]', ("person", "car")),
        ('{"0": "person", "2": "car"}', ("person", "", "car")),
        ("", ()),
        ("\n\n", ()),
    ],
)
def test_a_name_belongs_to_its_class(tmp_path: Path, text: str | bytes, expected: tuple[str, ...]) -> None:
    assert read(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 person\n2 bicycle\n3 car", "from 1"),
        ("1: person", "from 1"),
        ("1  person\n2  bicycle\n4  motorcycle", "from 1"),
        ("0 person\n0 bicycle", "repeat"),
        ("3 car\n0 person", "repeat"),
        ("# COCO\nperson\nbicycle", "# COCO"),
        ("path: coco\nnames:\n  0: person", "names:"),
        ('# TensorFlow\nitem {\n  id: 1\n  name: "person"\n}', "TensorFlow"),
        ('{"person": 0, "bicycle": 1}', "person"),
        ('[{"id": 0, "name": "person"}]', "person"),
        ("<!DOCTYPE html>\n<html>404</html>", "DOCTYPE"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git-lfs"),
        ("person\ncar".encode("utf-16"), "cannot be read"),
        ("names:\n  0: person\n", "names:"),
        ('item {\n  id: 1\n  name: "person"\n}', "item"),
        (b"p\xe9rsonne", "cannot be read"),
    ],
)
def test_an_unsure_file_is_refused(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        read(tmp_path, text)

    assert refused.value.remedy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{0: 'person', 1: 'bicycle'}", ("person", "bicycle")),
        ("{0: 'person', 2: 'car'}", ("person", "", "car")),
        ("{2: 'car', 0: 'person'}", ("person", "", "car")),
        ('{"0": "person", "10": "cat"}', ("person", *[""] * 9, "cat")),
        ("['person', 'car']", ("person", "car")),
        ("person\n\ncar\n", ("person", "", "car")),
        ("{-1: 'person'}", ()),
        ("{1000000000: 'person'}", ()),
        ("{'a': 'person'}", ()),
        ("[{'id': 0, 'name': 'person'}]", ()),
        ("", ()),
    ],
)
def test_names_in_metadata_keep_their_index(text: str, expected: tuple[str, ...]) -> None:
    assert names_in_metadata(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{{}}", ("{{}}",)), ("{[1]: 'a'}", ("{[1]: 'a'}",)), ("{1e999: 'a'}", ()), ("{'a': 1}", ())],
)
def test_metadata_that_only_looks_like_names_is_no_error(text: str, expected: tuple[str, ...]) -> None:
    assert names_in_metadata(text) == expected


def test_a_manifests_names_override_those_of_the_file() -> None:
    assert class_names({"names": "['a']", "hedgerow.labels": '["b"]'}) == ("b",)
    assert class_names({"names": "['a']"}) == ("a",)
    assert class_names({"model_info.labels": "person traffic_light"}) == ("person", "traffic_light")
    assert class_names({}) == ()


@given(st.lists(st.text(st.characters(codec="utf-8", categories=["L"]), min_size=1), min_size=1))
def test_a_list_is_read_back_from_json(names: list[str]) -> None:
    assert names_in_metadata(json.dumps(names)) == tuple(names)
