"""How a name becomes an opened model: hub, released layouts, speech.json, weights, conversion."""
