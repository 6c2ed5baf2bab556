# SPDX-License-Identifier: Apache-2.0
"""What is replaced: DOVESEI's own way of asking CLIPSeg, and BlabberSeg's.

Both run the weights of the bundle that is measured, on the same threads, in inference mode and
warm. Written from their published behaviour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from blabberseg_ros.bundle import TOKENIZER, Bundle
from blabberseg_ros.errors import EngineError
from blabberseg_ros.heatmap import THRESHOLD_STEPS, FusionOptions
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.load_clipseg import load_clipseg
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.text import END_ID, Tokenizer

# CLIP's depth; CLIPSeg looks at the first ten blocks, and transformers runs all of them.
_CLIP_VISION_LAYERS = 12
_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
_BILINEAR = 2  # PIL's number for it
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class HostAnswer:
    """Mask uint8 [H, W] and probability float32 [H, W], both on the host."""

    mask: np.ndarray
    probability: np.ndarray


class Baseline(Protocol):
    """A program that answers as ours does."""

    def answer(self, image: np.ndarray, prompts: PromptSet) -> HostAnswer:
        """Segment one frame: uint8 [H, W, 3], RGB."""


class Dovesei:
    """DOVESEI: the frame once for each prompt through transformers' CLIPSeg, text every time.

    Softmax, sum, blur, resize and the threshold loop run on the host.
    """

    def __init__(self, bundle: Bundle, device: str, precision: str) -> None:
        """Convert the weights for transformers and load them.

        Args:
            bundle: the model.
            device: `cpu` or `cuda`.
            precision: `fp32`, as DOVESEI runs it, or `fp16`.

        Raises:
            EngineError: transformers is not installed.
        """
        self._device = device
        self._dtype = _DTYPES[precision]
        self._model = hugging_face_model(load_clipseg(bundle)).to(device, self._dtype)
        self._tokenizer = Tokenizer.from_file(bundle.folder / TOKENIZER)
        self._processor = _image_processor(ClipSegConfig.from_dict(bundle.manifest.architecture))

    def answer(self, image: np.ndarray, prompts: PromptSet) -> HostAnswer:
        """Segment one frame: uint8 [H, W, 3], RGB."""
        texts = prompts.texts
        ids, mask = self._tokens(texts)
        pixels = self._processor([image] * len(texts), return_tensors='pt')['pixel_values']
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device),
                pixel_values=pixels.to(self._device, self._dtype)).logits
        return _on_host(logits.float().cpu(), prompts, image.shape[:2])

    def _tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and attention mask, padded to the longest as its processor does."""
        ids = torch.from_numpy(np.stack([self._tokenizer.encode(text).ids for text in texts]))
        lengths = ids.argmax(dim=-1) + 1
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return torch.where(mask, ids[:, :mask.shape[1]].long(), END_ID), mask.long()


