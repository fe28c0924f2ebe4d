"""Builds and publishes the model versions of the rollout demo, using ordinary commands, and prints each command.

One version has a flaw that its samples do not show, and one is tampered with after it was signed.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from hedgerow.cli.demo.commands import run_command
from hedgerow.cli.demo.processes import Log

MODEL: Final = "voice"
SILERO: Final = "package:silero_vad/data/silero_vad_16k_op15.onnx"
CARELESS: Final = "careless.onnx"
FIRST, BETTER, BAD, TAMPERED = "1.0.0", "2.0.0", "3.0.0", "4.0.0"
RECIPES: Final = {
    FIRST: (SILERO, "onnx-fp32", "Probability of speech in 32 ms of sound."),
    BETTER: (SILERO, "onnx-fp16", "The same in half the bytes."),
    BAD: (CARELESS, "onnx-fp32", "Weights the probability by loudness. Untested on a muted microphone."),
    TAMPERED: (SILERO, "onnx-fp32", "Changed in the repository after it was signed."),
}
"""File, variant and description of each version."""


@dataclass
class PublishedVersion:
    """A published version of the model, and the outcome of its rollout.

    Attributes:
        bytes: size of the bundle.
        rollout: final progress of its rollout.
        wan_bytes: bytes of models sent to sites during its rollout.
    """

    version: str
    digest: str
    bytes: int
    rollout: dict[str, Any] = field(default_factory=dict)
    wan_bytes: int = 0


class ModelPublisher:
    """Builds and publishes versions in one folder, which stands for an engineer's machine and the region's.

    Args:
        folder: for bundles, keys, repository and rollouts.
        log: called with each command.
    """

    def __init__(self, folder: Path, log: Log) -> None:
        self.folder = folder
        self._log = log
        self._passphrase_file = folder / "passphrase.txt"

    def create_repository(self) -> None:
        """Create the keys, and a repository with an owner who may sign this model."""
        self._passphrase_file.write_text(secrets.token_urlsafe(16), "utf-8")
        self._passphrase_file.chmod(0o600)
        passphrase = ("--passphrase-file", self._passphrase_file.name)
        self._run("trust", "init", "--repository", "models", "--keys", "keys", *passphrase)
        self._run("trust", "key", "keys/voice-team.pem", *passphrase)
        self._run("trust", "add", "voice-team", "--model", MODEL, "--public-key", "keys/voice-team.pub",
                  "--key", "keys/targets.pem", "--repository", "models", *passphrase)  # fmt: skip
        root = self.folder / "models" / "metadata" / "1.root.json"
        (self.folder / "root.json").write_bytes(root.read_bytes())

    def build(self, recipe: str) -> PublishedVersion:
        """Build a version from its recipe, and publish it."""
        built = self._run("model", "build", recipe)
        published = self._run("model", "publish", built["folder"], "--to", "models", "--key", "keys/voice-team.pem",
                              "--passphrase-file", self._passphrase_file.name)  # fmt: skip
        return PublishedVersion(built["version"], published["digest"], _bytes(self.folder / built["folder"]))

    def tamper(self) -> None:
        """Replace a published version's content by another one's, as an attacker with disk access but no key could.

        All digests match and all chunks exist; only the signature is for the earlier content.
        """
        bad, tampered = (self._manifest(version) for version in (BAD, TAMPERED))
        forged = bad.read_text("utf-8").replace(f'"version":"{BAD}"', f'"version":"{TAMPERED}"')
        tampered.write_text(forged, "utf-8")

    def _manifest(self, version: str) -> Path:
        (path,) = (self.folder / "models" / "targets" / MODEL / version).glob("*manifest.json")
        return path

    def start_rollout(self, name: str, version: PublishedVersion, why: str, **plan: Any) -> None:
        """Start a rollout of a version."""
        from hedgerow.wire.messages import encode_json

        rollout = {"rollout": name, "models": {MODEL: {"version": version.version}}, "why": why, **plan}
        (self.folder / f"{name}.yaml").write_bytes(encode_json(rollout))  # JSON is YAML
        self._run("rollout", "start", "-f", f"{name}.yaml", "--config", "region.yaml")

    def _run(self, *arguments: str) -> Any:
        return run_command(self.folder, self._log, *arguments)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_recipes(folder: Path) -> None:
    """Write the model recipes, the careless model and the node's configuration; delete files of an earlier demo."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("models", "keys", "bundles"):
        shutil.rmtree(folder / old, ignore_errors=True)
    for old_file in folder.glob("models.online.*"):
        old_file.unlink()
    from hedgerow.cli.demo.feeds import recordings
    from hedgerow.models.bundle.model_file import resolve

    templates = files("hedgerow.cli.demo.templates")
    (folder / "node.yaml").write_text(templates.joinpath("demo-rollout-node.yaml").read_text("utf-8"), "utf-8")
    template = Template(templates.joinpath("demo-rollout-model.yaml").read_text("utf-8"))
    samples = ", ".join(str(path) for path in recordings())
    _write_careless_model(resolve(SILERO, folder).path, folder / CARELESS)
    for version, (model, variant, description) in RECIPES.items():
        text = template.substitute(
            VERSION=version, MODEL=model, VARIANT=variant, DESCRIPTION=description, SAMPLES=samples
        )
        (folder / f"model-{version}.yaml").write_text(text, "utf-8")


def _write_careless_model(path: Path, out: Path) -> None:
    """Write the model with its output weighted by `min(peak, 1) / peak`, which is 0 / 0 for digital silence."""
    import onnx
    from onnx import helper

    model = onnx.load(path)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "output":
                node.output[place] = "unweighted"
    model.graph.node.extend(
        [
            helper.make_node("Abs", ["input"], ["size"]),
            helper.make_node("ReduceMax", ["size"], ["peak"], axes=[-1], keepdims=1),
            helper.make_node("Constant", [], ["loudest"], value_float=1.0),
            helper.make_node("Min", ["peak", "loudest"], ["clipped"]),
            helper.make_node("Div", ["clipped", "peak"], ["weight"]),
            helper.make_node("Mul", ["unweighted", "weight"], ["output"]),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, out)
