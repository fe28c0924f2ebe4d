"""Builds a release from a commit: wheels, images if an engine is there, their bills of materials, and a signed statement.

    make release KEY=release.pem             into dist/; the key is one of `hedgerow trust key`, or on a token: hsm:2
    make release KEY=release.pem IMAGES=     without images
    python release/verify.py dist release.pub

The files come from the commit, not from the working tree, and the wheels are the same whoever builds them, byte for byte.
The statement is SLSA provenance (in-toto) in a DSSE envelope: every file with its digest, the commit, what the files were made
from, by whom. Nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bom import image_bom, wheel_bom
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope
from verify import ENVELOPE, PAYLOAD_TYPE, PREDICATE, STATEMENT, NotVerifiedError, verify

from hedgerow.errors import HedgerowError
from hedgerow.trust.keys import Secrets, open_signer, read_public

ROOT: Final = Path(__file__).parents[1]
PROJECTS: Final = (".", "plugins/vision", "plugins/audio", "plugins/signal")
BUILD_TYPE: Final = "urn:hedgerow:release:1"
_BASE: Final = "docker.io/library/python:3.11-slim-bookworm"


def export(repository: Path, commit: str, folder: Path) -> None:
    """Write the files of a commit to a folder."""
    archive = subprocess.run(
        ["git", "-C", str(repository), "archive", "--format=tar", commit], capture_output=True, check=True
    ).stdout
    folder.mkdir(parents=True)
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file) as members:
            members.extractall(folder, filter="data")


def build_wheels(source: Path, out: Path, epoch: int, projects: Sequence[str] = PROJECTS) -> list[Path]:
    """Build wheels that are the same, byte for byte, wherever and whenever they are built from the same files.

    Args:
        source: a copy of the project; the modes of its files are set.
        epoch: Unix seconds, for all files in the wheels.
    """
    out.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)  # whatever the umask was
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONDONTWRITEBYTECODE": "1"}
    for project in projects:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out.resolve())]
        done = subprocess.run(
            command, cwd=source / project, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: {project} cannot be built\n{done.stderr}")
    return sorted(out.glob("*.whl"))


def build_images(source: Path, out: Path, at: datetime) -> list[dict[str, Any]]:
    """Build and save the images, with their bills of materials. Returns: what they were made from; nothing without an engine."""
    found = subprocess.run(["sh", "containers/engine.sh"], cwd=source, capture_output=True, text=True, check=False)
    engine = found.stdout.strip()
    if found.returncode or not engine:
        print(f"images: SKIPPED: {(found.stderr.strip().splitlines() or ['no engine'])[0]}")
        return []
    base = _by_digest(engine, os.environ.get("BASE", _BASE))
    subprocess.run(["sh", "containers/build.sh"], cwd=source, env={**os.environ, "BASE": base}, check=True)
    for tag, name in (
        ("hedgerow:onnx", "onnx"),
        ("hedgerow:openvino", "openvino"),
        ("hedgerow-region:latest", "region"),
    ):
        image, archive = f"localhost/{tag}", out / f"hedgerow-{name}-{platform.machine()}.tar"
        subprocess.run([engine, "save", "--output", str(archive), image], check=True, stdout=subprocess.DEVNULL)
        inside = [engine, "run", "--rm", "--interactive", "--network=none", "--entrypoint", "python3", image, "-"]
        script = (source / "release/inventory.py").read_bytes()
        listed = subprocess.run(inside, input=script, capture_output=True, check=True).stdout
        text = image_bom(image, sha256(archive), json.loads(listed), at)
        archive.with_name(f"{archive.name}.cdx.json").write_text(text, "utf-8")
    uri, _, digest = base.rpartition("@sha256:")
    return [{"uri": f"pkg:docker/{uri}", "digest": {"sha256": digest}}]


def _by_digest(engine: str, image: str) -> str:
    """Return an image's name with its digest: a tag may be another image tomorrow."""
    if "@sha256:" in image:
        return image
    subprocess.run([engine, "pull", "--quiet", image], check=True, stdout=subprocess.DEVNULL)
    shown = subprocess.run(
        [engine, "inspect", "--format", "{{index .RepoDigests 0}}", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    if "@sha256:" not in shown:
        raise SystemExit(f"error: {image} has no digest\n  → Pull it from a registry, or set BASE=NAME@sha256:….")
    return shown


def statement(folder: Path, commit: str, materials: list[dict[str, Any]], began: datetime) -> dict[str, Any]:
    """Return the provenance of all files in a folder (in-toto Statement v1, SLSA Provenance v1)."""
    files = sorted(path for path in folder.iterdir() if path.name != ENVELOPE)
    versions = {name: metadata.version(name) for name in ("hatchling", "cyclonedx-python-lib")}
    return {
        "_type": STATEMENT,
        "subject": [{"name": path.name, "digest": {"sha256": sha256(path)}} for path in files],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"commit": commit},
                "internalParameters": {"python": platform.python_version(), "machine": platform.machine()},
                "resolvedDependencies": [{"uri": "git+file:.", "digest": {"gitCommit": commit}}, *materials],
            },
            "runDetails": {
                "builder": {"id": "urn:hedgerow:make-release", "version": versions},
                "metadata": {"startedOn": _rfc3339(began), "finishedOn": _rfc3339(datetime.now(UTC))},
            },
        },
    }


