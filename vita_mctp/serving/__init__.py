"""Ways to reach the model from outside: the page."""
