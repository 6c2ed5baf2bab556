# SPDX-License-Identifier: Apache-2.0
"""A tower of CLIP in another family answers as it did in CLIPSeg."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.fpseg_config import FpSegConfig, SamVitConfig
from blabberseg_ros.models.lseg_config import LSegConfig
from blabberseg_ros.models.segformer_config import SegformerConfig
from blabberseg_ros.text import Tokenizer
from blabberseg_ros.training.config import (
    CropsConfig,
    OptimiserConfig,
    TrainConfig,
    WorldsConfig,
)
from blabberseg_ros.training.family import family_class
from blabberseg_ros.training.labels import CLASS_NAMES
from blabberseg_ros.training.lexicon import TERMS, training_texts
from blabberseg_ros.training.open_words import write_demo_tokenizer
from blabberseg_ros.training.tower import patch_tokens
from blabberseg_ros.training.trainer import Trainer

SIDE, GRID, WIDTH = 64, 4, 16
CLIP = ClipSegConfig(
    input_size_px=SIDE, pretrain_grid=GRID, vision_width=WIDTH, vision_heads=2, vision_layers=4,
    vision_mlp=4 * WIDTH, extract=(1, 2, 3), embed_dim=8, text_width=8, text_heads=2,
    text_layers=2, text_mlp=16, reduce_dim=8, decoder_heads=2, decoder_ffn=8)
VIT = SamVitConfig(WIDTH, 4, 2, (0, 1, 2, 3), 14, 4, GRID)
MODELS = {
    'fpseg': FpSegConfig(VIT, CLASS_NAMES, 2, SIDE, width=16, decoder_heads=2, decoder_mlp=16),
    'lseg': LSegConfig(
        input_size_px=SIDE, pretrain_grid=GRID, vision_width=WIDTH, vision_heads=2,
        vision_layers=4, vision_mlp=4 * WIDTH, hooks=(0, 1, 2, 3), reassemble=(8, 8, 8, 8),
        features=8, embed_dim=8, vocab_size=1536, text_width=8, text_heads=2, text_layers=2,
        text_mlp=16),
    'segformer': SegformerConfig(
        CLASS_NAMES, SIDE, hidden=(8, 8, WIDTH, 8), depths=(1, 1, 4, 1), heads=(1, 1, 2, 1),
        reductions=(8, 4, 1, 1), decoder_width=8)}
TOWERS = {'fpseg': 'image_encoder.blocks', 'lseg': 'vision.blocks',
          'segformer': 'stages.2.blocks'}


@pytest.fixture(scope='module')
def teacher() -> ClipSeg:
    torch.manual_seed(0)
    network = ClipSeg(CLIP).eval().requires_grad_(False)
    # Attention and MLPs that matter, position embeddings that do not.
    for name, weight in network.visual.named_parameters():
        if weight.ndim == 2 and 'resblocks' in name:
            weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
    network.visual.positional_embedding.mul_(0.01)
    network.visual.ln_pre.bias.copy_(0.3 * torch.randn(WIDTH))
    return network


@pytest.fixture(scope='module')
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def adopted(name, teacher, pixels, tmp_path, model=None):
    config = TrainConfig(family=name, model=model or MODELS[name])
    family = family_class(name)(tmp_path)
    network = family.fresh(config, False)
    family.adopt_tower(network, teacher, pixels)
    return network.eval().requires_grad_(False)


def alike(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return functional.cosine_similarity(found, wanted, dim=-1).min().item()


def blocks_alone(teacher: ClipSeg, tokens: torch.Tensor) -> torch.Tensor:
    """Return what the teacher's blocks make of tokens [B, N, C] without a class token."""
    for block in teacher.visual.transformer.resblocks:
        tokens = block(tokens)
    return tokens


def test_the_blocks_of_a_sam_vit_answer_as_those_of_clip(teacher, pixels, tmp_path) -> None:
    vit = adopted('fpseg', teacher, pixels, tmp_path).image_encoder
    tokens = patch_tokens(teacher, pixels)
    wanted = blocks_alone(teacher, tokens.flatten(1, 2))
    # The GELUs differ, by 0.02 at most in each of four blocks.
    assert alike(vit.blocks(tokens).flatten(1, 2), wanted) > 0.998
    # Random pixels give all tokens about the same spread, as the patch embedding supposes.
    embedded = vit.patch_embed['proj'](pixels).permute(0, 2, 3, 1) + vit.pos_embed
    assert alike(embedded, tokens) > 0.98
    assert embedded.std().item() == pytest.approx(tokens.std().item(), rel=0.05)


def test_the_levels_of_lseg_have_the_activations_of_clip(teacher, pixels, tmp_path) -> None:
    vit = adopted('lseg', teacher, pixels, tmp_path).vision
    seen = []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    vit(pixels)
    for found, wanted in zip(seen[1:], teacher.activations(pixels), strict=True):
        assert alike(found, wanted) > 0.93
    # The class token has no spread of its own to lose.
    first = vit.cls_token[0] + vit.pos_embed[0, :1]
    position = teacher.position_embedding(GRID)[:1]
    wanted = teacher.visual.ln_pre(teacher.visual.class_embedding[None] + position)
    torch.testing.assert_close(first, wanted)


