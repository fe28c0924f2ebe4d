"""`hedgerow model diff`: compare two bundles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hedgerow.cli.base.console import echo, human_readable, plural, print_json, size
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.tables import print_facts, print_table
from hedgerow.cli.model.lookup import From, open_bundle

if TYPE_CHECKING:
    from hedgerow.models.bundle.diff import BundleDiff
    from hedgerow.models.bundle.folder import Bundle
    from hedgerow.models.bundle.manifest import File, Manifest

_LONGEST = 48


def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A bundle's folder; with --from, NAME/VERSION or a digest.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="Another bundle.")],
    from_: From = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if they differ, as git does.")] = False,
    json: Json = False,
) -> None:
    """Show how two bundles differ, and how much a node that has A must fetch for B.

    Examples:
      hedgerow model diff bundles/door-1.1.0 bundles/door-1.2.0
      hedgerow model diff door/1.1.0 door/1.2.0 --from models
      hedgerow model diff bundles/door-1.1.0 bundles/door-1.2.0 --json --exit-code

    Nothing is run: recorded outputs for golden inputs that both have are compared, in tolerances of A; above 1, the outputs
    differ. SHIFT is the population stability index of a tensor's values on the authors' samples: below 0.1 nothing has
    changed, above 0.25 something has.

    With --from, a name that is a bundle's folder means that folder.
    """
    from hedgerow.models.bundle.diff import difference

    with (
        open_bundle(before, _store(before, from_), _golden_outputs) as one,
        open_bundle(after, _store(after, from_), _golden_outputs) as two,
    ):
        found = difference(one, two)
        if json:
            print_json({"before": _ref(one), "after": _ref(two), **asdict(found)})
        else:
            _print(one, two, found)
    if exit_code and not found.same:
        raise typer.Exit(1)


def _golden_outputs(manifest: Manifest) -> Iterable[File]:
    return [file for case in manifest.golden for file in case.outputs.values()]


def _store(reference: str, from_: Path | None) -> Path | None:
    """Return the store to search; None for a folder, so that published and unpublished bundles can be compared."""
    return None if from_ is None or (Path(reference) / "manifest.json").is_file() else from_


def _ref(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {"name": manifest.name, "version": manifest.version, "digest": bundle.digest}


def _print(one: Bundle, two: Bundle, found: BundleDiff) -> None:
    old, new = (f"{each.manifest.name} {each.manifest.version}" for each in (one, two))
    print_facts([("A", old, one.digest), ("B", new, two.digest)])
    if found.same:
        echo("\nIdentical.")
        return
    echo("")
    if found.changes:
        changes = [(each.what, _short(each.before), _short(each.after)) for each in found.changes]
        print_table(("CHANGED", "A", "B"), changes)
    else:
        echo("The manifests agree.")
    _print_golden(one, found)
    if found.moved:
        echo("")
        moved = [
            (
                each.tensor,
                " → ".join(f"{value:.4g}" for value in each.mean),
                " → ".join(f"{value:.4g}" for value in each.deviation),
                " → ".join(f"{low:.4g} to {high:.4g}" for low, high in each.range),
                "-" if each.shift is None else f"{each.shift:.2f}",
            )
            for each in found.moved
        ]
        print_table(
            ("TENSOR", ">MEAN", ">DEVIATION", ">RANGE", ">SHIFT"), moved, omit_first=("RANGE", "DEVIATION", "MEAN")
        )
    echo("")
    fetched = [(each.variant or "whole bundle", size(each.bytes), size(each.of)) for each in found.fetch]
    print_table((f"TO FETCH FOR {new}", ">NEW", ">OF"), fetched)


def _print_golden(one: Bundle, found: BundleDiff) -> None:
    count = len(one.manifest.golden)
    if not found.golden_shared:
        echo(f"\nA and B share none of A's {plural(count, 'golden input')}, so outputs cannot be compared.")
        return
    if not found.golden:
        echo(f"\nThe outputs of {plural(found.golden_shared, 'shared golden case')} are the same.")
        return
    echo("")
    rows = []
    for variant in dict.fromkeys(each.variant for each in found.golden):
        differences = [each for each in found.golden if each.variant == variant]
        worst = max(differences, key=lambda each: each.off)
        differing = f"{sum(each.off > 1 for each in differences)} of {found.golden_shared}"
        rows.append((variant, differing, f"case {worst.case}, {worst.output}", f"{worst.off:.3g}", worst.detail))
    print_table(("GOLDEN", "DIFFER", "LARGEST DIFFERENCE", ">TOLERANCES", ""), rows)


def _short(value: Any) -> str:
    """Format a value on one line: variants and files by size and digest, anything else shortened."""
    if isinstance(value, dict) and "model_digest" in value:
        return f"{size(value['bytes'])}, {value['model_digest'][:19]}"
    if isinstance(value, dict) and value.keys() == {"file", "digest"}:
        return f"{value['file']} {value['digest'][:19]}"
    text = ", ".join(map(_short, value)) if isinstance(value, list | tuple) else human_readable(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
