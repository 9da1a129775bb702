"""What several test files share."""

import numpy as np


def relative_error(out, ref) -> float:
    """Returns ||out - ref|| / ||ref||, in float64."""
    out, ref = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    assert out.shape == ref.shape, (out.shape, ref.shape)
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))