def test_texts_mean_the_same_with_a_part_of_the_tokens(teacher, pixels, tmp_path) -> None:
    network = adopted('lseg', teacher, pixels, tmp_path)
    write_demo_tokenizer(tmp_path / 'full.json')
    full = Tokenizer.from_file(tmp_path / 'full.json')
    part = Tokenizer.from_file(tmp_path / 'tokenizer.json')
    for text in ('grass', 'people, crowd', "a bird's eye view of rooftops"):
        ids = [torch.tensor(tokenizer.encode(text).ids)[None] for tokenizer in (part, full)]
        assert not torch.equal(*ids)
        torch.testing.assert_close(network.encode_text(ids[0]), teacher.encode_text(ids[1]))


def test_a_stage_of_segformer_answers_as_the_blocks_of_clip(teacher, pixels, tmp_path) -> None:
    stage = adopted('segformer', teacher, pixels, tmp_path).stages[2]
    tokens = patch_tokens(teacher, pixels)
    wanted = blocks_alone(teacher, tokens.flatten(1, 2))
    found = tokens
    for block in stage.blocks:
        found = block(found)
    assert alike(found.flatten(1, 2), wanted) > 0.998
    torch.testing.assert_close(stage.embedding.norm.bias, teacher.visual.ln_pre.bias)


@pytest.mark.parametrize('name', MODELS)
def test_a_frozen_tower_keeps_its_weights_and_learns_afterwards(
        name, teacher, tmp_path, square_worlds) -> None:
    config = TrainConfig(
        family=name, seed=3, model=MODELS[name],
        worlds=WorldsConfig(train=2, first=1, ramp_steps=1, size_m=32.0, resolution_m=0.25),
        crops=CropsConfig(min_altitude_m=6.0, max_altitude_m=12.0),
        optimiser=OptimiserConfig(steps=4, batch_size=2, prompt_sets=2, warmup_steps=1,
                                  learning_rate=1e-2, frozen_steps=2))
    trainer = Trainer(config, family_class(name)(tmp_path), square_worlds(), torch.device('cpu'),
                      tower=teacher)
    prefix = TOWERS[name]
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    moved = []

    def report(progress) -> bool:
        state = trainer.model.state_dict()
        changed = {key for key, value in state.items() if not torch.equal(value, start[key])}
        moved.append(({key for key in changed if key.startswith(prefix)},
                      {key for key in changed if not key.startswith(prefix)}))
        return True

    trainer.run(report, lambda line: None)
    assert [bool(tower) for tower, _ in moved] == [False, False, True, True]
    assert all(others for _, others in moved)


def test_what_does_not_fit_is_refused_by_name(teacher, pixels, tmp_path) -> None:
    with pytest.raises(ParameterError, match=r'blocks\.3.*widths, blocks'):
        adopted('fpseg', teacher, pixels, tmp_path,
                replace(MODELS['fpseg'], encoder=replace(VIT, depth=3, global_blocks=(0, 1, 2))))
    with pytest.raises(ParameterError, match='global_blocks'):
        adopted('fpseg', teacher, pixels, tmp_path,
                replace(MODELS['fpseg'],
                        encoder=replace(VIT, global_blocks=(0, 1, 2), window=2)))
    with pytest.raises(ParameterError, match='sam_vit'):
        adopted('fpseg', teacher, pixels, tmp_path, FpSegConfig(class_names=CLASS_NAMES))
    with pytest.raises(ParameterError, match='1536'):
        adopted('lseg', teacher, pixels, tmp_path, replace(MODELS['lseg'], vocab_size=49408))


def test_a_part_of_the_tokenizer_splits_known_words_as_clip_does(tmp_path) -> None:
    write_demo_tokenizer(tmp_path / 'full.json')
    write_demo_tokenizer(tmp_path / 'part.json', training_texts())
    full, part = (Tokenizer.from_file(tmp_path / f'{name}.json') for name in ('full', 'part'))
    names = [{number: token for token, number in tokenizer.ids.items()}
             for tokenizer in (full, part)]

    def tokens(text: str) -> list[list[str]]:
        return [[name[number] for number in tokenizer.encode(text).ids[:20] if number]
                for name, tokenizer in zip(names, (full, part), strict=True)]

    texts = [*training_texts(), *(phrase for terms in TERMS.values() for phrase in terms.held_out)]
    for text in texts:
        found, wanted = tokens(text)
        assert found == wanted, text
    found, wanted = tokens('zeppelin 🎈')
    assert len(wanted) > len(found)
    assert part.size < 2000
    assert (part.start_id, part.end_id) == (part.size - 2, part.size - 1)
