"""Edits a topology's sites and nodes in place: everything else in the file is left as it is, comments included."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hedgerow.errors import ConfigError


def add_site(text: str, file: Path, name: str, site: dict[str, Any]) -> str:
    """Return a topology with another site."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def edit(document: Any) -> None:
        if not isinstance(document.get("sites"), dict):
            document["sites"] = CommentedMap()
        if name in document["sites"]:
            raise ConfigError(f"{file} already has a site {name}", remedy="Choose another name, or edit the file.")
        nodes = CommentedSeq(site["nodes"])
        nodes.fa.set_flow_style()
        document["sites"][name] = CommentedMap(site | {"nodes": nodes})

    return _edited(text, file, edit)


def remove_node(file: Path, site: str, node: str) -> bool:
    """Take a node out of a topology. Returns: False if it was not there.

    Raises: ConfigError: the file cannot be read or written, or would be invalid without the node.
    """

    def edit(document: Any) -> None:
        nodes = _nodes(document, site)
        if len(nodes) == 1:
            raise ConfigError(
                f"{node} is the only node of the site {site} in {file}",
                remedy=f"Remove the site from {file}, or give it another node first.",
            )
        _take(nodes, node)

    return _edit_file(file, lambda document: node in _nodes(document, site), edit)


def move_node(file: Path, site: str, node: str, new_site: str, new_node: str) -> bool:
    """Give a node of a topology another name, or another site. Returns: False if it has it already.

    Raises: ConfigError: the file cannot be read or written, or would be invalid.
    """
    from ruamel.yaml.comments import CommentedMap

    def edit(document: Any) -> None:
        target = _nodes(document, new_site)
        if not target:
            raise ConfigError(
                f"{file} has no site {new_site}",
                remedy=f"Add it: `hedgerow site init {file} --name {new_site} --node {new_node}`.",
            )
        nodes = _nodes(document, site)
        if nodes is not target and len(nodes) == 1:
            raise ConfigError(
                f"{node} is the only node of the site {site} in {file}",
                remedy=f"Move it by hand, and remove the site {site}, or give that another node first.",
            )
        place = list(nodes).index(node) if nodes is target else len(target)
        item = _take(nodes, node)
        if isinstance(target, CommentedMap):
            target.insert(place, new_node, item)
        elif item is None:
            target.insert(place, new_node)
        else:
            raise ConfigError(
                f"{site}/{node} has settings of its own in {file}, and the nodes of {new_site} are a list of names",
                remedy=f"Write the nodes of {new_site} as a mapping first: `nodes: {{{', '.join(f'{one}: ' for one in target)}}}`.",
            )

    return _edit_file(file, lambda document: node in _nodes(document, site), edit)


def _edit_file(file: Path, applies: Callable[[Any], bool], edit: Callable[[Any], None]) -> bool:
    from ruamel.yaml import YAML

    from hedgerow import disk
    from hedgerow.configfile import Document

    Document.read(file)
    text = file.read_text("utf-8")
    if not applies(YAML(typ="rt").load(text)):
        return False
    content = _edited(text, file, edit).encode()
    try:
        disk.replace(file, content)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {error.strerror}", remedy="Check its folder's permissions."
        ) from error
    return True


def _edited(text: str, file: Path, edit: Callable[[Any], None]) -> str:
    """Return a topology after an edit, validated without its base files, which may be added later."""
    from ruamel.yaml import YAML

    from hedgerow.configfile import Document
    from hedgerow.topology.model import Topology

    yaml = YAML(typ="rt")
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    edit(document)
    out = io.StringIO()
    yaml.dump(document, out)
    Document(out.getvalue(), file).as_a(Topology, "topology")
    return out.getvalue()


def _nodes(document: Any, site: str) -> Any:
    """Return the nodes of a site as they are written: a list of names, or a mapping; empty if there is no such site."""
    sites = document.get("sites")
    found = sites.get(site) if isinstance(sites, dict) else None
    return (found.get("nodes") if isinstance(found, dict) else None) or []


def _take(nodes: Any, node: str) -> Any:
    """Remove a node from a list or mapping. Returns: what differs on it; None: nothing."""
    if isinstance(nodes, dict):
        return nodes.pop(node)
    nodes.remove(node)
    return None
