# SPDX-License-Identifier: Apache-2.0
"""Rows, ratios, the CSV file and the plot made from it."""

import xml.etree.ElementTree as ElementTree

import pytest

from blabberseg_ros.bench.plot import bars_of, write_plot
from blabberseg_ros.bench.records import (
    NEW_FRAME,
    SAME_FRAME,
    STAGE,
    Run,
    Times,
    make_row,
    read_rows,
    with_ratios,
    write_rows,
)
from blabberseg_ros.errors import ParameterError

RUN = Run('2030-01-02T03:04:05+00:00', 'abc1234', 2, 'model', 'python 3.12')


def row(engine, p50_ms, scenario=NEW_FRAME, precision='fp32', device='CPU', prompts=13,
        size_px=(640, 480)):
    return make_row(device, engine, precision, scenario, Times.of([p50_ms]), prompts=prompts,
                    size_px=size_px)


def test_percentiles():
    times = Times.of([float(value) for value in range(1, 102)])
    assert (times.n, times.p50_ms, times.p90_ms, times.p99_ms) == (101, 51, 91, 100)


def test_ratios_refer_to_dovesei_in_fp32_on_the_same_device_and_case():
    rows = with_ratios([
        row('dovesei', 1000), row('dovesei', 500, precision='fp16'), row('ours', 50),
        row('ours', 10, SAME_FRAME), row('ours', 5, STAGE), row('ours', 7, prompts=3),
        row('ours', 7, size_px=(352, 352)), row('ours', 7, device='GPU')])
    assert [item.ratio_to_dovesei for item in rows] == [1, 2, 20, 100, None, None, None, None]


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / 'deep' / 'results.csv'
    write_rows(path, RUN, with_ratios([row('dovesei', 1000), row('ours', 50)]))
    first, second = read_rows(path)
    assert (first['commit'], first['threads'], first['versions']) == ('abc1234', '2',
                                                                      'python 3.12')
    assert (second['engine'], second['p50_ms'], second['ratio_to_dovesei']) == (
        'ours', '50.0', '20.0')
    assert (second['max_dp'], second['frames_per_s']) == ('', '20.0')


@pytest.mark.parametrize('content', ['', 'a,b\n1,2\n', None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / 'results.csv'
    if content is not None:
        path.write_text(content)
    with pytest.raises(ParameterError, match='results'):
        read_rows(path)


def test_the_plot_shows_the_main_case_slowest_first(tmp_path):
    path = tmp_path / 'results.csv'
    write_rows(path, RUN, with_ratios([
        row('ours <&>', 50), row('ours <&>', 10, SAME_FRAME), row('ours <&>', 3, STAGE),
        row('dovesei', 1000), row('ours <&>', 20, prompts=3)]))
    bars = bars_of(read_rows(path))
    assert [(bar.time_ms, bar.ours) for bar in bars] == [(1000, False), (50, True), (10, True)]
    assert bars[1].note == ', 20x'
    svg = write_plot(path)
    root = ElementTree.parse(svg).getroot()
    texts = [element.text for element in root.iter('{http://www.w3.org/2000/svg}text')]
    assert 'CPU, 2030-01-02' in texts
    assert 'ours <&> fp32, new frame' in texts
    widths = [float(element.get('width'))
              for element in root.iter('{http://www.w3.org/2000/svg}rect')]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 3
