#!/bin/sh
# Small pictures at their own 32 px, where an epoch of anything is soon over: frozen against trained, and what augmented
# versions cost when they are cached at the cut, and when new ones are made in each epoch.
# The lesson: DenseNet121 on CIFAR-10 at 32 px gave 80 to 83 % on val.
set -eu

# features at 32 px
tlpipe extract "$1" --image-size 32
# the head alone
tlpipe train-head --head mlp512-128
# conv5 trained, 3 epochs
tlpipe finetune --blocks conv5 --epochs 3 --batch-size 64
# the same with an augmented version of each picture, cached at the cut
tlpipe finetune --blocks conv5 --epochs 3 --batch-size 64 --views 1 --augment flip,crop
# the same with new versions in each epoch
tlpipe finetune --blocks conv5 --epochs 3 --batch-size 64 --augment flip,crop
# conv4 and conv5 trained, 3 epochs
tlpipe finetune --blocks conv4,conv5 --epochs 3 --batch-size 64 --learning-rate 0.0005
# everything trained, 1 epoch
tlpipe finetune --blocks all --epochs 1 --batch-size 64 --learning-rate 0.0005
