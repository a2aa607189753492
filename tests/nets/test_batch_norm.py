"""Batch norm over the global batch."""

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from pmm_ray.nets.batch_norm import GlobalBatchNorm, freeze_batch_norm, learns_batch_norm, synchronise_batch_norm


def test_frozen_batch_norm_uses_stored_statistics_and_has_nothing_to_learn():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    freeze_batch_norm(net)
    before = net[1].running_mean.clone()
    net(torch.randn(2, 3, 5, 5) + 7)
    assert torch.equal(net[1].running_mean, before)
    assert not any(parameter.requires_grad for parameter in net[1].parameters())
    assert net[0].weight.requires_grad and not learns_batch_norm(net)


def test_synchronising_keeps_state_dict_names_and_parameters():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), BatchNormAct2d(4))
    names, weight = set(net.state_dict()), net[1][0].weight
    same = synchronise_batch_norm(net, torch.device("cpu"))
    assert same is net and set(net.state_dict()) == names
    assert isinstance(net[1][0], GlobalBatchNorm) and net[1][0].weight is weight


def test_in_eval_mode_a_global_batch_norm_is_the_plain_one_with_its_activation():
    plain = BatchNormAct2d(4).eval()
    plain.running_mean.normal_()
    x = torch.randn(2, 4, 3, 3)
    expected = plain(x)
    assert expected.min() == 0  # timm's activation is part of the layer
    assert torch.allclose(GlobalBatchNorm(plain)(x), expected)
