import torch
from torch.nn import functional as F

from pmm_ray.losses.equivariance import class_scores, pixel_correlation
from pmm_ray.nets.build import build_classifier
from pmm_ray.nets.correlation import PixelCorrelation


def test_pixels_are_alike_by_their_colours_and_their_features_and_the_features_take_no_gradient():
    torch.manual_seed(0)
    layer = PixelCorrelation(2, hidden=2, size=5)
    for convolution in (layer.reduce, layer.embed):
        torch.nn.init.dirac_(convolution.weight)  # passes on what comes
    features = torch.tensor([[[[1.0, -2.0, 0.0]], [[0.0, 3.0, 1.0]]]], requires_grad=True)
    colours = torch.tensor([[[[0.0, 4.0, 1.0]], [[1.0, 0.0, -1.0]], [[2.0, 0.0, 0.0]]]])
    scores = torch.tensor([[[[1.0, 0.5, 0.0]]]], requires_grad=True)
    refined = layer(scores, features, colours)
    # (1, 0, 0, 1, 2), (0, 3, 4, 0, 0), (0, 1, 1, -1, 0): the second and the third are alike by 7, a little of 5 sqrt 3
    a = 7 / (5 * 3**0.5)
    torch.testing.assert_close(refined, torch.tensor([[[[1.0, 0.5 / (1 + a), 0.5 * a / (1 + a)]]]]))
    refined.sum().backward()
    assert features.grad is None and scores.grad.any() and layer.embed.weight.grad.any()


def test_a_classifier_refines_what_its_cam_shows_and_what_its_scores_are():
    torch.manual_seed(0)
    shape = {"backbone": "test_resnet.r160_in1k", "options": {}, "output_stride": 32, "weights": "none"}
    net = build_classifier(**shape, num_classes=3, correlation=True).eval()
    torch.nn.init.normal_(net.head.weight)
    images, labels = torch.randn(2, 3, 96, 128), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    features, layer = net.features(images), net.correlation
    colours = F.interpolate(images, size=(3, 4), mode="bilinear", antialias=True)
    embedding = layer.embed(torch.cat([layer.reduce(features).relu(), colours], dim=1))
    maps, refined = net.maps_and_refined(images, labels)
    torch.testing.assert_close(maps, net.head(features))
    torch.testing.assert_close(refined, pixel_correlation(class_scores(maps, labels), embedding))
    torch.testing.assert_close(net.cam(images), pixel_correlation(maps.relu(), embedding))
    assert not torch.allclose(net.cam(images), maps.relu(), atol=1e-2)
