"""How a name becomes an opened model (`opening.open_model`): hub, speech.json, weights, conversion."""
