"""Writes the tables in docs/ that are generated from the code: `python docs/generate.py`.

With `--check`, only reports tables that are not current. A table is between `<!-- generated: NAME -->` and
`<!-- end -->`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.registry import Collector
from pydantic import BaseModel

from hedgerow import config, tasks
from hedgerow.node.health import HealthReporter
from hedgerow.node.probes import gauges
from hedgerow.region import config as region
from hedgerow.region.collector.metrics import CollectorCounts, RegionMetrics
from hedgerow.region.rollouts.planning import spec
from hedgerow.telemetry import metrics
from hedgerow.telemetry.tally import DropReason, Tally
from hedgerow.topology import acl
from hedgerow.topology import model as topology
from hedgerow.wire import messages, ranges

DOCS = Path(__file__).parent
RUNTIME = DOCS.parent / "runtime" / "hedgerow"
_SENTENCE = re.compile(r"(?<=[.!])\s+(?=[^a-z])")
_OUT_OF_RANGE = ranges.LATEST_TIME
"""Limits from here on are those of every number on the wire, and not repeated."""
_PLACE = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def section(model: type[BaseModel], heading: str = "setting") -> str:
    """Return a table of a model's fields, from its JSON Schema; `heading` names the first column."""
    schema = model.model_json_schema()
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema["properties"].items():
        default = "required" if name in required else _default(field)
        description = field.get("description", "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_kind(field, schema)} | {default} | {description} |")
    return "\n".join([f"| {heading} | type | default | |", "|---|---|---|---|", *rows])


def _kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "anyOf" in field:
        kinds = [_kind(one, schema) for one in field["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return "section"
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), schema)}s"
    if field.get("type") == "object":
        return "mapping"
    limits = [
        f"{sign} {field[key]:,}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field and abs(field[key]) < _OUT_OF_RANGE
    ]
    kind = {"string": "text", "boolean": "yes or no"}.get(field.get("type", ""), field.get("type", "value"))
    return " ".join([kind, *limits])


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    return "" if value is None or isinstance(value, dict) else f"`{json.dumps(value)}`"


def drop_reasons() -> str:
    """Return a table of the node's drop reasons, described by the strings below them in the code."""
    (kind,) = (node for node in ast.parse(inspect.getsource(DropReason)).body if isinstance(node, ast.ClassDef))
    meanings = [part.value.value for part in kind.body[1:] if isinstance(part, ast.Expr)]  # type: ignore[attr-defined]
    rows = [f"| `{reason}` | {meaning} |" for reason, meaning in zip(DropReason, meanings, strict=True)]
    return "\n".join(["| reason | what it is |", "|---|---|", *rows])


def metric_table() -> str:
    """Return a table of the node's metrics."""
    parts = (HealthReporter.gauges, gauges, tasks.gauges)
    source = "".join(map(inspect.getsource, parts))
    lines = [line for line in source.splitlines() if "yield" in line or '"' in line]
    named = re.findall(r'"(hedgerow_\w+)", "([^"]+)"', re.sub(r",\s+", ", ", " ".join(line.strip() for line in lines)))
    labels = {
        "hedgerow_connected": "link",
        "hedgerow_refused": "link",
        "hedgerow_node_status": "node, status",
        "hedgerow_worker_ends": "pipeline, reason",
        "hedgerow_task": "task",
        "hedgerow_model": "model, version, digest, backend, device",
    }
    rows = _families(metrics.TallyCollector(lambda: {"p": Tally()}, lambda: ()))
    for name, text in dict.fromkeys(named):  # a metric may occur more than once
        by = next((value for prefix, value in labels.items() if name.startswith(prefix)), "pipeline")
        rows.append(f"| `{name}` | gauge | {by} | {text} |")
    return "\n".join(["| metric | kind | labels | |", "|---|---|---|---|", *rows])


def region_metric_table() -> str:
    """Return a table of the metrics of a region's service."""
    return "\n".join(
        ["| metric | kind | labels | |", "|---|---|---|---|", *_families(RegionMetrics(CollectorCounts()))]
    )