def sign(content: dict[str, Any], key: str, secrets: Secrets) -> bytes:
    """Return a statement in a DSSE envelope. Raises: KeyUnusable."""
    envelope = Envelope(json.dumps(content, sort_keys=True).encode(), PAYLOAD_TYPE, {})
    signer = open_signer(key, secrets)
    signed = envelope.pae()
    signature = bytes.fromhex(signer.sign(signed).signature)
    return json.dumps(
        {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": signer.public_key.keyid, "sig": base64.b64encode(signature).decode()}],
        }
    ).encode()


def sha256(path: Path) -> str:
    """Return the digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _git(repository: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repository), *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "make release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--key", required=True, help="private key: a file, or hsm:ID?label=TOKEN")
    parser.add_argument("--passphrase-file", type=Path, help="passphrase of the key, or PIN of the token")
    parser.add_argument("--commit", default="HEAD", help="what to release; default HEAD")
    parser.add_argument("--repository", type=Path, default=ROOT, help="the checkout; default this one")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder; must not exist, or be empty")
    parser.add_argument("--no-images", action="store_true", help="leave the images out")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty: name another folder, or remove it")
    began, commit = datetime.now(UTC), _git(args.repository, "rev-parse", f"{args.commit}^{{commit}}")
    epoch = int(_git(args.repository, "log", "-1", "--format=%ct", commit))
    at = datetime.fromtimestamp(epoch, UTC)
    try:
        secrets = Secrets.gather(args.passphrase_file)
        open_signer(args.key, secrets)  # before the work
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(temporary) / "source"
            export(args.repository, commit, source)
            for wheel in build_wheels(source, args.out, epoch):
                wheel.with_name(f"{wheel.name}.cdx.json").write_text(wheel_bom(wheel, sha256(wheel), at), "utf-8")
            for name in ("LICENSE", "NOTICE"):
                shutil.copy(source / name, args.out)
            locks = sorted([source / "requirements.lock", *source.glob("containers/requirements/*.lock")])
            materials = [
                {"uri": f"git+file:.#{lock.relative_to(source)}", "digest": {"sha256": sha256(lock)}} for lock in locks
            ]
            materials += [] if args.no_images else build_images(source, args.out, at)
        content = statement(args.out, commit, materials, began)
        (args.out / ENVELOPE).write_bytes(sign(content, args.key, secrets))
        verify(args.out, _pem(args.key, secrets))
    except HedgerowError as error:
        print(f"error: {error.explain()}", file=sys.stderr)
        return 1
    except NotVerifiedError as error:  # of a kind that verify.py does not know
        print(f"error: {error}\n  → Sign with a key of `hedgerow trust key`, or ECDSA on a token.", file=sys.stderr)
        return 1
    for each in content["subject"]:
        print(f"{each['digest']['sha256']}  {each['name']}")
    print(f"Signed in {args.out / ENVELOPE}. Anyone verifies it: python release/verify.py {args.out} KEY.pub")
    return 0


def _pem(key: str, secrets: Secrets) -> bytes:
    public = read_public(key, secrets)
    text = str(public.keyval["public"])
    if public.keytype != "ed25519":
        return text.encode()
    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    return raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


if __name__ == "__main__":
    sys.exit(main())
