#!/bin/sh
# What each lever adds: options that lessons and forums recommend, each alone, on the same pictures and from the same head.
set -eu

# features
tlpipe extract "$1"
# the head alone
tlpipe train-head --head mlp512-128
# conv5, without options
tlpipe finetune --blocks conv5 --epochs 3
# label smoothing
tlpipe finetune --blocks conv5 --epochs 3 --label-smoothing 0.1
# the average of the weights over the steps
tlpipe finetune --blocks conv5 --epochs 3 --ema 0.99
# mixup
tlpipe finetune --blocks conv5 --epochs 3 --mixup 0.2
# a lower rate below the head
tlpipe finetune --blocks conv5 --epochs 3 --backbone-lr-scale 0.3
# the mirror image, cached at the cut
tlpipe finetune --blocks conv5 --epochs 3 --views 1 --augment flip
# two crops with mirror images, cached at the cut
tlpipe finetune --blocks conv5 --epochs 3 --views 2 --augment flip,crop
# conv4 and conv5, one epoch
tlpipe finetune --blocks conv4,conv5 --epochs 1
# the same, a lower rate for each block down
tlpipe finetune --blocks conv4,conv5 --epochs 1 --layer-decay 0.5
