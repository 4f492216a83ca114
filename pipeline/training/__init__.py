"""What heads and fine-tuning share: passes over the images, optimizers, losses, and when to stop."""
