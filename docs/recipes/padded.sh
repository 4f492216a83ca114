#!/bin/sh
# Ten classes of small pictures, brought to 160 px with a border instead of being stretched.
# The lesson: DenseNet121, bilinear, max pooling, BatchNormalization, 50 units, dropout 0.5, then conv5 unfrozen: 64 %.
set -eu

# features as in the lesson: padded, bilinear, max pooling
tlpipe extract "$1" --image-size 160 --resize pad --interpolation bilinear --pooling max
# the lesson: BatchNormalization, 50 units, dropout 0.5, patience 5, at most 30 epochs
tlpipe train-head --head bn-mlp50 --dropout 0.5 --schedule none --patience 5 --epochs 30
# the lesson: then conv5 unfrozen
tlpipe finetune --blocks conv5 --epochs 3
# the same with bicubic
tlpipe extract "$1" --image-size 160 --resize pad --pooling max
# the lesson's head on it
tlpipe train-head --head bn-mlp50 --dropout 0.5 --schedule none --patience 5 --epochs 30
# two blocks, means, and 224 px
tlpipe extract "$1" --resize pad --endpoint conv4+conv5
# the best of many heads on it
tlpipe sweep
