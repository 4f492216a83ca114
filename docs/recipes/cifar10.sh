#!/bin/sh
# CIFAR-10, as .npz or by its built-in name: pictures of 32 px, enlarged to 224.
# The lesson: heads 256 and 512-128 on frozen DenseNet121, 88.5 % on val; at 32 px 80 to 83 %.
set -eu

# features of the pictures enlarged to 224 px
tlpipe extract "$1"
# the lesson: a hidden layer of 256
tlpipe train-head --head mlp256
# the lesson: two hidden layers, 512 and 128
tlpipe train-head --head mlp512-128
# the top block fine-tuned as well, which the lesson left open
tlpipe finetune --blocks conv5 --epochs 3
# features at the pictures' own 32 px
tlpipe extract "$1" --image-size 32
# the lesson at 32 px
tlpipe train-head --head mlp512-128
# two blocks and the mirror image
tlpipe extract "$1" --endpoint conv4+conv5 --views 1 --augment flip
# the best frozen: mean over image and mirror image, label smoothing
tlpipe train-head --head mlp512-128 --test-views 1 --label-smoothing 0.1 --calibrate
# the same at 256 px
tlpipe extract "$1" --image-size 256 --endpoint conv4+conv5 --views 1 --augment flip
# the same head on it
tlpipe train-head --head mlp512-128 --test-views 1 --label-smoothing 0.1 --calibrate
