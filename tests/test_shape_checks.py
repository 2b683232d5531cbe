"""That the suite checks shapes at all."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from wmpo import likelihood
from wmpo.types import Observation


def test_wrong_shapes_are_refused_inside_the_tests() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="tokens"):
        likelihood.log_probs(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError, match="frame"):
        Observation(frame=torch.zeros(1, 4, 4, 3), instruction=("floats are not frames",))
