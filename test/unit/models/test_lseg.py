# SPDX-License-Identifier: Apache-2.0
"""LSeg's sizes, and that what is computed cheaply equals the plain network."""

from dataclasses import replace

import pytest
import torch

from blabberseg_ros.bench.lseg_plain import plain_features
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.folding import NormedConv2d, fold_batch_norms
from blabberseg_ros.models.lseg import LSeg, length_factor, upsampled
from blabberseg_ros.models.lseg_config import LSegConfig, check_input_size, rounded_size
from blabberseg_ros.models.lseg_stages import stages
from blabberseg_ros.models.random_lseg import SMALL, random_lseg

RESNET = replace(SMALL, backbone='resnet', resnet_width=6, resnet_blocks=(1, 2, 1, 1))


@pytest.fixture(scope='module', params=[SMALL, RESNET], ids=['vit', 'resnet'])
def model(request):
    """Return a small network of each backbone."""
    return random_lseg(request.param)


def noise(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(('sides', 'nearest'), [
    ((100,), '96 and 128'), ((480, 500), '480 and 512'), ((20,), '32 and 64'),
    ((0,), '32 and 64'), ((-32,), '32 and 64'), ((1025,), '1024 and 1056')])
def test_a_side_that_is_no_multiple_of_32_is_refused_with_the_nearest(sides, nearest):
    with pytest.raises(BundleError, match=nearest):
        check_input_size(*sides)


def test_sides_of_multiples_of_32_are_taken():
    check_input_size(32, 480, 1024)


@pytest.mark.parametrize(('asked', 'used'), [
    (260, 256), (390, 384), (520, 512), (650, 640), (780, 768), (910, 896), (480, 480),
    (16, 32), (1, 32), (272, 288)])
def test_sizes_of_the_published_tables_are_rounded(asked, used):
    assert rounded_size(asked) == used


def test_the_network_refuses_an_image_of_another_size():
    with pytest.raises(BundleError, match='96 and 128'):
        random_lseg(SMALL).encode_images(torch.zeros(1, 3, 96, 112))


@pytest.mark.parametrize('change', [
    {'backbone': 'swin'}, {'input_size_px': 100}, {'vision_heads': 5}, {'text_heads': 3},
    {'hooks': (1, 2, 3)}, {'hooks': (3, 2, 1, 0)}, {'hooks': (0, 1, 2, 4)},
    {'patch_size_px': 32}])
def test_sizes_that_no_network_has_are_refused(change):
    with pytest.raises(BundleError):
        replace(SMALL, **change)


def test_the_configuration_survives_the_manifest():
    for config in (SMALL, LSegConfig(), RESNET):
        assert LSegConfig.from_dict(config.to_dict()) == config
    with pytest.raises(BundleError, match='depth'):
        LSegConfig.from_dict({**SMALL.to_dict(), 'depth': 3})


def test_variants_have_their_published_names():
    assert LSegConfig().variant == 'vit-l16'
    assert LSegConfig(backbone='resnet').variant == 'rn101'


@pytest.mark.parametrize('size', [(96, 96), (64, 160), (224, 192)])
@torch.no_grad()
def test_the_stages_equal_the_plain_network(model, size):
    """1x1 convolution first, no map of D channels, lengths by QR: all of it changes nothing."""
    height, width = size
    pixels, texts = noise(1, 3, height, width), noise(5, model.config.embed_dim, seed=4)
    plain = plain_features(model, pixels)
    unit = torch.nn.functional.normalize(texts, dim=-1)
    expected = upsampled(model.config.logit_scale * torch.einsum('pd,bdhw->bphw', unit, plain),
                         height, width)[0]
    made = stages(model)
    code = model.encode_images(pixels)
    length = made['image_encoder'].module.lengths(code)[0]
    logits = made['decoder'].module(code[0], length, unit)
    features = made['features'].module(code[0], length)
    assert logits.shape == (5, height, width)
    assert features.shape == (model.config.embed_dim, height // 2, width // 2)
    assert expected.std() > 0.5
    assert (logits - expected).abs().max() < 2e-4 * expected.std()
    assert (features - plain[0]).abs().max() < 1e-5
    assert (features.norm(dim=0) - 1).abs().max() < 1e-5
    assert (model.decode_batch(code, texts[None])[0] - expected).abs().max() < 2e-4


@torch.no_grad()
def test_no_stage_of_a_frame_makes_a_map_as_deep_as_the_vectors():
    """Neither the image encoder nor the decoder writes D channels at the fine resolution."""
    model = random_lseg(replace(SMALL, embed_dim=111))
    made, sizes = stages(model), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(tuple(value.shape) for value in
                         (result if isinstance(result, tuple | list) else [result])
                         if isinstance(value, torch.Tensor))
            return result

    image = torch.zeros(40, 40, 3, dtype=torch.uint8)
    with Watch():
        code, length = made['image_encoder'].module(image, torch.rand(96, 40), torch.rand(40, 96))
        made['decoder'].module(code, length, torch.rand(3, 111))
    assert any(48 in shape for shape in sizes)
    assert not any(111 in shape and 48 in shape for shape in sizes)


@pytest.mark.parametrize('embed_dim', [8, 20, 21, 64])
def test_lengths_follow_from_the_gram_matrix(embed_dim):
    head = torch.nn.Conv2d(20, embed_dim, 1)
    factor, shift = length_factor(head)
    weight, bias = head.weight.flatten(1), head.bias
    assert factor.shape == (min(embed_dim, 21), 20)
    assert torch.allclose(factor.T @ factor, weight.T @ weight, atol=1e-5)
    points = noise(20, 7)
    wanted = (weight @ points + bias[:, None]).norm(dim=0)
    assert torch.allclose((factor @ points + shift[:, None]).norm(dim=0), wanted, atol=1e-5)


@torch.no_grad()
def test_folded_batch_norms_change_nothing():
    torch.manual_seed(1)
    model = LSeg(RESNET, norms=True)
    model.train()
    for _ in range(3):  # statistics other than the initial ones
        model.encode_images(1 + 2 * noise(2, 3, 64, 64))
    model.eval()
    pixels = noise(1, 3, 96, 64)
    before = model.encode_images(pixels)
    fold_batch_norms(model)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    assert (model.encode_images(pixels) - before).abs().max() < 1e-4 * before.std()
    LSeg(RESNET).load_state_dict(model.state_dict())  # strict


def test_a_convolution_without_a_norm_has_a_bias():
    assert NormedConv2d(2, 3, 1, norm=False).bias is not None
    assert NormedConv2d(2, 3, 1, norm=True).bias is None


@torch.no_grad()
def test_padding_of_a_text_changes_nothing(model):
    tokens = torch.tensor([[49406, 320, 1929, 49407] + [0] * 73])
    assert torch.allclose(model.encode_text(tokens), model.encode_text(tokens[:, :4]), atol=1e-5)


def test_the_network_can_be_trained():
    model = LSeg(RESNET, norms=True)
    tokens = torch.tensor([[49406, 320, 49407], [49406, 1929, 49407]])
    logits = model(noise(2, 3, 64, 64), tokens)
    assert logits.shape == (2, 2, 64, 64)
    assert logits.abs().max() <= model.config.logit_scale + 1e-3
    logits[:, 0].sum().backward()
    grown = [name for name, weight in model.named_parameters()
             if weight.grad is not None and weight.grad.abs().sum() > 0]
    assert {'vision.stem.weight', 'head.weight', 'text.token_embedding.weight'} <= set(grown)
