"""Labels that a node sets itself, for selectors: `arch`, `cores`, `memory-gib`, `backend/openvino` and others.

They load no further library: installed backends are looked up in package metadata, and devices are those of backends in
use, which are loaded anyway.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from hedgerow import __version__, backends
from hedgerow.config import ModelConfig, NodeConfig
from hedgerow.errors import HedgerowError
from hedgerow.models.serving.pool import BUNDLE
from hedgerow.topics import Address

_INVALID = re.compile(r"[^A-Za-z0-9._+-]+")


def node_labels(address: Address, cores: int, file: NodeConfig) -> dict[str, str]:
    """Return the labels that signatures count: the machine's, its devices', the file's. Blocks: it queries drivers.

    Args:
        cores: number of cores the node owns.
        file: the node's file.
    """
    return own_labels(address, cores) | device_labels(backends_in_use(file.models)) | file.node.labels


def own_labels(address: Address, cores: int) -> dict[str, str]:
    """Return the labels of the machine and its address, without devices.

    Args:
        cores: number of cores the node owns.
    """
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    labels = {
        "region": address.region,
        "site": address.site,
        "node": address.node,
        "arch": platform.machine(),
        "cores": str(cores),
        "memory-gib": f"{memory_gib:.0f}",
        "hedgerow": __version__,
    }
    for backend in backends.backends():
        if (version := backend.installed) is not None:
            labels[f"backend/{backend.name}"] = version
    return {key: _INVALID.sub("-", value).strip("-._+") for key, value in labels.items()}


def device_labels(names: Iterable[str]) -> dict[str, str]:
    """Return `device/cpu`, `device/gpu` … of these backends. Blocks: it queries drivers."""
    labels: dict[str, str] = {}
    here = backends.LocalDevices()
    for name in names:
        labels |= {f"device/{device.partition('.')[0].lower()}": "" for device in here.get(name, ())}
    return labels


def backends_in_use(models: Mapping[str, ModelConfig]) -> set[str]:
    """Return the backends that would run these models, according to the node's file.

    For a model from a bundle, this is the first installed backend, unless the file names another.
    """
    names: set[str] = set()
    for model in models.values():
        if model.backend != "auto":
            names.add(model.backend)
            continue
        usable = backends.backends()
        if not model.path.startswith(BUNDLE):
            with suppress(HedgerowError):
                usable = backends.candidates(Path(model.path))
        names |= {next((backend.name for backend in usable if backend.installed is not None), "")}
    return names - {""}
