"""The compiled kernels against the plain version, where there is a GPU."""

import pytest
import torch

from tests.troll.kernels.properties import *  # noqa: F403

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no NVIDIA or AMD GPU here (torch.cuda.is_available() is False)"
)
