"""Batch-norm statistics after pruning, against nets whose right answer is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, PlanMismatch
from secateur.plan import Plan
from secateur.repair.statistics import reestimate, reestimate_plain

NORMS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


def net(dims: int = 2) -> nn.Sequential:
    """Two batch norms whose statistics are not those of any data here, as after training on other data."""
    torch.manual_seed(0)
    conv, norm = NORMS[dims]
    model = nn.Sequential(conv(3, 6, 3), norm(6), nn.ReLU(), conv(6, 5, 3), norm(5), nn.ReLU(), nn.Flatten())
    for module in model:
        if isinstance(module, norm):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


def batches(dims: int = 2, number: int = 4) -> list[tuple[Tensor, None]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 3, *[6] * dims) * (1 + i) + i, None) for i in range(number)]


def zeroed(model: nn.Sequential, channels: tuple[int, ...] = (1, 4)) -> nn.Sequential:
    """Hidden channels masked: rows of the first convolution, the batch norm's weight and bias, columns of the second."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for channel in channels:
            for value in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
                value[channel] = 0
            model[3].weight[:, channel] = 0
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dims", NORMS)
def test_a_dense_model_stays_bit_for_bit(dims):
    model = net(dims)
    assert same(state(reestimate(model, model, batches(dims))), state(model))
    assert same(state(reestimate(copy.deepcopy(model), model, batches(dims))), state(model))


def test_a_dense_model_that_draws_stays_bit_for_bit():
    """Both draw the same, so noise is not taken for a change."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.FeatureAlphaDropout(0.5), nn.BatchNorm2d(4)).eval()
    model[1].forward = lambda x: x + torch.randn_like(x)
    assert same(state(reestimate(copy.deepcopy(model), model, batches())), state(model))


def test_layers_before_the_cut_stay_bit_for_bit():
    dense = net()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned[3].weight[:, 2] = 0
    result = state(reestimate(pruned, dense, batches()))
    assert torch.equal(result["1.running_mean"], dense[1].running_mean) and torch.equal(result["1.running_var"], dense[1].running_var)
    assert not torch.equal(result["4.running_mean"], dense[4].running_mean)


def test_statistics_follow_a_known_change():
    """The pruned convolution is the dense one, scaled and shifted: so are mean and variance of what its batch norm sees."""
    dense = net()
    pruned = copy.deepcopy(dense)
    scale, shift = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1, 1.5]), torch.arange(6.0)
    with torch.no_grad():
        pruned[0].weight.mul_(scale[:, None, None, None])
        pruned[0].bias.copy_(pruned[0].bias * scale + shift)
    inputs = torch.cat([x for x, _ in batches()])
    seen = dense[0](inputs)
    mean = seen.mean((0, 2, 3))
    result = reestimate(pruned, dense, batches())
    torch.testing.assert_close(result[1].running_mean, dense[1].running_mean + (scale - 1) * mean + shift, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result[1].running_var, dense[1].running_var * scale**2, rtol=1e-4, atol=1e-4)


def test_total_moments_of_uneven_batches_by_hand():
    """One batch norm: the equation of the docstring, on all samples in one tensor, float64."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().eval()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned[0].weight[:, 1] = 0
    data = [(torch.randn(n, 4).double() + n, None) for n in (2, 7, 1, 30)]
    x = torch.cat([batch for batch, _ in data])
    a, b = pruned[0](x), dense[0](x)
    result = reestimate(pruned, dense, data)
    torch.testing.assert_close(result[1].running_mean, dense[1].running_mean + a.mean(0) - b.mean(0))
    torch.testing.assert_close(result[1].running_var, dense[1].running_var * a.var(0) / b.var(0))
    plain = reestimate_plain(pruned, data)
    torch.testing.assert_close(plain[1].running_mean, a.mean(0))
    torch.testing.assert_close(plain[1].running_var, a.var(0))


def test_later_batch_norms_see_corrected_inputs():
    """On one batch, the stored statistics are a fixed point: the second batch norm's follow from the first one's, corrected."""
    dense, data = net().double(), [(batches()[0][0].double(), None)]
    pruned = zeroed(dense)
    result = reestimate(pruned, dense, data)
    with torch.no_grad():
        a, b = result[:4](data[0][0]), dense[:4](data[0][0])
    torch.testing.assert_close(result[4].running_mean, dense[4].running_mean + a.mean((0, 2, 3)) - b.mean((0, 2, 3)))
    torch.testing.assert_close(result[4].running_var, dense[4].running_var * a.var((0, 2, 3)) / b.var((0, 2, 3)))


