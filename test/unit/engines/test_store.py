# SPDX-License-Identifier: Apache-2.0
"""The store of plans, with bytes that no library ever sees."""

import dataclasses
import hashlib
import json
import logging
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blabberseg_ros.engines.plan_record import PlanKey
from blabberseg_ros.engines.store import PLAN, RECORD, PlanStore
from blabberseg_ros.errors import EngineError

OPTIONS = {'workspace_mib': None, 'optimisation_level': 3, 'sparse': False,
           'version_compatible': False, 'hardware_compatibility': 'none', 'dla_core': None}
KEY = PlanKey(
    bundle='demo', fingerprint='aa-bb', stage='image_encoder', graph_sha256='cc',
    precision='fp16', profiles=[{'x': [[1, 2], [3, 2], [4, 2]]}], builder='tensorrt',
    builder_version='10.16.1.11', gpu='Orin (nvgpu)', compute_capability='8.7', options=OPTIONS)
DATA = bytes(range(256)) * 40


def key(**changes):
    options = {**OPTIONS, **changes.pop('options', {})}
    return dataclasses.replace(KEY, options=options, **changes)


@pytest.fixture
def store(tmp_path):
    return PlanStore(tmp_path / 'plans')


@pytest.fixture
def plan(store):
    return store.obtain(KEY, lambda: DATA).plan


def never():
    raise AssertionError('built although a plan was there')


def files(store):
    return sorted(path.name for path in store.folder.iterdir())


def record_path(store, wanted=KEY):
    return store.folder / (wanted.name + RECORD)


def test_a_plan_is_built_once_and_then_found(store):
    first = store.obtain(KEY, lambda: DATA)
    assert first.built
    assert first.reason == 'there is none'
    second = store.obtain(KEY, never)
    assert not second.built
    assert second.plan == first.plan
    assert second.plan.data == DATA
    assert files(store) == [KEY.name + RECORD, KEY.name + PLAN]


def test_the_plan_stays_plain_and_the_record_says_what_it_is(store, plan):
    assert plan.path.read_bytes() == DATA
    content = json.loads(record_path(store).read_text())
    assert content['key'] == dataclasses.asdict(KEY)
    assert content['sha256'] == hashlib.sha256(DATA).hexdigest()
    assert content['bytes'] == len(DATA)
    assert content['build_s'] >= 0
    assert content['built_at'].endswith('+00:00')
    assert content['parity'] is None


def test_the_name_says_what_it_is_for():
    for part in ('demo', 'image-encoder', 'fp16', 'Orin', 'tensorrt', '10.16.1.11'):
        assert part in KEY.name


@given(st.text(), st.text(), st.text())
def test_every_name_is_one_that_a_folder_can_hold(bundle, stage, gpu):
    name = key(bundle=bundle, stage=stage, gpu=gpu).name
    assert name == Path(name).name
    assert not name.startswith('.')
    assert len(f'.{name}.plan.1234567.tmp'.encode()) <= 255


def test_parity_figures_are_kept_beside_the_plan(store, plan):
    store.record_parity(KEY, {'cosine_min': 0.9997})
    assert store.obtain(KEY, never).plan.record.parity == {'cosine_min': 0.9997}


@pytest.mark.parametrize('changes', [
    {'fingerprint': 'dd'}, {'graph_sha256': 'ee'}, {'precision': 'fp32'},
    {'builder_version': '11.0'}, {'gpu': 'Thor'}, {'compute_capability': '11.0'},
    {'options': {'optimisation_level': 5}}, {'profiles': [{'x': [[1, 2], [3, 2], [9, 2]]}]}],
    ids=lambda changes: next(iter(changes)))
def test_another_need_is_another_plan_and_the_reason_names_it(store, plan, changes):
    obtained = store.obtain(key(**changes), lambda: b'other')
    assert obtained.built
    word = {'profiles': 'shapes', 'options': 'optimisation_level is 3, not 5'}.get(
        next(iter(changes)), next(iter(changes)))
    assert word in obtained.reason
    assert store.obtain(KEY, never).plan.data == DATA


@pytest.mark.parametrize('damage', [
    lambda data: b'', lambda data: data[:-1], lambda data: data + b'\0',
    lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], lambda data: b'\x7fELF' * 9],
    ids=['empty', 'cut', 'longer', 'one bit', 'foreign'])
