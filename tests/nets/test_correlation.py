import torch
from torch.nn import functional as F

from pmm_ray.nets.build import build_classifier
from pmm_ray.nets.classifier import class_scores
from pmm_ray.nets.correlation import PixelCorrelation, pixel_correlation


def test_scores_are_divided_by_the_maximum_filtered_by_labels_and_have_a_background():
    maps = torch.tensor([[[[2.0, 4.0, -1.0]], [[9.0, 9.0, 9.0]]]])
    scores = class_scores(maps, torch.tensor([[1.0, 0.0]]))
    assert torch.allclose(scores, torch.tensor([[[[0.5, 0.0, 1.0]], [[0.5, 1.0, 0.0]], [[0.0, 0.0, 0.0]]]]))


def test_pixels_of_one_look_share_their_mean_score_and_others_nothing():
    scores = torch.tensor([[[[1.0, 0.0, 0.25]]]])
    embedding = torch.tensor([[[[1.0, 3.0, 0.0]], [[0.0, 0.0, 2.0]]]])  # the first two point the same way
    assert torch.allclose(pixel_correlation(scores, embedding), torch.tensor([[[[0.5, 0.5, 0.25]]]]))


def test_a_pixel_takes_the_scores_of_others_as_far_as_it_looks_like_them_by_hand():
    scores = torch.tensor([[[[1.0, 0.5, 0.0]]]])
    embedding = torch.tensor([[[[1.0, 0.6, 0.0]], [[0.0, 0.8, 1.0]]]])  # cosines 0.6 and 0.8, and 0 of first and last
    expected = torch.tensor([[[[(1 + 0.6 * 0.5) / 1.6, (0.6 + 0.5) / 2.4, 0.8 * 0.5 / 1.8]]]])
    assert torch.allclose(pixel_correlation(scores, embedding), expected)


def test_opposite_looks_do_not_subtract():
    scores = torch.tensor([[[[1.0, 0.0]]]])
    assert torch.allclose(pixel_correlation(scores, torch.tensor([[[[1.0, -1.0]]]])), scores)


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