def test_plain_on_one_batch_is_what_training_mode_stores():
    model, data = net(), [(batches()[0][0], None)]
    oracle = copy.deepcopy(model).train()
    for module in oracle:
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    oracle(data[0][0])
    result = reestimate_plain(model, data)
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        torch.testing.assert_close(state(result)[name], state(oracle)[name], rtol=1e-4, atol=1e-5)


def test_shrunk_and_masked_agree():
    dense, left = net().double(), torch.tensor([0, 2, 3, 5])
    data = [(x.double(), None) for x, _ in batches()]
    first, second = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()], [nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()]
    small = nn.Sequential(*first, *second, nn.Flatten()).double()
    kept: dict[str, tuple[Tensor | None, ...]] = {
        name: (left,) for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    }
    kept |= {"0.weight": (left, None, None, None), "3.weight": (None, left, None, None)}
    tensors = state(dense)
    for name, indices in kept.items():
        for dim, index in enumerate(indices):
            tensors[name] = tensors[name] if index is None else tensors[name].index_select(dim, index)
    small.load_state_dict(tensors)
    plan = Plan("channels", {}, kept, {}, {}, "", {})
    a, b = reestimate(small.eval(), dense, data, plan), reestimate(zeroed(dense), dense, data)
    torch.testing.assert_close(a(data[0][0]), b(data[0][0]))
    torch.testing.assert_close(a[1].running_var, b[1].running_var[left])
    with pytest.raises(PlanMismatch, match="Batch norm 1 has 4 channels, but 6 in the dense model"):
        reestimate(small, dense, data)


def test_a_dead_channel_stays_finite_and_a_masked_one_stays_zero():
    dense = net()
    pruned = zeroed(dense)
    with torch.no_grad():
        pruned[0].weight[2] = 0  # dead, though its batch norm lets it through
    for result in (reestimate(pruned, dense, batches()), reestimate_plain(pruned, batches())):
        hidden = result[:2](batches()[0][0])
        assert torch.isfinite(hidden).all() and torch.isfinite(result(batches()[0][0])).all()
        assert not hidden[:, [1, 4]].any()
    result = reestimate(pruned, dense, batches())
    assert result[1].running_var[2] == dense[1].running_var[2]


def test_a_channel_that_never_varied_stays_as_it_was():
    dense = net()
    with torch.no_grad():
        dense[0].weight[0] = 0
    assert same(state(reestimate(dense, dense, batches())), state(dense))


def test_the_callers_models_modes_and_random_state_are_untouched():
    dense = net()
    pruned = zeroed(dense)
    dense.train()
    pruned[1].train()
    loader = torch.utils.data.DataLoader([(x, 0) for x in torch.randn(16, 3, 6, 6)], batch_size=8, shuffle=True)
    before = state(dense), state(pruned), torch.get_rng_state()
    modes = [m.training for m in [*dense.modules(), *pruned.modules()]]
    result = reestimate(pruned, dense, loader)
    reestimate_plain(pruned, loader)
    assert same(before[0], state(dense)) and same(before[1], state(pruned)) and torch.equal(before[2], torch.get_rng_state())
    assert modes == [m.training for m in [*dense.modules(), *pruned.modules()]]
    assert result is not pruned and [m.training for m in result.modules()] == [m.training for m in pruned.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in (dense, pruned, result) for m in model.modules())
    assert isinstance(dense[1].running_mean, Tensor) and "running_mean" in dense[1]._buffers


class Twice(nn.Module):
    """A batch norm that is called twice a run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.after = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.conv(self.norm(self.conv(x)).relu())))


def test_a_shared_batch_norm_is_compared_call_by_call():
    torch.manual_seed(0)
    dense = Twice().eval()
    assert same(state(reestimate(dense, dense, batches())), state(dense))
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.conv.weight[:, 0] = 0
    assert not same(state(reestimate(pruned, dense, batches())), state(pruned))


def test_dicts_and_bare_tensors_are_data_too():
    dense = net()
    pruned = zeroed(dense)
    expected = state(reestimate(pruned, dense, batches()))
    assert same(expected, state(reestimate(pruned, dense, [x for x, _ in batches()])))
    assert same(expected, state(reestimate(pruned, dense, [{"input": x} for x, _ in batches()])))


def test_what_cannot_be_used_is_refused():
    dense = net()
    with pytest.raises(BadInput, match="no batch"):
        reestimate(dense, dense, [])
    with pytest.raises(BadInput, match="no batch"):
        reestimate_plain(dense, [])
    with pytest.raises(BadInput, match="batch norm 1 is not finite"):
        reestimate(dense, dense, [torch.full((2, 3, 6, 6), float("nan"))])
    with pytest.raises(PlanMismatch, match="has a batch norm 1, but the dense one has none"):
        reestimate(dense, nn.Sequential(nn.Conv2d(3, 6, 3)), batches())
