# SPDX-License-Identifier: Apache-2.0
"""FPSeg's own promises: sizes, classes, attention biases, folding. Goldens are in test/parity."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from blabberseg_ros.bench.fpseg_plain import plain_logits, plain_masks
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.folding import fold_batch_norms
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import (
    CITYSCAPES_CLASSES,
    ENCODERS,
    FpSegConfig,
    SamVitConfig,
    TinyVitConfig,
)
from blabberseg_ros.models.fpseg_prompts import ClassPrompt
from blabberseg_ros.models.random_fpseg import SMALL, random_fpseg

VIT = replace(SMALL, encoder=SamVitConfig(32, 3, 2, (1,), window=3, grid=4), input_size_px=64)


@pytest.fixture(scope='module')
def model():
    return random_fpseg(SMALL)


@pytest.fixture(scope='module')
def embedding():
    return torch.randn(2, SMALL.width, 5, 5, generator=torch.Generator().manual_seed(3))


def tokens_of(model):
    return model.prompt_encoder.prompt_embeddings.detach()


def test_the_defaults_are_those_that_were_published():
    config = FpSegConfig()
    assert (config.variant, config.grid, config.mask_size_px) == ('mobilesam', 64, 256)
    assert len(config.class_names) == len(set(CITYSCAPES_CLASSES)) == 33
    assert {replace(config, encoder=encoder).variant for encoder in ENCODERS.values()} == \
        set(ENCODERS)


@pytest.mark.parametrize('config', [SMALL, VIT, FpSegConfig()])
def test_a_config_survives_a_manifest(config):
    assert FpSegConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(('change', 'message'), [
    ({'input_size_px': 250}, '240 and 256'), ({'input_size_px': 0}, '16 and 32'),
    ({'width': 36}, 'decoder width 36'), ({'attention_bias': 'stale'}, 'live or zero'),
    ({'fit': 'crop'}, 'squash or letterbox'), ({'class_names': ()}, 'one class'),
    ({'prompt_size': 0}, 'one prompt token'), ({'encoder': SamVitConfig()}, '64 cells')])
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(BundleError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(('sizes', 'message'), [
    ({'strides': (2, 2, 2)}, 'multiply to 4'), ({'depths': (1, 1)}, 'four stages'),
    ({'heads': (1, 3, 5, 7)}, 'stage width')])
def test_a_tiny_vit_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(BundleError, match=message):
        TinyVitConfig(**sizes)


@pytest.mark.parametrize('damage', [
    {'unknown': 1}, {'encoder': {'kind': 'other'}}, {'encoder': 3}, {'width': 'wide'},
    {'class_names': 7}])
def test_a_damaged_architecture_is_refused(damage):
    with pytest.raises(BundleError):
        FpSegConfig.from_dict({**SMALL.to_dict(), **damage})


@pytest.mark.parametrize('config', [SMALL, VIT])
@torch.no_grad()
def test_any_classes_in_any_order_are_those_of_the_whole(config):
    model = random_fpseg(config)
    pixels = torch.randn(2, 3, config.input_size_px, config.input_size_px,
                         generator=torch.Generator().manual_seed(1))
    whole = model(pixels)
    assert whole.shape == (2, 11, config.mask_size_px, config.mask_size_px)
    chosen = [7, 2, 9]
    embeddings = model.encode_images(pixels)
    alone = model.decode(embeddings[1:], tokens_of(model)[chosen])
    torch.testing.assert_close(alone, whole[1, chosen], rtol=0, atol=1e-5)
    batch = model.decode_batch(embeddings, tokens_of(model)[chosen].expand(2, -1, -1, -1))
    torch.testing.assert_close(batch, whole[:, chosen], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_shared_work_changes_nothing(model, embedding):
    """Our decoder projects the image once; SAM's arithmetic does it for each class."""
    tokens = tokens_of(model)
    plain = plain_logits(model, embedding[:1], tokens)
    torch.testing.assert_close(model.decode(embedding[:1], tokens), plain, rtol=0, atol=1e-4)
    rows = model.decode(embedding, tokens[:2])
    torch.testing.assert_close(rows[0], plain[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_published_way_gives_masks_of_any_size(model):
    image = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)
    masks = plain_masks(model, image, [4, 0], (50, 70))
    assert (masks.shape, masks.dtype) == ((2, 50, 70), torch.bool)


@torch.no_grad()
def test_padding_tokens_are_not_seen(model, embedding):
    tokens = tokens_of(model)[:3]
    short = model.decode(embedding[:1], tokens[:, :2])
    bias = torch.tensor([0., 0., -1e4]).expand(3, -1)
    hidden = model.decode(embedding[:1], tokens, bias=bias)
    torch.testing.assert_close(hidden, short, rtol=0, atol=1e-5)
    assert (model.decode(embedding[:1], tokens) - short).abs().max() > 1e-2


@torch.no_grad()
def test_each_class_has_a_dense_vector_of_its_own(model, embedding):
    tokens, own = tokens_of(model)[:3], model.prompt_encoder.no_mask_embed.weight
    dense = torch.cat((own, 2 * own, -own))
    together = model.decode(embedding[:1], tokens, dense)
    other = copy.deepcopy(model)
    for row, vector in enumerate(dense):
        other.prompt_encoder.no_mask_embed.weight.copy_(vector[None])
        expected = plain_logits(other, embedding[:1], tokens[row:row + 1])
        torch.testing.assert_close(together[row:row + 1], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_attention_biases_are_never_stale():
    """The original expands the table when it is put into evaluation mode, and keeps that."""
    model = random_fpseg(SMALL).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    before = model.encode_images(pixels)
    for name, table in model.named_parameters():
        if name.endswith('attention_biases'):
            table.mul_(2)
    assert (model.encode_images(pixels) - before).abs().max() > 1e-3


@torch.no_grad()
def test_zero_attention_biases_are_tables_of_zeros():
    live = random_fpseg(SMALL)
    zero = FpSeg(replace(SMALL, attention_bias='zero')).eval()
    zero.load_state_dict(live.state_dict())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert (zero.encode_images(pixels) - live.encode_images(pixels)).abs().max() > 1e-2
    for name, table in live.named_parameters():
        if name.endswith('attention_biases'):
            table.zero_()
    torch.testing.assert_close(zero.encode_images(pixels), live.encode_images(pixels))


@torch.no_grad()
def test_folded_batch_norms_change_nothing(model):
    folded = copy.deepcopy(model)
    fold_batch_norms(folded)
    assert set(folded.state_dict()) == set(FpSeg(SMALL, norms=False).state_dict())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(folded.encode_images(pixels), model.encode_images(pixels),
                               rtol=0, atol=1e-4)


def test_training_reaches_every_weight():
    model = random_fpseg(SMALL).train()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model(pixels).square().mean().backward()
    without = {name.rsplit('.', 1)[0] for name, weight in model.named_parameters()
               if weight.grad is None or not weight.grad.abs().sum() > 1e-12}
    # A bias of the keys moves all scores of a query alike and cannot change the softmax.
    assert {name for name in without if not name.endswith('k_proj')} == set()


def test_classes_can_be_taken_out_and_put_in(model):
    model = copy.deepcopy(model)
    prompts = model.class_prompts()
    assert [prompt.name for prompt in prompts] == list(SMALL.class_names)
    model.set_class_prompts([prompts[4], prompts[1]])
    assert model.config.class_names == ('road', 'tree')
    assert torch.equal(tokens_of(model)[1], torch.from_numpy(prompts[1].tokens))
    longer = ClassPrompt('roof', np.zeros((6, SMALL.width), np.float32), prompts[0].dense)
    model.set_class_prompts([longer])
    assert (model.config.prompt_size, tokens_of(model).shape) == (6, (1, 6, SMALL.width))


@pytest.mark.parametrize(('names', 'shapes', 'message'), [
    (('a', 'A '), ((3, 32), (3, 32)), 'twice'), (('a', 'b'), ((3, 32), (2, 32)), 'number'),
    (('a',), ((3, 16),), '16 wide')])
def test_classes_that_do_not_fit_are_refused(model, names, shapes, message):
    prompts = [ClassPrompt(name, np.zeros(shape, np.float32), np.zeros(shape[1], np.float32))
               for name, shape in zip(names, shapes, strict=True)]
    with pytest.raises(BundleError, match=message):
        copy.deepcopy(model).set_class_prompts(prompts)


def test_classes_tuned_apart_are_not_trained_together(model):
    first, second, *_ = model.class_prompts()
    with pytest.raises(BundleError, match='no_mask_embed'):
        copy.deepcopy(model).set_class_prompts([first, replace(second, dense=2 * second.dense)])
