"""The training loop, its ranks, and their launch over Spark's TorchDistributor."""
