# SPDX-License-Identifier: Apache-2.0
"""The model card of the demonstration bundle, made from measured figures."""

from collections.abc import Sequence
from typing import Any

from blabberseg_ros.training.config import TrainConfig, worlds_needed

_HEAD = """# {name}

**For demonstration, never for flight.** This small {title} has only ever seen a procedural world.
It shows how the software works; on real ground it is often wrong.

- Architecture: {title}, {architecture}.
- Trained {start} by `blabberseg train-demo` on {worlds} worlds of
  `blabberseg_ros.sim`, seed {seed}, {steps} updates of {batch_size} images.
  No photograph and no published weights went into it. Weights: Apache-2.0, as the code.
- Language: {language}.
"""
_SAFETY_TITLE = '## Safe and unsafe ground'
_SAFETY = """
{title}

{prompts}.
No blur; a pixel is safe above a probability of {threshold:.3f} (chosen on the validation worlds).
Test worlds have seeds of their own; the held-out family has a layout and textures that training
never saw. Real frames are hand-labelled, averaged within a video first; there the figures are a
report, not a promise.

| views | number | IoU safe | IoU unsafe |
|---|---|---|---|
"""
_DEFAULT_PROMPTS = "DOVESEI's thirteen default prompts"
_AS_CLASSES = f'{_DEFAULT_PROMPTS}, read as the classes that they name'
_OBEDIENCE = """
## Does it obey its prompts?

One prompt a class; one class alone is moved from positive to negative. Columns: mean probability
on that class's pixels before and after, and the share of its safe pixels that turn unsafe. Safe
means above {service}, the service's default, or above {chosen}, chosen on the validation worlds.
{views} views of both kinds of test worlds, from 12 to 100 m; pixels at borders and of thin things
count as all others.{unseen}

"""
_UNSEEN = ' "Unseen" is the worst of three phrases that training never showed.'
_VIEWS = {'validation': 'validation worlds', 'test': 'test worlds, known families',
          'held_out': 'test worlds, held-out family', 'real': 'real frames'}


def write_card(name: str, title: str, architecture: str, language: str, config: TrainConfig,
               metrics: dict[str, Any] | None) -> str:
    """Return the text of README.md.

    Args:
        name: of the bundle.
        title: of the family.
        architecture: sizes of the network, half a sentence.
        language: what can be asked for, a sentence or two without the last stop.
        config: of the training run.
        metrics: what `judging.judge` measured; None: not measured yet.
    """
    worlds = worlds_needed(config.optimiser.steps - 1, config)
    if config.earlier_steps:
        worlds += config.worlds.skip
    earlier = f'{config.earlier_steps} updates and then ' if config.earlier_steps else ''
    steps = f'{earlier}{config.optimiser.steps}'
    start = f'from the towers of `{config.tower}`' if config.tower else 'from scratch'
    text = _HEAD.format(
        name=name, title=title, architecture=architecture, language=language,
        start=start, worlds=worlds, seed=config.seed, steps=steps,
        batch_size=config.optimiser.batch_size)
    if metrics is None:
        return text + '\nNot measured yet: run `blabberseg evaluate-demo`.\n'
    return text + tables(metrics)


def with_tables(card: str, metrics: dict[str, Any]) -> str:
    """Return a card with its figures replaced by others."""
    head = card.split(_SAFETY_TITLE)[0].split('\nNot measured yet')[0]
    return head.rstrip('\n') + '\n' + tables(metrics)


def tables(metrics: dict[str, Any]) -> str:
    """Return the measured figures as Markdown."""
    words = bool(metrics['unseen_phrases'])
    text = _SAFETY.format(title=_SAFETY_TITLE, threshold=metrics['threshold'],
                          prompts=_DEFAULT_PROMPTS if words else _AS_CLASSES)
    for key, title in _VIEWS.items():
        if key in metrics['safety']:
            score = metrics['safety'][key]
            text += (f'| {title} | {score["views"]} | {score["safe_iou"]:.3f} '
                     f'| {score["unsafe_iou"]:.3f} |\n')
    if metrics['obedience']:
        text += _obedience(metrics, words)
    return text + f'\nMeasured with {metrics["measured_with"]}.\n'


def _obedience(metrics: dict[str, Any], words: bool) -> str:
    """Return the table of obedience; with unseen phrases if the model reads words."""
    scores = metrics['obedience']
    limits = [f'{flip["threshold"]:.2f}' for flip in scores[0]['flips']]
    columns = ['class', 'prompt', 'before', 'after']
    for limit in limits:
        columns += [f'{limit}: flipped', *(['unseen'] if words else [])]
    text = _OBEDIENCE.format(service=limits[0], chosen=limits[1],
                             views=metrics['obedience_views'],
                             unseen=_UNSEEN if words else '')
    text += _row(columns) + '|' + '---|' * len(columns) + '\n'
    for score in scores:
        unseen = [other['flips'] for other in metrics['unseen_phrases']
                  if other['name'] == score['name']]
        cells = [score['name'], score['phrase'], f'{score["before"]:.2f}', f'{score["after"]:.2f}']
        for number, flip in enumerate(score['flips']):
            cells.append(f'{100 * flip["flipped"]:.1f} %')
            if words:
                worst = min((flips[number]['flipped'] for flips in unseen), default=0.0)
                cells.append(f'{100 * worst:.1f} %')
        text += _row(cells)
    return text


def _row(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |\n'
