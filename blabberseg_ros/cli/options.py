# SPDX-License-Identifier: Apache-2.0
"""Options that several sub-commands share."""

import argparse
from pathlib import Path

from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.engines.choose import AUTO, DEVICES
from blabberseg_ros.heatmap import ON_FAILURE, FusionOptions
from blabberseg_ros.prompts import PLACEHOLDER, PromptSet, default_prompts

# The demonstration bundle of the family.
DEFAULT_BUNDLE = AUTO
# The floor of our launch file and demo; requests over the service have none, as in DOVESEI.
DEFAULT_MIN_THRESHOLD = 0.3


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model and the engine."""
    group = parser.add_argument_group('model')
    group.add_argument('--bundle', default=DEFAULT_BUNDLE,
                       help='folder, or name of an installed bundle (default: the demonstration '
                            'bundle of the family)')
    group.add_argument('--backend', default=AUTO, choices=(AUTO, *FAMILIES),
                       help='model family (default: that of the bundle)')
    group.add_argument('--engine', default=AUTO,
                       help='engine to use (default: the fastest found)')
    group.add_argument('--device', default=AUTO, choices=DEVICES)


def add_class_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a family whose classes are decoded one after the other (FPSeg)."""
    group = parser.add_argument_group('classes (FPSeg)')
    group.add_argument('--classes-file', type=Path, action='append', default=[], metavar='FILE',
                       help='classes besides those of the bundle; may be given several times')
    group.add_argument('--decode-budget', type=float, metavar='MS',
                       help='time that the classes of a frame may take; those that are left are '
                            'named and count as unsafe (default: no limit)')


def add_prompt_options(
        parser: argparse.ArgumentParser,
        default: str = "DOVESEI's ten negative and three positive ones unless given") -> None:
    """Add the options that say what is safe and what is not."""
    group = parser.add_argument_group('prompts', default)
    group.add_argument('--prompts', type=Path, metavar='FILE',
                       help='YAML file with the keys positive, negative and template')
    group.add_argument('--positive', action='append', metavar='TEXT',
                       help='safe ground; may be given several times')
    group.add_argument('--negative', action='append', metavar='TEXT',
                       help='unsafe ground; may be given several times')
    group.add_argument('--template', metavar='TEXT',
                       help='sentence with one {} that each prompt is put into')


def add_fusion_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that turn probabilities into a mask."""
    default = FusionOptions()
    group = parser.add_argument_group('mask')
    group.add_argument('--safety-threshold', type=float, default=default.safety_threshold,
                       metavar='P', help='start of the search (default: %(default)s)')
    group.add_argument('--dynamic-threshold', type=float, default=default.dynamic_threshold,
                       metavar='F', help='fraction of the image that shall be safe; 0 switches '
                                         'the search off (default: %(default)s)')
    group.add_argument('--min-threshold', type=float, default=DEFAULT_MIN_THRESHOLD, metavar='P',
                       help='floor of the search; 0 is none, as in DOVESEI (default: %(default)s)')
    group.add_argument('--blur', type=int, default=default.blur_kernel_size, metavar='PX',
                       help='side of the box blur (default: %(default)s)')
    group.add_argument('--on-failure', choices=ON_FAILURE, default=default.on_failure,
                       help='mask when nothing is safe enough: black, or as DOVESEI almost white')


def gives_prompts(arguments: argparse.Namespace) -> bool:
    """Return whether the options name any prompt."""
    return bool(arguments.prompts or arguments.positive or arguments.negative)


def prompts_from(arguments: argparse.Namespace) -> PromptSet:
    """Return the prompt set that the options ask for.

    Raises:
        PromptError: it cannot be used.
    """
    base = PromptSet.from_yaml(arguments.prompts) if arguments.prompts else default_prompts()
    own = bool(arguments.positive or arguments.negative)
    template = arguments.template or (PLACEHOLDER if own and not arguments.prompts
                                      else base.template)
    return PromptSet(tuple(arguments.positive or base.positive),
                     tuple(arguments.negative or base.negative), template)


def fusion_from(arguments: argparse.Namespace) -> FusionOptions:
    """Return the fusion that the options ask for.

    Raises:
        ParameterError: a value is out of its bounds.
    """
    return FusionOptions(arguments.safety_threshold, arguments.blur, arguments.dynamic_threshold,
                         arguments.min_threshold, arguments.on_failure)
