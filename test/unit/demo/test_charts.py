# SPDX-License-Identifier: Apache-2.0
"""Charts: round axes, stacked areas, everything inside the frame, no texts on each other."""

import re

import pytest

from blabberseg_ros.demo.charts import Chart, Mark, Series, draw, nice_step


@pytest.mark.parametrize(('span', 'count', 'step'), [
    (100, 4, 50), (1, 4, 0.5), (30, 8, 5), (7.3, 4, 2), (0.83, 4, 0.5), (0, 4, 5e-10)])
def test_axis_marks_are_round(span, count, step):
    assert nice_step(span, count) == pytest.approx(step)


def chart(**changes) -> Chart:
    values = {'title': 'a & b', 'unit': 'ms', 'series': [
        Series('lower', [(0, 10), (5, 20)], 'red', 'area'),
        Series('upper', [(0, 30), (5, 30)], 'blue', 'area')],
        'marks': [], 'end_s': 5.0, **changes}
    return Chart(**values)


def numbers(html: str) -> list[float]:
    points = re.findall(r'points="([^"]*)"', html)
    return [float(value) for text in points for pair in text.split() for value in pair.split(',')]


def test_areas_are_stacked():
    polygons = re.findall(r'points="([^"]*)" fill="(\w+)"', draw(chart()))
    lower, upper = polygons[0][0].split(), polygons[1][0].split()
    assert lower[:2] == list(reversed(upper[2:]))
    heights = [float(point.split(',')[1]) for point in upper[:2]]
    assert heights[1] < heights[0] < float(lower[0].split(',')[1])


def test_everything_stays_inside():
    wild = [Series('wild', [(-3, -50), (99, 1e9), (2, float('nan'))], 'red')]
    html = draw(chart(series=wild, top=100.0))
    assert all(0 <= value <= 960 for value in numbers(html))
    assert 'nan' not in html


def test_nothing_to_draw_still_gives_axes():
    html = draw(chart(series=[Series('none', [], 'red', kind) for kind in ('area', 'line')],
                      end_s=0.0))
    assert html.count('<svg') == 2
    assert 'time in s' in html


def test_texts_of_marks_do_not_cover_each_other():
    marks = [Mark(2.0, 'prompts changed'), Mark(2.1, 'touchdown'), Mark(5.0, 'end')]
    html = draw(chart(marks=marks))
    assert html.count('class="mark"') == 6
    assert 'touchdown' not in html
    assert 'prompts changed' in html
    assert '>end<' in html


def test_texts_are_escaped():
    assert 'a &amp; b' in draw(chart())
