"""`hedgerow model verify`: check a bundle's files and run its golden cases."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, plural, print_json, size
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.progress import byte_progress
from hedgerow.cli.base.tables import print_facts, print_table
from hedgerow.cli.model.lookup import BundleName, From, all_files, open_bundle
from hedgerow.cli.model.show import total_size

if TYPE_CHECKING:
    from hedgerow.models.build.verify import VerificationOutcome
    from hedgerow.models.bundle.folder import BadBundle, Bundle
    from hedgerow.models.bundle.manifest import File

_STATES = {"passed": "passed", "failed": "FAILED", "not-run": "not run"}


def verify(
    bundle: BundleName,
    from_: From = None,
    digest: Annotated[
        str | None, typer.Option(metavar="SHA256", help="Expected digest of the bundle, from a rollout or a result.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", "-v", help="Check only this variant and its files. Repeatable.")
    ] = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Check only the files, and run nothing: for untrusted bundles.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a variant cannot run here.")] = False,
    json: Json = False,
) -> None:
    """Check every file and chunk of a bundle against its digest, then run its golden cases.

    Examples:
      hedgerow model verify bundles/door-1.2.0
      hedgerow model verify bundles/door-1.2.0 --digest sha256:4f1c… --files-only
      hedgerow model verify door/1.2.0 --from models --strict

    Each variant runs on each of its backends and devices that this machine has; the others are listed with the reason. If
    any file is damaged, nothing is run. In a node's store, only the variants that the node has fetched are checked. An
    intact bundle may still come from anyone: signatures prove its origin (`hedgerow model publish`, `hedgerow trust
    status`).

    Exits with 1 if a file is damaged or a golden case fails; with --strict, also if a variant was not run.
    """
    from hedgerow.models.build.verify import VerificationOutcome, verify_golden

    with open_bundle(bundle, from_, all_files) as source:
        _check_digest(source, digest)
        chosen = [source.manifest.variant(name) for name in variant] if variant else list(source.manifest.variants)
        fetched = source.fetched() if from_ and not variant else chosen
        with byte_progress(total_size(source.manifest), "checking", quiet=json) as progress:
            parts = [one.name for one in fetched] if variant or fetched != chosen else [None]
            problems = [problem for part in parts for problem in source.problems(part, progress)]
        outcomes: list[VerificationOutcome] = []
        if not problems and not files_only:
            for one in chosen:
                if one in fetched:
                    outcomes += verify_golden(source, one)
                else:
                    outcomes.append(VerificationOutcome(one.name, "-", "-", "not-run", "not fetched"))
        sound = not problems and not any(
            outcome.state == "failed" or (strict and outcome.state == "not-run") for outcome in outcomes
        )
        if json:
            print_json(_report(source, problems, outcomes, sound=sound))
        else:
            files = [file for name in parts for file in _files(source, name)]
            _print(source, files, problems, outcomes, ran=not files_only)
    if not sound:
        raise typer.Exit(1)


def _check_digest(bundle: Bundle, expected: str | None) -> None:
    from hedgerow.models.bundle.manifest import BadManifest

    if expected is not None and bundle.digest != f"sha256:{expected.removeprefix('sha256:')}":
        raise BadManifest(
            f"The bundle's digest is {bundle.digest}, not {expected}",
            remedy="Get the bundle with that digest; a build of different content has a different one.",
        )


def _files(bundle: Bundle, variant: str | None) -> list[File]:
    manifest = bundle.manifest
    return manifest.files() if variant is None else manifest.files_for(manifest.variant(variant))


def _print(
    bundle: Bundle, files: list[File], problems: list[BadBundle], outcomes: list[VerificationOutcome], *, ran: bool
) -> None:
    manifest = bundle.manifest
    print_facts([(f"{manifest.name} {manifest.version}", bundle.digest)])
    each = {file.path: file for file in files}.values()
    chunks, bytes_ = sum(len(file.chunks) for file in each), sum(file.size for file in each)
    summary = f"{plural(len(each), 'file')}, {plural(chunks, 'chunk')}, {size(bytes_)}"
    echo(f"{summary}: {'intact' if not problems else plural(len(problems), 'problem')}.")
    for problem in problems:
        print_facts([(str(problem),), (f"  → {problem.remedy}",)])
    if problems or not ran:
        echo("No golden cases were run.")
        return
    echo("")
    rows = [(each.variant, each.backend, each.device, _STATES[each.state], each.detail) for each in outcomes]
    print_table(("VARIANT", "BACKEND", "DEVICE", "GOLDEN", ""), rows, names=4)
    counts = ", ".join(
        f"{sum(each.state == state for each in outcomes)} {label.lower()}" for state, label in _STATES.items()
    )
    echo(f"\n{counts}.")


def _report(
    bundle: Bundle, problems: list[BadBundle], outcomes: list[VerificationOutcome], *, sound: bool
) -> dict[str, Any]:
    return {
        "name": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.digest,
        "sound": sound,
        "problems": [{"code": each.code, "message": str(each), "remedy": each.remedy} for each in problems],
        "golden": [asdict(each) for each in outcomes],
    }
