"""Trackers: TensorBoard, Weights & Biases, MLflow, trackio, or an object of your own, fed from the events of a run."""
