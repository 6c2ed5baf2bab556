# SPDX-License-Identifier: Apache-2.0
"""The whole demo, from its command line: real nodes, a flight, a page, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, until

DEADLINE_S = 90.0


def command(bundle: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, '-m', 'blabberseg_ros.demo.run', '--bundle', str(bundle), '--out',
            str(out), '--world-size', '80', '--size', '160x120', *options]


@pytest.fixture
def environment() -> dict[str, str]:
    inherited = os.environ.get('PYTHONPATH', '')
    return {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{inherited}'}


def children_of(pid: int) -> dict[int, str]:
    """Return id and command line of a process's children."""
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            parent = int((folder / 'stat').read_text().rsplit(')', 1)[1].split()[1])
            line = (folder / 'cmdline').read_text().replace('\0', ' ')
        except (OSError, IndexError):
            continue
        if parent == pid:
            found[int(folder.name)] = line
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def nodes_of(demo: subprocess.Popen) -> dict[str, int]:
    """Wait until both nodes run; return executable to process id."""
    def both() -> dict[str, int] | None:
        found = {line.split(' -m ')[1].split()[1]: pid
                 for pid, line in children_of(demo.pid).items() if 'blabberseg_ros.nodes' in line}
        return found if len(found) == 2 else None

    return until(both, DEADLINE_S, 'both nodes run')


@pytest.fixture
def demo(random_bundle, tmp_path, environment):
    """Return a function that starts the demo with more options; at the end nothing runs."""
    started: list[subprocess.Popen] = []

    def start(*options: str) -> subprocess.Popen:
        with (tmp_path / 'demo.log').open('wb') as log:
            started.append(subprocess.Popen(
                command(random_bundle, tmp_path / 'out', *options), cwd=tmp_path,
                stdout=log, stderr=subprocess.STDOUT, env=environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def output_of(tmp_path: Path) -> str:
    return (tmp_path / 'demo.log').read_text()


def test_a_flight_ends_with_page_and_report(demo, tmp_path):
    """With random weights nothing is safe; the demo says so, in time."""
    process = demo('--time-limit', '4')
    nodes = nodes_of(process)
    code = process.wait(DEADLINE_S)
    output = output_of(tmp_path)
    assert 'Traceback' not in output
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert code == (0 if report['success'] else 3), output
    assert report['exit_codes'] == {'aerial_camera': 0, 'generate_landing_heatmap': 0}
    assert report['flight']['heatmaps'] > 0
    assert report['flight']['frames_received'] > 0
    assert report['latency_ms']['encode_image']['p50'] > 0
    assert report['engine']['bundle'] == 'random'
    assert report['headline'] in output
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert page.rstrip().endswith('</html>')
    assert 'data:image/jpeg' in page
    assert not any(alive(pid) for pid in nodes.values())


def test_the_bundle_that_ships_flies_without_torch(tmp_path, environment):
    """`make demo` installs none of these; neither the demo nor its nodes may need them."""
    absent = ('torch', 'torchvision', 'open_clip', 'transformers', 'onnx', 'onnxscript', 'triton')
    (tmp_path / 'sitecustomize.py').write_text(
        'import sys\n'
        f'sys.modules.update(dict.fromkeys({absent!r}))\n'
        f'open({str(tmp_path / "masked")!r}, "a").write(" ".join(sys.orig_argv) + "\\n")\n')
    done = subprocess.run(
        command(ROOT / 'engines' / 'clipseg_demo', tmp_path / 'out', '--time-limit', '6'),
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        timeout=DEADLINE_S, env={
            **environment, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{environment["PYTHONPATH"]}',
            'XDG_CACHE_HOME': str(tmp_path / 'cache')})
    masked = (tmp_path / 'masked').read_text()
    for module in ('demo.run', 'nodes.executables'):
        assert f'-m blabberseg_ros.{module}' in masked
    assert 'Traceback' not in done.stdout
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert done.returncode == (0 if report['success'] else 3), done.stdout
    assert report['exit_codes'] == {'aerial_camera': 0, 'generate_landing_heatmap': 0}
    assert report['engine'] == {
        'bundle': 'clipseg_demo', 'engine': 'onnxruntime-cpu', 'precision': 'fp32'}
    assert report['flight']['heatmaps'] > 0


def test_a_node_that_dies_ends_the_demo_with_a_word(demo, tmp_path):
    process = demo('--time-limit', '60')
    nodes = nodes_of(process)
    until(lambda: 'height' in output_of(tmp_path), DEADLINE_S, 'the flight has begun')
    os.kill(nodes['clipseg_node'], signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 1
    assert 'generate_landing_heatmap ended with code -9' in output_of(tmp_path)
    assert not any(alive(pid) for pid in nodes.values())
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['success'] is False


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_takes_its_nodes_along(demo, tmp_path, number):
    process = demo('--time-limit', '60')
    nodes = nodes_of(process)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 130
    assert 'Traceback' not in output_of(tmp_path)
    until(lambda: not any(alive(pid) for pid in nodes.values()),
          what='the nodes are gone')


def test_a_bundle_that_is_not_there_is_named(tmp_path, environment):
    done = subprocess.run(command(Path('no_such_model'), tmp_path), env=environment, text=True,
                          capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    assert "there is no bundle 'no_such_model'" in done.stdout
    assert 'Traceback' not in done.stdout + done.stderr