def test_a_damaged_plan_is_built_again_and_kept_aside(store, plan, damage, caplog):
    plan.path.write_bytes(damage(DATA))
    assert [verdict.ok for verdict in store.verify()] == [False]
    with caplog.at_level(logging.WARNING):
        obtained = store.obtain(KEY, lambda: DATA)
    assert obtained.built
    assert 'damaged' in obtained.reason
    assert 'damaged' in caplog.text
    assert (store.folder / f'{KEY.name}.plan.damaged').read_bytes() == damage(DATA)
    assert [verdict.ok for verdict in store.verify()] == [True]


def rewrite(store, change):
    content = json.loads(record_path(store).read_text())
    change(content)
    record_path(store).write_text(json.dumps(content))


FORGERIES = {
    'another GPU': lambda content: content['key'].update(gpu='Thor'),
    'another version': lambda content: content['key'].update(builder_version='11.0'),
    'one option more': lambda content: content['key']['options'].update(refit=True),
    'another checksum': lambda content: content.update(sha256='0' * 64),
    'another format': lambda content: content.update(format=2),
    'no format': lambda content: content.pop('format'),
    'no key': lambda content: content.pop('key'),
    'a key too many': lambda content: content['key'].update(extra=1),
    'a number for a text': lambda content: content['key'].update(gpu=7),
    'a text for a number': lambda content: content.update(bytes='many'),
    'a huge length': lambda content: content.update(bytes=10 ** 30),
    'a negative length': lambda content: content.update(bytes=-1),
    'options as a list': lambda content: content['key'].update(options=[]),
}


@pytest.mark.parametrize('change', FORGERIES.values(), ids=FORGERIES)
def test_a_forged_record_is_not_believed(store, plan, change):
    rewrite(store, change)
    assert [verdict.ok for verdict in store.verify()] == [False]
    obtained = store.obtain(KEY, lambda: DATA)
    assert obtained.built
    assert obtained.reason
    assert not store.obtain(KEY, never).built


@pytest.mark.parametrize('text', [
    b'', b'{', b'[]', b'null', b'"text"', b'\xff\xfe', b'[' * 100_000, b' ' * (2 << 20)],
    ids=['empty', 'cut', 'list', 'null', 'text', 'not UTF-8', 'deep', 'large'])
def test_a_record_that_is_none_is_not_believed(store, plan, text):
    record_path(store).write_bytes(text)
    assert [verdict.ok for verdict in store.verify()] == [False]
    assert store.obtain(KEY, lambda: DATA).built


def test_a_plan_without_a_record_is_not_used(store, plan):
    record_path(store).unlink()
    obtained = store.obtain(KEY, lambda: DATA)
    assert obtained.built
    assert 'record' in obtained.reason


def test_a_version_compatible_plan_runs_on_later_versions_only(store):
    compatible = {'version_compatible': True}
    store.obtain(key(options=compatible), lambda: DATA)
    newer = key(options=compatible, builder_version='11.2.0')
    assert not store.obtain(newer, never).built
    older = store.obtain(key(options=compatible, builder_version='10.3.0'), lambda: b'old')
    assert older.built
    assert 'later' in older.reason


def test_a_hardware_compatible_plan_runs_on_the_gpus_that_it_says(store):
    same = {'hardware_compatibility': 'same_compute_capability'}
    store.obtain(key(options=same), lambda: DATA)
    assert not store.obtain(key(options=same, gpu='A'), never).built
    assert store.obtain(key(options=same, compute_capability='8.9'), lambda: b'').built
    ampere = {'hardware_compatibility': 'ampere_plus'}
    store.obtain(key(options=ampere), lambda: DATA)
    assert not store.obtain(key(options=ampere, gpu='A', compute_capability='9.0'), never).built
    turing = store.obtain(key(options=ampere, gpu='T', compute_capability='7.5'), lambda: b'')
    assert turing.built
    assert '8.0' in turing.reason


def test_a_link_out_of_the_store_is_not_followed(store, plan, tmp_path):
    outside = tmp_path / 'outside.plan'
    outside.write_bytes(DATA)
    plan.path.unlink()
    plan.path.symlink_to(outside)
    assert store.obtain(KEY, lambda: DATA).built
    assert not plan.path.is_symlink()
    assert outside.read_bytes() == DATA


