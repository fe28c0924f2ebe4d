"""What the rollout demo takes through the fleet: versions of a model, made and published by the commands that people use.

Every command is shown. One version has a flaw that samples do not show, and one is tampered with after it was signed.
"""

from __future__ import annotations

import json as jsonlib
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from hedgerow.cli.demo.processes import Say
from hedgerow.errors import HedgerowError
from hedgerow.testing.processes import run

MODEL: Final = "voice"
SILERO: Final = "package:silero_vad/data/silero_vad_16k_op15.onnx"
CARELESS: Final = "careless.onnx"
FIRST, BETTER, BAD, TAMPERED = "1.0.0", "2.0.0", "3.0.0", "4.0.0"
RECIPES: Final = {
    FIRST: (SILERO, "onnx-fp32", "How likely it is that somebody speaks, from 32 ms of sound."),
    BETTER: (SILERO, "onnx-fp16", "The same in half the bytes."),
    BAD: (CARELESS, "onnx-fp32", "Weighs its verdict by loudness. Nobody has tried it on a muted microphone."),
    TAMPERED: (SILERO, "onnx-fp32", "Changed in the repository after it was signed."),
}
"""By version: its file, its variant, what it is."""


@dataclass
class Version:
    """A version of the model, and what came of it."""

    version: str
    digest: str
    bytes: int
    rollout: dict[str, Any] = field(default_factory=dict)
    wan_bytes: int = 0


class Workshop:
    """Where versions are made and published: an engineer's machine and the region's, in one folder.

    Args:
        folder: where all of it goes.
        say: told each command.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder
        self._say = say
        self._word = folder / "word.txt"

    def open(self) -> None:
        """Make the keys, and a repository that an owner may sign this model in."""
        self._word.write_text(secrets.token_urlsafe(16), "utf-8")
        self._word.chmod(0o600)
        word = ("--passphrase-file", self._word.name)
        self._run("trust", "init", "--repository", "models", "--keys", "keys", *word)
        self._run("trust", "key", "keys/voice-team.pem", *word)
        self._run("trust", "add", "voice-team", "--model", MODEL, "--public-key", "keys/voice-team.pub",
                  "--key", "keys/targets.pem", "--repository", "models", *word)  # fmt: skip
        root = self.folder / "models" / "metadata" / "1.root.json"
        (self.folder / "root.json").write_bytes(root.read_bytes())

    def build(self, recipe: str) -> Version:
        """Build a version by its recipe, and publish it."""
        built = self._run("model", "build", recipe)
        published = self._run("model", "publish", built["folder"], "--to", "models", "--key", "keys/voice-team.pem",
                              "--passphrase-file", self._word.name)  # fmt: skip
        return Version(built["version"], published["digest"], _bytes(self.folder / built["folder"]))

    def tamper(self) -> None:
        """Do what somebody could who has the region's disk and no key: give a published version another one's content.

        All digests agree, every chunk is there; only the signature is over what was there before.
        """
        bad, tampered = (self._manifest(version) for version in (BAD, TAMPERED))
        other = bad.read_text("utf-8").replace(f'"version":"{BAD}"', f'"version":"{TAMPERED}"')
        tampered.write_text(other, "utf-8")

    def _manifest(self, version: str) -> Path:
        (path,) = (self.folder / "models" / "targets" / MODEL / version).glob("*manifest.json")
        return path

    def start(self, name: str, version: Version, why: str, **plan: Any) -> None:
        """Start a rollout of a version."""
        from hedgerow.wire.messages import encode_json

        whole = {"rollout": name, "models": {MODEL: {"version": version.version}}, "why": why, **plan}
        (self.folder / f"{name}.yaml").write_bytes(encode_json(whole))  # which is YAML
        self._run("rollout", "start", "-f", f"{name}.yaml", "--config", "region.yaml")

    def _run(self, *words: str) -> dict[str, Any]:
        """Run one of our commands as a person would. Raises: HedgerowError: it failed."""
        self._say(f"$ hedgerow {' '.join(words)}")
        command = [sys.executable, "-m", "hedgerow", *words, "--json"]
        done = run(command, cwd=self.folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise HedgerowError(
                f"`hedgerow {' '.join(words)}` ended with {done.returncode}:\n{done.stderr.strip()[-1200:]}",
                remedy=f"Run it in {self.folder}.",
            )
        said: dict[str, Any] = jsonlib.loads(done.stdout)
        return said


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def lay_out(folder: Path) -> None:
    """Put everything there that a person would have written, and take away what an earlier demo left."""
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
    _careless(resolve(SILERO, folder).path, folder / CARELESS)
    for version, (model, variant, description) in RECIPES.items():
        text = template.substitute(
            VERSION=version, MODEL=model, VARIANT=variant, DESCRIPTION=description, SAMPLES=samples
        )
        (folder / f"model-{version}.yaml").write_text(text, "utf-8")


def _careless(path: Path, out: Path) -> None:
    """The model, whose output is weighed by loudness, `min(peak, 1) / peak`: right for all sound but silence: 0 / 0."""
    import onnx
    from onnx import helper

    model = onnx.load(path)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "output":
                node.output[place] = "unweighed"
    model.graph.node.extend(
        [
            helper.make_node("Abs", ["input"], ["size"]),
            helper.make_node("ReduceMax", ["size"], ["peak"], axes=[-1], keepdims=1),
            helper.make_node("Constant", [], ["loudest"], value_float=1.0),
            helper.make_node("Min", ["peak", "loudest"], ["heard"]),
            helper.make_node("Div", ["heard", "peak"], ["weight"]),
            helper.make_node("Mul", ["unweighed", "weight"], ["output"]),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, out)
