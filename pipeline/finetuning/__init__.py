"""Fine-tuning: the top blocks from activations cached at the cut below them, or a whole network from its images.

With BatchNormalization in inference mode nothing below the first trainable layer changes, so its activations are the
same in every epoch, and are computed once.
"""

from pipeline.finetuning.checkpoint import FOLDER, Checkpoint, State
from pipeline.finetuning.fit import Tuned, fit
from pipeline.finetuning.models import FinetuneModels, assemble, drawn_anew

__all__ = [
    "FOLDER",
    "Checkpoint",
    "FinetuneModels",
    "State",
    "Tuned",
    "assemble",
    "drawn_anew",
    "fit",
]
