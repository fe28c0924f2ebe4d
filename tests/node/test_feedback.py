"""A node refuses a pipeline that would process the node's own messages, whichever way the pipeline is configured."""

from __future__ import annotations

from typing import Any

import pytest
from trial_site import Site, until

from hedgerow.errors import HedgerowError


def with_feedback(site: Site, pattern: str = "#") -> dict[str, Any]:
    return {"p": site.pipeline(), "all": {**site.pipeline(), "subscribe": pattern}}


async def test_at_start_only_that_pipeline_fails(site: Site) -> None:
    async with site.node(with_feedback(site)) as node:
        assert list(node.failures) == ["all"]
        health = node.health()
        await site.frame(1)
        await site.wait_results(1)

    assert health.state == "failing"
    assert f"hedgerow/v1/{site.address}/status" in (health.pipelines["all"].error or "")
    assert "sensors only" in (health.pipelines["all"].remedy or "")


async def test_a_reload_is_refused(site: Site) -> None:
    async with site.node() as node:
        reply = await site.reload(with_feedback(site, "$share/all/#"))
        assert list(node.runners) == ["p"]

    assert not reply["ok"]
    assert "'$share/all/#' also matches what this node publishes" in reply["error"]["message"]


async def test_a_change_by_the_region_is_refused(site: Site) -> None:
    """Also one that only closes a circle of pipelines, of which it changes one."""
    result = f"hedgerow/v1/{site.address}/result"
    pipelines = {"p": site.pipeline(), "second": {**site.pipeline(), "subscribe": f"{result}/p"}}
    async with site.node(pipelines, remote={"unsigned_pipelines": True}) as node:
        with pytest.raises(HedgerowError, match="result/second"):
            await node._live_config.set_overlay({"p": {"subscribe": f"{result}/second"}})
        assert node.config.pipelines["p"].subscribe == (f"{site.name}/in/+",)


async def test_a_pipeline_can_process_the_results_of_another(site: Site) -> None:
    pipelines = {
        "p": site.pipeline(),
        "second": {**site.pipeline(), "subscribe": f"hedgerow/v1/{site.address}/result/p"},
    }
    async with site.node(pipelines) as node:
        await site.frame(1)
        await until(lambda: node.runners["second"].tally.received == 1)