def test_a_pipe_in_the_store_does_not_block(store, plan):
    plan.path.unlink()
    os.mkfifo(plan.path)
    assert store.obtain(KEY, lambda: DATA).built
    assert plan.path.is_file()


def test_a_bundle_name_cannot_lead_out_of_the_store(store):
    plan = store.obtain(key(bundle='../../evil', stage='/etc/passwd'), lambda: DATA).plan
    assert plan.path.parent == store.folder
    assert plan.path.resolve().parent == store.folder.resolve()


@pytest.mark.parametrize('name', ['', '.', '..', '../other', '/etc/passwd', '.hidden', 'a\0b'])
def test_names_that_lead_out_of_the_store_are_refused(store, name):
    with pytest.raises(EngineError, match='not the name of a plan'):
        store._path(name, PLAN)


def test_a_folder_that_others_may_write_to_is_refused(store, plan):
    store.folder.chmod(0o777)
    with pytest.raises(EngineError, match='chmod go-w'):
        store.obtain(KEY, never)


def test_the_folder_is_private(store, plan):
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(EngineError, match='XDG_CACHE_HOME'):
        PlanStore(tmp_path / 'file' / 'plans').obtain(KEY, never)


def test_a_full_disk_is_said_and_leaves_nothing(store, monkeypatch):
    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(EngineError, match=r'No space left on device.*make room'):
        store.obtain(KEY, lambda: DATA)
    monkeypatch.undo()
    assert files(store) == []


def test_a_build_that_fails_leaves_nothing(store):
    def fail():
        raise EngineError('no')

    with pytest.raises(EngineError, match='no'):
        store.obtain(KEY, fail)
    assert files(store) == []


def test_two_threads_build_one_plan(store):
    builds = []
    started, finish = threading.Event(), threading.Event()

    def build():
        builds.append(1)
        started.set()
        assert finish.wait(20)
        return DATA

    results = []
    threads = [threading.Thread(target=lambda: results.append(store.obtain(KEY, build)))
               for _ in range(3)]
    threads[0].start()
    assert started.wait(20)
    for thread in threads[1:]:
        thread.start()
    finish.set()
    for thread in threads:
        thread.join(20)
    assert len(builds) == 1
    assert sorted(result.built for result in results) == [False, False, True]
    assert files(store) == [KEY.name + RECORD, KEY.name + PLAN]


def test_a_plan_that_another_built_between_look_and_lock_is_used(store, monkeypatch):
    lock = store._locked

    def other_was_faster(name):
        monkeypatch.undo()
        assert PlanStore(store.folder).obtain(KEY, lambda: DATA).built
        return lock(name)

    monkeypatch.setattr(store, '_locked', other_was_faster)
    found = store.obtain(KEY, never)
    assert not found.built
    assert found.plan.data == DATA


def test_prune_removes_leftovers_and_keeps_whole_plans(store, plan):
    damaged = store.obtain(key(stage='film'), lambda: DATA).plan
    damaged.path.write_bytes(b'x')
    leftovers = [f'.{KEY.name}.plan.4242.tmp', f'.{KEY.name}.json.4242.tmp', f'.{KEY.name}.lock',
                 f'{KEY.name}.plan.damaged', 'orphan.json', 'orphan2.plan', '.orphan3.lock']
    for name in leftovers:
        (store.folder / name).write_bytes(b'')
    (store.folder / 'notes.txt').write_text('not ours')
    removed = store.prune()
    assert set(removed) == {*leftovers, damaged.path.name, damaged.path.stem + RECORD}
    assert files(store) == sorted([KEY.name + RECORD, KEY.name + PLAN, 'notes.txt'])
    assert not store.obtain(KEY, never).built


def test_prune_all_removes_every_plan(store, plan):
    assert sorted(store.prune(everything=True)) == [KEY.name + RECORD, KEY.name + PLAN]
    assert files(store) == []


def test_prune_leaves_alone_what_is_being_built(store):
    removed = []

    def build():
        removed.extend(store.prune(everything=True))
        return DATA

    assert store.obtain(KEY, build).built
    assert removed == []


def test_an_absent_folder_is_an_empty_store(store):
    assert store.verify() == []
    assert store.prune() == []


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / 'plans'
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, 1234, -1)
    else:
        monkeypatch.setattr(os, 'geteuid', lambda: 1234)
    with pytest.raises(EngineError, match='belongs to another user'):
        PlanStore(folder).write_options('model', '{}')
