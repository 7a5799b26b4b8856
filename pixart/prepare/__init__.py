"""Encodes a collection of images into the folder that the trainers read.

The prepared folder, format "pixart-prepared-1"
-----------------------------------------------
`bucket-{h}x{w}-{number:05d}.safetensors`, h and w the sides of the latents, n examples each, any number a bucket:

| tensor         | shape, type          | what                                                                        |
|----------------|----------------------|-----------------------------------------------------------------------------|
| `latents`      | (n, C, h, w) fp16    | mean of the autoencoder's posterior, already times the family's latent scale |
| `spread`       | (n, C, h, w) fp16    | its standard deviation, same scale; absent for an autoencoder without one   |
| `features`     | (n, L, width) fp16   | text features, zero at padding                                              |
| `mask`         | (n, L) uint8         | 1 for a real token                                                          |
| `size`         | (n, 2) fp32          | height and width in pixels that the model is told                           |
| `aspect`       | (n,) fp32            | height / width that the model is told                                       |
| `hints`        | (n, C, h, w) fp16    | latent of the edge map like `latents`; only where edges were prepared       |
| `hints_spread` | (n, C, h, w) fp16    | like `spread`                                                               |
| `noise`        | (n, C, h, w) fp16    | what the teacher of a pair started from; in pairs only (`pixart pairs`)     |

An example is drawn as latents + spread * noise. L is that of the longest caption of a file, and batches are as wide as
their own longest one. Header: `format`, `latent_space` (sd, sdxl), `caption_tokens`, where captions were cut, `edges`
(none, canny, soft, hed), `keys`, a JSON list that names the source of every example, and `marks`, one of digests of
what each was made of, by which a change is noticed. All files of a folder agree in these but `caption_tokens`,
`keys` and `marks`.
`null.safetensors`: `features` (l, width) and `mask` (l,) that stand for "no caption".

Captions without images (`prompts`) are stored in the same way, with latents of no channels.
"""
