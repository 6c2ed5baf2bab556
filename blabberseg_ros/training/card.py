# SPDX-License-Identifier: Apache-2.0
"""The model card of the demonstration bundle, made from measured figures."""

from typing import Any

_HEAD = """# {name}

**For demonstration, never for flight.** This small CLIPSeg has only ever seen a procedural world.
It shows how the software works; on real ground it is often wrong.

- Architecture: CLIPSeg ({variant}), image tower {vision_width} wide with {vision_layers} blocks,
  text tower {text_width} wide with {text_layers} blocks, decoder {reduce_dim} wide.
- Trained from scratch by `blabberseg train-demo` on {worlds} worlds of `blabberseg_ros.sim`,
  seed {seed}, {steps} updates of {batch_size} images. No photograph and no published weights went
  into it. Weights: Apache-2.0, as the code.
- Language: it knows the {words} English words in `vocabulary.txt` and no others. A word that it
  never saw means nothing to it, and the answer's message names it.
"""
_SAFETY = """
## Safe and unsafe ground

DOVESEI's thirteen default prompts, no blur, a pixel is safe above a probability of {threshold:.3f}
(chosen on the validation worlds). Test worlds have seeds of their own; the held-out family has a
layout and textures that training never saw. Real frames are hand-labelled, averaged within a video
first; there the figures are a report, not a promise.

| views | number | IoU safe | IoU unsafe |
|---|---|---|---|
"""
_OBEDIENCE = """
## Does it obey its prompts?

One prompt a class; one class alone is moved from positive to negative. Columns: mean probability
on that class's pixels before and after, and the share of its safe pixels that turn unsafe; the
last column is the worst of three phrases that training never showed.

| class | prompt | before | after | flipped | unseen phrases, flipped |
|---|---|---|---|---|---|
"""
_VIEWS = {'validation': 'validation worlds', 'test': 'test worlds, known families',
          'held_out': 'test worlds, held-out family', 'real': 'real frames'}


def write_card(name: str, config: dict[str, Any], words: int,
               metrics: dict[str, Any] | None) -> str:
    """Return the text of README.md.

    Args:
        name: of the bundle.
        config: of the training run, as nested mappings.
        words: number of words in the vocabulary.
        metrics: what `judging.judge` measured; None: not measured yet.
    """
    model, optimiser = config['model'], config['optimiser']
    text = _HEAD.format(
        name=name, variant=f'rd{model["reduce_dim"]}, {model["head"]} head', words=words,
        worlds=config['worlds']['skip'] + config['worlds']['train'], seed=config['seed'],
        steps=config['earlier_steps'] + optimiser['steps'],
        batch_size=optimiser['batch_size'],
        **{key: model[key] for key in ('vision_width', 'vision_layers', 'text_width',
                                       'text_layers', 'reduce_dim')})
    if metrics is None:
        return text + '\nNot measured yet: run `blabberseg evaluate-demo`.\n'
    return text + tables(metrics)


def with_tables(card: str, metrics: dict[str, Any]) -> str:
    """Return a card with its figures replaced by others."""
    head = card.split(_SAFETY.split('\n')[1])[0].split('\nNot measured yet')[0]
    return head.rstrip('\n') + '\n' + tables(metrics)


def tables(metrics: dict[str, Any]) -> str:
    """Return the measured figures as Markdown."""
    text = _SAFETY.format(threshold=metrics['threshold'])
    for key, title in _VIEWS.items():
        if key in metrics['safety']:
            score = metrics['safety'][key]
            text += (f'| {title} | {score["views"]} | {score["safe_iou"]:.3f} '
                     f'| {score["unsafe_iou"]:.3f} |\n')
    text += _OBEDIENCE
    for score in metrics['obedience']:
        unseen = [other['flipped'] for other in metrics['unseen_phrases']
                  if other['name'] == score['name']]
        text += (f'| {score["name"]} | {score["phrase"]} | {score["before"]:.2f} '
                 f'| {score["after"]:.2f} | {100 * score["flipped"]:.1f} % '
                 f'| {100 * min(unseen, default=0.0):.1f} % |\n')
    return text + f'\nMeasured with {metrics["measured_with"]}.\n'
