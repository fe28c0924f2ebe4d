"""`motion` passes motion, but not still scenes, noise or changes of brightness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow import Frame
from hedgerow.testing import frame, frames, run_stage
from hedgerow_vision.images.motion import Motion

Picture = NDArray[np.uint8]


def clip(pictures: Sequence[Picture], every_s: float = 1.0) -> list[Frame]:
    return [frame(p, sequence=n, captured_at=1000 + n * every_s) for n, p in enumerate(pictures)]


def with_visitor(scene: Picture, left: int) -> Picture:
    image = scene.copy()
    image[200:320, left : left + 60] = (250, 20, 20)
    return image


def test_a_still_scene_passes_once(astronaut: Picture) -> None:
    run = run_stage(Motion, clip([astronaut] * 5))

    assert [out.sequence for out in run.out] == [0]
    assert run.dropped == {"no-motion": 4}


def test_sensor_noise_is_not_motion(astronaut: Picture) -> None:
    random = np.random.default_rng(1)
    noisy = [np.clip(astronaut + random.normal(0, 8, astronaut.shape), 0, 255).astype(np.uint8) for _ in range(5)]

    assert run_stage(Motion, clip(noisy)).dropped == {"no-motion": 4}


def test_a_change_of_brightness_is_not_motion(astronaut: Picture) -> None:
    """The whole picture darkens uniformly."""
    light = (astronaut // 2) + 100

    assert run_stage(Motion, clip([light, light - 30, light - 60])).dropped == {"no-motion": 2}


def test_a_visitor_passes_while_moving(astronaut: Picture) -> None:
    scene = [astronaut, astronaut, with_visitor(astronaut, 300), with_visitor(astronaut, 360), astronaut]

    run = run_stage(Motion, clip(scene))

    assert {2, 3} <= {out.sequence for out in run.out}
    assert run.out[1].meta["motion"] > 0.005
    assert 1 not in {out.sequence for out in run.out}


def test_an_object_that_stays_becomes_background(astronaut: Picture) -> None:
    parked = [astronaut] + [with_visitor(astronaut, 300)] * 60

    run = run_stage(Motion, clip(parked), adapt=0.2)

    passed = [out.sequence for out in run.out]
    assert 1 in passed
    assert passed[-1] < 30


def test_streams_do_not_disturb_each_other(astronaut: Picture) -> None:
    door, yard = frames([astronaut] * 3, stream="door"), frames([astronaut[:, ::-1].copy()] * 3, stream="yard")

    run = run_stage(Motion, [one for pair in zip(door, yard, strict=True) for one in pair])

    assert [out.stream for out in run.out] == ["door", "yard"]


def test_a_new_picture_size_resets_the_background(astronaut: Picture) -> None:
    run = run_stage(Motion, clip([astronaut, astronaut[:256], astronaut[:256]]))

    assert [out.sequence for out in run.out] == [0, 1]


def test_a_still_scene_passes_every_max_quiet_s(astronaut: Picture) -> None:
    run = run_stage(Motion, clip([astronaut] * 11), max_quiet_s=5)

    assert [out.sequence for out in run.out] == [0, 5, 10]


def test_a_clock_set_back_does_not_block_a_stream(astronaut: Picture) -> None:
    pictures = [with_visitor(astronaut, left) for left in (0, 80, 160, 240)]
    hours = [9, 10, 2, 3]

    run = run_stage(
        Motion,
        [frame(p, sequence=n, captured_at=3600.0 * hours[n]) for n, p in enumerate(pictures)],
        min_interval_s=60,
        max_quiet_s=1800,
    )

    assert [out.sequence for out in run.out] == [0, 1, 3]
    assert run.dropped == {"too-soon": 1}


def test_the_rate_of_a_busy_scene_can_be_limited(bikes: list[Picture]) -> None:
    """Real traffic moves in nearly every frame."""
    all_of_it = run_stage(Motion, clip(bikes, 0.2))
    slowed: Any = run_stage(Motion, clip(bikes, 0.2), min_interval_s=1)

    assert len(all_of_it.out) > len(bikes) / 2
    assert 5 <= len(slowed.out) <= 10
    assert "too-soon" in slowed.dropped


def test_a_picture_of_one_pixel_is_accepted() -> None:
    tiny = np.zeros((1, 1, 3), np.uint8)

    assert len(run_stage(Motion, clip([tiny, tiny + 200, tiny])).out) >= 1
