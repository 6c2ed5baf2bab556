# SPDX-License-Identifier: Apache-2.0
"""The network's own promises: sizes, stages, batches, gradients. Parity is tested elsewhere."""

import copy
from dataclasses import replace

import pytest
import torch

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig, check_input_size
from blabberseg_ros.models.random_clipseg import random_clipseg


def test_the_defaults_are_rd64_refined():
    config = ClipSegConfig()
    assert (config.variant, config.tokens, config.grid) == ('rd64-refined', 485, 22)


def test_a_config_survives_a_manifest(small_config):
    assert ClipSegConfig.from_dict(small_config.to_dict()) == small_config


@pytest.mark.parametrize(('change', 'message'), [
    ({'head': 'other'}, "head 'other'"),
    ({'vision_heads': 3}, 'vision width 128'),
    ({'decoder_heads': 5}, 'decoder width 16'),
    ({'extract': (3, 2, 9)}, 'ascending'),
    ({'extract': (3, 6, 8)}, '10 vision layers'),
    ({'input_size_px': 100}, '96 and 112'),
])
def test_sizes_that_do_not_fit_are_refused(small_config, change, message):
    with pytest.raises(BundleError, match=message):
        replace(small_config, **change)


@pytest.mark.parametrize('damage', [
    {'unknown': 1}, {'vision_heads': 0}, {'vision_width': 'wide'}, {'extract': []}])
def test_a_damaged_architecture_is_refused(small_config, damage):
    with pytest.raises(BundleError):
        ClipSegConfig.from_dict({**small_config.to_dict(), **damage})
    with pytest.raises(BundleError, match='head'):
        ClipSegConfig.from_dict(
            {key: value for key, value in small_config.to_dict().items() if key != 'head'})


@pytest.mark.parametrize(('size_px', 'nearest'), [
    (350, '336 and 352'), (1, '16 and 32'), (0, '16 and 32'), (353, '352 and 368')])
def test_an_input_size_names_its_neighbours(size_px, nearest):
    with pytest.raises(BundleError, match=nearest):
        check_input_size(size_px)


@pytest.mark.parametrize('head', ['simple', 'complex'])
@torch.no_grad()
def test_the_stages_together_are_the_whole(small_config, pixels, tokens, head):
    model = random_clipseg(replace(small_config, head=head))
    whole = model(pixels, tokens)
    assert whole.shape == (2, 5, 96, 96)
    mul, add = model.film(model.encode_text(tokens))
    for image, expected in zip(pixels, whole, strict=True):
        code = model.encode_image(image[None])
        assert code.shape == (3, 37, 16)
        torch.testing.assert_close(model.decode(code, mul, add), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_thirteen_prompts_equal_thirteen_runs(model, pixels):
    tokens = torch.randint(1, 300, (13, 77), generator=torch.Generator().manual_seed(5))
    mul, add = model.film(model.encode_text(tokens))
    code = model.encode_image(pixels[:1])
    together = model.decode(code, mul, add)
    for prompt in range(13):
        alone = model.decode(code, mul[prompt:prompt + 1], add[prompt:prompt + 1])
        torch.testing.assert_close(alone[0], together[prompt], rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_follows_the_end_token_is_ignored(model):
    tokens = torch.zeros(2, 77, dtype=torch.int32)
    tokens[:, :4] = torch.tensor([5, 17, 23, 299])
    tokens[1, 4:] = 42
    first, second = model.encode_text(tokens)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize('size_px', [16, 32, 224, 352])
@torch.no_grad()
def test_any_multiple_of_the_patch_works(model, tokens, size_px):
    image = torch.randn(1, 3, size_px, size_px)
    assert model(image, tokens[:1]).shape == (1, 1, size_px, size_px)


def test_another_size_is_refused(model, tokens):
    with pytest.raises(BundleError, match='96 and 112'):
        model(torch.randn(1, 3, 100, 100), tokens)


@torch.no_grad()
def test_the_position_embedding_is_resized_once(model):
    model = copy.deepcopy(model)
    first = model.position_embedding(6)
    assert model.position_embedding(6) is first
    assert model.position_embedding(14) is model.visual.positional_embedding
    model.visual.positional_embedding.mul_(2)
    torch.testing.assert_close(model.position_embedding(6), 2 * first)


def test_every_weight_gets_a_gradient(small_config, pixels, tokens):
    model = random_clipseg(small_config).train()
    model(pixels, tokens).square().mean().backward()
    without = [name for name, weight in model.named_parameters()
               if weight.grad is None or not weight.grad.abs().sum() > 0]
    # A bias of the keys moves all scores of a query alike and cannot change the softmax, but it
    # is stored with those of the queries and values.
    assert without == []


def test_training_lowers_a_loss(small_config, pixels, tokens):
    torch.manual_seed(0)
    model = random_clipseg(small_config).train()
    target = (torch.rand(2, 5, 96, 96) > 0.5).float()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(pixels, tokens), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_seed_gives_the_same_weights(small_config):
    first, again, other = (random_clipseg(small_config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first['film_mul.weight'], other['film_mul.weight'])


def test_no_part_that_is_never_run_is_kept(model):
    assert not [key for key in model.state_dict()
                if key.startswith(('logit_scale', 'visual.proj', 'visual.ln_post'))]
    assert len(model.visual.transformer.resblocks) == 10
    assert isinstance(model, ClipSeg)
