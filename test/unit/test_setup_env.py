# SPDX-License-Identifier: Apache-2.0
"""The set-up script: what it asks for, and what it repeats."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'setup_env.py'


@pytest.fixture(scope='module')
def setup_env():
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(setup_env, tmp_path):
    lock = os.open(tmp_path, os.O_RDONLY)
    yield setup_env.Environment(tmp_path / 'env', lock)
    os.close(lock)


HERE = f'python{sys.version_info[0]}.{sys.version_info[1]}'


@pytest.fixture
def machine(setup_env, monkeypatch, tmp_path):
    """Make a machine that has everything, parts of which a test takes away."""
    (tmp_path / 'Python.h').touch()
    has = {'tools': {'gcc', 'g++', 'make'}, 'modules': {'venv', 'ensurepip'}}
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: name in has['tools'] or None)
    monkeypatch.setattr(setup_env.importlib.util, 'find_spec',
                        lambda name: name in has['modules'] or None)
    monkeypatch.setattr(setup_env.sysconfig, 'get_paths', lambda: {'include': str(tmp_path)})
    monkeypatch.setattr(setup_env.platform, 'machine', lambda: 'x86_64')
    has['headers'] = tmp_path / 'Python.h'
    return has


def test_complete_machine_lacks_nothing(setup_env, machine):
    assert setup_env.missing() is None


def test_bare_machine_gets_one_apt_line(setup_env, machine):
    machine['tools'].clear()
    machine['modules'].discard('ensurepip')
    machine['headers'].unlink()
    lines = [line for line in setup_env.missing().split('\n') if 'apt' in line]
    assert lines == [f'    sudo apt install {HERE}-venv {HERE}-dev g++ make']


@pytest.mark.parametrize(('tool', 'package'), [('gcc', 'g++'), ('g++', 'g++'), ('make', 'make')])
def test_missing_tool_is_named(setup_env, machine, tool, package):
    machine['tools'].discard(tool)
    assert f'sudo apt install {package}\n' in setup_env.missing()


def test_other_machines_are_told_to_use_colcon(setup_env, machine, monkeypatch):
    monkeypatch.setattr(setup_env.platform, 'machine', lambda: 'aarch64')
    assert 'colcon build --base-paths . interfaces' in setup_env.missing()


@pytest.mark.parametrize('version', [(3, 8), (3, 14)])
def test_unfit_python_is_refused(setup_env, machine, monkeypatch, version):
    monkeypatch.setattr(setup_env.sys, 'version_info', (*version, 0, 'final', 0))
    assert 'PYTHON=python3' in setup_env.missing()
    assert 'sudo apt install python3' in setup_env.missing()


def test_make_without_a_python_says_what_to_install():
    done = subprocess.run(['make', '-C', SCRIPT.parents[1], 'demo', 'PYTHON=no_such_python'],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'There is no no_such_python here' in done.stderr
    assert 'sudo apt install python3 python3-venv' in done.stderr


def test_step_is_repeated_until_it_succeeds_and_when_its_inputs_change(setup_env, environment):
    environment.stamps.mkdir(parents=True)
    calls = []

    def fails():
        calls.append('failed')
        raise setup_env.SetupError('no network')

    with pytest.raises(setup_env.SetupError):
        environment.step(2, 'ros', 'one', 'title', fails)
    for state in ('one', 'one', 'two'):
        environment.step(2, 'ros', state, 'title', lambda: calls.append('done'))
    assert calls == ['failed', 'done', 'done']


def test_environment_is_kept_while_it_is_good_and_mended_when_it_is_not(environment):
    base = environment.make_venv()
    assert environment.why_unusable(base) is None
    environment.unfinished.touch()
    assert 'broken off' in environment.why_unusable(base)
    environment.unfinished.unlink()
    assert 'moved' in environment.why_unusable(base.replace('env', 'elsewhere'))
    environment.python.unlink()
    assert 'does not start' in environment.why_unusable(base)
    environment.make_venv()
    assert environment.why_unusable(base) is None


def test_failed_command_shows_the_end_of_its_output(setup_env, environment):
    environment.stamps.mkdir(parents=True)
    script = 'print(*range(100), sep="\\n"); print("the reason"); raise SystemExit(3)'
    with pytest.raises(setup_env.SetupError) as failure:
        environment.run([sys.executable, '-c', script], 4)
    message = str(failure.value)
    assert 'the reason' in message
    assert '\n    50\n' not in message
    assert 'Step 4 of 5 failed (exit code 3)' in message
    assert str(environment.log) in message


def test_a_sourced_ros_is_kept_out(environment, monkeypatch):
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/opt/ros/jazzy')
    monkeypatch.setenv('LD_LIBRARY_PATH', '/opt/ros/jazzy/lib')
    monkeypatch.setenv('PYTHONPATH', '/opt/ros/jazzy/lib/python3.12/site-packages')
    variables = environment.environment()
    assert not [value for value in variables.values() if '/opt/ros' in value]
    assert variables['LD_LIBRARY_PATH'] == str(environment.folder / 'lib')


def test_the_script_needs_the_standard_library_only():
    done = subprocess.run([sys.executable, '-S', '-E', str(SCRIPT), '--help'],
                          capture_output=True, text=True, check=True)
    assert '--extras' in done.stdout
