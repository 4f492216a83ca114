"""From a folder of pictures to a fine-tuned model in one file: python from_folder_to_model.py PICTURES."""

import sys
from typing import Any

from pipeline import evaluate, export, extract, finetune, predict, train_head


def main(pictures: str, epochs: int = 3, **options: Any) -> str:
    """Extract, train a head, fine-tune the top block below it, rate both, export the model, and label the pictures."""
    features = extract(pictures, **options)
    head = train_head(features, "logreg")
    tuned = finetune(head_run=head, epochs=epochs)
    rated = evaluate(tuned, against=head)
    print(rated.to_frame()[["images", "used_to", "accuracy", "low", "high"]])
    model = export(tuned, "keras")
    print(predict(tuned, pictures).to_frame().head())
    return str(model.path)


if __name__ == "__main__":
    print(main(sys.argv[1]))
