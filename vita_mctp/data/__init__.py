"""From tokenised samples to training rows: shards on disk, mixtures of sets, packing."""
