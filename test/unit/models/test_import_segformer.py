# SPDX-License-Identifier: Apache-2.0
"""Hugging Face Segformer folders: what is read, and what is refused with what would work."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.import_bundle import choose_importer
from blabberseg_ros.cli.main import main
from blabberseg_ros.errors import BundleError, PromptError
from blabberseg_ros.models.families import load_network
from blabberseg_ros.models.import_segformer import import_model
from blabberseg_ros.models.importing import ImportOptions
from blabberseg_ros.models.random_clipseg import SMALL as CLIP_SIZES
from blabberseg_ros.models.random_clipseg import random_clipseg
from blabberseg_ros.models.segformer_config import SegformerConfig, variant_config
from blabberseg_ros.segmenter import Segmenter

LABELS = ('building', 'grass', 'flat-road', 'water')
SIZES = {'hidden_sizes': [8, 16, 20, 32], 'depths': [1, 1, 2, 1], 'decoder_hidden_size': 24,
         'num_attention_heads': [1, 2, 5, 4]}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('segformer')
    torch.manual_seed(0)
    transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(
        id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)},
        **SIZES)).save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / 'copy')


def change_config(path, **values):
    content = json.loads((path / 'config.json').read_text())
    content.update(values)
    (path / 'config.json').write_text(
        json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weights(path, change):
    state = load_file(path / 'model.safetensors')
    change(state)
    save_file(state, path / 'model.safetensors')


def outputs(path, **options):
    model = import_model(path, ImportOptions(input_size_px=64, **options)).model
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return model(pixels)


def test_labels_and_sizes_come_from_the_folder(folder):
    imported = import_model(folder, ImportOptions(input_size_px=224))
    config = imported.model.config
    assert (config.labels, config.input_size_px) == (LABELS, 224)
    assert (config.hidden, config.depths) == ((8, 16, 20, 32), (1, 1, 2, 1))
    assert not imported.reads_text
    assert 'model.safetensors (SHA-256 ' in imported.source
    assert import_model(folder, ImportOptions()).model.config.input_size_px == 512


def test_names_of_transformers_5_and_bin_files_give_the_same(folder, copy):
    expected = outputs(folder)
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    state = model.state_dict()
    assert any(key.startswith('segformer.stages.') for key in state), 'names of version 5'
    save_file(state, copy / 'model.safetensors')
    assert torch.equal(outputs(copy), expected)
    (copy / 'model.safetensors').unlink()
    torch.save(load_file(folder / 'model.safetensors'), copy / 'pytorch_model.bin')
    assert torch.equal(outputs(copy), expected)


def test_normalisation_of_the_preprocessor_is_taken(copy):
    (copy / 'preprocessor_config.json').write_text(
        json.dumps({'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.25, 0.25, 0.25], 'size': 512}))
    config = import_model(copy, ImportOptions()).model.config
    assert (config.mean, config.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(('change', 'message'), [
    ({'model_type': 'clipseg'}, "family 'clipseg', not segformer"),
    ({'hidden_act': 'relu'}, "hidden_act = 'relu'"),
    ({'strides': [4, 2, 2, 1]}, r'strides = \[4, 2, 2, 1\]'),
    ({'depths': [1, 1, 2]}, 'four stages'),
    ({'num_attention_heads': [1, 2, 5, 3]}, '3 attention heads do not divide'),
    ({'depths': [1, 1, 3, 1]}, r'Missing: segformer.encoder.block.2.2'),
    ({'depths': [1, 1, 1, 1]}, r'Unknown: segformer.encoder.block.2.1'),
    ({'decoder_hidden_size': 32}, 'decode_head'),
    ({'hidden_sizes': [8, 16, 20, 64]}, 'other'),
    ({'hidden_sizes': None}, 'not a whole Segformer configuration'),
    ({'id2label': {'0': 'LABEL_0', '1': 'LABEL_1'}}, 'does not name its labels.*--classes'),
    ({'id2label': None}, 'does not name its labels'),
    ({'id2label': {'0': 'a', '1': 'b'}}, 'other shapes'),
])
def test_other_configurations_are_refused(copy, change, message):
    change_config(copy, **change)
    with pytest.raises(BundleError, match=message):
        import_model(copy, ImportOptions())


def test_names_of_a_file_replace_generic_ones(copy, tmp_path):
    change_config(copy, id2label={str(i): f'LABEL_{i}' for i in range(4)})
    (tmp_path / 'names.txt').write_text('house\nlawn\n\nroad\nlake\n')
    model = import_model(copy, ImportOptions(classes=tmp_path / 'names.txt')).model
    assert model.config.labels == ('house', 'lawn', 'road', 'lake')


def test_an_encoder_without_a_head_is_refused(copy):
    change_weights(copy, lambda state: [state.pop(key) for key in list(state)
                                        if key.startswith('decode_head.')])
    with pytest.raises(BundleError, match=r'encoder alone.*segmentation, such as nvidia'):
        import_model(copy, ImportOptions())


def test_missing_and_foreign_tensors_are_named(copy):
    def change(state):
        state['segformer.encoder.other'] = state.pop('decode_head.classifier.bias')
    change_weights(copy, change)
    with pytest.raises(BundleError, match=r'Missing: decode_head.classifier.bias.*'
                                          r'Unknown: segformer.encoder.other'):
        import_model(copy, ImportOptions())


def test_damaged_files_are_refused(copy):
    data = (copy / 'model.safetensors').read_bytes()
    (copy / 'model.safetensors').write_bytes(data[:len(data) // 2])
    with pytest.raises(BundleError, match='damaged'):
        import_model(copy, ImportOptions())
    (copy / 'model.safetensors').write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(BundleError, match='git lfs pull'):
        import_model(copy, ImportOptions())
    (copy / 'model.safetensors').unlink()
    with pytest.raises(BundleError, match='no weights'):
        import_model(copy, ImportOptions())


@pytest.mark.parametrize('size_px', [100, 0, -32])
def test_sizes_that_are_no_multiple_of_32_are_refused(folder, size_px):
    with pytest.raises(BundleError, match='nearest sizes that work are'):
        import_model(folder, ImportOptions(input_size_px=size_px))


def test_the_family_is_found_from_the_folder(folder, tmp_path):
    assert choose_importer(folder).__name__.endswith('import_segformer')
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    with pytest.raises(BundleError, match=r"family 'bert'.*SegformerForSemanticSegmentation"):
        choose_importer(tmp_path)
    (tmp_path / 'photo.jpg').write_bytes(b'\xff\xd8\xff')
    with pytest.raises(BundleError, match='What works: clipseg: '):
        choose_importer(tmp_path / 'photo.jpg')


def test_published_variants():
    assert variant_config('b0', LABELS).decoder_width == 256
    for name in ('b0', 'b1', 'b2', 'b3', 'b4', 'b5'):
        assert variant_config(name, LABELS).variant == name
    config = variant_config('b4', LABELS)
    assert SegformerConfig.from_dict(config.to_dict()) == config


def test_the_command_makes_a_bundle_that_refuses_foreign_words(folder, tmp_path, capsys):
    aliases = tmp_path / 'aliases.yaml'
    aliases.write_text('meadow: grass\n')
    out = tmp_path / 'bundle'
    assert main(['import', str(folder), '--out', str(out), '--input-size', '64', '--aliases',
                 str(aliases), '--storage', 'fp16']) == 0
    assert 'Segformer w8, 64 px' in capsys.readouterr().out
    bundle = load_bundle(out)
    assert (bundle.manifest.family, bundle.aliases) == ('segformer', {'meadow': ('grass',)})
    assert not (out / 'tokenizer.json').exists()
    assert load_network(bundle).config.labels == LABELS
    backend = Segmenter.open(out, backend='segformer', engine='onnxruntime-cpu').backend
    assert backend.read_prompt('meadow, grass').kept == 'meadow, grass'
    for text in ('moor', 'meadow, moor'):
        with pytest.raises(PromptError, match=r"'moor' stands for none of the .*grass.*meadow"):
            backend.read_prompt(text)
    with pytest.raises(BundleError, match='another bundle'):
        Segmenter.open(out, backend='clipseg')

    again = tmp_path / 'again'
    aliases.write_text('moor: grass\n')
    assert main(['export', str(out), '--out', str(again), '--input-size', '96', '--aliases',
                 str(aliases)]) == 0
    assert load_bundle(again).aliases == {'moor': ('grass',)}
    assert load_bundle(again).manifest.input_size_px == 96


def test_a_text_tower_matches_by_meaning(folder, tmp_path):
    """CLIP's own label names are nearest to themselves, whatever the tower has learnt."""
    clip = {key: value for key, value in random_clipseg(CLIP_SIZES).state_dict().items()
            if not key.startswith(('visual.', 'film', 'reduces', 'blocks', 'trans_conv'))}
    torch.save(clip, tmp_path / 'clip.pt')
    imported = import_model(folder, ImportOptions(clip=str(tmp_path / 'clip.pt')))
    config = imported.model.config
    assert imported.reads_text
    assert (config.text_layers, config.text_width, config.embed_dim) == (3, 48, 48)
    from blabberseg_ros.models.import_segformer import label_tokens
    with torch.inference_mode():
        similarity = imported.model.similarity(label_tokens(LABELS))
    assert torch.equal(similarity.argmax(1), torch.arange(len(LABELS)))
    torch.testing.assert_close(similarity.diagonal(), torch.ones(len(LABELS)))
    torch.save({'other': torch.zeros(1)}, tmp_path / 'other.pt')
    with pytest.raises(BundleError, match='no text tower'):
        import_model(folder, ImportOptions(clip=str(tmp_path / 'other.pt')))
