# SPDX-License-Identifier: Apache-2.0
"""The heatmap node's parameters: one table for code, descriptors, README and YAML."""

from dataclasses import dataclass

from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.engines.choose import DEVICES
from blabberseg_ros.errors import ParameterError, PromptError
from blabberseg_ros.heatmap import MAX_BLUR_KERNEL, ON_FAILURE, FusionOptions
from blabberseg_ros.nodes.parameter_table import (
    ALWAYS,
    AT_START,
    UNCONFIGURED,
    ParameterTable,
    parameter,
)
from blabberseg_ros.prompts import (
    DEFAULT_NEGATIVE,
    DEFAULT_POSITIVE,
    DEFAULT_TEMPLATE,
    PromptSet,
)

NODE_NAME = 'generate_landing_heatmap'
STREAM_MODES = ('auto', 'always', 'off')
STAMPS = ('capture', 'now')
TRANSPORTS = ('raw', 'compressed')
PROMPT_NAMES = frozenset({'positive_prompts', 'negative_prompts', 'prompt_template'})


@dataclass(frozen=True)
class HeatmapParameters:
    """Values of all parameters.

    Raises:
        ParameterError: on construction, when a value makes no sense; bounds are checked by
            `HEATMAP_TABLE`.
    """

    bundle: str = parameter(
        'auto', 'Model: folder of a bundle, or name of an installed one; auto takes the '
        'demonstration bundle of the family (CLIPSeg, if that is auto too).',
        changeable=UNCONFIGURED)
    backend: str = parameter(
        'auto', "Model family; auto takes the bundle's, any other family than the bundle's is "
        'refused.', choices=('auto', *FAMILIES), changeable=UNCONFIGURED)
    engine: str = parameter(
        'auto', 'What runs the model; auto takes the fastest that works here. `blabberseg doctor` '
        'lists the names.', changeable=UNCONFIGURED)
    device: str = parameter(
        'auto', 'Where the model runs.', choices=DEVICES, changeable=UNCONFIGURED)
    cache_dir: str = parameter(
        '', "Folder of encoded prompts, which survive a restart; empty: the user's cache folder.",
        changeable=UNCONFIGURED)
    load_timeout_s: float = parameter(
        120.0, 'Longest time that loading a model may take, in seconds.', minimum=1.0,
        maximum=3600.0, changeable=ALWAYS)
    classes_file: str = parameter(
        '', 'FPSeg: file of classes besides those of the bundle, as `blabberseg fpseg tune` '
        'writes it; empty: none.', changeable=UNCONFIGURED)
    decode_budget_ms: float = parameter(
        0.0, 'FPSeg: time that the classes of a frame may take, in milliseconds. They are decoded '
        'in the order of the prompts, negatives first; the rest counts as unsafe and is named in '
        'the log and on /diagnostics. 0: no limit.', minimum=0.0, maximum=10000.0,
        changeable=UNCONFIGURED)
    prompts_file: str = parameter(
        '', 'YAML file with positive, negative and template. Where one is named it replaces the '
        'three prompt parameters when the node is configured.', changeable=UNCONFIGURED)
    positive_prompts: tuple[str, ...] = parameter(
        DEFAULT_POSITIVE, 'What is safe to land on. Commas stay inside a prompt.',
        changeable=ALWAYS)
    negative_prompts: tuple[str, ...] = parameter(
        DEFAULT_NEGATIVE, 'What to avoid.', changeable=ALWAYS)
    prompt_template: str = parameter(
        DEFAULT_TEMPLATE, 'Sentence around each prompt, which replaces its one {}.',
        changeable=ALWAYS)
    safety_threshold: float = parameter(
        0.8, 'Stream: probability from which the search for a threshold starts.', minimum=0.001,
        maximum=1.0, changeable=ALWAYS)
    blur_kernel_size: int = parameter(
        15, "Stream: side of the box blur in pixels at the model's resolution; 1: none.",
        minimum=1, maximum=MAX_BLUR_KERNEL, changeable=ALWAYS)
    dynamic_threshold: float = parameter(
        0.1, 'Stream: fraction of the image that shall be safe; the threshold is lowered until '
        'it is. 0: never lowered.', minimum=0.0, maximum=1.0, changeable=ALWAYS)
    min_threshold: float = parameter(
        0.0, 'Floor of the lowered threshold, for the stream and for requests; 0: none, as in '
        'DOVESEI.', minimum=0.0, maximum=1.0, changeable=ALWAYS)
    on_failure: str = parameter(
        'unsafe', "Mask when no threshold is found: unsafe is all black, dovesei is DOVESEI's "
        'almost white one.', choices=ON_FAILURE, changeable=ALWAYS)
    stamp: str = parameter(
        'capture', "Stamp of the results: the image's own, or the time of the answer (DOVESEI).",
        choices=STAMPS, changeable=ALWAYS)
    stream: str = parameter(
        'auto', 'Work on the frames of img_topic: while somebody subscribes to an output, always, '
        'or never.', choices=STREAM_MODES, changeable=ALWAYS)
    img_topic: str = parameter(
        '/carla/flying_sensor/rgb_down/image', 'Camera image of the stream.',
        changeable=AT_START)
    image_transport: str = parameter(
        'raw', 'compressed subscribes to img_topic/compressed (JPEG or PNG) instead.',
        choices=TRANSPORTS, changeable=AT_START)
    max_rate_hz: float = parameter(
        0.0, 'Stream: frames worked on per second at most; 0: as many as the device can.',
        minimum=0.0, maximum=1000.0, changeable=ALWAYS)
    max_frame_age_s: float = parameter(
        0.0, 'Stream: drop frames whose stamp is older, in seconds; 0: off.', minimum=0.0,
        maximum=3600.0, changeable=ALWAYS)
    max_future_s: float = parameter(
        0.0, 'Stream: drop frames whose stamp is further ahead, in seconds; 0: off.', minimum=0.0,
        maximum=3600.0, changeable=ALWAYS)
    max_megapixels: float = parameter(
        64.0, 'Refuse images with more million pixels.', minimum=0.001, maximum=64.0,
        changeable=ALWAYS)
    request_timeout_s: float = parameter(
        4.0, 'A request that is not answered by then gets success=false and a black mask.',
        minimum=0.1, maximum=60.0, changeable=ALWAYS)
    diagnostics_period_s: float = parameter(
        1.0, 'Time between two messages on /diagnostics, in seconds.', minimum=0.1, maximum=60.0,
        changeable=AT_START)
    autostart: bool = parameter(
        True, 'Configure and activate at the start, and keep trying if the model cannot be '
        'loaded. false: wait for a lifecycle manager.', changeable=AT_START)

    def __post_init__(self) -> None:
        """Refuse what is within its bounds and still makes no sense."""
        if not self.bundle.strip() or not self.img_topic.strip():
            raise ParameterError('bundle and img_topic must not be empty')
        try:
            _ = self.prompts
        except PromptError as error:
            raise ParameterError(str(error)) from error

    @property
    def prompts(self) -> PromptSet:
        """Return the three prompt parameters as a set."""
        return PromptSet(self.positive_prompts, self.negative_prompts, self.prompt_template)

    @property
    def min_period_s(self) -> float:
        """Return the shortest time between two frames, 0 for no limit."""
        return 1.0 / self.max_rate_hz if self.max_rate_hz else 0.0

    @property
    def fusion(self) -> FusionOptions:
        """Return the options of the stream."""
        return FusionOptions(self.safety_threshold, self.blur_kernel_size,
                             self.dynamic_threshold, self.min_threshold, self.on_failure)


HEATMAP_TABLE = ParameterTable(HeatmapParameters)


def markdown_table() -> str:
    """Return the README's table of parameters."""
    return HEATMAP_TABLE.markdown()
