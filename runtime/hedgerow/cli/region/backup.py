"""`hedgerow region backup` and `restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hedgerow.cli.base.console import echo, plural, print_json, size
from hedgerow.cli.base.options import Json
from hedgerow.cli.base.progress import byte_progress
from hedgerow.cli.region.options import operating_user

Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="The region's configuration.")]


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder for the backup.")],
    config: Config = Path("region.yaml"),
    json: Json = False,
) -> None:
    """Back up a region: its store and its repository of models, while the service runs.

    Examples:
      hedgerow region backup /backup/region-2026-12-01
      hedgerow region backup /backup/region-2026-12-01 --config /etc/hedgerow/region.yaml

    The store is copied as it is at one moment, however long that takes. The folder appears when it is complete, with the checksum of
    each file. Keys are not copied: keep the owners' keys, the online key and certificates elsewhere. It holds every result, so
    protect it as the store itself. `hedgerow region restore` puts it back.
    """
    from hedgerow.region.backup.backup import make_backup
    from hedgerow.region.config import load

    settings = load(config)
    with byte_progress(None, "backing up", quiet=json) as advance:
        manifest = make_backup(settings, folder, advance)
    if json:
        print_json({"folder": str(folder), "at": manifest.at, "files": len(manifest.files), "bytes": manifest.size})
    else:
        echo(f"{folder}: {len(manifest.files)} files, {size(manifest.size)}. Keys are not in it.")


def restore(
    folder: Annotated[Path, typer.Argument(help="The backup's folder.")],
    config: Config = Path("region.yaml"),
    replace: Annotated[bool, typer.Option("--replace", help="Replace a store that holds something.")] = False,
    json: Json = False,
) -> None:
    """Put a region's backup back, while no service of its store runs.

    Examples:
      hedgerow region restore /backup/region-2026-12-01
      hedgerow region restore /backup/region-2026-12-01 --replace

    The backup is checked first, and the store replaced in one step: if this is interrupted, the store is the old or the new one, and
    the same command finishes it. Nodes send again what they got acknowledged after the backup, as long as they keep it (`outbox:
    {keep_acknowledged_s}`, a day by default); `hedgerow region status` counts it. Open claims are revoked. Machines rejected, nodes
    forgotten and rollouts stopped after the backup stay so, if the store that is replaced can be read. Numbers
    go on above all that may have been given meanwhile: generations of desired documents, ids of rollouts and of the audit log. Models
    are added to the repository; nothing in it is replaced, since nodes refuse metadata older than what they have seen.
    """
    from hedgerow.region.backup.manifest import read_manifest
    from hedgerow.region.backup.restore import restore_backup
    from hedgerow.region.config import load
    from hedgerow.region.store.queries import iso

    settings = load(config)
    with byte_progress(2 * read_manifest(folder).size, "restoring", quiet=json) as advance:
        done = restore_backup(settings, folder, who=operating_user(), replace=replace, advance=advance)
    if json:
        print_json(
            {
                "folder": str(folder),
                "backup_at": done.manifest.at,
                "counter": done.counter,
                "generation_floor": done.generation_floor,
                "files_added": done.files_added,
                **done.shut.detail(),
            }
        )
        return
    echo(f"The store is as of {iso(done.manifest.at)}; files added to the repository: {done.files_added}.")
    shut = done.shut
    if shut.claims:
        echo(
            f"All claims that the backup had open are revoked ({shut.claims}): make new ones with `hedgerow claim create`."
        )
    if shut.machines or shut.nodes or shut.rollouts:
        echo(
            f"Decided after the backup, and still so: {plural(shut.machines, 'machine')} rejected, {plural(shut.nodes, 'node')} forgotten, "
            f"{plural(shut.rollouts, 'rollout')} stopped (paused now: `hedgerow rollout resume` or `abort`)."
        )
    if not shut.is_complete:
        echo(
            "There was no store to replace, so what was decided after the backup is not known: reject machines, forget nodes and abort "
            "rollouts again, and see `hedgerow node pending --all`."
        )
    echo(
        "Start the service: `hedgerow region run`. Then nodes send again what the store has lost; `hedgerow region status` counts it, and "
        "shows which nodes are ahead of this store."
    )
