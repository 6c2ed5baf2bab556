# SPDX-License-Identifier: Apache-2.0
"""The figures of a flight."""

import json
from dataclasses import fields

from flights import landed_flight, outcome, unlucky_outcome

from blabberseg_ros.demo.recording import Flight
from blabberseg_ros.demo.report import STAGES, report, summary_table, write_report
from blabberseg_ros.heatmap import Timings


def test_the_stages_are_those_of_the_node():
    assert {f'{stage}_ms' for stage in (*STAGES, 'total')} == {
        item.name for item in fields(Timings)}


def test_a_landing_is_reported(tmp_path):
    write_report(outcome(), tmp_path / 'out' / 'report.json')
    written = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert written['success'] is True
    assert written['landed_on'] == 'paved'
    assert written['flight']['heatmap_rate_hz'] == 10.0
    assert written['flight']['frames_received'] == 200
    assert written['flight']['requests_lost'] == 1
    assert written['latency_ms']['decode'] == {'p50': 15.0, 'p99': 19.9}
    assert 90 < written['latency_ms']['round_trip']['p50'] < 110
    assert written['prompt_change']['first_mask_ms'] == 130.0
    assert written['prompt_change']['after']['positive'] == ['car park']
    assert written['cache']['image_cache_hits'] == 3
    assert written['setting']['seed'] == 7
    assert 'numpy' in written['versions']


def test_a_flight_that_did_not_land_is_no_success():
    written = report(unlucky_outcome())
    assert written['success'] is False
    assert written['landed'] is False
    assert written['headline'] == 'Did not land: no landing within 20 s'
    assert written['flight']['heatmaps_unsuccessful'] == len(landed_flight().answers)


def test_nothing_recorded_is_reported_without_figures():
    written = report(outcome(Flight(problem='the camera ended', broken=True)))
    assert written['latency_ms']['decode'] == {'p50': None, 'p99': None}
    assert written['flight']['threshold_p50'] is None
    json.dumps(written)


def test_the_table_counts_landings_on_safe_ground():
    table = summary_table([outcome(), unlucky_outcome()])
    assert '| 7 | Landed on paved: safe | 20.0 |' in table
    assert table.endswith('1 of 2 landed on safe ground.')