class BlabbersegOriginal:
    """BlabberSeg: FiLM pairs cached, ten blocks once a frame, the decoder once for each prompt.

    Each decoder run repeats the three projections and copies its map to the host, as in its
    published scripts. Their cut to eight bits before the threshold is left out, so that the
    answers can be compared.
    """

    def __init__(self, bundle: Bundle, device: str, precision: str) -> None:
        """Load the network.

        Args:
            bundle: the model.
            device: `cpu` or `cuda`.
            precision: `fp32`, or `fp16` as BlabberSeg runs on a GPU.
        """
        model = load_clipseg(bundle)
        config = model.config
        self._tokenizer = Tokenizer.from_file(bundle.folder / TOKENIZER)
        self._device, self._dtype = device, _DTYPES[precision]
        self._text_model = model
        self._pairs: dict[tuple[str, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._model = (model if (device, precision) == ('cpu', 'fp32')
                       else load_clipseg(bundle).to(device, self._dtype))
        self._side = config.input_size_px
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(config.mean).view(shape)
        self._std = torch.tensor(config.std).view(shape)

    def answer(self, image: np.ndarray, prompts: PromptSet) -> HostAnswer:
        """Segment one frame: uint8 [H, W, 3], RGB."""
        from PIL import Image

        mul, add = self._film(prompts.texts)
        small = Image.fromarray(image).resize((self._side, self._side), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
        pixels = ((pixels - self._mean) / self._std).to(self._device, self._dtype)
        maps = []
        with torch.inference_mode():
            activations = self._model.activations(pixels)
            for index in range(len(mul)):
                code = self._model.code_of(activations)[0]
                maps.append(self._model.decode(
                    code, mul[index:index + 1], add[index:index + 1]).float().cpu())
        return _on_host(torch.cat(maps), prompts, image.shape[:2])

    def _film(self, texts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        if texts not in self._pairs:
            ids = torch.from_numpy(np.stack([self._tokenizer.encode(text).ids for text in texts]))
            with torch.inference_mode():
                pair = self._text_model.film(self._text_model.encode_text(ids))
            mul, add = (value.to(self._device, self._dtype) for value in pair)
            self._pairs[texts] = (mul, add)
        return self._pairs[texts]


def hugging_face_model(model: ClipSeg) -> Any:
    """Return transformers' CLIPSegForImageSegmentation with the weights of our network.

    Its two last image blocks, whose output segmentation never uses, get transformers' own initial
    weights; running them costs the same.

    Raises:
        EngineError: transformers is not installed, or it has other weights than are known here.
    """
    try:
        from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    except ImportError as error:
        raise EngineError(f'transformers cannot be imported ({error}); pip install '
                          '"transformers>=4.57,<6" pillow torchvision') from error
    config = model.config
    theirs = CLIPSegForImageSegmentation(CLIPSegConfig(
        vision_config={
            'hidden_size': config.vision_width, 'intermediate_size': config.vision_mlp,
            'num_attention_heads': config.vision_heads, 'patch_size': config.patch_size_px,
            'num_hidden_layers': max(_CLIP_VISION_LAYERS, config.vision_layers),
            'image_size': config.pretrain_grid * config.patch_size_px},
        text_config={
            'hidden_size': config.text_width, 'intermediate_size': config.text_mlp,
            'num_attention_heads': config.text_heads, 'num_hidden_layers': config.text_layers,
            'vocab_size': config.vocab_size, 'max_position_embeddings': config.context_length,
            'bos_token_id': 0, 'eos_token_id': 2},
        projection_dim=config.embed_dim, reduce_dim=config.reduce_dim,
        extract_layers=list(config.extract), decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_ffn,
        use_complex_transposed_convolution=config.head == 'complex'))
    found = theirs.load_state_dict(hugging_face_state(model.state_dict()), strict=False)
    unused = ('clip.visual_projection', 'clip.vision_model.post_layernorm', 'clip.logit_scale',
              *(f'clip.vision_model.encoder.layers.{index}.'
                for index in range(config.vision_layers, _CLIP_VISION_LAYERS)))
    missing = [key for key in found.missing_keys
               if not key.startswith(unused) and not key.endswith('position_ids')]
    if missing or found.unexpected_keys:
        raise EngineError(f'this version of transformers has another CLIPSeg: missing {missing}, '
                          f'unexpected {found.unexpected_keys}')
    return theirs.requires_grad_(False).eval()


def hugging_face_state(state: State) -> State:
    """Rename our weights to transformers' names, split q, k and v, transpose the projections."""
    result: State = {}
    for key, value in state.items():
        name = _their_name(key)
        if '.in_proj_' in name:
            for part, third in zip('qkv', value.chunk(3), strict=True):
                result[name.replace('in_proj_', f'{part}_proj.')] = third
        elif name == 'clip.text_projection.weight':
            result[name] = value.T.contiguous()
        else:
            result[name] = value
    return result


_VISION, _TEXT = 'clip.vision_model', 'clip.text_model'
_EXACT = {
    'visual.class_embedding': f'{_VISION}.embeddings.class_embedding',
    'visual.conv1.weight': f'{_VISION}.embeddings.patch_embedding.weight',
    'visual.positional_embedding': f'{_VISION}.embeddings.position_embedding.weight',
    'token_embedding.weight': f'{_TEXT}.embeddings.token_embedding.weight',
    'positional_embedding': f'{_TEXT}.embeddings.position_embedding.weight',
    'text_projection': 'clip.text_projection.weight'}
_PREFIXES = (
    ('visual.ln_pre.', f'{_VISION}.pre_layrnorm.'),
    ('visual.transformer.resblocks.', f'{_VISION}.encoder.layers.'),
    ('transformer.resblocks.', f'{_TEXT}.encoder.layers.'),
    ('ln_final.', f'{_TEXT}.final_layer_norm.'),
    ('blocks.', 'decoder.layers.'),
    ('trans_conv.', 'decoder.transposed_convolution.'),
    ('film_', 'decoder.film_'),
    ('reduces.', 'decoder.reduces.'))
_TOWER_PARTS = (('.attn.', '.self_attn.'), ('.ln_1.', '.layer_norm1.'),
                ('.ln_2.', '.layer_norm2.'), ('.mlp.c_fc.', '.mlp.fc1.'),
                ('.mlp.c_proj.', '.mlp.fc2.'))
_DECODER_PARTS = (('.linear1.', '.mlp.fc1.'), ('.linear2.', '.mlp.fc2.'),
                  ('.norm1.', '.layer_norm1.'), ('.norm2.', '.layer_norm2.'))


def _their_name(key: str) -> str:
    if key in _EXACT:
        return _EXACT[key]
    for ours, theirs in _PREFIXES:
        if key.startswith(ours):
            name = theirs + key.removeprefix(ours)
            for our_part, their_part in _DECODER_PARTS if ours == 'blocks.' else _TOWER_PARTS:
                name = name.replace(our_part, their_part)
            return name
    raise EngineError(f'the weight {key} has no name in transformers')


def _image_processor(config: ClipSegConfig) -> Any:
    """Return the image processor of the published CLIPSeg, the one that resizes with PIL."""
    try:
        # Since transformers 5 the plain name is another one, which resizes on tensors.
        module = import_module('transformers.models.vit.image_processing_pil_vit')
        processor = module.ViTImageProcessorPil
    except ImportError:
        processor = import_module('transformers').ViTImageProcessor
    side = config.input_size_px
    return processor(
        do_resize=True, size={'height': side, 'width': side}, resample=_BILINEAR, do_rescale=True,
        do_normalize=True, image_mean=list(config.mean), image_std=list(config.std))


def _on_host(logits: torch.Tensor, prompts: PromptSet, size: tuple[int, ...]) -> HostAnswer:
    """Fuse and threshold as DOVESEI does: logits float32 [P, S, S] on the host."""
    fusion = FusionOptions()
    logits = logits.reshape(len(prompts), *logits.shape[-2:])
    positive = logits.softmax(dim=0)[-len(prompts.positive):].sum(dim=0).numpy()
    blurred = cv2.blur(positive, (fusion.blur_kernel_size, fusion.blur_kernel_size))
    probability = cv2.resize(blurred, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    step = fusion.safety_threshold / THRESHOLD_STEPS
    threshold = fusion.safety_threshold
    mask = probability > threshold
    for index in range(THRESHOLD_STEPS + 1):
        if np.count_nonzero(mask) / mask.size >= fusion.dynamic_threshold:
            break
        threshold = fusion.safety_threshold - step * index
        mask = probability > threshold
    return HostAnswer(mask.astype(np.uint8) * np.uint8(255), probability)
