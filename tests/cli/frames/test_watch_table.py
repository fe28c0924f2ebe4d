"""The table of `hedgerow watch` and `hedgerow demo` on terminals of any size."""

from __future__ import annotations

import io

import pytest
from click import unstyle
from rich.console import Console
from tests.cli.frames.test_watch import FACES, make_result

from hedgerow.cli.base.console import rendered
from hedgerow.cli.base.tables import ansi_text
from hedgerow.cli.frames.message_board import Board, parse_message
from hedgerow.cli.frames.watch import board_lines
from hedgerow.topics import Address, Channel
from hedgerow.wire.messages import JSON, Health, PipelineHealth, encode_json

PRESS, LATHE = Address("plant", "hall-1", "press"), Address("plant", "hall-2", "lathe")
TEXTS = {"texts": [{"text": "Region-based segmentation"}, {"text": "Let us first determine markers"}]}


def filled(*nodes: Address) -> Board:
    """Return a board at 110.0 with three streams per node, one of them with a dead letter."""
    board = Board()
    for node in nodes:
        for pipeline, stream, value in (
            ("doors", "office/door/image", FACES),
            ("pages", "office/scanner/page", TEXTS),
            ("pumps", "plant/pump/vibration", {"anomalous": True, "score": 4.56}),
        ):
            for number in range(20):
                at = 100.0 + number * 0.5
                body = make_result(number, value, captured_at=at - 0.02, at=at)
                body["frame"]["stream"] = stream
                message = parse_message(node.topic(Channel.RESULT, pipeline), encode_json(body), JSON, [], at + 0.001)
                assert message is not None
                board.add(message)
        doors = PipelineHealth(state="running", received=583, out=583, dropped={"no-speech": 13, "absorbed": 563})
        pipelines = {"doors": doors, "pages": PipelineHealth(state="running", received=20, out=20)}
        board.nodes[str(node)] = Health(
            node=str(node), session="s", at=1.0, uptime_s=1.0, state="ok", pipelines=pipelines
        )
    board.streams[str(nodes[0]), "doors", "office/door/image"].dead = 1
    return board


def screen_lines(board: Board, width: int, height: int = 50, outage: str = "") -> list[str]:
    """Return the lines that a terminal of a width shows."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(ansi_text(board_lines(board, width, height, 110.0, outage)))
    lines = console.file.getvalue().rstrip().split("\n")  # type: ignore[attr-defined]
    return [line.rstrip() for line in lines]


ONE_NODE = {
    60: """\
PIPELINE  STREAM                RATE/S  LAST
doors     office/door/image        2.0  2 face
pages     office/scanner/page      2.0  'Region-based segme…
pumps     plant/pump/vibration     2.0  anomalous True, sco…
plant/hall-1/press: ok
  doors running: 583 in, 583 out, 576 dropped (no-speech 13…
  pages running: 20 in, 20 out""",
    80: """\
PIPELINE  STREAM                RATE/S  LATENCY ms p50/p99  COUNT  LAST
doors     office/door/image        2.0         20.0 / 20.0     20  2 face
pages     office/scanner/page      2.0         20.0 / 20.0     20  'Region-base…
pumps     plant/pump/vibration     2.0         20.0 / 20.0     20  anomalous Tr…
plant/hall-1/press: ok
  doors running: 583 in, 583 out, 576 dropped (no-speech 13, absorbed 563)
  pages running: 20 in, 20 out""",
    120: """\
PIPELINE  STREAM                RATE/S  LATENCY ms p50/p99  ARRIVAL ms p50/p99  COUNT  DEAD  LAST
doors     office/door/image        2.0         20.0 / 20.0         21.0 / 21.0     20     1  2 face
pages     office/scanner/page      2.0         20.0 / 20.0         21.0 / 21.0     20     0  'Region-based segmentation…
pumps     plant/pump/vibration     2.0         20.0 / 20.0         21.0 / 21.0     20     0  anomalous True, score 4.56
plant/hall-1/press: ok
  doors running: 583 in, 583 out, 576 dropped (no-speech 13, absorbed 563)
  pages running: 20 in, 20 out""",
}

TWO_NODES = {
    60: """\
NODE                PIPELINE  STREAM                RATE/S
plant/hall-1/press  doors     office/door/image        2.0
plant/hall-1/press  pages     office/scanner/page      2.0
plant/hall-1/press  pumps     plant/pump/vibration     2.0
plant/hall-2/lathe  doors     office/door/image        2.0""",
    80: """\
NODE                PIPELINE  STREAM                RATE/S  LAST
plant/hall-1/press  doors     office/door/image        2.0  2 face
plant/hall-1/press  pages     office/scanner/page      2.0  'Region-based segme…
plant/hall-1/press  pumps     plant/pump/vibration     2.0  anomalous True, sco…
plant/hall-2/lathe  doors     office/door/image        2.0  2 face""",
    180: """\
NODE                PIPELINE  STREAM                RATE/S  LATENCY ms p50/p99  ARRIVAL ms p50/p99  COUNT  DEAD  LAST
plant/hall-1/press  doors     office/door/image        2.0         20.0 / 20.0         21.0 / 21.0     20     1  2 face
plant/hall-1/press  pages     office/scanner/page      2.0         20.0 / 20.0         21.0 / 21.0     20     0  'Region-based segmentation', 'Let us first determine markers'
plant/hall-1/press  pumps     plant/pump/vibration     2.0         20.0 / 20.0         21.0 / 21.0     20     0  anomalous True, score 4.56
plant/hall-2/lathe  doors     office/door/image        2.0         20.0 / 20.0         21.0 / 21.0     20     0  2 face""",
}


@pytest.mark.parametrize("width", ONE_NODE)
def test_streams_of_one_node_at_each_width(width: int) -> None:
    """Names and rates stay, the last column gives way first, and a single node has no column."""
    assert screen_lines(filled(PRESS), width) == ONE_NODE[width].splitlines()


@pytest.mark.parametrize("width", TWO_NODES)
def test_streams_of_two_nodes_at_each_width(width: int) -> None:
    assert screen_lines(filled(PRESS, LATHE), width)[:5] == TWO_NODES[width].splitlines()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 180])
@pytest.mark.parametrize("nodes", [[PRESS], [PRESS, LATHE]])
def test_no_line_is_wider_than_the_terminal(width: int, nodes: list[Address]) -> None:
    lines = board_lines(filled(*nodes), width, 50, 110.0, "connection closed without a reason code")

    assert all(len(unstyle(rendered(line))) <= width for line in lines)


def test_a_terminal_with_few_lines_shows_the_streams_that_fit() -> None:
    nodes = [PRESS._replace(node=f"press-{number}") for number in range(9)]
    board = filled(*nodes)
    unhealthy = str(nodes[7])
    board.nodes[unhealthy] = board.nodes[unhealthy].model_copy(
        update={"state": "degraded", "reasons": ["outbox: 90 % full"]}
    )

    lines = screen_lines(board, 80, height=16)

    assert len(lines) <= 16
    assert "… and 21 more" in lines
    below = lines[lines.index("… and 21 more") + 1 :]
    assert below[0] == f"{unhealthy}: degraded; outbox: 90 % full", "unhealthy nodes come first"
    assert below[-1] == "… and 2 more"


def test_an_outage_is_reported_below_the_table() -> None:
    assert screen_lines(filled(PRESS), 80, outage="server shutting down")[-1] == (
        "Broker unavailable, reconnecting… (server shutting down)"
    )
