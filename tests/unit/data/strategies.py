"""Random grids for property-based tests of geometry."""

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation


@st.composite
def affines(draw, largest_angle=180.0):
    """Rotations of any kind, with mirrors, spacings from 0.3 to 6 mm and distant origins."""
    angle = st.floats(-largest_angle, largest_angle)
    rotation = Rotation.from_euler("xyz", [draw(angle) for _ in range(3)], degrees=True).as_matrix()
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    spacing = [draw(st.floats(0.3, 6.0)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(signs) @ np.diag(spacing)
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


shapes = st.tuples(*[st.integers(1, 7)] * 3)
