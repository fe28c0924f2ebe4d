"""Reads a topology and its base files, and reports every mistake with its line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hedgerow.config import NodeConfig
from hedgerow.configfile import BadConfigFile, Document, Problem
from hedgerow.enrolment.grant import MAX_FILES_BYTES
from hedgerow.errors import ConfigError
from hedgerow.topics import check_feedback
from hedgerow.topology import check
from hedgerow.topology.check import TopologyIssue
from hedgerow.topology.model import Topology
from hedgerow.topology.nodes import node_config

_LONGEST_PATH: Final = 512


@dataclass(frozen=True)
class Described:
    """A topology with everything it names.

    Attributes:
        source: the file's name, for the header of rendered files.
        topology: the file's content, with absolute paths.
        texts: configuration text of each node, by site and name.
        nodes: the same, parsed.
        models: files of models and stages, by their path below the site's folder `nodes/`.
        files: the same paths by site and name of the node that reads them.
        small: content of those that are small enough to be sent to nodes that enrol, by site and path; empty if none does.
    """

    source: str
    topology: Topology
    texts: Mapping[tuple[str, str], str]
    nodes: Mapping[tuple[str, str], NodeConfig]
    models: Mapping[str, Mapping[Path, Path]]
    files: Mapping[tuple[str, str], Collection[Path]] = field(default_factory=dict)
    small: Mapping[str, Mapping[Path, bytes]] = field(default_factory=dict)


def load(path: Path) -> Described:
    """Read and check a topology and its base files.

    Raises: BadConfigFile: one cannot be read or used; has every problem with its line in the topology.
    """
    document = Document.read(path)
    topology = _anchored(document.as_a(Topology, "topology"), path.parent.resolve())
    reading = _Reading(topology, path.parent)
    findings = [*check.clashes(topology), *check.enrolment(topology), *check.paths(topology), *reading.findings()]
    findings += check.mismatches(topology, reading.nodes)
    _refuse(document, path, findings)
    small = {site: _small(files) for site, files in reading.models.items() if topology.places(site)}
    return Described(path.name, topology, reading.texts, reading.nodes, reading.models, reading.files, small)


def _small(files: Mapping[Path, Path]) -> dict[Path, bytes]:
    return {path: source.read_bytes() for path, source in files.items() if source.stat().st_size <= MAX_FILES_BYTES}


def load_alone(path: Path) -> Topology:
    """Read a topology without its base files: only sites, nodes and addresses.

    Raises: BadConfigFile: it cannot be read or used; has every problem with its line.
    """
    document = Document.read(path)
    topology = _anchored(document.as_a(Topology, "topology"), path.parent.resolve())
    _refuse(document, path, [*check.clashes(topology), *check.enrolment(topology), *check.paths(topology)])
    return topology


def _refuse(document: Document, path: Path, findings: Sequence[TopologyIssue]) -> None:
    if findings:
        problems = [
            Problem(document.line_of(keys), ".".join(map(str, keys)), message, remedy)
            for keys, message, remedy in findings
        ]
        raise BadConfigFile(path, problems, "topology")


class _Reading:
    """Builds the configuration of every node, and yields the problems."""

    def __init__(self, topology: Topology, folder: Path) -> None:
        self._topology = topology
        self._folder = folder
        self.texts: dict[tuple[str, str], str] = {}
        self.nodes: dict[tuple[str, str], NodeConfig] = {}
        self.models: dict[str, dict[Path, Path]] = {site: {} for site in topology.sites}
        self.files: dict[tuple[str, str], dict[Path, None]] = {}
        self._bases: dict[Path, Document | None] = {}

    def findings(self) -> Iterator[TopologyIssue]:
        for site, place in self._topology.sites.items():
            for node, entry in place.nodes.items():
                base = self._topology.base_of(site, node)
                keys: tuple[str, ...] = ("pipelines",)
                if entry.pipelines is not None:
                    keys = ("sites", site, "nodes", node, "pipelines")
                elif place.pipelines is not None:
                    keys = ("sites", site, "pipelines")
                if base is None:
                    yield TopologyIssue(
                        ("sites", site, "nodes", node), f"{site}/{node} has no base file",
                        "Name one with `pipelines: FILE.yaml`, at the top of the file or here.",
                    )  # fmt: skip
                    continue
                yield from self._node(site, node, self._folder / base, keys)

    def _node(self, site: str, node: str, base: Path, keys: tuple[str, ...]) -> Iterator[TopologyIssue]:
        if base not in self._bases:
            try:
                self._bases[base] = Document.read(base)
                text = base.read_text("utf-8")
                Document(text, base).as_a(NodeConfig, "config")
            except BadConfigFile as error:
                self._bases[base] = None
                for problem in error.problems:
                    where = f"{base}:{problem.line}" if problem.line else f"{base}"
                    yield TopologyIssue(keys, f"{where}: {problem}", problem.remedy)
        if self._bases[base] is None:
            return
        text = node_config(self._topology, site, node, base.read_text("utf-8"))
        try:
            config = Document(text, base).as_a(NodeConfig, "config")
        except BadConfigFile as error:  # the base file alone is valid
            for problem in error.problems:
                yield TopologyIssue(("sites", site, "nodes", node, "override"), str(problem), problem.remedy)
            return
        self.texts[site, node], self.nodes[site, node], self.files[site, node] = text, config, {}
        yield from check.padded(keys, base, config)
        yield from self._models(site, node, base, config, keys)
        for name in config.pipelines:
            try:
                check_feedback(config.node.address, name, config.subscriptions)
            except ConfigError as error:
                yield TopologyIssue(keys, f"{base}: pipelines.{name}.subscribe: {error}", error.remedy)
        yield from check.shared(self._topology, keys, base, config)
        for pipeline in config.pipelines.values():
            for stage in pipeline.stages:
                self._include_files((site, node), base.parent, stage.config.values())
        yield from check.odd_files(keys, self.files[site, node])

    def _models(
        self, site: str, node: str, base: Path, config: NodeConfig, keys: tuple[str, ...]
    ) -> Iterator[TopologyIssue]:
        for name, model in config.models.items():
            path = Path(model.path)
            if model.path.startswith(("package:", "bundle:")) or path.is_absolute():
                continue
            source = base.parent / path
            if ".." in path.parts:
                yield TopologyIssue(
                    keys,
                    f"model {name} of {site}/{node} is above its base file's folder: {path}",
                    "Move it into that folder or below.",
                )
            elif not source.is_file():
                yield TopologyIssue(
                    keys,
                    f"model {name} of {site}/{node} does not exist: {source}",
                    "Correct its `path:`, or put the file there.",
                )
            elif self.models[site].setdefault(path, source) != source:
                yield TopologyIssue(
                    keys,
                    f"{site} has two models at {path}: {source} and {self.models[site][path]}",
                    "Rename one of them.",
                )
            else:
                self.files[site, node][path] = None
                if path.suffix == ".xml":  # OpenVINO keeps the weights in a second file
                    self._include_files((site, node), base.parent, [str(path.with_suffix(".bin"))])
        if config.fleet.root_file is not None:
            self._include_files((site, node), base.parent, [str(config.fleet.root_file)])

    def _include_files(self, reader: tuple[str, str], folder: Path, values: Iterable[Any]) -> None:
        """Add files named in a stage's settings, e.g. `labels_file`."""
        for value in values:
            path = Path(value) if isinstance(value, str) and len(value) < _LONGEST_PATH else None
            if path is not None and not path.is_absolute() and ".." not in path.parts and (folder / path).is_file():
                self.models[reader[0]].setdefault(path, folder / path)
                self.files[reader][path] = None


def _anchored(topology: Topology, folder: Path) -> Topology:
    machine = topology.machine
    places = {name: folder / getattr(machine, name) for name in ("pki", "config", "state", "command")}
    return topology.model_copy(update={"machine": machine.model_copy(update=places)})
