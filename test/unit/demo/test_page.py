# SPDX-License-Identifier: Apache-2.0
"""The page: whole, well-formed, self-contained, and true to the record."""

import json
import re
from html.parser import HTMLParser

import pytest
from flights import landed_flight, outcome, unlucky_outcome

from blabberseg_ros.demo.page import MOMENTS, key_moments, page
from blabberseg_ros.demo.recording import Flight
from blabberseg_ros.demo.scoring import Score

VOID = {'meta', 'img', 'input', 'link', 'br', 'line', 'circle', 'polyline', 'polygon'}
SECTIONS = {'views', 'map', 'charts', 'latency', 'prompts', 'details'}


class Checker(HTMLParser):
    """Collects what the page holds and complains about tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.svgs, self.text = [], [], [], 0, []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values['id']] if 'id' in values else []
        self.links += [values[name] for name in ('src', 'href') if name in values]
        self.svgs += tag == 'svg'
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f'</{tag}> closes nothing'
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ('script', 'style'):
            self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    return checker


def text_of(html: str) -> str:
    return ' '.join(' '.join(check(html).text).split())


@pytest.mark.parametrize('make', [
    outcome, unlucky_outcome, lambda: outcome(Flight(problem='the camera ended', broken=True))],
    ids=['landed', 'not landed', 'nothing came back'])
def test_the_page_is_whole_and_well_formed(make):
    checker = check(page(make()))
    assert set(checker.ids) >= SECTIONS
    assert 'never for flight' in ' '.join(checker.text)


def test_the_page_needs_no_other_file():
    html = page(outcome())
    assert all(link.startswith('data:') for link in check(html).links)
    assert not re.search(r'https?://(?!www\.w3\.org)', html)
    assert '@import' not in html


def test_the_page_is_small():
    assert len(page(outcome())) < 5_000_000


def test_every_moment_is_there_with_its_three_pictures():
    html = page(outcome())
    data = re.search(r'id="moments">(.*?)</script>', html, re.DOTALL).group(1)
    moments = json.loads(data)
    assert len(moments) == MOMENTS
    for moment in moments:
        assert moment['camera'].startswith('data:image/jpeg')
        assert moment['probability'].startswith('data:image/jpeg')
        assert moment['mask'].startswith('data:image/png')
        assert moment['threshold'] == '0.60'
    assert {moment['asked'] for moment in moments} == {'first set', 'changed'}


def test_moments_right_after_events_are_among_the_key_moments():
    times = [moment.time_s for moment in key_moments(landed_flight())]
    assert times == sorted(times)
    assert any(10.0 <= time_s < 10.5 for time_s in times)
    assert times[0] == 0.0


def test_the_headline_tells_the_outcome():
    assert 'Landed on paved: safe' in text_of(page(outcome())).replace('  ', ' ')
    unsafe = outcome(landed_flight(), Score('building', False, {'building': 1.0}))
    assert 'Landed on building: not safe' in text_of(page(unsafe))
    unlucky = text_of(page(unlucky_outcome()))
    assert 'Did not land' in unlucky
    assert 'no landing within 20 s' in unlucky


def test_prompts_and_problems_are_text_not_markup():
    html = page(outcome())
    assert 'grass <lawn>' not in re.sub(r'<script.*?</script>', '', html, flags=re.DOTALL)
    assert 'grass <lawn>' in text_of(html)
    broken = page(outcome(Flight(problem='<script>alert(1)</script>')))
    assert '<script>alert' not in broken


def test_charts_have_axes_units_and_legends():
    html = page(outcome())
    assert check(html).svgs == 7  # three charts, wide and narrow, and the path on the map
    for text in ('ms', 'probability', 'time in s', 'image encoder', 'request to answer',
                 'prompts changed', 'touchdown', 'floor 0.3'):
        assert text in html


def test_the_mask_cannot_end_the_script_that_carries_it():
    data = re.search(r'id="moments">(.*?)</script>', page(outcome()), re.DOTALL).group(1)
    assert '</' not in data
