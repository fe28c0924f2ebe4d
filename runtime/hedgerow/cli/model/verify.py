"""`hedgerow model verify`: whether a bundle is what it says, and computes here what it should."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import plural, print_json, size
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import print_facts, print_table
from hedgerow.cli.model.lookup import From, Named, everything, opened, reading
from hedgerow.cli.model.show import total_size

if TYPE_CHECKING:
    from hedgerow.models.build.verify import VerificationOutcome
    from hedgerow.models.bundle.folder import BadBundle, Bundle
    from hedgerow.models.bundle.manifest import File

_STATES = {"passed": "passed", "failed": "FAILED", "not-run": "not run"}


def verify(
    bundle: Named,
    from_: From = None,
    digest: Annotated[
        str | None, typer.Option(metavar="SHA256", help="What the bundle has to be, as a rollout or a result names it.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", "-v", help="Check and run only this one, with what it needs.")
    ] = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Run nothing: for bundles whose maker you do not trust.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="What cannot be run here counts as failed.")] = False,
    json: Json = False,
) -> None:
    """Check every file and chunk of a bundle against its digest, then run its golden cases.

    Examples:
      hedgerow model verify bundles/door-1.2.0
      hedgerow model verify bundles/door-1.2.0 --digest sha256:4f1c… --files-only
      hedgerow model verify door/1.2.0 --from models --strict

    Each variant runs on each backend and device that its manifest names and that is here; what is not run is said, and
    why. Where a file is not what it should be, nothing is run. Of a bundle in a node's store, those variants are checked
    that the node has fetched. That a bundle is whole says nothing about who made it: that
    is what signatures are for (`hedgerow model publish`, `hedgerow trust status`).

    Exits with 1 if a file is damaged or a golden case failed; with --strict also if a variant was not run.
    """
    from hedgerow.models.build.verify import VerificationOutcome, verify_golden

    with opened(bundle, from_, everything) as there:
        _check_digest(there, digest)
        chosen = [there.manifest.variant(name) for name in variant] if variant else list(there.manifest.variants)
        fetched = there.fetched() if from_ and not variant else chosen
        with reading(total_size(there.manifest), "checking", quiet=json) as progress:
            parts = [one.name for one in fetched] if variant or fetched != chosen else [None]
            problems = [problem for part in parts for problem in there.problems(part, progress)]
        outcomes: list[VerificationOutcome] = []
        if not problems and not files_only:
            for one in chosen:
                if one in fetched:
                    outcomes += verify_golden(there, one)
                else:
                    outcomes.append(VerificationOutcome(one.name, "-", "-", "not-run", "it has not been fetched"))
        sound = not problems and not any(
            outcome.state == "failed" or (strict and outcome.state == "not-run") for outcome in outcomes
        )
        if json:
            print_json(_report(there, problems, outcomes, sound=sound))
        else:
            files = [file for name in parts for file in _files(there, name)]
            _print(there, files, problems, outcomes, ran=not files_only)
    if not sound:
        raise typer.Exit(1)


def _check_digest(bundle: Bundle, wanted: str | None) -> None:
    from hedgerow.models.bundle.manifest import BadManifest

    if wanted is not None and bundle.digest != f"sha256:{wanted.removeprefix('sha256:')}":
        raise BadManifest(
            f"The bundle is {bundle.digest}, not {wanted}",
            remedy="Fetch the one that is meant: each build of other content has a digest of its own.",
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
    what = f"{plural(len(each), 'file')}, {plural(chunks, 'chunk')}, {size(bytes_)}"
    typer.echo(f"{what}: {'as the manifest says' if not problems else plural(len(problems), 'problem')}.")
    for problem in problems:
        print_facts([(str(problem),), (f"  → {problem.remedy}",)])
    if problems or not ran:
        typer.echo("No golden case was run.")
        return
    typer.echo("")
    rows = [(each.variant, each.backend, each.device, _STATES[each.state], each.detail) for each in outcomes]
    print_table(("VARIANT", "BACKEND", "DEVICE", "GOLDEN", ""), rows, names=4)
    counts = ", ".join(
        f"{sum(each.state == state for each in outcomes)} {said.lower()}" for state, said in _STATES.items()
    )
    typer.echo(f"\n{counts}.")


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