def summary(module: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    return _SENTENCE.split(" ".join(text.split("\n\n")[0].split()))[0]


def module_index() -> str:
    """Return a list of all modules of the runtime with their summaries, by folder."""
    lines = []
    for folder in sorted({path.parent for path in RUNTIME.rglob("*.py")}):
        name = folder.relative_to(RUNTIME.parent).as_posix()
        lines += [f"**`{name}`** {summary(folder / '__init__.py')}", ""]
        lines += [f"- `{path.name}` {summary(path)}" for path in sorted(folder.glob("[!_]*.py"))]
        lines += [""]
    return "\n".join(lines)


def rights_table() -> str:
    """Return a table of the rights of each role on nodes' topics."""
    places = {
        "itself": "its own",
        "everyone": "all nodes of its site at once (`~`)",
        "site": "any node of the site, on its broker",
        "place": "any node of its site; at the region, of any site",
        "client": "its own requests to enrol, by its client id",
    }
    rows = []
    for role, grants in acl.RIGHTS.items():
        for grant in grants or (None,):
            if grant is None:
                rows.append(f"| `{role}` | none | | |")
                continue
            where = "any node of its own site" if role == "bridge" else places[grant.on]
            written, read = (", ".join(f"`{one}`" for one in sorted(group)) for group in (grant.write, grant.read))
            if role == "bridge":
                written = written.replace("`reply`", "`reply/up`")  # to requests from above: `acl.rising`
            rows.append(f"| `{role}` | {where} | {written} | {read} |")
    return "\n".join(["| who | topics of | publishes on | reads |", "|---|---|---|---|", *rows])


def _families(collector: Collector) -> list[str]:
    return [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} "
        f"| {', '.join(family._labelnames)} | {family.documentation} |"  # type: ignore[attr-defined]
        for family in collector.collect()
    ]


def tables() -> dict[str, Callable[[], str]]:
    """Return the functions that make the tables, by name."""
    sections = {
        "node": config.NodeSection,
        "broker": config.BrokerSection,
        "tls": config.TlsSection,
        "models": config.ModelConfig,
        "pipelines": config.PipelineConfig,
        "stream": config.StreamSection,
        "queue": config.QueueSection,
        "publish": config.PublishSection,
        "fields": config.FieldsSection,
        "dead-letters": config.DeadLettersSection,
        "outbox": config.OutboxSection,
        "metrics-section": config.MetricsSection,
        "fleet": config.FleetSection,
        "origins": config.OriginSection,
        "remote": config.RemoteSection,
        "log": config.LogSection,
        "topology": topology.Topology,
        "topology-region": topology.RegionSection,
        "topology-parent": topology.ParentSection,
        "topology-site": topology.SiteSection,
        "topology-node": topology.NodeEntry,
        "topology-limits": topology.LimitsSection,
        "topology-machine": topology.MachineSection,
        "region": region.RegionConfig,
        "region-collector": region.CollectorSection,
        "region-store": region.StoreSection,
        "region-retention": region.RetentionSection,
        "region-quotas": region.QuotasSection,
        "region-ping": region.PingSection,
        "region-models": region.ModelsSection,
        "region-enrolment": region.EnrolmentSection,
        "region-enrolment-rules": region.EnrolmentRule,
        "rollout": spec.RolloutPlan,
        "rollout-model": spec.ModelSection,
        "rollout-gate": spec.GateSection,
        "rollout-window": spec.WindowSection,
        "rollout-swap": spec.SwapSection,
    }
    reports = {
        "health": messages.Health,
        "pipeline-health": messages.PipelineHealth,
        "model-health": messages.ModelHealth,
    }
    makers: dict[str, Callable[[], str]] = {
        name: (lambda model=model: section(model))  # type: ignore[misc]
        for name, model in sections.items()
    }
    makers |= {
        name: (lambda model=model: section(model, "field"))  # type: ignore[misc]
        for name, model in reports.items()
    }
    return makers | {
        "drop-reasons": drop_reasons,
        "metrics": metric_table,
        "modules": module_index,
        "region-metrics": region_metric_table,
        "rights": rights_table,
    }


def stale() -> Iterator[tuple[Path, str]]:
    """Yield the documents with outdated tables, and their current text."""
    known = tables()
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text("utf-8")
        current = _PLACE.sub(lambda place: f"{place[1]}{known[place[2]]()}\n{place[3]}", text)
        if current != text:
            yield path, current


def main() -> int:
    """Print outdated documents, and update them unless --check is given."""
    check = "--check" in sys.argv[1:]
    outdated = list(stale())
    for path, text in outdated:
        print(path.relative_to(DOCS.parent))  # noqa: T201 - a script
        if not check:
            path.write_text(text, "utf-8")
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
