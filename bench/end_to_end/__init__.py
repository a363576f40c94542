# SPDX-License-Identifier: Apache-2.0
"""One training step (towers, loss, optimizer) beside open_clip's own model, loss and optimizer.

    python -m bench.end_to_end --models ViT-B-32 --batch 32 64 --precision fp32 bf16
    python -m bench.end_to_end --text RESULT [RESULT ...]      # only docs/end-to-end.md of result files

Both sides have the same initial weights, see the same pictures and captions, decay the same parameters at the same
rates and compute in the same precision. The peer is what open_clip's trainer makes of its defaults: `create_model`,
`ClipLoss` under its autocast, `torch.optim.AdamW` with gains and biases not decayed, the clamp of logit_scale; a second
row gives it torch's fused AdamW, so that no default of an optimizer wins this, and with --compile both are compiled.
Ours is what this library's trainer makes of the same: `create_model`, its optimizer, the loss outside autocast,
captions packed inside the step. Reading data, gradient norms and communication are on neither side.

First the losses are compared, step by step, over a run (`losses.py`); speed is measured only where they agree.

What leaving out what is not read can give (forward, per pair, 2 FLOP a multiply-add; a backward is twice that). A
token of a block of width d costs 24 d^2 FLOP, so 12 blocks cost 170 MFLOP in ViT-B's image tower (d = 768) and 75.5 in
its text tower (d = 512). open_clip's ViT-B-32 computes 50 and 77 tokens: 8.49 + 5.81 GFLOP, and 0.23 for patches and
0.24 for attention: 14.78. Here the image tower's last block computes queries, projection and MLP for the class token
alone (0.59 less), and captions have 14.9 tokens (1.06 with all but attention across captions): 9.29. The step of batch
16 that `work.py` counts has 27.6 GFLOP a pair for 44.1. So with products of equal efficiency a step is 1.60 times
faster and no more. What is measured beyond that comes from what is no product (norms, GELU, casts, copies, attention's
softmax: a padded step does them for 77 tokens too), from the patches (one product, no convolution) and from the
optimizer.
"""
