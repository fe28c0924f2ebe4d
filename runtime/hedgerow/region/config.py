"""Schema of a region's configuration file, `region.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices, ConfigDict, Field, field_validator, model_validator

from hedgerow.config import BrokerSection, LogSection, MetricsSection, Name, Section
from hedgerow.configfile import BadConfigFile, Document, Problem
from hedgerow.errors import ConfigError
from hedgerow.labels import parse_selector

_OLD_PING: Final = "canary"
"""Name of the setting `ping` before a canary meant the first wave of a rollout only; deprecated."""


class StoreSection(Section):
    """The database for everything received from the sites."""

    url: str = Field(
        "region.db",
        min_length=1,
        description="Path of an SQLite file, relative to this file, or postgresql://USER@HOST/DATABASE. Prefer to keep the "
        "password in `~/.pgpass` or PGPASSWORD.",
        examples=["/var/lib/hedgerow/region.db", "postgresql://hedgerow@db.example/hedgerow"],
    )
    group_access: bool = Field(
        False,
        description="Let the group of an SQLite file read and write it, for commands of operators in that group. They can read every "
        "result, and roll out models under any name. By default only its owner can.",
    )

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        """Refuse `sqlite:///…`, as other programs write it: it would create a folder of that name."""
        scheme, colon, path = url.partition(":")
        if colon and scheme.isalnum() and not on_postgres(url):
            raise ValueError(
                f"must be a path or begin with postgresql://\n  → Write `url: {path.replace('//', '/') or 'region.db'}`."
            )
        return url

    @model_validator(mode="after")
    def _group_of_a_file(self) -> StoreSection:
        if self.group_access and on_postgres(self.url):
            raise ValueError(
                "`group_access` has no effect with PostgreSQL\n  → Remove it, and grant roles in the database."
            )
        return self


class RetentionSection(Section):
    """Limits of the store. The oldest entries are deleted first."""

    days: float | None = Field(
        30, gt=0, allow_inf_nan=False, description="Days to keep results, events and gaps; empty: forever."
    )
    max_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="Maximum size of all results in bytes; each counts as its payload plus about 200 bytes.",
    )
    health_days: float = Field(
        3, gt=0, allow_inf_nan=False, description="Days to keep health reports. A node's last state stays known."
    )


class QuotasSection(Section):
    """What one site may use. More is refused for that site alone, and counted; half of it is kept from any single node."""

    nodes: int = Field(1000, ge=1, le=100_000, description="Nodes of a site. A stolen site can invent names.")
    messages_per_s: float = Field(
        1000,
        ge=0.01,
        le=1_000_000,
        description="Messages per second over a long time; four minutes' worth may come at once. Durable results beyond it are not lost: "
        "their outbox sends them again.",
    )
    rows_per_day: int = Field(
        20_000_000,
        ge=1,
        description="Results, events, gaps and health reports to store. Durable results beyond it wait in their outbox for the next "
        "day (UTC).",
    )
    bytes_per_day: int = Field(50 * 2**30, ge=1024, description="Bytes of their payloads, likewise.")
    events_per_day: int = Field(100_000, ge=1, description="Events and gaps among them.")
    epochs: int = Field(
        20_000,
        ge=1,
        description="Epochs of outboxes of which something is missing, or that go on; each run of a node begins one.",
    )
    names_per_report: int = Field(
        256, ge=1, le=10_000, description="Pipelines, models, labels and reasons, each, in one report of a node."
    )

    @model_validator(mode="after")
    def _events_are_rows(self) -> QuotasSection:
        if "events_per_day" in self.model_fields_set and self.events_per_day > self.rows_per_day:
            raise ValueError(
                f"`events_per_day` {self.events_per_day:,} is never reached: events count as rows, and `rows_per_day` is "
                f"{self.rows_per_day:,}\n  → Set it to {self.rows_per_day:,} at most."
            )
        return self


class PingSection(Section):
    """Pings to every node, through all bridges and back: a bridge that claims to be connected may forward nothing."""

    every_s: float | None = Field(
        60, gt=0, allow_inf_nan=False, description="Average interval between two pings to a node; empty: no pings."
    )
    timeout_s: float = Field(15, gt=0, description="A ping without a reply within this time counts as unanswered.")


class ModelsSection(Section):
    """The repository of models that `hedgerow model publish` fills and the region serves to its sites."""

    repository: Path | None = Field(
        None, description="Folder of the repository, relative to this file; empty: no models are served."
    )
    online_key: Path | None = Field(
        None,
        description="Key for snapshot and timestamp, relative to this file. With it, the service adds what owners publish and "
        "signs a new timestamp every day. Empty: `REPOSITORY.online.pem` beside the repository, if it exists. The passphrase "
        "comes from HEDGEROW_TRUST_PASSPHRASE.",
    )

    @model_validator(mode="after")
    def _key_of_a_repository(self) -> ModelsSection:
        if self.online_key is not None and self.repository is None:
            raise ValueError("`online_key` has no effect without `repository`\n  → Add `repository: …`.")
        return self


class EnrolmentRule(Section):
    """A rule by which the service approves machines: all that is set must hold."""

    name: Name = Field(description="Its name, in the audit log. What it has approved counts under it.")
    sites: tuple[Name, ...] = Field((), description="Sites at which it applies; empty: all.")
    labels: str = Field("", description="Selector that the labels of the claim must match, as for rollouts.")
    serials: Path | None = Field(
        None,
        description="File with serial numbers, one a line, relative to this file: the manufacturer's certificate must name one.",
    )
    any_serial: bool = Field(
        False,
        description="Approve every machine that shows a certificate of a known manufacturer: whoever buys one may have it approved.",
    )
    count: int = Field(ge=1, le=100_000, description="Most machines that it approves, ever.")

    @field_validator("labels")
    @classmethod
    def _readable(cls, labels: str) -> str:
        try:
            parse_selector(labels)
        except ConfigError as error:
            raise ValueError(error.explain()) from error
        return labels

    @model_validator(mode="after")
    def _one_kind_of_serials(self) -> EnrolmentRule:
        if self.serials is not None and self.any_serial:
            raise ValueError(
                "`any_serial` has no effect beside `serials`: only those listed are approved\n  → Remove one of them."
            )
        if self.labels and (self.serials is not None or self.any_serial):
            raise ValueError(
                "`labels` are those of a claim, and a machine that shows its manufacturer's certificate has none: with `serials` the "
                "rule would approve nothing, with `any_serial` no such machine\n  → Make a rule of each."
            )
        return self


class EnrolmentSection(Section):
    """Machines that enrol."""

    places: Path | None = Field(
        None,
        description="What nodes get, as `hedgerow topology render` writes it, relative to this file. Empty: no machine can enrol.",
    )
    pki: Path | None = Field(
        None,
        description="Folder of certificates with the keys of sites' authorities, relative to this file: the service then signs. Whoever "
        "controls it can then be any node of these sites. Empty: `hedgerow node approve` signs, where the keys are.",
    )
    days: float = Field(30, gt=0, le=730, description="Days that certificates are valid that the service signs.")
    grace_days: float = Field(
        180,
        ge=0,
        le=3650,
        description="Days after its certificate expired in which the service renews it for a machine that comes back, by itself; later a "
        "person approves it again. Whoever holds the machine's key can come back as long.",
    )
    manufacturers: Path | None = Field(
        None,
        description="Root certificates of manufacturers, PEM, relative to this file: a machine may show a certificate of one in place of a claim.",
    )
    rules: tuple[EnrolmentRule, ...] = Field(
        (), description="Rules by which the service approves machines, with `pki`; others wait for a person."
    )
    pending: int = Field(10_000, ge=1, le=100_000, description="Most machines that may wait for approval.")
    pending_per_site: int = Field(2_000, ge=1, le=100_000, description="Most of them at one site.")
    requests_per_s: float = Field(
        50,
        gt=0,
        le=10_000,
        description="Requests a second of one site that are read; more are dropped, and come again.",
    )

    @model_validator(mode="after")
    def _nothing_void(self) -> EnrolmentSection:
        written = [name for name in ("pki", "manufacturers", "rules") if getattr(self, name)]
        if written and self.places is None:
            raise ValueError(
                f"{written[0]!r} has no effect without `places`: no machine can enrol\n  → Add `places: …`."
            )
        if self.rules and self.pki is None:
            raise ValueError(
                "`rules` have no effect without `pki`: nobody would sign\n  → Add `pki: …`, or remove them."
            )
        names = [rule.name for rule in self.rules]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"two rules are named {twice!r}, and would share one count\n  → Give each a name of its own."
            )
        if self.manufacturers is None and any(rule.serials is not None or rule.any_serial for rule in self.rules):
            raise ValueError(
                "rules with `serials` or `any_serial` have no effect without `manufacturers`\n  → Add `manufacturers: …`."
            )
        if "pending_per_site" in self.model_fields_set and self.pending_per_site > self.pending:
            raise ValueError(
                f"`pending_per_site` {self.pending_per_site:,} is never reached: `pending`, of all sites, is {self.pending:,}\n"
                f"  → Set it to {self.pending:,} at most."
            )
        return self

    def anchored(self, folder: Path) -> EnrolmentSection:
        """Return a copy with its paths relative to `folder`."""
        paths = {name: getattr(self, name) for name in ("places", "pki", "manufacturers")}
        changes: dict[str, Any] = {name: folder / path for name, path in paths.items() if path is not None}
        changes["rules"] = tuple(
            rule if rule.serials is None else rule.model_copy(update={"serials": folder / rule.serials})
            for rule in self.rules
        )
        return self.model_copy(update=changes)


class CollectorSection(Section):
    """The region's name, and limits of its collector."""

    name: Name = Field("local", description="Name of the region, as in every node's configuration.")
    state_dir: Path | None = Field(
        None,
        description="Folder for what the service must remember besides its store: the secret part of its client ids. Relative to "
        "this file. Empty: the folder of an SQLite store, else `.hedgerow` beside this file.",
    )
    silent_after_s: float = Field(
        35,
        gt=0,
        description="A node from which nothing arrives for this long is silent. Health reports arrive every 10 s.",
    )
    receive_maximum: int = Field(
        1000,
        ge=1,
        le=65_535,
        description="Maximum number of QoS 1 messages in flight from the broker to the collector.",
    )
    max_payload_bytes: int = Field(16 * 2**20, ge=1024, description="Larger payloads are rejected and counted.")
    stop_s: float = Field(10, gt=0, description="Longest time to store received messages when stopping.")


