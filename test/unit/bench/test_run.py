# SPDX-License-Identifier: Apache-2.0
"""A whole benchmark on a small model: each engine in its own process, and the file in the end."""

import csv
import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from blabberseg_ros.bench import records
from blabberseg_ros.bench.jobs import (
    BATCHED,
    DOVESEI,
    OURS,
    PROMPT_COUNTS,
    Case,
    Job,
    prompt_sets,
    unseen_prompts,
)
from blabberseg_ros.bench.machine import memory_mb
from blabberseg_ros.bench.run import Plan, jobs_for, run_jobs
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.engines.cuda_probe import CudaProbe
from blabberseg_ros.parity.variants import Variant


@pytest.mark.parametrize('count', PROMPT_COUNTS)
def test_prompt_sets_have_the_count_and_nothing_in_common(count):
    first, second = prompt_sets(count)
    assert len(first) == len(second) == count
    assert not set(first.texts) & set(second.texts)
    assert len(set(first.texts)) == count
    assert len({*unseen_prompts(count, 1).texts, *unseen_prompts(count, 2).texts}) == 2 * count


def test_a_job_survives_json():
    job = Job(OURS, 'bundle', 'engine', '', '', (Case(13, (640, 480)),), 1.5, 3, 'folder')
    assert Job.from_json(job.to_json()) == job


def test_dovesei_comes_first_and_the_gpu_gets_its_own_jobs(monkeypatch):
    on_cpu = jobs_for(Plan(quick=True), 'bundle', 'folder')
    assert on_cpu[0].contestant == DOVESEI
    assert {job.device for job in on_cpu} <= {'cpu', ''}
    assert all(len(job.cases) == 1 for job in on_cpu)
    monkeypatch.setattr('blabberseg_ros.bench.run.probe_cuda', lambda: CudaProbe(True, 'a GPU'))
    on_gpu = jobs_for(Plan(engines=(Variant(engine='torch-cuda'),)), 'bundle', 'folder')
    assert [(job.contestant, job.precision, job.device) for job in on_gpu[:2]] == [
        (DOVESEI, 'fp32', 'cuda'), (DOVESEI, 'fp16', 'cuda')]
    assert any(job.contestant == BATCHED for job in on_gpu)
    assert len(on_gpu[0].cases) == 2 * len(PROMPT_COUNTS)


def test_a_small_run(random_bundle, tmp_path):
    """Two prompts at 64x48, DOVESEI and ONNX Runtime, and an engine that cannot be had."""
    case = Case(2, (64, 48))
    dovesei = Job(DOVESEI, str(random_bundle), '', 'fp32', 'cpu', (case,), 5.0, 2, str(tmp_path))
    ours = dataclasses.replace(dovesei, contestant=OURS, engine='onnxruntime-cpu', precision='',
                               device='', cache=str(tmp_path / 'cache'))
    lines = []
    first, rows = run_jobs(
        [dovesei, ours, dataclasses.replace(ours, engine='abacus')], lines.append)
    assert {row.engine for row in first} == {'dovesei'}
    assert 'abacus: left out' in lines[2]
    assert "there is no engine 'abacus'" in lines[2]
    found = {(row.engine, row.scenario, row.detail): row for row in rows}
    new = found['onnxruntime-cpu', records.NEW_FRAME, '']
    assert (new.n, new.prompts, new.input) == (2, 2, '64x48')
    assert 0 < new.p50_ms <= new.p99_ms
    assert new.max_dp is not None
    assert new.max_dp < 5e-3
    assert new.ratio_to_dovesei == pytest.approx(
        found['dovesei', records.NEW_FRAME, ''].p50_ms / new.p50_ms, abs=0.01)
    assert new.resident_mb > 50
    for detail in ('encode image', 'decode', 'fuse', 'threshold'):
        assert found['onnxruntime-cpu', records.STAGE, detail].p50_ms > 0
    start = found['onnxruntime-cpu', records.START, 'first answer, cold cache']
    assert start.p50_ms > found['onnxruntime-cpu', records.START, 'loaded, cold cache'].p50_ms
    assert found['onnxruntime-cpu', records.SAME_FRAME, ''].n == 2


