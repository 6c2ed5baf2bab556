# SPDX-License-Identifier: Apache-2.0
"""Where published weights are to be had, with their checksums and licences, by family.

Apart from the importers, so that it can be read where torch, which those need, is not installed.
"""

SOURCES = {
    'clipseg': """\
CLIPSeg
  https://huggingface.co/CIDAS/clipseg-rd64-refined          best masks, whole model, 603 MB
      model.safetensors  SHA-256 d00ca85d6b859f9d07b7cfb8ef26fe9771cb275b34c9368f2ecf603139307f55
  https://github.com/timojl/clipseg (weights/, by Git LFS)   decoders, 1 to 5 MB
      rd64-uni-refined.pth  SHA-1 8a3824a4f447096af25a00f9ac80b50e13cace63
      rd64-uni.pth  SHA-256 13845f6cee4d54ca46f62ee19dd354822094a26e0efccc64e606be93d6a7e26f
      rd16-uni.pth  SHA-256 61545cdb3a28f99d33d457c64a9721ade835a9dfbda604c459de6831c504167a
  OpenAI's CLIP ViT-B/16, 351 MB (other trainings of the same shape do not fit the decoders)
      https://openaipublic.azureedge.net/clip/models/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt
      ViT-B-16.pt  SHA-256 5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f
  Licences: the hub page is tagged apache-2.0, while the authors say that their licence covers the
  code alone and the weights are released for research purposes (timojl/clipseg, issue 35). Ask
  them before any other use. CLIP: MIT (openai/CLIP).
""",
    'lseg': """\
LSeg (isl-org/lang-seg, README: links to Google Drive; no checksums are published)
  demo_e200.ckpt  ViT-L/16, any labels: bare words do best    Drive
                  1FTuHY1xPUkM-5gaDtMfgCl3D0gR89WV7
  fss_l16.ckpt    ViT-L/16, two labels: others and one class  Drive
                  1Nplkc_JsHIS55d--K2vonOOC3HrppzYy
  fss_rn101.ckpt  ResNet101, labels as of fss_l16             Drive
                  1UIj49Wp1mAopPub5M6O4WW-Z79VB1bhw
  Licence: the code is MIT; nothing is said of the weights. The text tower is OpenAI's CLIP (MIT).
""",
    'fpseg': """\
FPSeg
  https://github.com/JanKrabbe/FPSeg (weights/)    33 Cityscapes classes, 41 MB; git hash-object:
      fpseg_mobilesam.pth            e4168e65e1735f1a5cde60b3b7b6568a4672ec89
      fpseg_mobilesam_distilled.pth  8ffa8a7ced7614fa3c0af66627c522c445c1bf58
  https://github.com/ChaoningZhang/MobileSAM (weights/)    no classes: give --classes and tune them
      mobile_sam.pt                  7ef2d090979fd9853adf17b7a99c8b94a1c5a6a7
  https://github.com/facebookresearch/segment-anything     likewise: sam_vit_b_01ec64.pth,
      sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth
  Licences: Apache-2.0, all of them.
""",
    'segformer': """\
Segformer
  https://huggingface.co/nvidia   segformer-b0-finetuned-ade-512-512 and others, b0 to b5, ADE20K
                                  and Cityscapes
  https://huggingface.co/nickmuchi/segformer-b4-finetuned-segments-sidewalk   35 street labels
  Their checksums could not be looked up where this was written.
  Licences: NVIDIA's weights are for research and evaluation only (NVIDIA Source Code License);
  read the card of every other repository.
""",
}