class RegionConfig(Section):
    """The configuration of a region's service."""

    model_config = ConfigDict(title="Hedgerow region")

    region: CollectorSection = Field(CollectorSection(), description="The region's name, and limits of its collector.")
    broker: BrokerSection = Field(BrokerSection(), description="The region's broker.")
    store: StoreSection = Field(StoreSection(), description="Database for everything received from the sites.")
    retention: RetentionSection = Field(RetentionSection(), description="How long data is kept.")
    quotas: QuotasSection = Field(QuotasSection(), description="What one site may use.")
    ping: PingSection = Field(
        PingSection(),
        validation_alias=AliasChoices("ping", _OLD_PING),
        description="Pings to every node, through all bridges and back.",
    )
    models: ModelsSection = Field(ModelsSection(), description="Repository of models for the sites.")
    enrolment: EnrolmentSection = Field(EnrolmentSection(), description="Machines that enrol.")
    metrics: MetricsSection = Field(MetricsSection(port=9465), description="Metrics and probes.")
    log: LogSection = Field(LogSection(), description="Logging.")

    @property
    def state_folder(self) -> Path:
        """Folder for what the service must remember besides its store."""
        beside = Path(".hedgerow") if on_postgres(self.store.url) else Path(self.store.url).parent
        return self.region.state_dir or beside


