"""What a machine and its node say of themselves, to be chosen by: `arch`, `cores`, `memory-gib`, `backend/openvino` …"""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress

from hedgerow import __version__, backends
from hedgerow.errors import BackendMissing
from hedgerow.topics import Address

_UNFIT = re.compile(r"[^A-Za-z0-9._+-]+")


def own_labels(address: Address, cores: int) -> dict[str, str]:
    """The labels of this node before anybody sets any; blocks, since it asks the drivers.

    Args:
        cores: that the node owns.
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
        with suppress(BackendMissing):
            labels[f"backend/{backend.name}"] = backend.version
            labels |= {f"device/{device.partition('.')[0].lower()}": "" for device in backend.devices()}
    return {key: _UNFIT.sub("-", value).strip("-._+") for key, value in labels.items()}
