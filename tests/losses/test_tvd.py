import pytest
import torch

from kdrun.losses import make_loss


def test_value_by_hand():
    """p = (.6, .3, .1), q = (.2, .3, .5): 1/2 (.4 + 0 + .4)."""
    teacher, student = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    assert make_loss("tvd")(student, teacher).item() == pytest.approx(0.4)


def test_certain_opposites_are_at_distance_one():
    assert make_loss("tvd")(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])).item() == pytest.approx(1)