def test_a_cold_start_finds_nothing_compiled(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr('blabberseg_ros.bench.run.subprocess.run', lambda *_, env, **__: (
        seen.append(env) or SimpleNamespace(stdout='', returncode=0)))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', 'of the user')
    jobs = jobs_for(Plan(True, (Variant(engine='torch-cuda'), Variant(engine='torch-cpu'))),
                    'bundle', str(tmp_path))
    assert list(run_jobs(jobs, lambda _: None)) == []
    for name in ('TORCHINDUCTOR_CACHE_DIR', 'TRITON_CACHE_DIR'):
        caches = [env.get(name) for job, env in zip(jobs, seen, strict=True)
                  if job.contestant == OURS]
        assert len(set(caches)) == 2, 'one an engine, which its warm start shares'
        assert all(str(tmp_path) in cache for cache in caches)
    assert seen[0]['TORCHINDUCTOR_CACHE_DIR'] == 'of the user', 'a baseline'


def test_memory_is_in_millions_of_bytes():
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    assert memory_mb('VmRSS') == pytest.approx(pages * os.sysconf('SC_PAGE_SIZE') / 1e6, rel=0.02)
    assert memory_mb('VmHWM', os.getpid()) >= memory_mb('VmRSS')


def test_the_command_refuses_nonsense(capsys):
    assert main(['bench', '--batch', '0']) == 2
    assert '--batch is 0' in capsys.readouterr().err


@pytest.mark.parametrize(('engine', 'reason'), [
    ('abacus', 'there is no engine'), ('onnxruntime-cpu-int8', 'has no int8 graph')])
def test_the_command_says_when_nothing_could_be_measured(random_bundle, tmp_path, capsys, engine,
                                                         reason):
    assert main(['bench', '--bundle', str(random_bundle), '--engine', engine, '--quick',
                 '--no-baselines', '--out', str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert 'left out' in printed
    assert reason in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('family', 'options', 'prompts'), [
    ('segformer', [], 16), ('fpseg', ['--positive', 'grass', '--negative', 'roof'], 2),
    ('lseg', [], 13)])
def test_frames_a_second_of_a_bundle_of_another_family(make_random_bundle, tmp_path, capsys,
                                                       family, options, prompts):
    bundle, table = make_random_bundle(family), tmp_path / 'rate.csv'
    assert main(['bench', '--bundle', str(bundle), '--engine', 'onnxruntime-cpu', '--quick',
                 '--out', str(table), '--commit', 'abc', *options]) == 0
    assert 'frames/s' in capsys.readouterr().out
    with open(table, newline='') as stream:
        rows = list(csv.DictReader(stream))
    side = load_bundle(bundle).manifest.input_size_px
    assert [(row['engine'], row['scenario'], row['input'], int(row['prompts'])) for row in rows
            ] == [('onnxruntime-cpu', records.NEW_FRAME, f'{side}x{side}', prompts),
                  ('onnxruntime-cpu', records.NEW_FRAME, '640x480', prompts)]
    for row in rows:
        assert float(row['frames_per_s']) == pytest.approx(1000 / float(row['p50_ms']), rel=0.01)


def test_prompts_are_for_frames_a_second_alone(make_random_bundle, random_bundle, capsys):
    assert main(['bench', '--bundle', str(random_bundle), '--positive', 'grass']) == 2
    assert 'have prompts of their own' in capsys.readouterr().err
    assert main(['bench', '--backend', 'clipseg', '--bundle',
                 str(make_random_bundle('segformer'))]) == 2
    assert 'leave --backend out' in capsys.readouterr().err


def test_the_command_writes_a_file_and_a_plot(random_bundle, tmp_path, monkeypatch, capsys):
    row = records.make_row('a GPU', 'torch-cuda', 'fp16', records.NEW_FRAME,
                           records.Times.of([1.0]), prompts=13, size_px=(640, 480))

    def measured(jobs, report):
        yield [row]
        table, = tmp_path.glob('a-gpu-*.csv')
        assert len(table.read_text().splitlines()) == 2, 'written before the next job'
        yield [row, row]

    monkeypatch.setattr('blabberseg_ros.bench.run.run_jobs', measured)
    assert main(['bench', '--bundle', str(random_bundle), '--out', str(tmp_path),
                 '--commit', 'abc']) == 0
    table, = tmp_path.glob('a-gpu-*.csv')
    with open(table, newline='') as stream:
        assert [line['commit'] for line in csv.DictReader(stream)] == ['abc', 'abc']
    assert table.with_suffix('.svg').is_file()
    assert 'torch-cuda' in capsys.readouterr().out