def _print_warning(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)  # noqa: T201 - stdout may be JSON


def load(path: Path, warn: Callable[[str], None] = _print_warning) -> RegionConfig:
    """Read and validate a region's file; relative paths in it are relative to its folder.

    Args:
        path: of the file.
        warn: called with a message for each deprecated setting; prints to stderr by default.
    Raises: BadConfigFile: the file cannot be read, is not YAML, or is invalid; lists every problem with its line.
    """
    document = Document.read(path)
    if _OLD_PING in document.content:
        line = document.line_of([_OLD_PING])
        if "ping" in document.content:
            problem = Problem(
                line,
                _OLD_PING,
                f"`{_OLD_PING}` is the old name of `ping`, and both are set",
                f"Keep `ping:`, and remove `{_OLD_PING}:`.",
            )
            raise BadConfigFile(path, [problem], "region")
        warn(f"{path}:{line}: `{_OLD_PING}:` is deprecated; rename it to `ping:`.")
    return _anchored(document.as_a(RegionConfig, "region"), path.parent)


def on_postgres(url: str) -> bool:
    """Whether a store's address names a PostgreSQL database; otherwise it is the path of an SQLite file."""
    return url.startswith(("postgresql://", "postgres://"))


def _anchored(config: RegionConfig, folder: Path) -> RegionConfig:
    store = config.store
    if not on_postgres(store.url):
        store = store.model_copy(update={"url": str(folder / store.url)})
    region = config.region.model_copy(update={"state_dir": folder / config.state_folder})
    models = config.models
    if models.repository is not None:
        models = models.model_copy(update={"repository": folder / models.repository})
    if models.online_key is not None:
        models = models.model_copy(update={"online_key": folder / models.online_key})
    broker = config.broker.anchored(folder)
    changes = {"region": region, "broker": broker, "store": store, "models": models}
    return config.model_copy(update=changes | {"enrolment": config.enrolment.anchored(folder)})
