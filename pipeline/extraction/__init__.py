"""From images to stored features: the plan of what is missing, the pass that computes it, and the engines."""
