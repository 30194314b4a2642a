from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from player.viewport_error import absolute_error_deg, great_circle_deg, predicted_deg
from player.viewport_observation import HeadPose, InvalidViewports, Viewport, check_viewports

POSES = st.tuples(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))


def test_errors_go_the_shorter_way_round() -> None:
    error = absolute_error_deg(np.array([[170.0, 80, -175]]), np.array([[-170.0, -80, 175]]))
    assert error.tolist() == [[20, 160, 10]]


def test_extrapolations_count_as_published() -> None:
    beyond = np.array([[190.0, 0, 600]])
    assert absolute_error_deg(beyond, np.zeros((1, 3))).tolist() == [[170, 0, 240]]


@given(POSES, POSES)
def test_within_the_range_no_error_exceeds_half_a_turn(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    error = absolute_error_deg(np.array(one), np.array(other))
    assert (error >= 0).all()
    assert (error <= 180).all()
    assert error.tolist() == absolute_error_deg(np.array(other), np.array(one)).tolist()


@pytest.mark.parametrize(
    ("one", "other", "angle"),
    [
        ((0, 0, 0), (90, 0, 0), 0),  # roll does not matter
        ((0, 0, 170), (0, 0, -170), 20),
        ((0, 60, 0), (0, 60, 180), 60),  # over the pole
        ((0, 90, 0), (0, 90, 120), 0),
        ((0, 0, 0), (0, 0, 180), 180),
        ((0, 200, 0), (0, 90, 77), 0),  # beyond the pole is the pole
        ((0, 45, 0), (0, 45, 90), 60),
    ],
)
def test_great_circles(one: tuple[float, ...], other: tuple[float, ...], angle: float) -> None:
    assert great_circle_deg(np.array(one, float), np.array(other, float)) == pytest.approx(
        angle, abs=1e-6
    )


@given(POSES, POSES)
def test_a_great_circle_is_the_angle_between_the_directions(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    def direction(pose: tuple[float, ...]) -> np.ndarray:
        _, pitch, yaw = np.radians(pose)
        return np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])

    cosine = float(direction(one) @ direction(other))
    angle = float(great_circle_deg(np.array(one), np.array(other)))
    assert np.cos(np.radians(angle)) == pytest.approx(cosine, abs=1e-9)


def test_an_extrapolation_is_shown_as_a_pose() -> None:
    beyond = Viewport(-190.0, 95.0, 540.0)
    assert beyond.pose == HeadPose(170.0, 90.0, -180.0)
    assert check_viewports((beyond,), horizon=1) == (beyond,)
    assert predicted_deg((beyond,)).tolist() == [[-190, 95, 540]]
    for angle in (float("nan"), float("inf"), 1e6):
        with pytest.raises(InvalidViewports, match=r"step 0: .* is no pose"):
            check_viewports((Viewport(0.0, 0.0, angle),), horizon=1)
