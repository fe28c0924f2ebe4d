"""Secrets: errors withhold them, so those that they could not are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from hedgerow.bus import ClientOptions
from hedgerow.config import BrokerSection
from hedgerow.errors import ConfigError, HedgerowError, keep_secret, published
from hedgerow.web.credentials import authorization_from


@pytest.mark.parametrize("secret", ["a", "abc", "🔑"])
def test_a_secret_that_errors_could_not_withhold_is_refused(secret: str, tmp_path: Path) -> None:
    """Without quoting it."""
    (tmp_path / "file").write_text(f"{secret}\n")
    (tmp_path / "credentials").write_text(f"user:{secret}\n")
    refusals = {
        "inline": lambda: ClientOptions(url="mqtt://h", password=secret).read_password(),
        "file": lambda: ClientOptions(url="mqtt://h", password_file=tmp_path / "file").read_password(),
        "origin": lambda: authorization_from(tmp_path / "credentials", "h"),
        "configuration": lambda: BrokerSection(password=SecretStr(secret)),
    }
    for where, refuse in refusals.items():
        with pytest.raises((ConfigError, ValidationError), match=r"fewer than 4|at least 4") as caught:
            refuse()
        assert secret == "a" or secret not in str(caught.value), where
    keep_secret("")
    assert published(HedgerowError("a", remedy="b")) == ("a", "b")
