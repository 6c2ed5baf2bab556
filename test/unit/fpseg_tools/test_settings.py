# SPDX-License-Identifier: Apache-2.0
"""Configurations of the tools, and what each refuses before it starts."""

from pathlib import Path

import pytest

from blabberseg_ros.cli.main import main
from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.bench import BenchSettings
from blabberseg_ros.fpseg_tools.build import BuildSettings
from blabberseg_ros.fpseg_tools.distil import DistilSettings
from blabberseg_ros.fpseg_tools.embed import EmbedSettings
from blabberseg_ros.fpseg_tools.evaluate import EvaluateSettings
from blabberseg_ros.fpseg_tools.export import ExportSettings
from blabberseg_ros.fpseg_tools.settings import as_mapping, read_settings
from blabberseg_ros.fpseg_tools.tune import TuneSettings
from blabberseg_ros.fpseg_tools.world_set import WorldSetSettings

TOOLS = {'worlds': WorldSetSettings, 'embed': EmbedSettings, 'tune': TuneSettings,
         'distil': DistilSettings, 'evaluate': EvaluateSettings, 'bench': BenchSettings,
         'export': ExportSettings, 'build': BuildSettings}


@pytest.mark.parametrize(('tool', 'kind'), TOOLS.items())
def test_the_shipped_configuration_is_complete(tool: str, kind: type, root_dir: Path) -> None:
    import yaml

    path = root_dir / 'config' / f'fpseg_{tool}.yaml'
    settings = read_settings(kind, path)
    written = yaml.safe_load(path.read_text(encoding='utf-8'))
    missing = set(as_mapping(settings)) - set(written) - {'licence'}
    assert not missing


def test_the_default_is_the_published_recipe(root_dir: Path) -> None:
    settings = read_settings(TuneSettings, root_dir / 'config' / 'fpseg_tune.yaml')
    assert (settings.n_epochs, settings.batch_size, settings.train_n_class_examples_per_epoch,
            settings.prompt_size) == (750, 64, 100, 64)
    assert (settings.prompt_learning_rate, settings.decoder_learning_rate) == (0.01, 1e-4)
    assert (settings.p_neg_max, settings.test_interval) == (0.2, 20)
    assert settings.tuned_part == 'prompts'
    distil = read_settings(DistilSettings, root_dir / 'config' / 'fpseg_distil.yaml')
    assert (distil.learning_rate, distil.batch_size, distil.n_epochs) == (1e-3, 16, 200)


@pytest.mark.parametrize(('change', 'reason'), [
    ('n_epochs=0', '1 or more'), ('n_epochs=many', 'type int'), ('n_epochs=2.5', 'type int'),
    ('n_epochs=true', 'type int'), ('target_size_px=-5', 'target_size_px must be 1 or more'),
    ('target_size_px=0', '1 or more'), ('test_frames=0', '1 or more'),
    ('tuned_part=all', 'one of prompts, prompts_and_decoder'),
    ('p_neg_max=2', '0 to 1'), ('prompt_learning_rate=-1e-3', 'above 0'),
    ('epochs=3', 'epochs is not understood'), ('seed', 'KEY=VALUE'), ('classes=[1]', 'type Path')])
def test_bad_settings_are_refused(change: str, reason: str, root_dir: Path) -> None:
    with pytest.raises(ParameterError, match=reason):
        read_settings(TuneSettings, root_dir / 'config' / 'fpseg_tune.yaml', [change])


def test_settings_are_read_as_their_types(tmp_path: Path) -> None:
    path = tmp_path / 'settings.yaml'
    path.write_text('data_root: a\nembeddings: b\nnetwork: c\nout: d\nprompt_learning_rate: 1e-3\n'
                    'test_frames: null\n')
    settings = read_settings(TuneSettings, path, ['classes=e.yaml', 'test_frames=7'])
    assert (settings.prompt_learning_rate, settings.classes, settings.test_frames) == (
        1e-3, Path('e.yaml'), 7)
    path.write_text('data_root: a\n')
    with pytest.raises(ParameterError, match='embeddings, network, out is missing'):
        read_settings(TuneSettings, path)


@pytest.mark.parametrize('tool', ['embed', 'tune', 'distil', 'evaluate', 'export', 'build'])
def test_bad_paths_are_refused_before_work_starts(
        tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(['fpseg', tool]) == 2
    message = capsys.readouterr().err
    assert 'is not a folder' in message or 'there is no' in message
    # Nothing was begun.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('tool', 'change', 'message'), [
    ('distil', {'student': 'none.safetensors'}, 'no checkpoint none.safetensors'),
    ('distil', {'student': 'no such bundle'}, "no bundle 'no such bundle'"),
    ('distil', {'teacher': 'none'}, 'none/train holds no embeddings'),
    ('distil', {'out': 'a file'}, 'nothing can be written to a file'),
    ('tune', {'classes': 'none.yaml'}, 'none.yaml is not a list of classes'),
    ('tune', {'network': 'none.pth'}, 'no checkpoint none.pth'),
    ('tune', {'out': 'a file/run'}, 'nothing can be written to a file/run'),
    ('evaluate', {'classes': 'none.yaml'}, 'none.yaml is not a list of classes'),
    ('embed', {'embeddings': 'a file'}, 'nothing can be written to a file'),
    ('bench', {'out': 'a file/fpseg.csv'}, 'nothing can be written to a file'),
    ('bench', {'out': 'fpseg.txt'}, 'must end in .csv'),
    ('worlds', {'data_root': 'a file'}, 'nothing can be written to a file')])
def test_each_bad_path_is_refused_before_work_starts(
        tool: str, change: dict[str, str], message: str, world_set: Path, random_network: Path,
        teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    Path('a file').touch()
    network = str(random_network)
    good = {'distil': {'data_root': world_set, 'teacher': teacher, 'student': network,
                       'train_split': 'train', 'out': 'out'},
            'tune': {'data_root': world_set, 'embeddings': teacher, 'network': network,
                     'classes': world_set / 'known.yaml', 'out': 'out'},
            'evaluate': {'data_root': world_set, 'network': network, 'out': 'out'},
            'embed': {'data_root': world_set, 'network': network, 'embeddings': 'out',
                      'splits': '[train]'}}
    settings = {**good.get(tool, {}), **change}
    assert main(['fpseg', tool, *(word for key, value in settings.items()
                                  for word in ('--set', f'{key}={value}'))]) == 2
    assert message in capsys.readouterr().err
    # Nothing was begun.
    assert [path.name for path in tmp_path.iterdir()] == ['a file']


def test_a_data_set_without_embeddings_is_refused(world_set: Path, random_network: Path,
                                                   tmp_path: Path,
                                                   capsys: pytest.CaptureFixture) -> None:
    assert main(['fpseg', 'tune', '--set', f'data_root={world_set}', '--set',
                 f'network={random_network}', '--set', f'embeddings={tmp_path / "none"}',
                 '--set', f'out={tmp_path / "out"}']) == 2
    assert 'blabberseg fpseg embed' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
