#!/bin/sh
# What is gained by training more of the network, and by each lever that lessons and forums recommend: each alone, on the
# same pictures and from the same head.
set -eu

# features
tlpipe extract "$1"
# the head alone
tlpipe train-head --head mlp512-128
# conv5, 3 epochs
tlpipe finetune --blocks conv5 --epochs 3 --batch-size 64 --learning-rate 0.0005
# the same, label smoothing
tlpipe finetune --blocks conv5 --epochs 3 --batch-size 64 --learning-rate 0.0005 --label-smoothing 0.1
# the same, the average of the weights over the steps
tlpipe finetune --blocks conv5 --epochs 3 --batch-size 64 --learning-rate 0.0005 --ema 0.995
# the same, a mirrored crop of each picture cached at the cut
tlpipe finetune --blocks conv5 --epochs 3 --batch-size 64 --learning-rate 0.0005 --views 1 --augment flip,crop
# conv4 and conv5, 1 epoch
tlpipe finetune --blocks conv4,conv5 --epochs 1 --batch-size 64 --learning-rate 0.0005
# the same, a lower rate for each block down
tlpipe finetune --blocks conv4,conv5 --epochs 1 --batch-size 64 --learning-rate 0.0005 --layer-decay 0.5
# the same, a mirrored crop of each picture cached at the cut
tlpipe finetune --blocks conv4,conv5 --epochs 1 --batch-size 64 --learning-rate 0.0005 --views 1 --augment flip,crop
# the whole network, 1 epoch
tlpipe finetune --blocks all --epochs 1 --batch-size 64 --learning-rate 0.0005
