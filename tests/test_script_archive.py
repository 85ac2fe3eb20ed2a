"""TorchScript archives, such as OpenAI's own CLIP files, are read as weights without running them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dearli_d2.errors import WeightsError
from dearli_d2.weights import read_state_dict


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.attn_mask = torch.full((4, 4), -1.0)  # a tensor that is no weight, as in CLIP's text tower

    def forward(self, x):
        return self.norm(self.linear(x)) + self.attn_mask


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("context_length", torch.tensor(77))
        self.transposed = nn.Parameter(torch.randn(3, 5).T)

    def forward(self, x):
        return self.blocks(x) * self.scale + self.transposed.sum() + self.context_length


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_tensors_are_those_of_the_archive(tmp_path, half, traced):
    model = Network().eval()
    if half:
        model.half()
        model.blocks[0].linear.float()  # OpenAI's files hold both
    if traced:
        network = torch.jit.trace(Network().eval() if half else model, torch.randn(4, 4))
        network.load_state_dict(model.state_dict())
        network = network.half() if half else network
    else:
        network = torch.jit.script(model)
    network.save(tmp_path / "clip.pt")
    expected = torch.jit.load(tmp_path / "clip.pt").state_dict()
    found = read_state_dict(tmp_path / "clip.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items())


def test_code_of_an_archive_is_not_run(tmp_path):
    """Loading such an archive with torch would write a file."""

    class Writes(nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path, self.weight = path, nn.Parameter(torch.ones(2))

        @torch.jit.export
        def __getstate__(self):
            return (self.path, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path, self.training = state[0], state[1]
            self.weight = torch.from_file(self.path, True, 2)

        def forward(self, x):
            return x

    target = tmp_path / "written"
    torch.jit.script(Writes(str(target))).save(tmp_path / "bad.pt")
    target.unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="holds no tensor"):
        read_state_dict(tmp_path / "bad.pt")
    assert not target.exists()
