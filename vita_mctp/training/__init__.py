"""Training: recipes, what each stage trains, optimizer groups, a resumable loop, and the nano model's data."""
