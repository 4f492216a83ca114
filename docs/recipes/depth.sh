#!/bin/sh
# How deep to cut, and how much to train: the lesson that vgg16.sh repeats, with the blocks of DenseNet121.
set -eu

# features after two blocks
tlpipe extract "$1" --endpoint conv3
# the top layers on two blocks
tlpipe train-head --head mlp512-128
# features after three blocks
tlpipe extract "$1" --endpoint conv4
# the top layers on three blocks
tlpipe train-head --head mlp512-128
# features of the whole network
tlpipe extract "$1"
# the top layers on the whole network
tlpipe train-head --head mlp512-128
# everything trained, at a small rate
tlpipe finetune --blocks all --learning-rate 0.00003 --epochs 1
# everything from scratch, for as many steps
tlpipe finetune --blocks all --weights random --epochs 1
