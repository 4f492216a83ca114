#!/bin/sh
# Aliens and predators: a folder train/{alien,predator}, validation/{alien,predator} of web pictures.
# The lesson had DenseNet201. To use it: python docs/recipes/run.py docs/recipes/aliens.sh DATA --backbone densenet201
set -eu

# features, two augmented versions of each picture beside it, a fifth of validation as test
tlpipe extract "$1" --test-from val --test-fraction 0.2 --views 2 --augment flip,crop
# the lesson: one logit on frozen features, augmented
tlpipe train-head --head linear
# the same without augmentation
tlpipe train-head --head linear --views 0
# the best of many heads
tlpipe sweep
# logistic regression, the default
tlpipe train-head --head logreg
# the same logit, with conv5 fine-tuned
tlpipe finetune --blocks conv5 --epochs 3
# two blocks and the mirror image
tlpipe extract "$1" --test-from val --test-fraction 0.2 --endpoint conv4+conv5 --views 1 --augment flip
# logistic regression on two blocks, mean over image and mirror image
tlpipe train-head --head logreg --test-views 1
